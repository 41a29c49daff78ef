"""Numbers that others computed, laws, and simulations of what the intervals and tests promise."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

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


def test_few_clusters_are_said():
    keys = range(39)
    found = stats.difference({k: 1.0 for k in keys}, {k: 0.0 for k in keys}, {k: k for k in keys})
    assert any("39 clusters" in w for w in found.warnings)
    keys = range(40)
    assert not stats.difference({k: 1.0 for k in keys}, {k: 0.0 for k in keys}, {k: k for k in keys}).warnings


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_swapping_arms_mirrors_everything(pairs, size):
    a = {i: float(x) for i, (x, _) in enumerate(pairs)}
    b = {i: float(y) for i, (_, y) in enumerate(pairs)}
    cluster = {i: i // size for i in a}
    one = stats.difference(a, b, cluster, resamples=500)
    two = stats.difference(b, a, cluster, resamples=500)
    assert one.estimate == pytest.approx(-two.estimate)
    assert one.p == two.p
    if one.interval is not None:
        assert one.interval.low == pytest.approx(-two.interval.high, abs=2e-6)
        assert one.interval.low - 1e-6 <= one.estimate <= one.interval.high + 1e-6 or one.clusters < 6


def test_order_of_items_changes_nothing():
    rng = np.random.default_rng(1)
    a = {f"i{i}": float(x) for i, x in enumerate(rng.integers(0, 2, 90))}
    b = {f"i{i}": float(x) for i, x in enumerate(rng.integers(0, 2, 90))}
    cluster = {key: int(key[1:]) // 3 for key in a}
    again = stats.difference(dict(reversed(a.items())), b, cluster)
    assert again == stats.difference(a, b, cluster)


def clustered_pairs(rng, clusters, size, p_a, p_b, rho):
    """Binary outcomes of two arms whose latent difficulty is shared within a cluster and between the arms."""
    shared, own_a, own_b = (rng.normal(size=(clusters, 1)) for _ in range(3))
    arms = []
    for own, p in ((own_a, p_a), (own_b, p_b)):
        latent = math.sqrt(rho / 2) * (shared + own) + math.sqrt(1 - rho) * rng.normal(size=(clusters, size))
        arms.append((latent < norm.ppf(p)).astype(float))
    return arms[0] - arms[1]


def simulate(worlds, clusters, size, p_a, p_b, rho, seed=0, resamples=999):
    """Shares of worlds in which the interval covers the truth, and in which the test rejects at .05."""
    rng, truth, covered, rejected = np.random.default_rng(seed), p_a - p_b, 0, 0
    for _ in range(worlds):
        delta = clustered_pairs(rng, clusters, size, p_a, p_b, rho)
        keys = [(c, i) for c in range(clusters) for i in range(size)]
        a = {key: float(delta[key]) for key in keys}
        found = stats.difference(a, dict.fromkeys(keys, 0.0), {key: key[0] for key in keys}, resamples=resamples)
        covered += found.interval.low - 1e-9 <= truth <= found.interval.high + 1e-9
        rejected += found.p <= 0.05
    return covered / worlds, rejected / worlds


def test_promises_hold_on_clustered_worlds():
    covered, rejected = simulate(150, 40, 3, 0.4, 0.4, 0.8)
    assert covered >= 0.89 and rejected <= 0.10  # 3 standard errors about .95 and .05 at 150 worlds
    covered, power = simulate(100, 60, 3, 0.6, 0.3, 0.8, seed=1)
    assert covered >= 0.88 and power >= 0.9


def test_ignoring_clusters_breaks_the_promise():
    """The simulation can fail: the same data with every item its own cluster rejects far too often."""
    rng, rejected = np.random.default_rng(5), 0
    for _ in range(100):
        shared = np.repeat(rng.integers(0, 2, 30) - rng.integers(0, 2, 30), 3)  # three copies of one outcome
        rejected += stats.sign_flip(shared.astype(float), resamples=999) <= 0.05
    assert rejected >= 12


@pytest.mark.soak
@pytest.mark.parametrize("clusters", [20, 40, 100, 200])
@pytest.mark.parametrize(("p_a", "p_b"), [(0.5, 0.5), (0.9, 0.8), (0.5, 0.2), (0.05, 0.05)])
@pytest.mark.parametrize(("size", "rho"), [(1, 0.0), (3, 0.8)])
def test_promises_hold_widely(clusters, p_a, p_b, size, rho):
    covered, rejected = simulate(600, clusters, size, p_a, p_b, rho, seed=clusters, resamples=1999)
    assert covered >= (0.92 if clusters >= 40 else 0.90)
    if p_a == p_b:
        assert rejected <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


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
    assert (round(100 * alone.interval.low), round(100 * alone.interval.high)) == (-5, 10)
    sae = stats.difference(values("targeted"), base, cluster_of)
    assert (round(100 * sae.estimate, 1), round(sae.p, 3)) == (46.7, 0.008)
    assert round(100 * sae.interval.low) == 17 and 71 <= 100 * sae.interval.high <= 74
    strict = stats.difference(values("targeted", "strict"), values("baseline", "strict"), cluster_of)
    assert strict.estimate is None and strict.missing == 60


def test_an_importer_names_the_line(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"run_id": "a_seed_0_p", "task_id": "a", "policy": "q", "success": true}\n')
    with pytest.raises(RecordError, match="bad.jsonl:1"):
        inside_the_agent(tmp_path)
    with pytest.raises(RecordError, match="no results"):
        inside_the_agent(tmp_path / "nowhere")
