"""When to annotate, without the answer: a latent that fires at a word, alone or beside a second one anywhere in the
text.

A word that can be misread is not misread everywhere: what makes it so is the word and its company. So a trigger is a
latent above a level, or two of them at once; the first says at which word. Words that stand in enough wrong items are
taken first, each by itself: of the items with that word, which latent is the furthest apart between those answered
wrongly and those answered rightly? What is left is searched by counting, over all words at once: of the wrong and of
the right items, how many have both latents of a pair. Triggers are taken one by one, each for what the ones before it
left, while enough of what they fire on was answered wrongly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from fairlead.features.misread.outcome import Outcome
from fairlead.features.misread.peaks import Peaks

Mask = npt.NDArray[np.bool_]
USUAL = 0.2  # of all items: a word in more of them names nothing
ALTERNATIVES = 2  # pairs of one word
CHANCE = 1e-3  # of catching as many wrong items by lot, for a pair of a word
NEAREST = 12  # latents that are tried beside a word
SHARED = 1.0  # what another word that a latent serves is worth, in such units
SPREAD = 0.1  # of a latent's largest activation


@dataclass(frozen=True)
class Condition:
    """A latent's largest activation on the words of a prompt is above `above`."""

    latent: int
    above: float


@dataclass(frozen=True)
class Trigger:
    """Fires on a prompt where `at`, and `beside` where it is given, hold. `at` says which word is annotated; with
    `word` (lower case) it has to be that one."""

    at: Condition
    beside: Condition | None = None
    word: str = ""

    @property
    def latents(self) -> tuple[int, ...]:
        return (self.at.latent,) if self.beside is None else (self.at.latent, self.beside.latent)

    def turned(self) -> Trigger:
        """The same pair, with the word of the other latent, whichever that is."""
        return self if self.beside is None else Trigger(self.beside, self.at)

    def fires(self, peaks: Peaks) -> Mask:
        """[N] bool."""
        found: Mask = peaks.column(self.at.latent) > self.at.above
        if self.beside is not None:
            found &= peaks.column(self.beside.latent) > self.beside.above
        if self.word:
            place = peaks.place(self.at.latent)
            for i in np.flatnonzero(found):
                found[i] = peaks.words[i].at(int(place[i])).text.lower() == self.word
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

    precision: float = 0.85
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
    found = _of_words(peaks, y, names, contrast, settings) if settings.pairs else []
    open_ = np.ones(len(bad), dtype=bool)
    for one in found:
        open_ &= ~one.trigger.fires(peaks)[y]
    fires = columns.mean(0)
    general = 0.25 * (fires[:, None] + fires[None, :])  # of latents that catch the same, those that fire on more texts
    room = settings.most + len(found)
    while len(found) < room and open_.any():
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


def _of_words(peaks: Peaks, y: Mask, names: Any, contrast: Outcome, settings: Search) -> list[Caught]:
    """Pairs of a word's own latent and one beside it, those that add most first. Of several that tell a word's
    misreadings, one that tells those of other words too is preferred: what they share is more likely why. A word that
    is never read rightly is left to the general search, and so is one that stands in more than USUAL of the items: it
    is no word to note. The best pairs of all words come first, then the next best: two of one word want the same
    prompts, and validation has the choice."""
    tried = [_of_word(peaks, word, its, y, names, settings, contrast) for word, its in _peaks_at(peaks).items()]
    serves = Counter(latent for one in tried for latent in one)
    ranked = [sorted(one.items(), key=lambda c: -c[1][0] - SHARED * min(serves[c[0]] - 1, 2)) for one in tried if one]
    open_ = y.copy()
    taken: list[list[Caught]] = []
    for pairs in sorted(([c for _, (_, c) in found[:ALTERNATIVES]] for found in ranked), key=_most_wrong):
        fired = pairs[0].trigger.fires(peaks)
        if int((fired & open_).sum()) >= settings.support and len(taken) < settings.most:
            taken.append(pairs)
            open_ &= ~fired
    return [pairs[k] for k in range(ALTERNATIVES) for pairs in taken if k < len(pairs)]


