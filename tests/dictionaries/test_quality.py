"""The measures read 1 on a perfect dictionary, 0 on the mean, and what they should between."""

from __future__ import annotations

import asyncio

import pytest
import torch
from tests.dictionaries.conftest import D, random_dictionary
from tests.lm.conftest import PAGES, checkpoint

from fairlead import dictionaries
from fairlead.core.errors import FairleadError, LoadError
from fairlead.dictionaries import pca


def test_explained_variance_of_perfect_and_of_mean(planted):
    x = planted.activations[:3000]
    perfect = pca.fit(x, 2 * D)
    assert dictionaries.evaluate(perfect, x)["explained_variance"] == pytest.approx(1.0, abs=1e-5)
    mean = perfect.replace(W_dec=torch.zeros_like(perfect.W_dec))
    assert dictionaries.evaluate(mean, x)["explained_variance"] == pytest.approx(0.0, abs=1e-5)
    previous = 1.0
    for noise in (0.3, 0.6, 1.2):
        moved = perfect.replace(
            W_dec=perfect.W_dec + noise * torch.randn(2 * D, D, generator=torch.Generator().manual_seed(0))
        )
        value = dictionaries.evaluate(moved, x)["explained_variance"]
        assert value < previous - 0.05
        previous = value


def test_l0_and_dead_are_counted(monkeypatch):
    monkeypatch.setattr("fairlead.dictionaries.quality._CHUNK", 60)  # many chunks, one of them short
    d = random_dictionary("jumprelu")
    d = d.replace(threshold=torch.where(torch.arange(20) < 5, 1e9, d.threshold))
    x = torch.randn(101, 8, generator=torch.Generator().manual_seed(1))
    f = d.encode(x)
    measured = dictionaries.evaluate(d, x)
    assert measured["l0"] == pytest.approx(float((f > 0).float().sum(-1).mean()))
    assert measured["dead"] == pytest.approx(float((f.amax(0) == 0).float().mean())) and measured["dead"] >= 0.25
    counted = dictionaries.with_statistics(d, x)
    torch.testing.assert_close(counted.max_activation, f.amax(0))
    torch.testing.assert_close(counted.firing_rate, (f > 0).float().mean(0))
    with pytest.raises(LoadError, match="does not fit"):
        dictionaries.evaluate(d, torch.zeros(3, 9))
    with pytest.raises(FairleadError, match="no meaning"):
        dictionaries.evaluate(d, torch.ones(3, 8))


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    from fairlead.lm.load import load

    torch.set_num_threads(1)
    return load(checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def prompts():
    from fairlead.core.types import Message

    return [(Message("system", "You shop."), Message("user", page)) for page in PAGES]


def test_harvest_reads_every_token_up_to_the_limit(subject, prompts):
    everything = torch.cat(list(dictionaries.harvest(subject, prompts, "resid.1", batch=3)))
    assert everything.shape == (sum(len(subject.tokens(p).ids) for p in prompts), subject.d_model)
    some = torch.cat(list(dictionaries.harvest(subject, iter(prompts), "resid.1", limit=50, batch=1)))
    assert torch.allclose(some, everything[:50], atol=1e-5)
    last = torch.cat(list(dictionaries.harvest(subject, prompts, "resid.1", tokens="last")))
    assert last.shape == (len(prompts), subject.d_model)


def test_a_dictionary_trains_on_what_a_subject_yields(subject, prompts):
    rows = dictionaries.harvest(subject, prompts * 3, "resid.1", batch=2)
    config = dictionaries.TrainConfig(n_features=64, k=4, steps=5, batch=32, held_out=50, buffer=200, site="resid.1")
    from fairlead.dictionaries.train import train

    fitted = train(rows, config)
    fitted.check_width(subject.d_model)
    assert fitted.site == "resid.1" and fitted.metadata["statistics"]["rows"] == 50


def test_cross_entropy_recovered(subject, prompts):
    chosen = [asyncio.run(subject.generate(prompt, max_tokens=3)).text for prompt in prompts]
    x = torch.cat(list(dictionaries.harvest(subject, prompts, "resid.1")))
    perfect = pca.fit(x, 2 * subject.d_model, site="resid.1")
    best = dictionaries.ce_recovered(subject, perfect, prompts, chosen)
    assert best["recovered"] == pytest.approx(1.0, abs=1e-3) and best["ablated"] > best["clean"]
    mean = perfect.replace(W_dec=torch.zeros_like(perfect.W_dec), b_dec=x.mean(0))
    worst = dictionaries.ce_recovered(subject, mean, prompts, chosen)
    assert worst["recovered"] == pytest.approx(0.0, abs=1e-3) and worst["clean"] == pytest.approx(best["clean"])
    zero = dictionaries.ce_recovered(subject, perfect, prompts, chosen, baseline="zero")
    assert zero["ablated"] != best["ablated"]
    with pytest.raises(FairleadError, match="mean or zero"):
        dictionaries.ce_recovered(subject, perfect, prompts, chosen, baseline="none")


def test_next_token_cross_entropy_is_the_models_own(subject, prompts):
    ids = [torch.as_tensor(subject.tokens(p).ids)[None] for p in prompts]
    with torch.no_grad():
        losses = [subject.model(i, labels=i).loss * (i.shape[1] - 1) for i in ids]
    want = float(sum(losses)) / sum(i.shape[1] - 1 for i in ids)
    x = torch.cat(list(dictionaries.harvest(subject, prompts, "resid.1")))
    perfect = pca.fit(x, 2 * subject.d_model, site="resid.1")
    mean = perfect.replace(W_dec=torch.zeros_like(perfect.W_dec), b_dec=x.mean(0))
    measured = dictionaries.ce_recovered(subject, perfect, prompts)
    assert measured["clean"] == pytest.approx(want, rel=1e-5)
    assert measured["recovered"] == pytest.approx(1.0, abs=1e-3)
    assert dictionaries.ce_recovered(subject, mean, prompts)["recovered"] == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(FairleadError, match="costs this model nothing"):  # an untrained model is better off without
        dictionaries.ce_recovered(subject, perfect, prompts, baseline="zero")
