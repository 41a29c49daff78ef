"""dictionary_learning: `config.json` and `ae.pt` in one folder.

config.json holds the trainer's settings; "dict_class" says which of seven classes the pickle is:

AutoEncoder             relu, inputs centred by `bias`; its reader scales decoder columns to norm 1
AutoEncoderNew          relu, not centred
AutoEncoderTopK         the k largest per token, centred
BatchTopKSAE            above one threshold, centred (a jumprelu)
MatryoshkaBatchTopKSAE  the same, with other key names
JumpReluAutoEncoder     a threshold per latent, not centred
GatedAutoEncoder        gate and magnitude share an encoder, centred; folds exactly into a jumprelu

A threshold below 0 (never calibrated) lets every positive pre-activation through, as the project's own
forward does. Source: dictionary.py and trainers/ of saprmarks/dictionary_learning at 60ec6bf.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import LoadError
from fairlead.dictionaries import files, hookpoints
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.fold import gated, unit_decoder

CFG, WEIGHTS = "config.json", "ae.pt"
FILES = f"{CFG} and {WEIGHTS} (dictionary_learning)"
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
KEYS = {
    "AutoEncoder": (*_LINEAR, "bias"),
    "AutoEncoderNew": (*_LINEAR, "decoder.bias"),
    "AutoEncoderTopK": (*_LINEAR, "b_dec"),
    "BatchTopKSAE": (*_LINEAR, "b_dec", "threshold"),
    "MatryoshkaBatchTopKSAE": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "JumpReluAutoEncoder": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "GatedAutoEncoder": ("encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"),
}
_CENTRE = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
_NOT_CENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")


def find(path: Path) -> Path | None:
    """The weights at `path`, a folder (or its weights file)."""
    if path.is_file():
        return path if path.name == WEIGHTS else None
    return files.inside(path, WEIGHTS) if (path / WEIGHTS).is_file() else None


def site(weights: Path) -> str:
    """What config.json says; without a submodule's name it is the residual stream."""
    trainer = _trainer(weights)
    named = hookpoints.site_of(trainer.get("submodule_name"))
    if hookpoints.known(named):
        return named
    layer = trainer.get("layer")
    return f"resid.{layer}" if isinstance(layer, int) and not named else named


def read(weights: Path, *, site: str = "", k: int | None = None) -> SparseDictionary:
    """The dictionary in file `weights` and the settings beside it."""
    del k
    beside, trainer = weights.parent / CFG, _trainer(weights)
    kind = str(trainer.get("dict_class"))
    if kind not in KEYS:
        raise LoadError(f"{beside} names an unknown class", expected=", ".join(KEYS), got=kind[:80])
    tensors = files.read_pickle(weights)
    files.need(tensors, KEYS[kind], weights)
    found = _of(kind, tensors, weights, site, files.whole(trainer, "k", beside))
    files.agree(
        weights.parent,
        {
            "activation_dim": (trainer.get("activation_dim"), found.d_in),
            "dict_size": (trainer.get("dict_size"), found.n_features),
        },
    )
    l0 = trainer.get("k", trainer.get("target_l0"))
    if isinstance(l0, int | float) and not isinstance(l0, bool):
        found = found.replace(metadata={"published": {"l0": float(l0), "source": CFG}})
    return found


def _trainer(weights: Path) -> dict[str, Any]:
    beside = files.inside(weights.parent, CFG)
    return files.table(files.read_json(beside), "trainer", beside)


def _of(kind: str, tensors: Mapping[str, Tensor], path: Path, site: str, k: int | None) -> SparseDictionary:
    """A class of dictionary_learning, by its own formula."""
    flipped = "encoder.weight" in tensors
    W_enc = files.matrix(tensors, "encoder.weight" if flipped else "W_enc", path)
    W_dec = files.matrix(tensors, "decoder.weight" if flipped else "W_dec", path)
    W_enc, W_dec = (W_enc.T, W_dec.T) if flipped else (W_enc, W_dec)
    name, b_dec = path.parent.name, files.vector(tensors, _CENTRE.get(kind, "b_dec"), path)
    if kind == "GatedAutoEncoder":
        r_mag, b_gate, b_mag = (files.vector(tensors, key, path) for key in ("r_mag", "gate_bias", "mag_bias"))
        return gated(name, site, W_enc, W_dec, b_dec, r_mag=r_mag, b_gate=b_gate, b_mag=b_mag)
    threshold = tensors.get("threshold")
    if threshold is not None:
        threshold = files.vector(tensors, "threshold", path, W_enc.shape[1]).clamp_min(0.0)
    if kind == "AutoEncoderTopK":
        k = k or (int(tensors["k"]) if "k" in tensors else None)
        calibrated = threshold if threshold is not None and bool((threshold > 0).all()) else None
        settings: dict[str, Any] = {"activation": "topk", "k": k, "threshold": calibrated}
    elif threshold is not None:
        settings = {"activation": "jumprelu", "threshold": threshold}
    else:
        settings = {"activation": "relu"}
    found = SparseDictionary(
        name=name,
        site=site,
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=files.vector(tensors, "encoder.bias" if flipped else "b_enc", path),
        b_dec=b_dec,
        apply_b_dec_to_input=kind not in _NOT_CENTRED,
        **settings,
    )
    norms = found.W_dec.float().norm(dim=-1)
    if kind == "AutoEncoder" and not torch.allclose(norms, torch.ones_like(norms)):
        found = unit_decoder(found)
    return found
