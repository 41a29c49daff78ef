"""Selection keeps its laws: the lasso's own conditions, stated error rates, separation by its definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random
from scipy.stats import kstest
from tests.features.texts.planted import world

from fairlead.core.errors import FairleadError
from fairlead.features.texts import select
from fairlead.features.texts.select import adjusted, correlations, design, lasso, p_values, separation, target


def drawn(n: int = 300, m: int = 60, seed: int = 0) -> csr_matrix:
    return csr_matrix(random(n, m, density=0.1, random_state=seed, data_rvs=np.random.default_rng(seed).random))


def test_lasso_gives_exactly_k_and_meets_its_conditions() -> None:
    z, rng = drawn(), np.random.default_rng(1)
    y = z.toarray()[:, :8] @ rng.standard_normal(8) + 0.2 * rng.standard_normal(z.shape[0])
    x = design(z)
    for k in (1, 3, 8, 20, 40):
        path = lasso(x, y, k)
        assert len(path.chosen) == k == len(set(path.chosen))
        residual = x.project(y) - sum(w * x.dense(j) for j, w in zip(path.chosen, path.weights, strict=True))
        c = x.correlate(residual)
        inside = c[list(path.chosen)]
        level = np.abs(inside).mean()  # Karush, Kuhn and Tucker: equal inside, with the sign of the weight; none above
        assert np.allclose(inside, level * np.sign(path.weights), atol=1e-7)
        assert np.abs(c).max() <= level + 1e-7
    assert set(range(5)) & set(lasso(x, y, 8).chosen)


def test_covariates_carry_no_penalty_and_explain_first() -> None:
    z, rng = drawn(), np.random.default_rng(2)
    covariate = z.toarray()[:, 0] * 3 + 0.01 * rng.standard_normal(z.shape[0])
    y = covariate + 0.05 * rng.standard_normal(z.shape[0]) + z.toarray()[:, 5]
    assert select.select(z, y, 1).columns == (0,)
    assert select.select(z, y, 1, covariates=covariate).columns == (5,)
    left = np.column_stack([np.ones(len(y)), covariate])
    residual = [v - left @ np.linalg.lstsq(left, v, rcond=None)[0] for v in (y, z.toarray()[:, 5])]
    assert correlations(design(z, covariate), y)[5] == pytest.approx(np.corrcoef(*residual)[0, 1])


def test_copies_and_empty_columns_are_never_taken_together() -> None:
    z = drawn(m=6).toarray()
    z = np.hstack([z, z[:, :1], np.zeros((len(z), 1)), np.ones((len(z), 1))])
    y = z[:, 0] + 0.5 * z[:, 1] + 0.1 * np.random.default_rng(0).standard_normal(len(z))
    chosen = select.select(z, y, 9).columns
    assert len(chosen) == 6 and not {7, 8} & set(chosen) and len({0, 6} & set(chosen)) == 1


def test_separation_of_a_rare_latent_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    z, y = np.zeros((2000, 3)), (rng.random(2000) < 0.4).astype(float)
    rare = rng.choice(2000, 20, replace=False)
    z[rare, 0] = rng.random(20) + 0.1
    y[rare[:18]] = 1.0
    z[:, 1] = rng.random(2000) * (rng.random(2000) < 0.5)
    found = separation(z, y)
    assert found[0] == pytest.approx(y[rare].mean() - np.delete(y, rare).mean()) and found[0] > 0.4
    top = np.argsort(-z[:, 1], kind="stable")[:100]
    assert found[1] == pytest.approx(y[top].mean() - y[z[:, 1] == 0].mean())
    assert np.isnan(found[2])
    assert select.select(z, y, 2, "separation").columns[0] == 0


def test_separation_of_pairs_counts_a_swapped_pair_as_its_twin() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.integers(-1, 2, (400, 4)).astype(float), rng.random(400) < 0.5
    there = separation(z, y.astype(float), pairs=True, top=400)
    swapped = separation(-z, (~y).astype(float), pairs=True, top=400)
    assert np.allclose(there, swapped)


def test_pairwise_p_values_are_uniform_under_the_null() -> None:
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        differences = rng.integers(-1, 2, (120, 10)) * rng.random((120, 10))
        found.append(p_values(design(differences, pairs=True), target(rng.random(120) < 0.5, pairs=True)[:, 0]))
    assert kstest(np.concatenate(found), "uniform").pvalue > 0.01
    assert 0.03 <= (np.array(found) <= 0.05).mean() <= 0.07


@pytest.mark.parametrize("how", ["lasso", "correlation", "stability"])
def test_a_stated_error_rate_lets_what_is_true_through(how: str) -> None:
    _, gold = world(400)
    z = np.hstack([gold, np.random.default_rng(1).random((400, 60)) < 0.1]).astype(float)
    y = (gold[:, 2] | (np.random.default_rng(2).random(400) < 0.2)).astype(float)
    found = select.select(z, y, 5, how, rate=0.05)
    assert found.columns[0] == 2 and found.rate == 0.05 and len(found.columns) <= 2


def reports(runs: int, how: str, *, pairs: bool = False, n: int = 300) -> int:
    """Runs that report anything although the labels are shuffled."""
    texts_of, latents = world(n, share=0.15)[1], drawn(n, 40).toarray()
    z = np.hstack([texts_of, latents])
    if pairs:
        z = z[: n // 2] - z[n // 2 :]
    labels = np.arange(len(z)) % 3 == 0
    shuffled = (np.random.default_rng(1000 + s).permutation(labels) for s in range(runs))
    return sum(bool(select.select(z, y, 20, how, rate=0.05, pairs=pairs, seed=s).columns)
               for s, y in enumerate(shuffled))  # fmt: skip


@pytest.mark.parametrize(("how", "runs"), [("lasso", 40), ("stability", 4)])
def test_few_runs_on_shuffled_labels_report_anything(how: str, runs: int) -> None:
    assert reports(runs, how) <= max(1, runs // 8)


@pytest.mark.soak
@pytest.mark.parametrize(("how", "pairs"), [("lasso", False), ("lasso", True), ("stability", False)])
def test_at_most_16_of_200_runs_on_shuffled_labels_report_anything(how: str, pairs: bool) -> None:
    assert reports(200, how, pairs=pairs) <= 16


def test_whole_groups_are_shuffled_together() -> None:
    """Rows said four times over are no evidence; drawing signs of whole groups knows that."""
    false = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        z, y = np.repeat(rng.random((30, 40)), 10, axis=0), np.repeat(rng.random(30), 10)
        false += bool((adjusted(design(z), target(y), pairs=False, groups=np.repeat(np.arange(30), 10)) <= 0.05).any())
    assert false <= 3


def test_classes_take_turns() -> None:
    _, gold = world(600)
    y = np.column_stack([gold[:, 0], gold[:, 1], ~gold[:, 0] & ~gold[:, 1]]).astype(float)
    assert set(select.select(gold.astype(float), y, 2).columns) == {0, 1}


def test_what_cannot_be_explained_is_refused() -> None:
    z = drawn(20, 5)
    for y, said in ((np.ones(20), "nothing to explain"), (np.full(20, np.nan), "NaN")):
        with pytest.raises(FairleadError, match=said):
            select.select(z, y, 3)
    with pytest.raises(FairleadError, match="unknown way"):
        select.select(z, np.arange(20.0), 3, "guess")
