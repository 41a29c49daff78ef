"""Words, pairs and triples of words of texts, as sets and as sparse matrices; no regular expressions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LONGEST = 100_000  # characters of a text that are read; the rest is not
_JOINS = "'’-"  # inside a word they belong to it

# Words that say nothing by themselves; a phrase neither begins nor ends with one. Single ones stay terms: how a
# headline is put is often what matters.
STOP = frozenset(
    """
    a an and are as at be been but by can could did do does for from had has have he her him his how i if in
    into is it its just me more my no not of on or our out she so some than that the their them then there
    these they this to too up us was we were what when where which who why will with would you your
    """.split()
)


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits, with ' and - inside them."""
    found, start = [], -1
    text = text[:LONGEST].lower()
    for i, c in enumerate(text):
        if c.isalnum() or (start >= 0 and c in _JOINS and i + 1 < len(text) and text[i + 1].isalnum()):
            start = i if start < 0 else start
        elif start >= 0:
            found.append(text[start:i].replace("’", "'"))
            start = -1
    if start >= 0:
        found.append(text[start:].replace("’", "'"))
    return found


def grams(tokens: Sequence[str], longest: int = 3) -> set[str]:
    """All words, and sequences of up to `longest` of them that neither begin nor end with a stop word."""
    found = set(tokens)
    for n in range(2, longest + 1):
        for i in range(len(tokens) - n + 1):
            if tokens[i] not in STOP and tokens[i + n - 1] not in STOP:
                found.add(" ".join(tokens[i : i + n]))
    return found


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Terms in order, and where each stands; `longest` is the number of words in the longest."""

    terms: tuple[str, ...]
    longest: int
    place: dict[str, int]

    def matrix(self, texts: Sequence[str]) -> Any:
        """Sparse [texts, terms] of 0 and 1: which term is in which text."""
        return self.of_sets([grams(words(text), self.longest) for text in texts])

    def of_sets(self, sets: Sequence[Collection[str]]) -> Any:
        """As `matrix`, for texts that were read already."""
        from scipy.sparse import csr_matrix

        columns, starts = [], [0]
        for terms in sets:
            columns += sorted(self.place[t] for t in terms if t in self.place)
            starts.append(len(columns))
        data = np.ones(len(columns), dtype=np.float32)
        return csr_matrix((data, np.array(columns, dtype=np.int64), starts), shape=(len(sets), len(self.terms)))


def vocabulary(terms: Sequence[str]) -> Vocabulary:
    """A vocabulary of these terms, in this order."""
    longest = max((t.count(" ") + 1 for t in terms), default=1)
    return Vocabulary(tuple(terms), longest, {t: i for i, t in enumerate(terms)})


def common(sets: Sequence[Collection[str]], *, least: int = 3, most: float = 0.5, limit: int = 50_000) -> Vocabulary:
    """Terms of at least `least` texts and at most the share `most` of them; the `limit` commonest, in alphabetical
    order."""
    seen = Counter(t for terms in sets for t in terms)
    kept = [(n, t) for t, n in seen.items() if least <= n <= max(least, most * len(sets))]
    return vocabulary(sorted(t for _, t in sorted(kept, key=lambda x: (-x[0], x[1]))[:limit]))
