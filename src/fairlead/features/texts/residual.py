"""A dictionary that knows a label: levels of latents, and beside them latents of what those leave unexplained of it.

    1. Levels are fitted on all texts, without a label.
    2. Of rows whose labels may be seen, y is explained by the lasso's columns of them; what is left is regressed on the
       embedding (ridge, penalty by leave-one-out).
    3. Space is stretched along that direction until it holds `SHARE` of the variance, and levels are fitted there: they
       part texts by subject *and* by what the label still asks for. They read plain embeddings like all others.

The labels it saw say of its latents what they were made to say. So nobody selects, weighs or tests them on those rows
(`methods.texts` keeps them apart); a stated error rate on the others holds, and the tests show that it fails on these.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fairlead.core.errors import FairleadError
from fairlead.dictionaries.base import SparseDictionary
from fairlead.features.texts import dictionary
from fairlead.features.texts.dictionary import Levels, Progress
from fairlead.features.texts.select import design, lasso, target

Array = Any
SHARE = 0.5  # of the stretched variance, along the label
EXPLAINED = 20  # latents that explain the label before its rest is looked at
PENALTIES = tuple(10.0**p for p in range(-3, 4))  # in units of the mean eigenvalue


def fit(
    x: Array, seen: Array, y: Array, seed: int = 0, *, pairs: bool = False, covariates: Array | None = None,
    n_features: int | None = None, progress: Progress | None = None,
) -> Levels:  # fmt: skip
    """x [n, d], unit rows: of pairs, all first texts, then all second ones. `seen` are the rows (of pairs: pairs) whose
    labels y [len(seen)] or [len(seen), c] may be looked at, with `covariates` [len(seen), q]."""
    rows = np.asarray(x, dtype=np.float32)
    seen = np.asarray(seen)
    if len(seen) < dictionary.LEAST:
        raise FairleadError("too few labels to fit a label-aware dictionary on",
                            expected=f"at least {dictionary.LEAST}", got=str(len(seen)))  # fmt: skip
    plain = dictionary.fit("levels", rows, seed, n_features=n_features, progress=progress)
    z = dictionary.encode(plain, rows)
    half = len(rows) // 2
    shown = z[seen] - z[half + seen] if pairs else z[seen]
    given = rows[seen] - rows[half + seen] if pairs else rows[seen]
    left = _unexplained(shown, target(y, pairs=pairs), covariates, pairs)
    stretch = _stretch(rows, directions(given, left, covariates, pairs=pairs))
    if stretch is None:
        return replace(plain, kind="residual")
    aware = dictionary.fit("levels", rows @ stretch, seed, n_features=n_features, progress=progress)
    return Levels("residual", (*plain.parts, *(_through(part, stretch) for part in aware.parts)))


def directions(x: Array, y: Array, covariates: Array | None = None, *, pairs: bool = False) -> Array:
    """[d, c] of unit length: ridge of y [n, c] on x [n, d], each penalty tried by leave-one-out in closed form; a
    column of zeros where y says nothing."""
    basis = design(np.zeros((len(x), 1)), covariates, pairs=pairs)
    inputs, wanted = basis.project(np.asarray(x, dtype=np.float64)), basis.project(np.asarray(y, dtype=np.float64))
    u, s, v = np.linalg.svd(inputs, full_matrices=False)
    along, best = u.T @ wanted, None
    for penalty in np.array(PENALTIES) * float((s**2).mean() or 1.0):
        shrunk = s**2 / (s**2 + penalty)
        leverage = (u**2 @ shrunk) + (basis.basis**2).sum(1)
        out = (wanted - u @ (shrunk[:, None] * along)) / np.maximum(1 - leverage, 1e-6)[:, None]
        if best is None or float((out**2).sum()) < best[0]:
            best = float((out**2).sum()), v.T @ ((s / (s**2 + penalty))[:, None] * along)
    assert best is not None
    length = np.linalg.norm(best[1], axis=0)
    return best[1] / np.where(length > 1e-12, length, np.inf)


def _unexplained(z: Any, y: Array, covariates: Array | None, pairs: bool) -> Array:
    """What the lasso's columns of z leave of y [n, c], by least squares."""
    x = design(z, covariates, pairs=pairs)
    out = np.zeros(y.shape)
    for c in range(y.shape[1]):
        chosen = lasso(x, y[:, c], min(EXPLAINED, len(y) // 10)).chosen
        rest = x.project(y[:, c])
        if chosen:
            columns = np.column_stack([x.dense(j) for j in chosen])
            rest = rest - columns @ np.linalg.lstsq(columns, rest, rcond=None)[0]
        out[:, c] = rest
    return out


def _stretch(rows: Array, along: Array) -> Array | None:
    """A [d, d], symmetric and invertible: what lies along the directions grows to `SHARE` of the variance of
    rows @ A. None where there is no direction."""
    u, s, _ = np.linalg.svd(along, full_matrices=False)
    u = u[:, s > 1e-6 * max(float(s.max(initial=0.0)), 1e-300)] if s.any() else u[:, :0]
    if not u.shape[1]:
        return None
    centred = rows - rows.mean(0)
    inside = float(((centred @ u) ** 2).sum())
    outside = max(float((centred**2).sum()) - inside, 0.0)
    if inside <= 1e-12 * max(outside, 1e-300):
        return None
    factor = max(1.0, float(np.sqrt(SHARE / (1 - SHARE) * outside / inside)))
    return (np.eye(rows.shape[1]) + (factor - 1) * (u @ u.T)).astype(np.float32)


def _through(part: SparseDictionary, stretch: Array) -> SparseDictionary:
    """`part` of x @ A as a dictionary of x: the same pre-activations, and its reconstruction brought back."""
    a = torch.from_numpy(stretch)
    back = torch.linalg.inv(a.double()).float()
    return part.replace(
        name=f"{part.name}-aware", W_enc=(a @ part.W_enc).contiguous(), W_dec=(part.W_dec @ back).contiguous(),
        b_dec=part.b_dec @ back,
    )  # fmt: skip
