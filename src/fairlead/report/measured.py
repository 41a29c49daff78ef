"""Rates and contrasts of Records, by the judge's own statistics."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from fairlead.core.types import Record
from fairlead.judge import stats
from fairlead.report.headline import Delta, Rate


def rate(records: Sequence[Record], measure: str) -> Rate:
    """A mean with its interval: Wilson for yes-or-no measures, at the effective n where items of a cluster agree."""
    scored = [r for r in records if r.score is not None and r.score.get(measure) is not None]
    values, clusters = [float((r.score or {})[measure] or 0.0) for r in scored], [r.cluster for r in scored]
    if not values:
        return Rate()
    mean = sum(values) / len(values)
    if not set(values) <= {0.0, 1.0}:
        interval = stats.mean_interval(values, clusters)
    else:
        worth = stats.clustering(values, clusters).effective_n
        interval = stats.wilson(mean * worth, worth)
    return Rate(mean, interval.low if interval else None, interval.high if interval else None, len(values))


def contrast(a: Sequence[Record], b: Sequence[Record], measure: str) -> Delta:
    """a − b, paired by item and seed, clusters resampled and sign-flipped."""
    cluster_of: dict[Hashable, Hashable] = {(r.item, r.seed): r.cluster for r in (*a, *b)}
    found = stats.difference(_values(a, measure), _values(b, measure), cluster_of)
    if found.estimate is None or found.interval is None:
        return Delta(found.estimate, None, None, found.p, None, found.pairs)
    return Delta(found.estimate, found.interval.low, found.interval.high, found.p, None, found.pairs)


def _values(records: Sequence[Record], measure: str) -> dict[Hashable, float | None]:
    out: dict[Hashable, float | None] = {}
    for r in records:
        value = None if r.score is None else r.score.get(measure)
        out[(r.item, r.seed)] = None if value is None else float(value)
    return out
