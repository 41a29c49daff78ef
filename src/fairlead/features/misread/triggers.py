"""When to annotate, without the answer: a latent that fires at a word, alone or beside a second one anywhere in the
text.

A word that can be misread is not misread everywhere: what makes it so is the word and its company. So a trigger is a
latent above a level, or two of them at once; the first says at which word. Pairs are found by counting: of the wrong
and of the right items, how many have both. They are taken one by one, each for what the ones before it left, while
enough of what they fire on was answered wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.features.misread.outcome import Outcome
from fairlead.features.misread.peaks import Peaks

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Condition:
    """A latent's largest activation on the words of a prompt is above `above`."""

    latent: int
    above: float


@dataclass(frozen=True)
class Trigger:
    """Fires on a prompt where `at`, and `beside` where it is given, hold. `at` says which word is annotated."""

    at: Condition
    beside: Condition | None = None

    @property
    def latents(self) -> tuple[int, ...]:
        return (self.at.latent,) if self.beside is None else (self.at.latent, self.beside.latent)

    def turned(self) -> Trigger:
        """The same pair, with the word of the other latent."""
        return self if self.beside is None else Trigger(self.beside, self.at)

    def fires(self, peaks: Peaks) -> Mask:
        """[N] bool."""
        found: Mask = peaks.column(self.at.latent) > self.at.above
        if self.beside is not None:
            found &= peaks.column(self.beside.latent) > self.beside.above
        return found


@dataclass(frozen=True)
class Caught:
    """A trigger and what it fired on when it was found: so many wrong and right items, in so many clusters."""

    trigger: Trigger
    wrong: int
    right: int
    clusters: int

    @property
    def precision(self) -> float:
        return self.wrong / max(self.wrong + self.right, 1)


@dataclass(frozen=True)
class Search:
    """How triggers are looked for. `precision` is the least share of wrong items among those that fire, `support` the
    least number of wrong items that one adds, in `clusters` clusters; `q` is the false discovery rate of the outcome
    contrast, which a latent must pass to be a trigger by itself. A pair need not: what two latents say together neither
    may say alone, and there are too many pairs to correct for. It has to show its cause, and to hold on items that
    nobody searched. `levels` are shares of a latent's largest activation; `pool` bounds the latents that pairs are made
    of, `most` the triggers."""

    precision: float = 0.8
    support: int = 6
    clusters: int = 2
    q: float = 0.1
    levels: tuple[float, ...] = (0.0, 0.25, 0.5)
    pool: int = 600
    most: int = 48
    pairs: bool = True
    pair_gain: float = 1.15  # a pair is taken over a single latent where it catches this much more


def search(
    peaks: Peaks, wrong: Sequence[bool], clusters: Sequence[str], contrast: Outcome, settings: Search | None = None
) -> list[Caught]:
    """Triggers for the wrong items, best first; empty where nothing tells them from the right ones."""
    settings = settings or Search()
    y = np.asarray(wrong, dtype=bool)
    names = np.asarray(clusters, dtype=object).astype(str)
    if not y.any() or y.all():
        return []
    columns, conditions, passed = _columns(peaks, y, contrast, settings)
    if not conditions:
        return []
    bad, good = columns[y].astype(np.float32), columns[~y].astype(np.float32)
    fp = good.T @ good
    owner = np.array([c.latent for c in conditions])
    single = np.eye(len(conditions), dtype=bool)
    allowed = (single & passed[:, None]) | ((owner[:, None] != owner[None, :]) & settings.pairs)
    whole = bad.T @ bad  # among all wrong items, for the precision
    precise = allowed & (whole >= settings.precision * (whole + fp)) & (whole >= settings.support)
    precise &= _clusters(bad, names[y]) >= settings.clusters
    fires = columns.mean(0)
    general = 0.25 * (fires[:, None] + fires[None, :])  # of latents that catch the same, those that fire on more texts
    open_ = np.ones(len(bad), dtype=bool)
    found: list[Caught] = []
    while len(found) < settings.most and open_.any():
        left = bad[open_]
        gain = np.where(precise, left.T @ left, 0.0)
        worth = np.where(single, gain * settings.pair_gain, gain) + general - 1e-3 * fp
        i, j = np.unravel_index(int(np.argmax(np.where(gain >= settings.support, worth, -1.0))), gain.shape)
        if gain[i, j] < settings.support:
            break
        trigger = Trigger(conditions[i]) if i == j else Trigger(conditions[i], conditions[j])
        fired = columns[:, i] & columns[:, j]
        held = set(names[fired & y].tolist())
        precise[i, j] = precise[j, i] = False
        if len(held) < settings.clusters:
            continue
        found.append(Caught(trigger, int((fired & y).sum()), int((fired & ~y).sum()), len(held)))
        open_ &= ~fired[y]
    return found


def _clusters(columns: Any, names: Any) -> Any:
    """[k, k]: in how many clusters both conditions hold of some item each, which bounds those of the pair."""
    found, where = np.unique(names, return_inverse=True)
    held = np.zeros((len(found), columns.shape[1]), dtype=np.float32)
    np.maximum.at(held, where, columns)
    return held.T @ held


def _columns(
    peaks: Peaks, wrong: Mask, contrast: Outcome, settings: Search
) -> tuple[Mask, list[Condition], npt.NDArray[np.bool_]]:
    """(whether each condition holds of each item [N, k], the conditions, whether their latent passed the contrast)."""
    up = (contrast.adjusted > 0.5) & (contrast.q <= settings.q)
    passed = np.flatnonzero(up)[np.argsort(contrast.p[up], kind="stable")][: settings.pool // 2]
    share = np.bincount(peaks.values[np.flatnonzero(wrong)].indices, minlength=peaks.values.shape[1]) / wrong.sum()
    least = max(settings.support, 1) / wrong.sum()
    usual = [int(i) for i in np.argsort(-share, kind="stable") if least <= share[i]]
    rare_first = sorted(usual, key=lambda i: float(contrast.fires[i]))  # words before what is in every text
    more = [i for i in rare_first if i not in set(passed.tolist())][: settings.pool - len(passed)]
    found, conditions, ok = [], [], []
    for latent in [*passed.tolist(), *(more if settings.pairs else [])]:
        column = peaks.column(latent)
        seen: set[bytes] = set()
        for level in settings.levels:
            mask: Any = column > level * column.max()
            if mask.tobytes() not in seen:
                seen.add(mask.tobytes())
                found.append(mask)
                conditions.append(Condition(int(latent), float(level * column.max())))
                ok.append(bool(up[latent]))
    held = np.stack(found, axis=1) if found else np.zeros((len(peaks), 0), dtype=bool)
    return held, conditions, np.asarray(ok, dtype=bool)
