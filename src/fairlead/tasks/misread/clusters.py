"""Which word stands at which place in which split. A cluster is a word and a place; no cluster is in two splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest

from fairlead.core.keys import sha256
from fairlead.tasks.misread.words import AMBIGUOUS, CLASSES, PLACES

DEAL = 9  # which cluster is whose; the test clusters of the deals before were looked at while the method was made
EACH = 5  # clusters of one word and reading: two in train, one in validation, two in test
SPLIT_OF_RANK = ("train", "test", "validation", "train", "test")
PLAIN = 4  # unambiguous words of a class that are asked about
ITEMS = {"planted": 12, "dominant": 3, "strong": 3, "plain": 3}  # of one cluster


@dataclass(frozen=True)
class Cluster:
    """A word at a place, with the reading all its items have."""

    word: str
    place: str
    reading: str
    split: str

    @property
    def name(self) -> str:
        return f"{self.word}/{self.place}"


def clusters(split: str) -> list[Cluster]:
    """Those of a split, so ordered that every prefix has about the same share of each reading."""
    of = {r: [c for c in _all() if (c.reading, c.split) == (r, split)] for r in ITEMS}
    of = {r: sorted(found, key=lambda c: _rank(c.word, c.place)) for r, found in of.items()}
    half = (len(of["plain"]) + 1) // 2
    columns = (of["planted"], of["plain"][:half], of["strong"], of["plain"][half:], of["dominant"])
    return [c for c in chain.from_iterable(zip_longest(*columns)) if c is not None]


def _all() -> Iterator[Cluster]:
    for word, (dominant, other) in AMBIGUOUS.items():
        yield from _dealt(word, "planted", CLASSES[other].weak)
        yield from _dealt(word, "strong", CLASSES[other].strong)
        yield from _dealt(word, "dominant", (*CLASSES[dominant].strong, *CLASSES[dominant].weak))
    for found in CLASSES.values():
        for word in found.things[:PLAIN]:
            yield from _dealt(word, "plain", PLACES)


def _dealt(word: str, reading: str, places: Iterable[str]) -> Iterator[Cluster]:
    """EACH of the places, by hash, dealt to the splits."""
    chosen = sorted(places, key=lambda place: _rank(word, place))[:EACH]
    for place, split in zip(chosen, SPLIT_OF_RANK, strict=True):
        yield Cluster(word, place, reading, split)


def _rank(word: str, place: str) -> str:
    return sha256(f"misread/{DEAL}/{word}/{place}")
