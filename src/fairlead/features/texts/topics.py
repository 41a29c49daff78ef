"""Topics: non-negative factors of a TF-IDF matrix (Lee and Seung 2001), the topic model that ships as a baseline.

A topic is made of words, so its latents come from texts and not from embeddings; each fires on the texts where it is
the strongest, or the second strongest and not far behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairlead.features.texts.ngrams import STOP, Vocabulary, common, vocabulary, words

Array = Any
ROUNDS, STARTS, FEW, STRONGEST = 100, 3, 32, 2


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
    """`n_features` topics of `texts`, by multiplicative updates; of few topics the best of
    `STARTS` random starts."""
    sets = [{w for w in words(text) if w not in STOP} for text in texts]
    terms = common(sets, least=2, most=0.5, limit=5000)
    seen = np.asarray(terms.of_sets(sets).sum(0)).ravel()
    idf = np.log((1 + len(texts)) / (1 + seen)) + 1
    x = _rows(terms, idf, texts)
    m = min(n_features, *x.shape) if min(x.shape) else 0
    rng = np.random.default_rng(seed)
    scale = (float(x.sum()) / max(1, x.shape[0] * x.shape[1] * m)) ** 0.5
    found = []
    for _ in range(STARTS if m <= FEW else 1):
        start = [scale * np.abs(rng.standard_normal(shape)) for shape in ((x.shape[0], m), (m, x.shape[1]))]
        found.append(_updated(x, start[0], start[1]))
    _, h = min(found, key=lambda factors: _error(x, *factors))
    return Topics(terms, idf, h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12))


def _updated(x: Any, w: Array, h: Array) -> tuple[Array, Array]:
    for _ in range(ROUNDS):
        h = h * (x.T @ w).T / np.maximum((w.T @ w) @ h, 1e-12)
        w = w * (x @ h.T) / np.maximum(w @ (h @ h.T), 1e-12)
    return w, h


def _error(x: Any, w: Array, h: Array) -> float:
    """‖x − w·h‖² but for ‖x‖²."""
    return float(((w.T @ w) * (h @ h.T)).sum() - 2 * (w * (x @ h.T)).sum())


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
