"""What each hypothesis does to the label on test rows: alone, beside the others, raw, and adjusted for covariates.

Arrays in, numbers out; nothing is fitted that predicts. x [n, k] says where each hypothesis holds (1 or 0; of a pair
first minus second, so −1, 0 or 1), y [n] the label. An effect is a slope of least squares: of a true-or-false label the
change in its probability, of a number the change in the number, of a pair the change in the probability of being
higher. Intervals: cluster-robust (CR1), Student's t with clusters − 1 degrees of freedom. p: the cluster-robust score
test, whose variance is the one under no effect, so that rare hypotheses cannot look certain (with m clusters where it
holds, the statistic is about √m at most), against Student's t with m − 1 degrees of freedom. Holm holds the chance of
any false finding, Benjamini–Hochberg their share.

Sources: Cameron and Miller, A practitioner's guide to cluster-robust inference (2015); Freedman and Lane (1983) for
permuting residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats as sps
from numpy.typing import NDArray

from fairlead.judge.stats import benjamini_hochberg, holm, t_quantile

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

ALPHA, POWER = 0.05, 0.80
RARE = 10  # clusters where a hypothesis must hold, and where it must not, to be tested at all
PERMUTATIONS = 200


@dataclass(frozen=True)
class Effect:
    """A slope with its 95 % interval and p. `label` names the class of a multiclass label that it speaks of."""

    value: float
    lo: float
    hi: float
    se: float
    p: float
    label: str = ""


@dataclass(frozen=True)
class Tested:
    """One hypothesis on test. `prevalence` is the share of rows where it holds (of pairs: where one has it and the
    other has not). `decides` is the adjusted effect where there are covariates, else the raw one; `p_holm` and `q`
    correct its p over all hypotheses. `detectable` is the smallest effect found with 80 % power at the corrected
    level. `note` says why an effect is missing."""

    prevalence: float
    holds: int
    clusters: int
    raw: Effect | None
    adjusted: Effect | None
    joint: Effect | None
    p_holm: float
    q: float
    detectable: float | None
    found: bool
    note: str = ""

    @property
    def decides(self) -> Effect | None:
        return self.adjusted or self.raw


@dataclass(frozen=True)
class Tests:
    """All hypotheses of one arm. `found` counts those with a Holm-corrected p below `alpha`. With the labels permuted
    `permutations` times, `null_mean` are found on average and `null_any` is the share of times that any is;
    `null_p` is the share of times that as many are found as here."""

    n: int
    clusters: int
    tested: tuple[Tested, ...]
    found: int
    alpha: float
    detectable: float | None
    permutations: int
    null_mean: float
    null_any: float
    null_p: float


def test_all(
    x: Sequence[Sequence[float]] | Floats,
    y: Sequence[Any] | Floats,
    clusters: Sequence[Hashable],
    *,
    covariates: Sequence[Sequence[float]] | Floats | None = None,
    classes: Sequence[str] = (),
    alpha: float = ALPHA,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Tests:
    """Tests k hypotheses on n rows. With `classes` the label is a name: each hypothesis then has one effect a class;
    the largest in standard errors is shown, at a level corrected for the choice among classes."""
    fired = _matrix(x, len(y))
    codes, k = codes_of(clusters)
    target = _targets(y, classes)
    other = None if covariates is None or not len(covariates) else _matrix(covariates, len(y))
    if other is not None and other.shape[1] == 0:
        other = None
    plain, both = _basis(None, len(fired)), _basis(other, len(fired))
    sizes = [_held(fired[:, j], codes) for j in range(fired.shape[1])]
    rare = np.array([unlike < RARE for _, unlike, _ in sizes], dtype=bool)
    unlike = [u for _, u, _ in sizes]
    raw = _effects(fired, target, plain, codes, k, classes, unlike)
    adjusted = _effects(fired, target, both, codes, k, classes, unlike) if other is not None else [None] * len(raw)
    joint = _joint(fired, target, both, codes, k, classes, unlike)
    deciding = [a if other is not None else r for a, r in zip(adjusted, raw, strict=True)]
    usable = [e is not None and not r for e, r in zip(deciding, rare, strict=True)]
    p = {j: e.p if e is not None and u else 1.0 for j, (e, u) in enumerate(zip(deciding, usable, strict=True))}
    corrected, q = holm(p), benjamini_hochberg(p)
    level = alpha / max(1, len(p) * max(1, len(classes)))
    reach = float(sps.norm.ppf(1 - level / 2) + sps.norm.ppf(POWER))
    tested = tuple(
        Tested(
            prevalence=float((fired[:, j] != 0).mean()),
            holds=int((fired[:, j] != 0).sum()),
            clusters=sizes[j][0],
            raw=None if rare[j] else raw[j],
            adjusted=None if rare[j] else adjusted[j],
            joint=joint[j],
            p_holm=corrected[j],
            q=q[j],
            detectable=reach * e.se if e is not None and not rare[j] else None,
            found=usable[j] and corrected[j] < alpha,
            note=_note(sizes[j], e is None),
        )
        for j, e in enumerate(deciding)
    )
    found = sum(t.found for t in tested)
    null = _null(fired, target, both, codes, k, unlike, len(classes), alpha, permutations, seed)
    reaches = [t.detectable for t in tested if t.detectable is not None]
    return Tests(
        n=len(fired), clusters=k, tested=tested, found=found, alpha=alpha,
        detectable=float(np.median(reaches)) if reaches else None, permutations=permutations,
        null_mean=float(null.mean()) if len(null) else 0.0, null_any=float((null > 0).mean()) if len(null) else 0.0,
        null_p=float((1 + (null >= max(1, found)).sum()) / (1 + len(null))),
    )  # fmt: skip


def _matrix(values: Sequence[Sequence[float]] | Floats, n: int) -> Floats:
    found: Floats = np.asarray(values, dtype=float).reshape(n, -1) if n else np.zeros((0, 0))
    if not np.isfinite(found).all():
        raise ValueError("values must be finite")
    return found


def codes_of(clusters: Sequence[Hashable]) -> tuple[Codes, int]:
    places: dict[Hashable, int] = {}
    codes = np.fromiter((places.setdefault(c, len(places)) for c in clusters), dtype=np.intp, count=len(clusters))
    return codes, len(places)


def _targets(y: Sequence[Any] | Floats, classes: Sequence[str]) -> Floats:
    """[n, 1], or one 0/1 column a class [n, c]."""
    if not classes:
        return _matrix(np.asarray(y, dtype=float)[:, None], len(y))
    names = np.asarray(y, dtype=object)
    return np.stack([(names == c).astype(float) for c in classes], axis=1)


def _basis(covariates: Floats | None, n: int) -> Floats:
    """Orthonormal columns [n, r] that span the intercept and the covariates."""
    one = np.ones((n, 1))
    full = one if covariates is None else np.hstack([one, covariates - covariates.mean(0)])
    length = np.linalg.norm(full, axis=0)
    left, size, _ = np.linalg.svd(full / np.where(length > 0, length, 1), full_matrices=False)
    kept: Floats = left[:, size > 1e-8]
    return kept


def _without(values: Floats, basis: Floats) -> Floats:
    """What is left of columns once the basis has explained what it can."""
    left: Floats = values - basis @ (basis.T @ values)
    return left


def _sums(values: Floats, codes: Codes, k: int) -> Floats:
    """[n, m] summed within clusters, [k, m]."""
    if k == len(codes):
        return values
    out = np.zeros((k, values.shape[1]))
    np.add.at(out, codes, values)
    return out


def _held(column: Floats, codes: Codes) -> tuple[int, int, float]:
    """(clusters where a hypothesis holds of some row, clusters with a row unlike most, what most rows have)."""
    values, counts = np.unique(column, return_counts=True)
    most = float(values[counts.argmax()])
    return len(np.unique(codes[column != 0])), len(np.unique(codes[column != most])), most


def _effects(
    x: Floats, y: Floats, basis: Floats, codes: Codes, k: int, classes: Sequence[str], unlike: Sequence[int]
) -> list[Effect | None]:
    """Every hypothesis alone, beside what `basis` spans."""
    left, target = _without(x, basis), _without(y, basis)
    return [_slope(left[:, j], target, codes, k, classes, basis.shape[1], unlike[j]) for j in range(x.shape[1])]


def _slope(
    x: Floats, y: Floats, codes: Codes, k: int, classes: Sequence[str], spent: int, unlike: int
) -> Effect | None:
    """The slope of y [n, c] on x [n], both without the rest; of several columns the one that stands out most."""
    square = float(x @ x)
    if square < 1e-8 * max(1, len(x)) or k < 3 + spent:
        return None
    slopes = (x @ y) / square
    residual = y - x[:, None] * slopes
    spread = _sums(x[:, None] * residual, codes, k)
    se = np.sqrt(k / (k - 1) * (spread**2).sum(0)) / square
    scores = _sums(x[:, None] * y, codes, k)
    size = np.sqrt((scores**2).sum(0))
    z = np.abs(scores.sum(0)) / np.where(size > 0, size, np.inf)
    best = int(np.argmax(z))
    p = min(1.0, float(2 * sps.t.sf(z[best], max(1, unlike - 1))) * max(1, len(classes)))
    half = t_quantile(1 - ALPHA / 2 / max(1, len(classes)), k - 1) * float(se[best])
    value = float(slopes[best])
    name = classes[best] if classes else ""
    return Effect(value, value - half, value + half, float(se[best]), p, name)


def _joint(
    x: Floats, y: Floats, basis: Floats, codes: Codes, k: int, classes: Sequence[str], unlike: Sequence[int]
) -> list[Effect | None]:
    """Every hypothesis beside all the others that are not rare."""
    kept = np.flatnonzero(np.array(unlike) >= RARE)
    out: list[Effect | None] = [None] * x.shape[1]
    if len(kept) + basis.shape[1] + 3 > k:
        return out
    for j in kept:
        rest = np.array([i for i in kept if i != j], dtype=int)
        around = _basis_of(np.hstack([basis, x[:, rest]]))
        left = _without(x[:, [j]], around)[:, 0]
        out[int(j)] = _slope(left, _without(y, around), codes, k, classes, around.shape[1], unlike[int(j)])
    return out


def _basis_of(columns: Floats) -> Floats:
    length = np.linalg.norm(columns, axis=0)
    scaled = columns / np.where(length > 0, length, 1)
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    kept = values > 1e-8
    basis: Floats = scaled @ vectors[:, kept] / np.sqrt(values[kept])
    return basis


def _note(sizes: tuple[int, int, float], missing: bool) -> str:
    held, unlike, most = sizes
    if held == 0:
        return "holds of no test row"
    if unlike < RARE and most == 0:
        return f"too rare to test: holds in {held} independent rows, {RARE} are needed"
    if unlike < RARE:
        return f"too common to test: fails in {unlike} independent rows, {RARE} are needed"
    return "the covariates already say all of it" if missing else ""


# ---- labels permuted


def _null(
    x: Floats, y: Floats, basis: Floats, codes: Codes, k: int, unlike: Sequence[int], classes: int, alpha: float,
    times: int, seed: int,
) -> NDArray[np.intp]:  # fmt: skip
    """How many hypotheses are found when the labels (less what the covariates explain) are dealt anew, cluster by
    cluster of one size, [times]."""
    left, target = _without(x, basis), _without(y, basis)
    hypotheses = x.shape[1]
    if not hypotheses or k < 3 or not times:
        return np.zeros(0, dtype=np.intp)
    rng, counts = np.random.default_rng([seed, 6]), np.zeros(times, dtype=np.intp)
    deal = _dealer(codes, k)
    rare, freedom = np.array(unlike) < RARE, np.maximum(1, np.array(unlike) - 1)
    for t in range(times):
        mixed = target[deal(rng)]
        z = np.zeros(hypotheses)
        for c in range(mixed.shape[1]):
            scores = _sums(left * mixed[:, [c]], codes, k)
            size = np.sqrt((scores**2).sum(0))
            z = np.maximum(z, np.abs(scores.sum(0)) / np.where(size > 0, size, np.inf))
        p = np.minimum(1.0, 2 * sps.t.sf(z, freedom) * max(1, classes))
        counts[t] = _rejected(np.where(rare, 1.0, p), alpha)
    return counts


def _rejected(p: Floats, alpha: float) -> int:
    """How many Holm rejects."""
    ranked = np.sort(p)
    fails = np.flatnonzero(ranked * np.arange(len(p), 0, -1) >= alpha)
    return int(fails[0]) if len(fails) else len(p)


def _dealer(codes: Codes, k: int) -> Callable[[np.random.Generator], Codes]:
    """Permutations of rows that keep clusters together: a cluster's labels go to another cluster of its size."""
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes, minlength=k)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    blocks = []
    for size in np.unique(sizes):
        of = np.flatnonzero(sizes == size)
        blocks.append(order[starts[of][:, None] + np.arange(size)])  # [clusters of this size, size]

    def deal(rng: np.random.Generator) -> Codes:
        out = np.arange(len(codes))
        for block in blocks:
            out[block] = block[rng.permutation(len(block))]
        return out

    return deal
