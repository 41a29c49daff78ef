"""The outcome contrast against scipy's, against a planted effect, and under a null with clusters and a covariate."""

import numpy as np
import pytest
from scipy import sparse, stats

from fairlead.features.misread.outcome import outcome


def rare(rng, n, m, share=0.3):
    return sparse.csr_matrix(rng.random((n, m)) * (rng.random((n, m)) < share))


def test_without_clusters_and_covariates_it_is_the_mann_whitney_test():
    rng = np.random.default_rng(0)
    values = rare(rng, 400, 6)
    wrong = rng.random(400) < 0.4
    found = outcome(values, wrong, [str(i) for i in range(400)])
    dense = values.toarray()
    for j in range(6):
        reference = stats.mannwhitneyu(dense[wrong, j], dense[~wrong, j], use_continuity=False)
        n1, n0 = int(wrong.sum()), int((~wrong).sum())
        assert found.auroc[j] == pytest.approx(reference.statistic / (n1 * n0), abs=1e-12)
        assert found.adjusted[j] == pytest.approx(found.auroc[j], abs=1e-9)
        assert found.p[j] == pytest.approx(reference.pvalue, abs=0.02)  # another variance, the same to first order


def test_a_latent_that_marks_what_goes_wrong_is_found_and_others_are_not():
    rng = np.random.default_rng(1)
    values = rare(rng, 300, 200).tolil()
    wrong = np.zeros(300, dtype=bool)
    wrong[:120] = True
    values[:, 7] = 0
    values[:110, 7] = 1.0
    found = outcome(values.tocsr(), wrong, [f"c{i // 3}" for i in range(300)])
    assert found.auroc[7] > 0.95 and found.q[7] < 1e-6
    assert (found.q < 0.1).sum() <= 5  # of 199 others, at a false discovery rate of a tenth


def test_under_the_null_with_clusters_and_a_covariate_few_p_values_are_small():
    """Items of a cluster share latent and outcome, and the covariate drives both: what a plain test would call
    found."""
    small, naive = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        length = np.repeat(rng.normal(size=60), 5)
        shared = np.repeat(rng.random((60, 20)) < 0.4, 5, axis=0)
        fires = shared & (length[:, None] + rng.normal(size=(300, 20)) > 0)
        values = sparse.csr_matrix(fires * rng.random((300, 20)))
        drive = length + np.repeat(rng.normal(size=60), 5)
        wrong = drive + 0.3 * rng.normal(size=300) > 0
        clusters = [f"c{i // 5}" for i in range(300)]
        small.append((outcome(values, wrong, clusters, length).p < 0.05).mean())
        naive.append((outcome(values, wrong, [str(i) for i in range(300)]).p < 0.05).mean())
    assert np.mean(small) < 0.10  # a linear covariate does not take all of it; the naive test calls far more
    assert np.mean(naive) > 0.35


def test_nothing_wrong_is_nothing_measured():
    found = outcome(rare(np.random.default_rng(0), 10, 3), [False] * 10, ["a"] * 10)
    assert np.isnan(found.auroc).all() and found.n_wrong == 0


def test_a_latent_of_one_cluster_says_nothing():
    values = sparse.csr_matrix(np.eye(20)[:, :2])
    found = outcome(values, [True] * 5 + [False] * 15, [str(i) for i in range(20)])
    assert found.p.tolist() == [1.0, 1.0]


def test_blocks_of_latents_are_one_computation(monkeypatch):
    rng = np.random.default_rng(3)
    values, wrong, clusters = rare(rng, 120, 50), rng.random(120) < 0.5, [str(i // 2) for i in range(120)]
    whole = outcome(values, wrong, clusters, rng.random((120, 2)))
    rng = np.random.default_rng(3)
    values, wrong = rare(rng, 120, 50), rng.random(120) < 0.5
    monkeypatch.setattr("fairlead.features.misread.outcome.BLOCK", 300)
    assert np.allclose(whole.p, outcome(values, wrong, clusters, rng.random((120, 2))).p)


def test_a_latent_that_fires_alike_everywhere_says_nothing():
    values = sparse.csr_matrix(np.full((50, 2), 3.7))
    rng = np.random.default_rng(0)
    found = outcome(values, rng.random(50) < 0.5, [str(i) for i in range(50)], rng.random((50, 1)))
    assert found.p.tolist() == [1.0, 1.0] and found.auroc.tolist() == [0.5, 0.5]
