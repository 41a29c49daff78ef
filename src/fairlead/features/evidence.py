"""Windows that tell what a latent fires on, in three parts that share no sequence and no text.

`shown` is what a label is made from, `select` is what the best of several labels is chosen on, and `held` is what the
chosen one is scored on. Windows where the latent fires come from the store's index: the strongest, and a uniform
sample. The others are near misses by default: windows that hold the tokens it fires on, or in which its partners and
decoder neighbours fire, while it does not; easy negatives flatter labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

import numpy as np

from fairlead.core.keys import derive_seed
from fairlead.features.index import NOWHERE, Index
from fairlead.features.store import Array, Store

PARTS = {"shown": 0.4, "select": 0.2, "held": 0.4}
LEAST = 3  # windows of either kind that a part needs
_WORD = re.compile(r"\w+")
MARK = 0.5  # of a window's strongest activation: tokens above it are marked


@dataclass(frozen=True)
class Example:
    """A text, and how strongly a latent fires in it at most (0: not at all). `marked` has << >> about the tokens
    where it fires; `peak` is the word where it fires most."""

    text: str
    value: float
    marked: str = ""
    peak: str = ""


@dataclass(frozen=True)
class Part:
    """Texts in which a latent fires, and texts in which it does not."""

    positives: tuple[Example, ...]
    negatives: tuple[Example, ...]

    @property
    def all(self) -> tuple[Example, ...]:
        return (*self.positives, *self.negatives)

    @property
    def enough(self) -> bool:
        return min(len(self.positives), len(self.negatives)) >= LEAST


@dataclass(frozen=True)
class Evidence:
    """What is known of one latent, apart by use."""

    latent: int
    shown: Part
    select: Part
    held: Part

    @property
    def enough(self) -> bool:
        """Whether there is enough to make, choose and score a label."""
        return self.shown.enough and self.select.enough and self.held.enough


class Gatherer:
    """Finds the windows of any latent of a store. `hard` negatives are near misses; otherwise they are any windows."""

    def __init__(self, store: Store, index: Index, *, hard: bool = True, seed: int = 0) -> None:
        self.store, self.index, self.hard, self.seed = store, index, hard, seed

    def evidence(self, latent: int) -> Evidence:
        """The windows of `latent`, dealt out; the same for the same store and seed."""
        rng = np.random.default_rng(derive_seed("evidence", self.seed, latent))
        deal = _Deal()
        for token in self._firing(self.index.check(latent)):
            self._put(deal, latent, token, True)
        wanted = sum(len(p) for p in deal.positives.values())
        for token in self._silent(latent, rng, wanted):
            if all(len(deal.negatives[name]) >= len(deal.positives[name]) for name in PARTS):
                break
            self._put(deal, latent, token, False)
        parts = {name: Part(tuple(deal.positives[name]), tuple(deal.negatives[name])) for name in PARTS}
        return Evidence(latent, **parts)

    def _put(self, deal: _Deal, latent: int, token: int, fires: bool) -> None:
        span = self.store.window(token)
        if span.start in deal.seen:
            return
        values = self.store.activations(latent, span)
        if (max(values) > 0) != fires:
            return
        deal.seen.add(span.start)
        deal.put(self.store.sequence(token), _example(self.store.texts(span), values))

    def _firing(self, latent: int) -> list[int]:
        """Strongest and sampled windows by turns, so that every part gets of both."""
        pairs = zip_longest(self.index.top[latent].tolist(), self.index.sample[latent].tolist(), fillvalue=NOWHERE)
        return [int(t) for pair in pairs for t in pair if t != NOWHERE]

    def _silent(self, latent: int, rng: np.random.Generator, wanted: int) -> Iterator[int]:
        """Tokens of windows that may be near misses, best kind first; each kind at most so often, then any window."""
        if self.hard:
            yield from self._same_tokens(latent, rng, 6 * wanted)
            yield from self._relatives(latent, rng, 4 * wanted)
        for token in rng.integers(0, self.store.n_tokens, 50 * wanted + 50):
            yield int(token)

    def _same_tokens(self, latent: int, rng: np.random.Generator, most: int) -> list[int]:
        """Places of the tokens on which the latent fires most."""
        tops = [int(t) for t in self.index.top[latent] if t != NOWHERE]
        peaks = sorted({self.store.tokens(range(t, t + 1))[0] for t in tops})
        order, starts = self._by_token
        places = [order[starts[p] : starts[p + 1]] for p in peaks]
        drawn = [rng.permutation(p)[: most // max(1, len(peaks)) + 1] for p in places]
        found = np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)
        return [int(t) for t in rng.permutation(found)]

    def _relatives(self, latent: int, rng: np.random.Generator, most: int) -> list[int]:
        """Where its partners and its decoder neighbours fire."""
        tables = [self.index.partners, *([self.index.neighbours] if hasattr(self.index, "neighbours") else [])]
        related = [int(i) for table in tables for i in table[latent] if i != NOWHERE]
        found = [int(t) for i in related for t in self.index.sample[i] if t != NOWHERE]
        return [int(t) for t in rng.permutation(np.array(found, dtype=np.int64))[:most]]

    @cached_property
    def _by_token(self) -> tuple[Array, Array]:
        """(the store's tokens ordered by id, where each id begins)."""
        ids = np.concatenate([np.asarray(shard.tokens) for shard in self.store.shards])
        counts = np.bincount(ids, minlength=len(self.store.vocabulary))
        return np.argsort(ids, kind="stable"), np.concatenate([[0], np.cumsum(counts)])


class _Deal:
    """Deals examples to the parts: a sequence, and a text, only ever goes to one part."""

    def __init__(self) -> None:
        self.positives: dict[str, list[Example]] = {name: [] for name in PARTS}
        self.negatives: dict[str, list[Example]] = {name: [] for name in PARTS}
        self.seen: set[int] = set()
        self._sequences: dict[int, str] = {}
        self._texts: dict[str, str] = {}

    def put(self, sequence: int, example: Example) -> None:
        by_sequence, by_text = self._sequences.get(sequence), self._texts.get(example.text)
        if by_text is not None:  # a text counts once
            return
        pile = self.positives if example.value > 0 else self.negatives
        part = by_sequence or self._neediest(example.value > 0)
        if part is None or (example.value <= 0 and len(pile[part]) >= len(self.positives[part])):
            return
        self._sequences[sequence] = self._texts[example.text] = part
        pile[part].append(example)

    def _neediest(self, fires: bool) -> str | None:
        if fires:
            return min(PARTS, key=lambda name: len(self.positives[name]) / PARTS[name])
        short = [name for name in PARTS if len(self.negatives[name]) < len(self.positives[name])]
        return min(short, key=lambda name: len(self.negatives[name]) / PARTS[name]) if short else None


def _example(tokens: list[str], values: list[float]) -> Example:
    strongest = max(values)
    if strongest <= 0:
        return Example("".join(tokens), 0.0)
    marked = "".join(f"<<{t}>>" if v > MARK * strongest else t for t, v in zip(tokens, values, strict=True))
    at, text = values.index(strongest), "".join(tokens)
    return Example(text, strongest, marked, _word_at(text, len("".join(tokens[:at])), tokens[at]))


def _word_at(text: str, start: int, token: str) -> str:
    """The whole word that a token is part of; a token without letters or digits stands for itself."""
    inside = _WORD.search(token)
    if inside is None:
        return token.strip()
    return next((m[0] for m in _WORD.finditer(text) if m.start() <= start + inside.start() < m.end()), token).lower()
