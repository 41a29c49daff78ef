"""Effects of hypotheses: slopes as least squares has them, p-values uniform under no effect, power where one is."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats as sps

from fairlead.judge.effects import RARE, test_all
from fairlead.judge.predictions import chance, skills

test_all.__test__ = False  # a function of the house, not of pytest


def fires(rng, n, k, low=0.05, high=0.4):
    return (rng.random((n, k)) < rng.uniform(low, high, k)).astype(float)


def test_slopes_and_intervals_are_least_squares():
    rng = np.random.default_rng(0)
    n, x = 400, fires(rng, 400, 3)
    z = rng.normal(size=(n, 2))
    y = 0.5 * x[:, 0] - 0.3 * x[:, 1] + z @ [0.4, -0.2] + rng.normal(size=n)
    found = test_all(x, y, range(n), covariates=z, permutations=0)

    def least_squares(columns):
        a = np.column_stack([np.ones(n), columns])
        beta = np.linalg.lstsq(a, y, rcond=None)[0]
        inverse = np.linalg.inv(a.T @ a)
        e = (y - a @ beta)[:, None] * a
        se = np.sqrt(np.diag(n / (n - 1) * inverse @ (e.T @ e) @ inverse))
        return beta, se

    for j, tested in enumerate(found.tested):
        for effect, columns, at in (
            (tested.raw, x[:, [j]], 1), (tested.adjusted, np.column_stack([x[:, j], z]), 1),
            (tested.joint, np.column_stack([x, z]), 1 + j),
        ):  # fmt: skip
            beta, se = least_squares(columns)
            assert effect.value == pytest.approx(beta[at]) and effect.se == pytest.approx(se[at], rel=1e-6)
            assert effect.hi - effect.value == pytest.approx(sps.t.ppf(0.975, n - 1) * se[at], rel=1e-6)
    assert found.tested[0].found and not found.tested[2].found


@pytest.mark.parametrize("shape", ["rows", "clusters", "pairs"])
def test_p_is_uniform_where_nothing_is(shape: str):
    """No effect: p below a in a share a of the cases, whether rows are alone, in clusters that share a level, or pairs
    whose first is chosen more often."""
    rng, ps, any_found = np.random.default_rng(1), [], 0
    for _ in range(120):
        n = 300
        clusters = rng.integers(0, 150, n) if shape == "clusters" else np.arange(n)
        x = fires(rng, n, 10)
        if shape == "pairs":
            x = x - fires(rng, n, 10)
        level = rng.normal(size=n)[clusters] if shape == "clusters" else 0
        y = (level + rng.normal(size=n) > 0.4).astype(float)
        found = test_all(x, y, clusters, permutations=0)
        ps += [t.raw.p for t in found.tested if t.raw]
        any_found += found.found > 0
    for a in (0.05, 0.2, 0.5):
        share = np.mean(np.array(ps) < a)
        assert abs(share - a) < 4.5 * np.sqrt(a * (1 - a) / len(ps)), (a, share)
    assert any_found <= 14  # 5 % of 120 and three standard errors


def test_what_is_rare_is_not_tested_and_says_so():
    y = (np.arange(200) % 2).astype(float)
    x = np.zeros((200, 4))
    x[1 : 2 * (RARE - 1) : 2, 0] = 1  # nine rows, all of them true
    x[:, 1] = 1
    x[: 100, 2] = 1
    found = test_all(x, y, range(200), permutations=0)
    notes = [t.note for t in found.tested]
    assert "too rare" in notes[0] and "too common" in notes[1] and notes[2] == "" and "no test row" in notes[3]
    assert found.found == 0 and found.tested[0].p_holm == 1.0


def test_a_covariate_that_says_it_all_leaves_no_effect():
    rng = np.random.default_rng(2)
    x = fires(rng, 300, 1, 0.4, 0.5)
    y = (rng.random(300) < 0.3 + 0.4 * x[:, 0]).astype(float)
    found = test_all(x, y, range(300), covariates=x, permutations=0)
    assert found.tested[0].raw.value > 0.2 and found.tested[0].adjusted is None and not found.tested[0].found
    noisy = x + rng.normal(0, 0.3, (300, 1))
    partly = test_all(x, y, range(300), covariates=noisy, permutations=0).tested[0]
    assert abs(partly.raw.value) > 0 and partly.adjusted.se > partly.raw.se


def test_permuted_labels_find_little_and_true_ones_much():
    rng = np.random.default_rng(3)
    x = fires(rng, 600, 20)
    y = (rng.random(600) < 0.3 + 0.3 * x[:, 0]).astype(float)
    clusters = np.repeat(np.arange(300), 2)
    found = test_all(x, y, clusters)
    assert found.tested[0].found and found.null_any <= 0.1 and found.null_p <= 0.1 and found.permutations == 200
    assert 0.05 < found.detectable < 0.4


def test_a_name_for_a_label_has_an_effect_on_the_class_it_speaks_of():
    rng = np.random.default_rng(4)
    x = fires(rng, 500, 3, 0.3, 0.5)
    y = np.where((x[:, 0] > 0) & (rng.random(500) < 0.5), "red", rng.choice(["red", "blue", "green"], 500))
    found = test_all(x, list(y), range(500), classes=["blue", "green", "red"], permutations=20)
    assert found.tested[0].found and found.tested[0].raw.label == "red" and found.tested[0].raw.value > 0.2
    assert not found.tested[1].found


def test_auc_r2_and_accuracy():
    y, clusters = [True, False, True, False], range(4)
    perfect, wrong, flat = [0.9, 0.1, 0.8, 0.2], [0.1, 0.9, 0.2, 0.8], [0.5] * 4
    by = {s.arm: s for s in skills("binary", y, {"a": perfect, "b": wrong, "c": flat}, clusters, claim="a")}
    assert (by["a"].value, by["b"].value, by["c"].value) == (1.0, 0.0, 0.5)
    assert by["a"].behind is None and by["c"].behind == 0.5
    assert skills("numeric", [1, 2, 3, 4], {"a": [1, 2, 3, 4]}, clusters)[0].value == 1
    assert skills("numeric", [1, 2, 3, 4], {"a": [2.5] * 4}, clusters)[0].value == 0
    assert skills("multiclass", ["x", "y"], {"a": [1, 0]}, range(2))[0].value == 0.5
    assert chance("multiclass", ["x", "x", "y"]) == pytest.approx(2 / 3) and chance("binary", y) == 0.5


def test_auc_is_that_of_all_pairs():
    rng = np.random.default_rng(5)
    y, p = rng.random(200) < 0.4, np.round(rng.random(200), 1)
    pairs = [(a > b) + (a == b) / 2 for a in p[y] for b in p[~y]]
    found = skills("binary", list(y), {"a": list(p)}, range(200))[0]
    assert found.value == pytest.approx(np.mean(pairs)) and found.lo < found.value < found.hi
