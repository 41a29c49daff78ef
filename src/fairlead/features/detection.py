"""How well a label tells where a latent fires: AUROC with an interval, and balanced accuracy. numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Detection:
    """Over `positives` windows where a latent fires and `negatives` where it does not: AUROC with its 95 % interval
    `low` to `high`, and balanced accuracy at a threshold that was fixed elsewhere."""

    auroc: float
    low: float
    high: float
    balanced_accuracy: float
    positives: int
    negatives: int


def detection(positive: Sequence[float], negative: Sequence[float], threshold: float) -> Detection:
    """Scores of windows that fire and of windows that do not; higher means "fires", above `threshold` says so."""
    value = auroc(positive, negative)
    low, high = interval(value, len(positive), len(negative))
    hits = sum(s > threshold for s in positive) / len(positive)
    rejected = sum(s <= threshold for s in negative) / len(negative)
    return Detection(value, low, high, (hits + rejected) / 2, len(positive), len(negative))


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """The share of pairs in which the positive has the higher score; ties count half."""
    a, b = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    return float(np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b)))


def interval(value: float, m: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Newcombe's fifth interval of an AUROC from m and n (Statistics in Medicine 25, 2006, 559): it does not shrink
    to a point when all pairs are right, as a bootstrap does."""

    def reached(theta: float) -> float:
        more = (m + n) / 2 - 1
        spread = theta * (1 - theta) * (1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (m * n)
        return z * math.sqrt(max(spread, 0.0))

    def solved(outer: float) -> float:
        inner = value
        for _ in range(60):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if abs(value - middle) <= reached(middle) else (inner, middle)
        return (inner + outer) / 2

    return solved(0.0), solved(1.0)


def best_threshold(positive: Sequence[float], negative: Sequence[float]) -> float:
    """The threshold of highest balanced accuracy on these scores, in the middle between two of them."""
    levels = sorted({*positive, *negative})
    between = [(a + b) / 2 for a, b in zip(levels, levels[1:], strict=False)] or [levels[0]]

    def balanced(at: float) -> float:
        return float(np.mean(np.asarray(positive) > at) + np.mean(np.asarray(negative) <= at))

    return max(between, key=balanced)