def _most_wrong(pairs: Sequence[Caught]) -> tuple[int, str]:
    return -pairs[0].wrong, pairs[0].trigger.word


def _peaks_at(peaks: Peaks) -> dict[str, tuple[Any, Any]]:
    """Of each word (lower case), the items and the latents that have their peak in that item at it."""
    places = peaks.places
    codes: dict[str, int] = {}
    word = np.zeros(len(places.data), dtype=np.int64)
    for i, words in enumerate(peaks.words):
        part = slice(places.indptr[i], places.indptr[i + 1])
        if len(words.tokens):
            code = np.array([codes.setdefault(w.text.lower(), len(codes)) for w in words.words])
            word[part] = code[words.owner[np.searchsorted(words.tokens, places.data[part] - 1)]]
    item = np.repeat(np.arange(len(peaks)), np.diff(places.indptr))
    order = np.argsort(word, kind="stable")
    ends = np.searchsorted(word[order], np.arange(len(codes) + 1))
    of = {text: order[ends[code] : ends[code + 1]] for text, code in codes.items()}
    return {text: (item[at], places.indices[at]) for text, at in of.items()}


def _of_word(
    peaks: Peaks, word: str, its: tuple[Any, Any], y: Mask, names: Any, settings: Search, contrast: Outcome
) -> dict[int, tuple[float, Caught]]:
    """(how well it tells when this word is misread, the pair) of each latent beside the word's own, which is the one
    that sits on it in most wrong items. The other is one of those whose activations in wrong and in right items lie
    furthest apart, in units of their spread. Between the two is the level."""
    items, latents = its
    if not settings.support <= len(np.unique(items)) <= USUAL * len(peaks):
        return {}
    counts = np.bincount(latents[y[items]], minlength=peaks.values.shape[1])
    own = int(np.argmax(counts + contrast.fires.max(initial=1) / (1.0 + contrast.fires) * 1e-6))
    rows = np.unique(items[latents == own])
    wrong, right = rows[y[rows]], rows[~y[rows]]
    if len(wrong) < settings.support or not len(right):
        return {}
    largest = np.maximum(_dense(peaks.values.max(0)), 1e-12)
    (m1, s1), (m0, s0) = (_moments(peaks.values[part], largest) for part in (wrong, right))
    apart = np.where((m1 > m0) & (np.arange(len(m1)) != own), (m1 - m0) / (s1 + s0), -1.0)
    found: dict[int, tuple[float, Caught]] = {}
    for other in np.argsort(-apart, kind="stable")[:NEAREST]:
        level = float((m1[other] * s0[other] + m0[other] * s1[other]) / (s1[other] + s0[other]) * largest[other])
        trigger = Trigger(Condition(own, 0.0), Condition(int(other), level), word)
        fires = rows[peaks.column(int(other))[rows] > level]
        hit, miss = fires[y[fires]], fires[~y[fires]]
        held = len(set(names[hit].tolist()))
        if stats.hypergeom.sf(len(hit) - 1, len(rows), len(wrong), len(fires)) > CHANCE:
            continue
        if len(hit) < settings.support or len(hit) < settings.precision * len(fires) or held < settings.clusters:
            continue
        worth = float(apart[other]) + len(hit) / len(wrong) - len(miss) / max(len(right), 1)
        found[int(other)] = (worth, Caught(trigger, len(hit), len(miss), held))
    return found


def _moments(values: Any, largest: Any) -> tuple[Any, Any]:
    """(mean, spread) of each latent's activations, as shares of its largest; no spread is taken to be under SPREAD."""
    n = max(values.shape[0], 1)
    mean = _dense(values.sum(0)) / n / largest
    square = _dense(values.multiply(values).sum(0)) / n / largest**2
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0)) + SPREAD / 2


def _dense(row: Any) -> Any:
    """[m] of a sparse matrix' row."""
    return np.asarray(row.todense() if hasattr(row, "todense") else row, dtype=np.float64).ravel()


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
