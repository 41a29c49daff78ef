"""A planted world of texts: each mentions some of eight things in words of its own, among words that mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fairlead.core.ledger import Meter
from fairlead.features.texts.ngrams import words

THINGS = {
    "sport": "match goal coach season", "money": "bank shares profit market", "food": "bread soup butter recipe",
    "weather": "rain storm snow forecast", "music": "album guitar concert singer", "animals": "dog bird whale puppy",
    "travel": "flight hotel beach passport", "law": "court judge trial verdict",
}  # fmt: skip
NAMES = tuple(THINGS)
FILLERS = "the a was on and table blue quickly seven often paper window their this walked slowly about stone".split()


@dataclass
class Embedder:
    """The sum of its words' vectors, at unit length; words of one thing lie near each other."""

    width: int = 32
    name: str = "planted"
    fingerprint: str = "planted"
    meter: Meter = field(default_factory=Meter)

    async def embed(self, texts: Sequence[str], *, progress: Any = None) -> Any:
        return embedded(texts, self.width)


def embedded(texts: Sequence[str], width: int = 32) -> Any:
    rng = np.random.default_rng(3)
    things = rng.standard_normal((len(NAMES), width))
    vectors = {f: 0.15 * rng.standard_normal(width) for f in FILLERS}
    for i, name in enumerate(NAMES):
        for word in (name, *THINGS[name].split()):
            vectors[word] = things[i] + 0.3 * rng.standard_normal(width)
    zero = np.zeros(width)
    rows = np.array([sum((vectors.get(w, zero) for w in words(text)), zero) for text in texts])
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def world(n: int, seed: int = 0, share: float = 0.125) -> tuple[list[str], Any]:
    """(texts, gold bool [n, 8]): which thing each of them mentions."""
    rng = np.random.default_rng(seed)
    gold = rng.random((n, len(NAMES))) < share
    texts = []
    for row in gold:
        said = [str(w) for i in np.flatnonzero(row) for w in rng.choice(THINGS[NAMES[i]].split(), 2, replace=False)]
        said += [str(w) for w in rng.choice(FILLERS, 6)]
        texts.append(" ".join(rng.permutation(said)))
    return texts, gold
