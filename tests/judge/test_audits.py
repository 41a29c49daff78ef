"""Audits of the judge: on data whose truth is known, each test's false positives and each interval's coverage.

`make test` runs 400 studies a setting, with room for chance; `make soak` runs 2,000 and asks for what the page
promises: false positives at most the nominal level + 1 point, coverage 93 to 97 % with 40 clusters or more.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from tests.judge.worlds import arms, differences, rate

from fairlead.core.stopping import first_stop
from fairlead.judge import costs, power, stats

FULL = 2_000
SETTINGS = [  # clusters, size, rate, latent correlation within a cluster
    (40, 3, 0.5, 0.8), (40, 3, 0.5, 0.95), (60, 1, 0.3, 0.0), (60, 5, 0.8, 0.5), (100, 3, 0.9, 0.8), (200, 3, 0.5, 0.8),
]  # fmt: skip



def slack(worlds, level):
    """Nothing at 2,000 studies, where one point is allowed; three standard errors more in the fast version."""
    return 0.01 if worlds >= FULL else 0.01 + 3 * math.sqrt(level * (1 - level) / worlds)


both = pytest.mark.parametrize(
    "worlds", [pytest.param(300, id="fast"), pytest.param(FULL, id="full", marks=pytest.mark.soak)]
)


def naive_rejects(a, b):
    """What a table of Wilson intervals invites: call arms different when their intervals do not overlap at all
    items; here with the intervals of a difference (Newcombe), items as if independent."""
    n = a.size
    one, two = stats.wilson(int(a.sum()), n), stats.wilson(int(b.sum()), n)
    gap = (a.sum() - b.sum()) / n
    low = gap - math.hypot(a.mean() - one.low, two.high - b.mean())
    high = gap + math.hypot(one.high - a.mean(), b.mean() - two.low)
    return low > 0 or high < 0


@both
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_false_positives_of_the_paired_test_and_of_a_verdict(worlds, setting):
    clusters, size, p, rho = setting
    found = differences(worlds, clusters, size, p, p, rho)
    assert rate(d.p <= 0.05 for d in found) <= 0.05 + slack(worlds, 0.05)
    decided = rate(d.p <= 0.05 and (d.interval.low > 0 or d.interval.high < 0) for d in found)
    assert decided <= 0.05 + slack(worlds, 0.05)


@both
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_coverage_of_the_interval_of_a_difference(worlds, setting):
    clusters, size, p, rho = setting
    off = 0.0 if worlds >= FULL else 3 * math.sqrt(0.05 * 0.95 / worlds)
    for p_a, p_b in ((p, p), (p, p - 0.2)):
        found = differences(worlds, clusters, size, p_a, p_b, rho, seed=1)
        covered = rate(d.interval.low - 1e-9 <= p_a - p_b <= d.interval.high + 1e-9 for d in found)
        assert 0.93 - off <= covered <= 0.97 + off, (p_a, p_b, covered)


@both
def test_coverage_of_the_interval_of_a_rate(worlds):
    """Wilson at the effective n, over rates between .2 and .8: single rates swing, as binomial intervals do."""
    rng, covered, total = np.random.default_rng(3), 0, 0
    codes = np.repeat(np.arange(60), 4)
    for _ in range(worlds):
        p = rng.uniform(0.2, 0.8)
        x = arms(rng, 1, 60, 4, p, p, 0.8)[0][0].ravel().astype(float)
        worth = stats.clustering(x, codes).effective_n
        found = stats.wilson(x.mean() * worth, worth)
        covered += found.low <= p <= found.high
        total += 1
    off = 0.0 if worlds >= FULL else 0.04
    assert 0.93 - off <= covered / total <= 0.97 + off


@both
def test_naive_wilson_fails_the_same_audit(worlds):
    """Three seeds of a deterministic task counted as three items: Wilson on items covers far too little and finds
    far too much; the judge's own test on the same data does not."""
    rng, codes = np.random.default_rng(4), np.repeat(np.arange(60), 3)
    pairs = [rng.integers(0, 2, (2, 60, 1)).repeat(3, axis=2) for _ in range(worlds)]
    assert rate(naive_rejects(x, y) for x, y in pairs) > 0.15
    naive = [stats.wilson(int(x.sum()), x.size) for x, _ in pairs]
    assert rate(found.low <= 0.5 <= found.high for found in naive) < 0.85
    ours = [stats.paired((x - y).ravel().astype(float), codes) for x, y in pairs]
    assert rate(d.p <= 0.05 for d in ours) <= 0.05 + slack(worlds, 0.05)


