"""Every dictionary plugin keeps the same promises; each control is what its name says."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tests.dictionaries.conftest import D

from fairlead import dictionaries
from fairlead.core import plugins
from fairlead.core.errors import FairleadError, NotApplicable, UnknownName
from fairlead.core.protocols import Dictionary
from fairlead.dictionaries import kmeans, pca, permuted, random

NAMES = plugins.names("dictionaries")
OPTIONS = {name: {"k": 4, "steps": 40, "batch": 128, "held_out": 256} for name in ("sae", "shuffled", "permuted")}


def test_the_families_are_found_and_the_machinery_is_not():
    assert set(NAMES) >= {"kmeans", "pca", "permuted", "random", "sae", "shuffled"}
    assert not set(NAMES) & {"base", "train", "sparse", "saelens", "refs", "quality", "stream", "splice"}
    with pytest.raises(UnknownName, match="kmeans"):
        plugins.get("dictionaries", "train")


@pytest.mark.parametrize("name", NAMES)
def test_conformance(name, planted, tmp_path):
    x = planted.activations[:3000]
    fit = plugins.get("dictionaries", name)
    d = fit(x, 2 * D, 3, **OPTIONS.get(name, {}))
    assert isinstance(d, Dictionary) and (d.d_in, d.n_features) == (D, 2 * D)
    f = d.encode(x[:64])
    assert f.shape == (64, 2 * D) and f.dtype == torch.float32 and (f >= 0).all()
    assert d.decode(f).shape == (64, D) and torch.isfinite(d.decode(f)).all()
    torch.testing.assert_close(d.encode_rows(x[:64], [5, 1]), f[:, [5, 1]])
    assert d.decoder_rows([5, 1]).shape == (2, D)
    assert d.max_activation is not None and d.firing_rate is not None and d.training_flops
    assert float((d.max_activation - d.encode(x).amax(0)).min()) > -1e-4 or name in OPTIONS
    assert fit(x, 2 * D, 3, **OPTIONS.get(name, {})).fingerprint == d.fingerprint
    if name != "pca":
        assert fit(x, 2 * D, 4, **OPTIONS.get(name, {})).fingerprint != d.fingerprint
    assert dictionaries.load(dictionaries.save(d, tmp_path)).fingerprint == d.fingerprint


def test_kmeans_fires_on_the_nearest_centroid(planted):
    x = planted.activations[:1500]
    d = kmeans.fit(x, 20, 0)
    centroids = d.W_dec + d.b_dec
    assert torch.equal(d.encode(x).argmax(-1), torch.cdist(x, centroids).argmin(-1))
    assert float(d.firing_rate.sum()) == pytest.approx(1.0) and (d.firing_rate > 0).all()
    measured = dictionaries.evaluate(d, x)["explained_variance"]
    assert measured > dictionaries.evaluate(kmeans.fit(x, 20, 0, iterations=1), x)["explained_variance"] > 0
    with pytest.raises(FairleadError, match="too few rows"):
        kmeans.fit(x[:10], 20)


def test_kmeans_reads_rows_in_blocks_and_counts_as_it_encodes(planted, monkeypatch):
    x = planted.activations[:700]
    d = kmeans.fit(x, 20, 0, rows=600)
    counted = dictionaries.with_statistics(d, x[torch.randperm(700, generator=torch.Generator().manual_seed(0))[:600]])
    assert torch.equal(d.firing_rate, counted.firing_rate) and torch.equal(d.max_activation, counted.max_activation)
    monkeypatch.setattr(kmeans, "_ROWS", 37)
    torch.testing.assert_close(kmeans.fit(x, 20, 0, rows=600).W_dec, d.W_dec, atol=1e-4, rtol=1e-4)


def test_pca_is_complete_at_full_width_and_best_below(planted):
    x = planted.activations[:3000]
    full = pca.fit(x, 2 * D)
    torch.testing.assert_close(full.decode(full.encode(x)), x, atol=1e-4, rtol=1e-4)
    half = dictionaries.evaluate(pca.fit(x, D), x)["explained_variance"]
    values = torch.linalg.svdvals(x - x.mean(0)).square()
    assert half == pytest.approx(float(values[: D // 2].sum() / values.sum()), abs=1e-4)
    for wrong in (2 * D + 2, 7):
        with pytest.raises(NotApplicable):
            pca.fit(x, wrong)


def test_random_fires_as_often_as_it_is_told(planted):
    x = planted.activations
    d = random.fit(x, 64, 0, l0=5.0)
    assert dictionaries.evaluate(d, x)["l0"] == pytest.approx(5.0, rel=0.1)
    assert torch.allclose(d.W_dec.norm(dim=-1), torch.ones(64), atol=1e-5)
    assert planted.recovered(d) == 0.0
    with pytest.raises(FairleadError):
        random.fit(x, 64, 0, l0=40.0)


def test_permuted_is_the_same_dictionary_under_other_numbers(planted, trained):
    x = planted.activations[:100]
    order = torch.randperm(trained.n_features, generator=torch.Generator().manual_seed(1))
    moved = permuted.permute(trained, order)
    assert torch.equal(moved.encode(x), trained.encode(x)[:, order])
    torch.testing.assert_close(moved.decode(moved.encode(x)), trained.decode(trained.encode(x)))
    assert torch.equal(moved.max_activation, trained.max_activation[order]) and moved.fingerprint != trained.fingerprint
    with pytest.raises(FairleadError, match="not a permutation"):
        permuted.permute(trained, torch.zeros_like(order))


def test_listing_plugins_does_not_import_torch():
    code = (
        "import sys; from fairlead.core import plugins\nplugins.names('dictionaries'); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
