"""Precision, recall and F1 of a yes-or-no question, from Records that hold the gold answer and the one found.

The positive class is named, never guessed. An answer that could not be parsed is no positive; a Record with an error,
or without the two texts, is missing, counted and left out. Each measure is a ratio Σa / Σb over clusters: precision
tp / (tp + fp), recall tp / (tp + fn), F1 2·tp / (2·tp + fp + fn); None where b is 0 everywhere.

Interval: ratio ± t(k − 1) · se, se² = k/(k − 1) · (Σ_c (a_c − ratio·b_c)² + max(ratio, 1 − ratio)²·b̄²) / (Σb)², the
delta method over clusters, with one mean cluster added that is all wrong (or all right), so that a perfect score is
not certainty; cut to 0 and 1. Audited by simulation in tests/judge/test_classification.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fairlead.core.errors import RecordError
from fairlead.core.types import Record
from fairlead.judge.stats import Floats, Interval, t_quantile


@dataclass(frozen=True)
class Measure:
    """A ratio and its interval; None where nothing measures it (no interval for fewer than two clusters)."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Classified:
    """One arm on one class. `missing` Records are in no count; `unanswered` ones are, as not positive."""

    positive: str
    n: int
    clusters: int
    missing: int
    unanswered: int
    tp: int
    fp: int
    fn: int
    tn: int
    precision: Measure
    recall: Measure
    f1: Measure


def classify(
    records: Iterable[Record], positive: str, *, truth: str = "answer", said: str = "found", confidence: float = 0.95
) -> Classified:
    """What `records` (of one arm) found of the class `positive`. `truth` and `said` are keys of their outcomes. Raises
    RecordError where no Record has that class as its truth, so that a slip of the pen is no recall of 0."""
    rows: list[tuple[str, bool, bool]] = []
    labels: set[str] = set()
    missing = unanswered = 0
    for record in records:
        outcome = record.outcome or {}
        gold, found = outcome.get(truth), outcome.get(said)
        if record.error is not None or not isinstance(gold, str) or said not in outcome:
            missing += 1
            continue
        labels.add(gold)
        unanswered += found is None
        rows.append((record.cluster, gold == positive, found == positive))
    if rows and positive not in labels:
        raise RecordError(
            "no Record has the positive class", expected=", ".join(map(repr, sorted(labels)[:10])), got=repr(positive)
        )
    hits = [(c, g and f, f and not g, g and not f, not g and not f) for c, g, f in rows]
    sums = _by_cluster(hits)
    tp, fp, fn, tn = (int(x) for x in sums.sum(0))
    t, p, n = sums[:, 0], sums[:, 1], sums[:, 2]
    return Classified(
        positive, len(rows), len(sums), missing, unanswered, tp, fp, fn, tn,
        _ratio(t, t + p, confidence), _ratio(t, t + n, confidence), _ratio(2 * t, 2 * t + p + n, confidence),
    )  # fmt: skip


def classify_arms(records: Iterable[Record], positive: str) -> dict[tuple[str, str, str], Classified]:
    """`classify` of every (arm, model, decoding), in the order in which they come."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.arm, record.model, record.decoding), []).append(record)
    return {key: classify(group, positive) for key, group in groups.items()}


def _by_cluster(rows: Sequence[tuple[str, bool, bool, bool, bool]]) -> Floats:
    """Counts of tp, fp, fn and tn in each cluster, [clusters, 4]."""
    places: dict[str, int] = {}
    for cluster, *_ in rows:
        places.setdefault(cluster, len(places))
    sums: Floats = np.zeros((len(places), 4))
    for cluster, *counts in rows:
        sums[places[cluster]] += counts
    return sums


def _ratio(a: Floats, b: Floats, confidence: float) -> Measure:
    """Σa / Σb with its interval, over the clusters that have any b."""
    a, b = a[b > 0], b[b > 0]
    k, total = len(b), float(b.sum())
    if not k:
        return Measure(None, None)
    value = float(a.sum()) / total
    if k < 2:
        return Measure(value, None)
    added = max(value, 1 - value) * total / k
    squares = float(((a - value * b) ** 2).sum()) + added**2
    half = t_quantile(0.5 + confidence / 2, k - 1) * math.sqrt(k / (k - 1) * squares) / total
    return Measure(value, Interval(max(0.0, value - half), min(1.0, value + half)))