@both
@pytest.mark.parametrize(
    "setting", [(60, 3, 0.5, 0.8), (100, 1, 0.3, 0.0), (100, 3, 0.15, 0.8), (200, 3, 0.97, 0.8)], ids=str
)
def test_equivalence_is_not_claimed_at_the_margin(worlds, setting):
    """TOST: the true difference is the margin itself, so that every claim of equivalence is false."""
    clusters, size, p, rho = setting
    found = differences(worlds, clusters, size, p, p - 0.1, rho, seed=5)
    claims = [stats.equivalence(d, 0.1) for d in found]
    assert rate(c is not None and c <= 0.05 for c in claims) <= 0.05 + slack(worlds, 0.05)


@both
def test_equivalence_is_claimed_where_it_holds(worlds):
    found = differences(worlds, 200, 3, 0.5, 0.5, 0.3, seed=6)
    assert rate((stats.equivalence(d, 0.15) or 1.0) <= 0.05 for d in found) > 0.95


@both
def test_holm_holds_the_family(worlds):
    """Eight true nulls that share one claim arm: any rejection is a false one."""
    rng, codes, wrong = np.random.default_rng(7), np.repeat(np.arange(60), 3), 0
    for _ in range(worlds // 2):
        claim, first = arms(rng, 1, 60, 3, 0.5, 0.5, 0.8)
        others = [first, *(arms(rng, 1, 60, 3, 0.5, 0.5, 0.8)[1] for _ in range(7))]
        p = {i: stats.paired((claim ^ o).ravel() * np.where(claim, 1.0, -1.0).ravel(), codes).p
             for i, o in enumerate(others)}  # fmt: skip
        wrong += min(stats.holm(p).values()) <= 0.05
    assert wrong / (worlds // 2) <= 0.05 + slack(worlds, 0.05) + (0.0 if worlds < FULL else 0.005)


@both
def test_benjamini_hochberg_holds_false_discoveries(worlds):
    """40 comparisons, 10 of them real: the mean share of false ones among the discoveries stays at 5 %."""
    rng, codes, shares = np.random.default_rng(8), np.repeat(np.arange(60), 2), []
    for _ in range(worlds // 10):
        p = {}
        for i in range(40):
            a, b = arms(rng, 1, 60, 2, 0.7 if i < 10 else 0.5, 0.4 if i < 10 else 0.5, 0.6)
            p[i] = stats.paired(a.ravel().astype(float) - b.ravel(), codes).p
        found = [i for i, q in stats.benjamini_hochberg(p).items() if q <= 0.05]
        shares.append(sum(i >= 10 for i in found) / max(1, len(found)))
    off = 0.0 if worlds >= FULL else 0.03
    assert np.mean(shares) <= 0.05 + 0.01 + off


@both
def test_the_anytime_test_holds_under_peeking_after_every_pair(worlds):
    """Fair coins, looked at after each of 400 pairs; a fixed test, peeked at the same way, does not hold."""
    rng, stopped = np.random.default_rng(9), 0
    for _ in range(worlds):
        a, b = (rng.integers(0, 2, 400) > 0 for _ in range(2))
        stopped += first_stop(zip(a.tolist(), b.tolist(), strict=True))[0] is not None
    assert stopped / worlds <= 0.05 + slack(worlds, 0.05)


@both
def test_no_winners_curse_when_the_baseline_is_chosen_on_validation(worlds):
    """Ten baselines as good as the claim. Chosen on validation, the best one's test contrast is unbiased; chosen
    on test, its rate is far too high."""
    rng, codes = np.random.default_rng(10), np.arange(60)
    honest, cursed, wrong = [], [], 0
    for _ in range(worlds):
        validation, test = rng.random((2, 10, 60)) < 0.5
        claim = rng.random(60) < 0.5
        best = test[validation.mean(axis=1).argmax()]
        honest.append(best.mean())
        cursed.append(test.mean(axis=1).max())
        wrong += stats.paired(claim.astype(float) - best, codes).p <= 0.05
    assert abs(np.mean(honest) - 0.5) < 0.02 and np.mean(cursed) > 0.58
    assert wrong / worlds <= 0.05 + slack(worlds, 0.05)


@both
@pytest.mark.parametrize(
    ("effect", "clusters", "size", "icc"), [(0.15, 60, 3, 0.5), (0.2, 100, 1, 1.0), (0.1, 200, 3, 0.8)]
)
def test_the_power_formula_is_what_simulation_finds(worlds, effect, clusters, size, icc):
    assumed = power.Assumed(clusters, size, 0.4, icc)
    simulated = power.simulate(effect, assumed, worlds=4 * worlds)
    off = 0.03 if worlds >= FULL else 0.06
    assert abs(power.power(effect, assumed) - simulated) <= off
    least = power.smallest(assumed)
    assert abs(power.simulate(least, assumed, worlds=4 * worlds, seed=1) - 0.8) <= off
    enough = power.clusters_needed(effect, assumed)
    assert power.power(effect, power.Assumed(enough, size, 0.4, icc)) >= 0.8
    assert power.power(effect, power.Assumed(enough - 1, size, 0.4, icc)) < 0.8


@both
def test_error_parity_is_not_failed_by_chance(worlds):
    """Rare errors that come in clusters (a page that is down fails all its renderings), the same in both arms."""
    found = differences(worlds, 60, 3, 0.06, 0.06, 0.95, seed=11)
    assert rate(d.p < 0.05 for d in found) <= 0.05 + slack(worlds, 0.05)


@both
def test_coverage_of_costs_per_success(worlds):
    """Fieller's interval of one arm, and the ratio of two arms, where dear clusters also fail more often."""
    rng, one, two = np.random.default_rng(12), 0, 0
    truth = {}
    for p in (0.5, 0.7):  # the true ratio, from a very long study
        spent, won = spending(rng, 200_000, p)
        truth[p] = spent.sum() / won.sum()
    for _ in range(worlds):
        mine, theirs = spending(rng, 60, 0.5), spending(rng, 60, 0.7)
        found = costs.fieller(*mine)
        one += found.low <= truth[0.5] <= found.high
        both_arms = costs.ratio_of_ratios(mine, theirs)
        two += both_arms.low <= truth[0.5] / truth[0.7] <= both_arms.high
    off = 0.0 if worlds >= FULL else 0.04
    for covered in (one / worlds, two / worlds):
        assert 0.93 - off <= covered <= 0.97 + off, covered


def spending(rng, clusters, p):
    """FLOPs and successes by cluster [clusters], three items each."""
    hard = rng.normal(size=clusters)
    spent = (3 * np.exp(0.3 * hard + 0.2 * rng.normal(size=clusters))).astype(float)
    won = (hard[:, None] + rng.normal(size=(clusters, 3)) < math.sqrt(2) * norm.ppf(p)).sum(axis=1).astype(float)
    return spent, won


def test_simulated_pairs_have_the_discordance_effect_and_icc_asked_for():
    assumed = power.Assumed(400, 4, 0.4, 0.6)
    sums = power.draw(np.random.default_rng(0), 50, 0.1, assumed)
    assert abs(sums.mean() / 4 - 0.1) < 0.01
    expected = assumed.spread(0.1) ** 2
    assert abs(sums.var() / 16 - expected) < 0.02


def test_fewer_clusters_than_forty_are_warned_of():
    assert all(any("unreliable below 40" in w for w in d.warnings) for d in differences(5, 39, 3, 0.5, 0.5, 0.8))
