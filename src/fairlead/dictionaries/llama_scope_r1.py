"""Llama Scope R1 and later OpenMOSS dictionaries: `config.json` and `sae_weights.safetensors`.

Keys encoder.weight [m, d], encoder.bias, decoder.weight [d, m], decoder.bias, log_jumprelu_threshold [m] (bare
or under activation_function), or since late 2025 W_E [d, m], b_E, W_D [m, d], b_D. With norm_activation
"dataset-wise" weights and threshold speak of activations multiplied by a = √d / average norm; the norm stands
in the weights (dataset_average_activation_norm.HOOK) or in config.json. The gate is
pre·‖decoder column‖ > exp(log_jumprelu_threshold) in those scaled units (without the norm where
`sparsity_include_decoder_norm` is false). Here everything is in the model's own units: biases are divided by
a, and the threshold by a·norm.
Source: sae.py, abstract_sae.py and config.py of OpenMOSS/Language-Model-SAEs at 3a66663 (May 2025) and
models/sae.py at 95281ac (May 2026).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fairlead.core.errors import LoadError
from fairlead.dictionaries import files, hookpoints
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.fold import decoder_norms
from fairlead.dictionaries.llama_scope import assemble, factors
from fairlead.dictionaries.transcoder import Transcoder

CFG, WEIGHTS = "config.json", "sae_weights.safetensors"
FILES = f"{CFG} and {WEIGHTS} (Llama Scope R1, OpenMOSS)"
_NORM = "dataset_average_activation_norm"
_NAMES = {"W_E": "encoder.weight", "b_E": "encoder.bias", "W_D": "decoder.weight", "b_D": "decoder.bias"}


def find(path: Path) -> Path | None:
    """The weights at `path`, a folder (or its weights file)."""
    folder = path.parent if path.is_file() and path.name == WEIGHTS else path
    if (folder / CFG).is_file() and (folder / WEIGHTS).is_file() and not (folder / "cfg.json").is_file():
        return files.inside(folder, WEIGHTS)
    return None


def site(weights: Path) -> str:
    """What config.json says that it explains."""
    cfg = _cfg(weights)
    return hookpoints.site_of(cfg.get("hook_point_out") or cfg.get("hook_point_in"))


def read(weights: Path, *, site: str = "", k: int | None = None) -> SparseDictionary | Transcoder:
    """The dictionary in file `weights` and the settings beside it."""
    del k
    cfg, path = _cfg(weights), weights.parent / CFG
    if cfg.get("sae_type", "sae") != "sae":
        raise LoadError(f"{path} is not a dictionary of one layer", expected="sae_type sae", got=str(cfg["sae_type"]))
    tensors = _renamed(files.read_safetensors(weights))
    a, o = _factors(cfg, path, tensors)
    act = str(cfg.get("act_fn", "relu")).lower()
    bias = ("decoder.bias",) if cfg.get("use_decoder_bias", True) else ()
    gate = ("log_jumprelu_threshold",) if act == "jumprelu" else ()
    files.need(tensors, ("encoder.weight", "encoder.bias", "decoder.weight", *bias, *gate), weights)
    W_dec = files.matrix(tensors, "decoder.weight", weights).T
    include = bool(cfg.get("sparsity_include_decoder_norm", True))
    threshold = None
    if gate:
        threshold = files.vector(tensors, gate[0], weights, W_dec.shape[0]).exp() / a
        threshold = threshold / decoder_norms(W_dec) if include else threshold
    b_dec = files.vector(tensors, "decoder.bias", weights) if bias else W_dec.new_zeros(W_dec.shape[1]).float()
    found = assemble(
        cfg,
        path,
        site,
        {
            "name": path.parent.name,
            "W_enc": files.matrix(tensors, "encoder.weight", weights).T,
            "W_dec": W_dec,
            "b_enc": files.vector(tensors, "encoder.bias", weights) / a,
            "b_dec": b_dec / o,
            "activation": act,
            "threshold": threshold,
            "apply_b_dec_to_input": bool(cfg.get("apply_decoder_bias_to_pre_encoder", False)),
        },
        rescale=a / o,
        by_norm=include,
    )
    factor, width = cfg.get("expansion_factor"), cfg.get("d_model")
    both = isinstance(factor, int | float) and isinstance(width, int | float)
    said = int(width * factor) if both and width is not None and factor is not None else None
    files.agree(path.parent, {"d_model": (width, found.d_in), "d_model x expansion_factor": (said, found.n_features)})
    return found


def _factors(cfg: Mapping[str, Any], path: Path, tensors: Mapping[str, Tensor]) -> tuple[float, float]:
    """As in llama_scope, with the norms under the hook points' own names."""
    held = {key.removeprefix(f"{_NORM}."): float(t) for key, t in tensors.items() if key.startswith(f"{_NORM}.")}
    table = held or files.table(cfg, _NORM, path)
    hook_in = str(cfg.get("hook_point_in"))
    keys = (hook_in, str(cfg.get("hook_point_out") or hook_in))
    return factors(cfg, path, table=table, keys=("in", "out") if "in" in table else keys)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old and new key names as the old ones; the new matrices lie the other way round."""
    found = {}
    for key, tensor in tensors.items():
        old = _NAMES.get(key, key.removeprefix("activation_function."))
        found[old] = tensor.T if key in ("W_E", "W_D") and tensor.ndim == 2 else tensor
    return found


def _cfg(weights: Path) -> dict[str, Any]:
    return files.read_json(files.inside(weights.parent, CFG))
