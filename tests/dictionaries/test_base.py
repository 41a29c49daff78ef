"""Encode, decode and row access of every activation, against the formulas written out."""

from __future__ import annotations

import pytest
import torch
from tests.dictionaries.conftest import random_dictionary

from fairlead.core.errors import EditError, LoadError
from fairlead.core.protocols import Dictionary
from fairlead.dictionaries.quality import calibrated

ACTIVATIONS = ["relu", "jumprelu", "topk", "onehot"]
X = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_encode_follows_its_formula(activation, centred):
    d = random_dictionary(activation, apply_b_dec_to_input=centred)
    pre = (X - d.b_dec if centred else X) @ d.W_enc + d.b_enc
    f = d.encode(X)
    assert f.shape == (5, 4, 20) and (f >= 0).all()
    if activation == "relu":
        torch.testing.assert_close(f, pre.clamp_min(0))
    elif activation == "jumprelu":
        torch.testing.assert_close(f, torch.where(pre > d.threshold, pre.clamp_min(0), 0.0))
    elif activation == "topk":
        assert ((f > 0).sum(-1) <= 3).all()
        torch.testing.assert_close(f.sum(-1), pre.clamp_min(0).sort(-1).values[..., -3:].sum(-1))
    else:
        assert torch.equal(f.argmax(-1), pre.argmax(-1)) and torch.equal(f.sum(-1), torch.ones(5, 4))
    torch.testing.assert_close(d.decode(f), torch.einsum("btm,md->btd", f, d.W_dec) + d.b_dec)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_watched_rows_equal_the_full_encode(activation):
    d = random_dictionary(activation)
    ids = [3, 0, 19, 3]
    torch.testing.assert_close(d.encode_rows(X, ids), d.encode(X)[..., ids])
    assert torch.equal(d.decoder_rows(ids), d.W_dec[ids])
    rows, biases = d.encoder_rows(ids)
    torch.testing.assert_close(X @ rows.T + biases, d.preactivations(X)[..., ids])
    assert d.exact_rows == (activation in ("relu", "jumprelu"))


def test_threshold_rows_of_a_topk_stand_for_its_latents():
    d = random_dictionary("topk")
    with pytest.raises(EditError, match="no calibrated threshold"):
        d.threshold_rows(X, [0])
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(2))
    fitted = calibrated(d, x)
    stand_in = fitted.threshold_rows(x, range(20))
    assert abs(float((stand_in > 0).sum(-1).float().mean()) - 3) < 0.05
    agreement = ((stand_in > 0) == (fitted.encode(x) > 0)).float().mean()
    assert 0.85 < float(agreement) < 1.0  # approximate, and labelled so


@pytest.mark.parametrize("wrong", [20, -1])
def test_a_latent_that_does_not_exist_is_refused(wrong):
    with pytest.raises(EditError, match=rf"latent {wrong} is not in dictionary relu(.|\n)*0 to 19"):
        random_dictionary().decoder_rows([0, wrong])


def test_width_and_shapes_are_checked():
    with pytest.raises(LoadError, match=r"width 16(.|\n)*width 8"):
        random_dictionary().check_width(16)
    good = random_dictionary()
    for changes in ({"b_dec": torch.zeros(9)}, {"W_dec": torch.zeros(8, 20)}, {"b_enc": torch.zeros(1)}):
        with pytest.raises(LoadError, match="does not fit W_enc"):
            good.replace(**changes)
    for changes in ({"activation": "topk", "k": 21}, {"activation": "jumprelu"}, {"activation": "gelu"}):
        with pytest.raises(LoadError):
            good.replace(**changes)


def test_fingerprint_follows_the_weights_and_not_the_name():
    d = random_dictionary()
    assert d.replace(name="other").fingerprint == d.fingerprint
    moved = d.W_dec.clone()
    moved[0, 0] += 1e-6
    changed = [d.replace(W_dec=moved), d.replace(site="resid.3"), d.replace(max_activation=torch.ones(20))]
    changed += [d.replace(apply_b_dec_to_input=False), random_dictionary("topk"), random_dictionary("topk", k=4)]
    assert len({d.fingerprint, *(c.fingerprint for c in changed)}) == 7


def test_it_is_a_dictionary_by_the_protocol():
    assert isinstance(random_dictionary(), Dictionary)
