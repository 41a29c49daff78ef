"""Topics: non-negative factors of a TF-IDF matrix (Lee and Seung 2001), the topic model that ships as a baseline.

A topic is made of words, so its latents come from texts and not from embeddings; each fires on the texts where it is
the strongest, or the second strongest and not far behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairlead.features.texts.ngrams import STOP, Vocabulary, common, grams, vocabulary, words

Array = Any
ROUNDS, STRONGEST = 150, 2


@dataclass(frozen=True, eq=False)
class Topics:
    """`idf` [V], `parts` [m, V] non-negative, rows of length 1."""

    terms: Vocabulary
    idf: Array
    parts: Array

    @property
    def n_features(self) -> int:
        return len(self.parts)

    def encode(self, texts: Sequence[str]) -> Any:
        """Sparse [n, m]: the strongest topics of each text."""
        from scipy.sparse import csr_matrix

        found = _weights(_rows(self.terms, self.idf, texts), self.parts)
        cut = np.partition(found, -min(STRONGEST, found.shape[1]), axis=1)[:, [-min(STRONGEST, found.shape[1])]]
        kept = np.where((found >= cut) & (found > 0.25 * found.max(1, keepdims=True)), found, 0.0)
        return csr_matrix(kept.astype(np.float32))

    def to_json(self) -> dict[str, Any]:
        """The terms only; numbers are saved beside them."""
        return {"terms": list(self.terms.terms)}


def topics(terms: Sequence[str], idf: Array, parts: Array) -> Topics:
    """From what was saved."""
    return Topics(vocabulary(terms), np.asarray(idf), np.asarray(parts))


def fit(texts: Sequence[str], n_features: int, seed: int = 0) -> Topics:
    """`n_features` topics of `texts`, by multiplicative updates from random factors."""
    sets = [{t for t in grams(words(text), 2) if t not in STOP} for text in texts]
    terms = common(sets, least=2, most=0.5, limit=5000)
    seen = np.asarray(terms.of_sets(sets).sum(0)).ravel()
    idf = np.log((1 + len(texts)) / (1 + seen)) + 1
    x = _rows(terms, idf, texts)
    rng = np.random.default_rng(seed)
    m = min(n_features, *x.shape) if min(x.shape) else 0
    w, h = rng.random((x.shape[0], m)) + 0.1, rng.random((m, x.shape[1])) + 0.1
    for _ in range(ROUNDS):
        h *= (x.T @ w).T / np.maximum((w.T @ w) @ h, 1e-12)
        w *= (x @ h.T) / np.maximum(w @ (h @ h.T), 1e-12)
    h = h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)
    return Topics(terms, idf, h)


def _rows(terms: Vocabulary, idf: Array, texts: Sequence[str]) -> Any:
    """Sparse [n, V], rows of length 1."""
    x = terms.matrix(texts).multiply(idf).tocsr()
    length = np.sqrt(np.asarray(x.multiply(x).sum(1)).ravel())
    return x.multiply(1.0 / np.maximum(length, 1e-12)[:, None]).tocsr()


def _weights(x: Any, parts: Array, rounds: int = 60) -> Array:
    """[n, m]: how much of each topic is in each row, by the same updates."""
    product, gram = x @ parts.T, parts @ parts.T
    w = np.asarray(product) + 1e-6
    for _ in range(rounds):
        w *= product / np.maximum(w @ gram, 1e-12)
    return w
