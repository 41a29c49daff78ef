"""F1 and its parts: counted by hand, at 1 and at chance, and intervals that hold what they promise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from fairlead.core.errors import RecordError
from fairlead.core.types import Cost, Record
from fairlead.judge.classification import classify, classify_arms


def record(
    i: int, gold: str | None, found: str | None, *, cluster: str = "", arm: str = "none", error: str | None = None
) -> Record:
    outcome = None if error else {"answer": gold, "found": found}
    score = None if error else {"strict": gold == found}
    return Record(
        "t", arm, "m", "constrained", 0, f"i{i}", cluster or f"c{i}", "test", {}, outcome, score, error, Cost()
    )


def records(pairs: Sequence[tuple[str | None, str | None]]) -> list[Record]:
    return [record(i, gold, found) for i, (gold, found) in enumerate(pairs)]


BY_HAND = [("met", "met")] * 3 + [("lit", "met")] * 2 + [("met", "lit")] + [("lit", "lit")] * 4


def test_counts_by_hand():
    found = classify(records(BY_HAND), "met")
    assert (found.tp, found.fp, found.fn, found.tn, found.n, found.clusters) == (3, 2, 1, 4, 10, 10)
    assert found.precision.value == 3 / 5 and found.recall.value == 3 / 4 and found.f1.value == 6 / 9
    other = classify(records(BY_HAND), "lit")
    assert (other.tp, other.fp, other.fn, other.tn) == (4, 1, 2, 3) and other.f1.value == 8 / 11


def test_an_unparsed_answer_is_no_positive_and_a_missing_record_is_missing():
    rows = [
        *records([("met", "met"), ("met", None), ("lit", None)]),
        record(3, None, "met"),
        record(4, "", "", error="run: x"),
    ]
    found = classify(rows, "met")
    assert (found.n, found.missing, found.unanswered) == (3, 2, 2)
    assert (found.tp, found.fp, found.fn, found.tn) == (1, 0, 1, 1) and found.recall.value == 0.5


def test_what_nothing_measures_is_none():
    silent = classify(records([("met", "lit"), ("met", "lit"), ("lit", "lit")]), "met")
    assert silent.precision.value is None and silent.precision.interval is None
    assert silent.recall.value == 0.0 and silent.f1.value == 0.0
    empty = classify([], "met")
    assert empty.n == 0 and empty.f1.value is None and empty.recall.value is None
    one = classify(records([("met", "met")]), "met")
    assert one.f1.value == 1.0 and one.f1.interval is None


def test_a_class_that_no_record_has_is_refused():
    with pytest.raises(RecordError, match="(?s)positive class.*'lit', 'met'"):
        classify(records(BY_HAND), "metaphor")


def test_arms_are_kept_apart():
    rows = [*records(BY_HAND), *(record(i, "met", "met", arm="prompt") for i in range(4))]
    found = classify_arms(rows, "met")
    assert found["none", "m", "constrained"].f1.value == 6 / 9 and found["prompt", "m", "constrained"].f1.value == 1


def test_clusters_and_not_items_are_counted():
    pairs = BY_HAND * 4
    alone = classify(records(pairs), "met")
    together = classify([record(i, g, f, cluster=f"c{i // 10}") for i, (g, f) in enumerate(pairs)], "met")
    twice = [record(2 * i + j, g, f, cluster=f"c{i}") for i, (g, f) in enumerate(pairs) for j in range(2)]
    assert together.clusters == 4 and together.f1.value == alone.f1.value
    assert _width(classify(twice, "met")) == pytest.approx(_width(alone)), "the same items twice say nothing more"


def _width(found) -> float:
    return found.f1.interval.high - found.f1.interval.low


def drawn(rng: np.random.Generator, clusters: int, size: int, prevalence: float, right: float) -> list[Record]:
    """Gold classes and answers that are right with a chance that varies from cluster to cluster."""
    rows = []
    for c in range(clusters):
        chance = rng.beta(8 * right, 8 * (1 - right))
        for j in range(size):
            gold = rng.random() < prevalence
            said = gold if rng.random() < chance else not gold
            names = ("lit", "met")
            rows.append(record(c * size + j, names[gold], names[said], cluster=f"c{c}"))
    return rows


def test_perfect_is_one_and_not_certain():
    rows = [record(r, "met" if r % 3 else "lit", "met" if r % 3 else "lit") for r in range(90)]
    found = classify(rows, "met")
    for measure in (found.precision, found.recall, found.f1):
        assert measure.value == 1.0 and 0.9 < measure.interval.low < 1.0 == measure.interval.high


@pytest.mark.parametrize("prevalence", [0.2, 0.5, 0.8])
def test_shuffled_answers_are_at_prevalence(prevalence: float):
    rng = np.random.default_rng(5)
    gold = rng.random(4_000) < prevalence
    said = rng.permutation(gold)
    names = ("lit", "met")
    found = classify(records([(names[int(g)], names[int(s)]) for g, s in zip(gold, said, strict=True)]), "met")
    for measure in (found.precision, found.recall, found.f1):
        assert abs(measure.value - prevalence) < 0.045  # three standard errors at the lowest prevalence


@pytest.mark.parametrize("setting", [(40, 3, 0.5, 0.8), (60, 1, 0.3, 0.7), (100, 2, 0.2, 0.6)], ids=str)
def test_intervals_cover_the_truth(setting: tuple[int, int, float, float]):
    clusters, size, prevalence, right = setting
    rng, worlds = np.random.default_rng(3), 200
    tp, fp, fn = prevalence * right, (1 - prevalence) * (1 - right), prevalence * (1 - right)
    truths = {"precision": tp / (tp + fp), "recall": tp / (tp + fn), "f1": 2 * tp / (2 * tp + fp + fn)}
    covered = dict.fromkeys(truths, 0)
    for _ in range(worlds):
        found = classify(drawn(rng, clusters, size, prevalence, right), "met")
        for name, truth in truths.items():
            interval = getattr(found, name).interval
            covered[name] += interval.low <= truth <= interval.high
    slack = 3 * math.sqrt(0.05 * 0.95 / worlds)
    assert all(0.93 - slack <= n / worlds for n in covered.values()), covered
