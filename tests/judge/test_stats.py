"""Numbers that others computed, laws, and simulations of what the intervals and tests promise."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.errors import RecordError
from fairlead.judge import stats
from fairlead.judge.importers import inside_the_agent

# statsmodels.stats.proportion.proportion_confint(k, n, method="wilson"), as quoted in research/fair_fight.md §3
QUOTED = [(6, 60, 4.7, 20.1), (34, 60, 44.1, 68.4), (44, 60, 61.0, 82.9), (45, 60, 62.8, 84.2), (60, 60, 94.0, 100.0),
          (5, 60, 3.6, 18.1), (54, 60, 79.9, 95.3)]  # fmt: skip


@pytest.mark.parametrize(("k", "n", "low", "high"), QUOTED)
def test_wilson_as_statsmodels_has_it(k, n, low, high):
    found = stats.wilson(k, n)
    assert (round(100 * found.low, 1), round(100 * found.high, 1)) == (low, high)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=60, deadline=None)
def test_wilson_holds_the_estimate_and_mirrors(kn):
    k, n = kn
    found, mirror = stats.wilson(k, n), stats.wilson(n - k, n)
    assert 0 <= found.low <= k / n <= found.high <= 1
    assert math.isclose(found.low, 1 - mirror.high, abs_tol=1e-12)


def test_wilson_of_nothing_is_not_measured():
    assert stats.wilson(0, 0) is None
    with pytest.raises(ValueError, match="between 0 and n"):
        stats.wilson(3, 2)


def test_effective_n_of_copies_is_the_number_of_clusters():
    found = stats.clustering([1, 1, 1, 0, 0, 0, 1, 1, 1], list("aaabbbccc"))
    assert (found.icc, found.effective_n, found.clusters) == (1.0, 3.0, 3)


def test_effective_n_of_independent_values_is_about_n():
    rng = np.random.default_rng(0)
    found = stats.clustering(rng.integers(0, 2, 6000).tolist(), (np.arange(6000) // 3).tolist())
    assert found.icc < 0.05 and found.effective_n > 5400


def test_no_variance_counts_clusters():
    found = stats.clustering([1, 1, 1, 1], list("aabb"))
    assert found.icc is None and found.effective_n == 2


def test_holm_by_hand():
    assert stats.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert stats.holm({}) == {}
    assert stats.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_sign_flip_is_exact_when_small():
    assert stats.sign_flip([1.0, 1.0, 1.0, 1.0, 1.0]) == 2 / 2**5
    assert stats.sign_flip([1.0, -1.0, 0.0]) == 1.0
    assert stats.sign_flip([]) == 1.0
    assert stats.sign_flip([0.5] * 200) == 1 / 10_001  # sampled: never 0


def test_sampled_agrees_with_exact(monkeypatch):
    rng = np.random.default_rng(3)
    means = rng.normal(0.4, 1, 15)
    exact = stats.sign_flip(means)
    monkeypatch.setattr(stats, "EXACT_UP_TO", 2)
    assert stats.sign_flip(means) == pytest.approx(exact, abs=0.02)


def test_none_is_not_zero():
    a, b = {1: 1.0, 2: None, 3: 1.0}, {1: 0.0, 2: 1.0, 4: 1.0}
    found = stats.difference(a, b, {i: i for i in range(5)})
    assert (found.estimate, found.pairs, found.missing) == (1.0, 1, 3)
    assert found.interval is None  # one cluster says nothing about spread
    nothing = stats.difference({1: None}, {1: None}, {1: 1})
    assert (nothing.estimate, nothing.interval, nothing.p, nothing.missing) == (None, None, None, 1)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="finite"):
        stats.difference({1: math.nan}, {1: 0.0}, {1: 1})


def test_benjamini_hochberg_by_hand():
    found = stats.benjamini_hochberg({"a": 0.01, "b": 0.04, "c": 0.03})
    assert found == pytest.approx({"a": 0.03, "b": 0.04, "c": 0.04})
    assert stats.benjamini_hochberg({}) == {}


def test_agreement_everywhere_is_not_certainty():
    """A control that changes nothing: the estimate is 0, and the interval is as wide as one discordant cluster."""
    keys = range(40)
    same = stats.difference({k: 1.0 for k in keys}, {k: 1.0 for k in keys}, {k: k for k in keys})
    assert same.estimate == 0 and same.p == 1 and 0.02 < same.interval.high < 0.08
    assert same.interval.low == -same.interval.high and same.mde > 0
    assert stats.equivalence(same, 0.15) < 0.001 and stats.equivalence(same, 0.01) > 0.05


def test_equivalence_is_not_claimed_without_the_clusters_for_it():
    keys = range(39)
    few = stats.difference({k: 1.0 for k in keys}, {k: 1.0 for k in keys}, {k: k for k in keys})
    assert stats.equivalence(few, 0.5) is None
    assert stats.equivalence(few, 0.0) is None


def test_a_large_sample_takes_the_normal_limit(monkeypatch):
    rng = np.random.default_rng(0)
    sums = rng.normal(0.05, 1, 2_000)
    limit = stats.sign_flip(sums)
    monkeypatch.setattr(stats, "NORMAL_FROM", 10**9)
    assert stats.sign_flip(sums) == pytest.approx(limit, abs=0.015)


def test_few_clusters_are_said():
    keys = range(39)
    found = stats.difference({k: 1.0 for k in keys}, {k: 0.0 for k in keys}, {k: k for k in keys})
    assert any("39 clusters" in w for w in found.warnings)
    keys = range(40)
    a = {k: float(k % 2) for k in keys}
    assert not stats.difference(a, {k: 0.0 for k in keys}, {k: k for k in keys}).warnings
    rare = stats.difference({k: float(k == 0) for k in keys}, {k: 0.0 for k in keys}, {k: k for k in keys})
    assert any("about 1 clusters" in w for w in rare.warnings)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_swapping_arms_mirrors_everything(pairs, size):
    a = {i: float(x) for i, (x, _) in enumerate(pairs)}
    b = {i: float(y) for i, (_, y) in enumerate(pairs)}
    cluster = {i: i // size for i in a}
    one, two = stats.difference(a, b, cluster), stats.difference(b, a, cluster)
    assert one.estimate == pytest.approx(-two.estimate)
    assert one.p == two.p and stats.equivalence(one, 0.1) == pytest.approx(stats.equivalence(two, 0.1))
    if one.interval is not None:
        assert one.interval.low == pytest.approx(-two.interval.high, abs=2e-6)
        assert one.interval.low - 1e-6 <= one.estimate <= one.interval.high + 1e-6


def test_order_of_items_changes_nothing():
    rng = np.random.default_rng(1)
    a = {f"i{i}": float(x) for i, x in enumerate(rng.integers(0, 2, 90))}
    b = {f"i{i}": float(x) for i, x in enumerate(rng.integers(0, 2, 90))}
    cluster = {key: int(key[1:]) // 3 for key in a}
    again = stats.difference(dict(reversed(a.items())), b, cluster)
    assert again == stats.difference(a, b, cluster)


DATA = Path(os.environ.get("FAIRLEAD_DATA") or Path(__file__).parents[3] / "shared" / "data") / "inside-the-agent"


@pytest.mark.skipif(not DATA.is_dir(), reason="the published results are not on this machine (FAIRLEAD_DATA)")
def test_the_first_seed_reanalysed():
    """kalyvask/inside-the-agent: 20 tasks × 3 seeds. Its arithmetic holds; `beats both alone` does not."""
    records = inside_the_agent(DATA)
    assert len(records) == 9 * 60 and all(r.score["strict"] is None for r in records if r.arm == "baseline")
    cluster_of = {(r.item, r.seed): r.cluster for r in records}

    def values(arm, measure="loose"):
        return {(r.item, r.seed): r.score[measure] for r in records if r.arm == arm}

    base = values("baseline")
    found = stats.wilson(sum(base.values()), len(base))
    assert (round(100 * found.low, 1), round(100 * found.high, 1)) == (4.7, 20.1)
    group = stats.clustering(list(base.values()), [cluster_of[k] for k in base])
    assert group.icc == 1.0 and group.effective_n == 20
    group = stats.clustering(list(values("targeted").values()), [cluster_of[k] for k in base])
    assert (round(group.icc, 2), round(group.effective_n, 1)) == (0.67, 25.6)

    alone = stats.difference(values("prompt-plus-targeted"), values("prompt-only"), cluster_of)
    assert (round(100 * alone.estimate, 1), alone.p) == (1.7, 1.0)
    assert (round(100 * alone.interval.low), round(100 * alone.interval.high)) == (-8, 11)  # 18 of 20 tasks tied
    sae = stats.difference(values("targeted"), base, cluster_of)
    assert (round(100 * sae.estimate, 1), round(sae.p, 3)) == (46.7, 0.008)
    assert (round(100 * sae.interval.low), round(100 * sae.interval.high)) == (15, 78)
    wrong = stats.difference(values("targeted"), values("wrong-sign"), cluster_of)
    assert round(wrong.p, 4) == 0.0005
    strict = stats.difference(values("targeted", "strict"), values("baseline", "strict"), cluster_of)
    assert strict.estimate is None and strict.missing == 60


def test_an_importer_names_the_line(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"run_id": "a_seed_0_p", "task_id": "a", "policy": "q", "success": true}\n')
    with pytest.raises(RecordError, match="bad.jsonl:1"):
        inside_the_agent(tmp_path)
    with pytest.raises(RecordError, match="no results"):
        inside_the_agent(tmp_path / "nowhere")
