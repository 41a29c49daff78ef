"""The SAELens layout: what is written reads back, what is broken is refused with a reason."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.dictionaries.conftest import random_dictionary

from fairlead import dictionaries
from fairlead.core.errors import LoadError

X = torch.randn(30, 8, generator=torch.Generator().manual_seed(4))


def edit_cfg(path, **changes):
    cfg = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps({**cfg, **changes}))


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk", "onehot"])
def test_round_trip(tmp_path, activation):
    extra = {"max_activation": torch.rand(20), "firing_rate": torch.rand(20), "training_flops": 1e9}
    extra["metadata"] = {"note": "a test"}
    if activation == "topk":
        extra["threshold"] = torch.rand(20)
    d = random_dictionary(activation, **extra)
    back = dictionaries.load(dictionaries.save(d, tmp_path / "it"))
    assert back.fingerprint == d.fingerprint
    assert torch.equal(back.encode(X), d.encode(X)) and torch.equal(back.decode(back.encode(X)), d.decode(d.encode(X)))
    for label in ("name", "site", "k", "training_flops", "metadata", "activation"):
        assert getattr(back, label) == getattr(d, label)
    for label in ("max_activation", "firing_rate", "threshold"):
        assert (a := getattr(back, label)) is (b := getattr(d, label)) or torch.equal(a, b)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_files_mean_what_saelens_6_takes_them_to_mean(tmp_path, activation):
    """The forward pass of sae-lens 6, written out over the raw files."""
    d = random_dictionary(activation, apply_b_dec_to_input=activation != "relu")
    dictionaries.save(d, tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    w = load_file(tmp_path / "sae_weights.safetensors")
    keys = {"W_enc", "W_dec", "b_enc", "b_dec"} | ({"threshold"} if activation == "jumprelu" else set())
    assert set(w) == keys and w["W_enc"].shape == (cfg["d_in"], cfg["d_sae"])
    assert cfg["normalize_activations"] == cfg["reshape_activations"] == "none"
    assert cfg["dtype"] == "float32" and cfg["metadata"]["sae_lens_version"] >= "6"
    assert cfg["metadata"]["hook_name"] == "blocks.2.hook_resid_post"
    pre = (X - w["b_dec"] * cfg["apply_b_dec_to_input"]) @ w["W_enc"] + w["b_enc"]
    if cfg["architecture"] == "topk":
        top = pre.topk(cfg["k"], dim=-1)
        f = torch.zeros_like(pre).scatter_(-1, top.indices, top.values.relu())
    elif cfg["architecture"] == "jumprelu":
        f = pre.relu() * (pre > w["threshold"])
    else:
        assert cfg["architecture"] == "standard"
        f = pre.relu()
    torch.testing.assert_close(f @ w["W_dec"] + w["b_dec"], d.decode(d.encode(X)))


def test_older_saelens_files_are_read(tmp_path):
    d = random_dictionary("topk")
    w = {"W_enc": d.W_enc, "W_dec": d.W_dec, "b_enc": d.b_enc, "b_dec": d.b_dec}
    save_file({label: tensor.clone() for label, tensor in w.items()}, tmp_path / "sae_weights.safetensors")
    cfg = {
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3},
        "d_in": 8,
        "d_sae": 20,
    }
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, "hook_name": "blocks.2.hook_resid_post"}))
    back = dictionaries.load(tmp_path)
    assert back.fingerprint == d.fingerprint and back.site == "resid.2" and back.max_activation is None


def test_decoder_norm_rescaling_is_folded_in(tmp_path):
    d = random_dictionary("topk")
    dictionaries.save(d, tmp_path)
    edit_cfg(tmp_path, rescale_acts_by_decoder_norm=True)
    norm = d.W_dec.norm(dim=-1)
    pre = d.preactivations(X) * norm
    top = pre.topk(3, dim=-1)
    f = torch.zeros_like(pre).scatter_(-1, top.indices, top.values.relu())
    back = dictionaries.load(tmp_path)
    torch.testing.assert_close(back.decode(back.encode(X)), (f / norm) @ d.W_dec + d.b_dec)


def cut(path, name):
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: len(data) - 40])


def poison(path, name, value):
    tensors = load_file(path / name)
    next(iter(tensors.values())).view(-1)[0] = value
    save_file(tensors, path / name)


def drop(path, key):
    tensors = load_file(path / "sae_weights.safetensors")
    del tensors[key]
    save_file(tensors, path / "sae_weights.safetensors")


BREAKS = {
    "no cfg": (lambda p: (p / "cfg.json").unlink(), "no dictionary"),
    "no weights": (lambda p: (p / "sae_weights.safetensors").unlink(), "no weights"),
    "cut weights": (lambda p: cut(p, "sae_weights.safetensors"), "not a whole safetensors file"),
    "cut statistics": (lambda p: cut(p, "fairlead_stats.safetensors"), "not a whole safetensors file"),
    "cut cfg": (lambda p: cut(p, "cfg.json"), "cannot be read as JSON"),
    "a pickle": (lambda p: (p / "sae_weights.safetensors").write_bytes(b"\x80\x04cos\nsystem\n"), "not a whole"),
    "NaN": (lambda p: poison(p, "sae_weights.safetensors", float("nan")), "holds NaN"),
    "infinite statistics": (lambda p: poison(p, "fairlead_stats.safetensors", float("inf")), "holds NaN"),
    "unknown architecture": (lambda p: edit_cfg(p, architecture="temporal"), "unknown architecture"),
    "wrong width": (lambda p: edit_cfg(p, d_in=16), "disagree on d_in"),
    "normalised inputs": (lambda p: edit_cfg(p, normalize_activations="layer_norm"), "not supported"),
    "no threshold": (lambda p: drop(p, "threshold"), "lacks threshold"),
    "list for metadata": (lambda p: edit_cfg(p, metadata=[1]), "metadata is not an object"),
    "topk without k": (lambda p: edit_cfg(p, architecture="topk"), "has no k"),
    "topk with words for k": (lambda p: edit_cfg(p, architecture="topk", k="many"), "has no k"),
    "topk with too many": (lambda p: edit_cfg(p, architecture="topk", k=21), "needs k"),
    "architecture of a wrong type": (lambda p: edit_cfg(p, architecture=["topk"]), "unknown architecture"),
    "list for cfg": (lambda p: (p / "cfg.json").write_text("[]"), "not a JSON object"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_broken_files_are_refused_with_a_reason(tmp_path, case):
    dictionaries.save(random_dictionary("jumprelu", max_activation=torch.rand(20)), tmp_path)
    dictionaries.load(tmp_path)
    do, message = BREAKS[case]
    do(tmp_path)
    with pytest.raises(LoadError, match=message):
        dictionaries.load(tmp_path)


def test_nan_is_refused_at_write_and_the_old_file_stays(tmp_path):
    d = random_dictionary()
    dictionaries.save(d, tmp_path)
    with pytest.raises(LoadError, match="not written"):
        dictionaries.save(d.replace(W_dec=d.W_dec * float("nan")), tmp_path)
    assert dictionaries.load(tmp_path).fingerprint == d.fingerprint


def test_refs(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRLEAD_POCKET", str(tmp_path))
    home = tmp_path / "shopper-s" / "dictionaries"
    names = ["resid.2", "resid.2-seed1", "resid.3"]
    saved = {name: random_dictionary(seed=i).replace(site=name[:7]) for i, name in enumerate(names)}
    for name, d in saved.items():
        dictionaries.save(d, home / name)
    refs = {
        "pocket/shopper-s@resid.2": "resid.2",
        "pocket/shopper-s@resid.2#seed1": "resid.2-seed1",
        "pocket/shopper-s#seed1": "resid.2-seed1",
        f"{tmp_path}/shopper-s@resid.3": "resid.3",
        f"{home}@resid.3": "resid.3",
        f"{home}/resid.2": "resid.2",
    }
    for ref, name in refs.items():
        assert dictionaries.load(ref).fingerprint == saved[name].fingerprint, ref
    for ref in (
        "pocket/shopper-s@resid.9",
        "pocket/shopper-s",
        "pocket/none@resid.2",
        "nowhere",
        "pocket/shopper-s@resid.3#seed1",
    ):
        with pytest.raises(LoadError, match="no dictionary"):
            dictionaries.load(ref)
    with pytest.raises(LoadError, match="expected: a dictionary of width 64"):
        dictionaries.load("pocket/shopper-s@resid.2", d_in=64)
