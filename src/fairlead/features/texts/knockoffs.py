"""Knockoffs: columns that could be mistaken for the real ones and know nothing of the label, so that how often they are
taken says how many of the real ones are false.

Model-X, Gaussian, of second order (Candès, Fan, Janson and Lv 2018), with the freedom in them set to most entropy
(Gimenez and Zou 2019; Spector and Janson 2022), because latents overlap and the usual equal one then has no power. The
threshold is knockoff+'s: the expected share of false columns is at most `rate` where rows are drawn alike and columns
are Gaussian. Latents are not Gaussian: what the share is for sparse, nested columns is measured in
tests/features/texts/test_knockoffs.py. Nothing is taken unless 1 / rate columns can be: at 0.1 ten, at 0.2 five.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
SWEEPS, SHRUNK = 5, 0.02  # passes over the freedom; the least part of independence that is mixed into the covariance


def drawn(x: Array, rng: Any) -> Array:
    """Knockoffs of x [n, m], mean 0: the same covariance among themselves and with the others' originals, and as little
    as can be with their own."""
    n, m = x.shape
    scale = np.sqrt(np.maximum((x**2).mean(0), 1e-300))
    z = x / scale
    corr = z.T @ z / n
    corr = corr + _shrinkage(z, corr) * (np.eye(m) - corr)
    s = entropy(corr)
    inverse = np.linalg.inv(corr)
    mean = z - (z @ inverse) * s
    cov = 2 * np.diag(s) - s[:, None] * inverse * s[None]
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    noise = rng.standard_normal((n, m)) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return (mean + noise) * scale


def entropy(corr: Array) -> Array:
    """s [m] that makes log det(2 corr − S) + Σ log s largest, a coordinate at a time."""
    m = len(corr)
    s = np.full(m, min(1.0, float(np.linalg.eigvalsh(corr)[0])))
    inverse = np.linalg.inv(2 * corr - np.diag(s))
    for _ in range(SWEEPS):
        for j in range(m):
            new = (s[j] + 1.0 / inverse[j, j]) / 2
            change = s[j] - new  # of the diagonal of 2 corr − S
            row = inverse[j].copy()
            inverse -= np.outer(row, row) * (change / (1.0 + change * row[j]))
            s[j] = new
    return s * 0.999  # inside, against rounding


def threshold(w: Array, rate: float) -> float:
    """Knockoff+: the smallest t at which (1 + #{W ≤ −t}) / #{W ≥ t} is at most `rate`; infinity where none is."""
    for t in np.sort(np.abs(w[w != 0])):
        if (1 + (w <= -t).sum()) <= rate * (w >= t).sum():
            return float(t)
    return float("inf")


def _shrinkage(z: Array, corr: Array) -> float:
    """Ledoit and Wolf's (2004) weight of the identity, at least `SHRUNK`."""
    n, m = z.shape
    away = float(((corr - np.eye(m)) ** 2).sum())
    noise = (float(((z**2).sum(1) ** 2).sum()) / n - float((corr**2).sum())) / n
    return float(np.clip(noise / max(away, 1e-300), SHRUNK, 1.0))
