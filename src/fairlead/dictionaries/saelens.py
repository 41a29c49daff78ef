"""The SAELens disk format: `cfg.json` and `sae_weights.safetensors` in one directory.

Read and written without sae-lens installed. The architectures standard, jumprelu and topk are ones that
sae-lens 6 reads back; `onehot` (k-means) is ours alone. What SAELens has no place for (maximum
activation and firing rate per latent, the calibrated threshold of a topk) lies beside them in
`fairlead_stats.safetensors`. Nothing is ever unpickled.

Source of the format: the cfg fields and forward passes of sae-lens 6 (`SAEConfig`, `StandardSAE`,
`JumpReLUSAE`, `TopKSAE`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairlead.core.errors import LoadError
from fairlead.dictionaries.base import SparseDictionary

CFG, WEIGHTS, STATS = "cfg.json", "sae_weights.safetensors", "fairlead_stats.safetensors"
ARCHITECTURES = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk", "onehot": "onehot"}
_HOOKS = (  # (our site, TransformerLens hook name)
    ("resid", "blocks.{}.hook_resid_post"),
    ("resid_pre", "blocks.{}.hook_resid_pre"),
    ("attn", "blocks.{}.hook_attn_out"),
    ("mlp", "blocks.{}.hook_mlp_out"),
)


def read(path: Path) -> SparseDictionary:
    """The dictionary in directory `path`. LoadError on anything missing, truncated, NaN, misshapen or unknown."""
    cfg = _read_cfg(path / CFG)
    architecture, k = _architecture(cfg, path)
    weights = _tensors(path / WEIGHTS)
    needed = ["W_enc", "W_dec", "b_enc", "b_dec"] + (["threshold"] if architecture == "jumprelu" else [])
    missing = [key for key in needed if key not in weights]
    if missing:
        raise LoadError(
            f"{path / WEIGHTS} lacks {', '.join(missing)}", expected=", ".join(needed), got=str(list(weights))
        )
    stats = _tensors(path / STATS) if (path / STATS).exists() else {}
    meta = _table(cfg, "metadata", path)
    own = _table(meta, "fairlead", path)
    dictionary = SparseDictionary(
        name=str(own.get("name") or path.name),
        site=own.get("site") or _site(meta.get("hook_name") or cfg.get("hook_name") or meta.get("hf_hook_name") or ""),
        W_enc=weights["W_enc"],
        W_dec=weights["W_dec"],
        b_enc=weights["b_enc"],
        b_dec=weights["b_dec"],
        activation=ARCHITECTURES[architecture],  # type: ignore[arg-type]
        threshold=weights.get("threshold", stats.get("threshold")),
        k=k,
        apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", True)),
        max_activation=stats.get("max_activation"),
        firing_rate=stats.get("firing_rate"),
        training_flops=own.get("training_flops"),
        metadata={key: value for key, value in own.items() if key not in ("name", "site", "training_flops")},
    )
    for label, size in (("d_in", dictionary.d_in), ("d_sae", dictionary.n_features)):
        if label in cfg and cfg[label] != size:
            raise LoadError(
                f"{path}: cfg.json and weights disagree on {label}", expected=str(cfg[label]), got=str(size)
            )
    return _folded(dictionary) if cfg.get("rescale_acts_by_decoder_norm") else dictionary


def write(dictionary: SparseDictionary, path: Path) -> None:
    """Write `dictionary` to directory `path` (made if absent); `cfg.json` comes last and marks it whole."""
    path.mkdir(parents=True, exist_ok=True)
    architecture = {activation: name for name, activation in ARCHITECTURES.items()}[dictionary.activation]
    weights: dict[str, Tensor | None] = {
        "W_enc": dictionary.W_enc,
        "W_dec": dictionary.W_dec,
        "b_enc": dictionary.b_enc,
        "b_dec": dictionary.b_dec,
    }
    stats = {"max_activation": dictionary.max_activation, "firing_rate": dictionary.firing_rate}
    (weights if architecture == "jumprelu" else stats)["threshold"] = dictionary.threshold
    own = {"name": dictionary.name, "site": dictionary.site, "training_flops": dictionary.training_flops}
    metadata: dict[str, Any] = {"sae_lens_version": "6.0.0", "fairlead": {**dictionary.metadata, **own}}
    metadata["hook_name"] = _hook_name(dictionary.site)
    cfg: dict[str, Any] = {
        "architecture": architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.n_features,
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if dictionary.activation == "topk":
        cfg["k"] = dictionary.k
    _save(weights, path / WEIGHTS)
    _save(stats, path / STATS)
    _replace(path / CFG, json.dumps(cfg, indent=2, allow_nan=False).encode() + b"\n")


def _read_cfg(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise LoadError(f"no dictionary at {path.parent}", expected=f"{CFG} and {WEIGHTS}", got=f"no {CFG}")
    try:
        cfg = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise LoadError(f"{path} cannot be read as JSON", got=str(error), do="fetch the file again") from error
    if not isinstance(cfg, dict):
        raise LoadError(f"{path} is not a JSON object", expected="{...}", got=type(cfg).__name__)
    return cfg


def _architecture(cfg: Mapping[str, Any], path: Path) -> tuple[str, int | None]:
    """(architecture, k); also reads pre-6 files, where a topk was a standard with an activation function."""
    architecture, k = cfg.get("architecture", "standard"), cfg.get("k")
    function = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
    if architecture == "standard" and function == "topk":
        architecture, k = "topk", _table(cfg, "activation_fn_kwargs", path).get("k")
    elif architecture == "standard" and function != "relu":
        architecture = f"standard with {function}"
    if str(architecture) not in ARCHITECTURES:
        raise LoadError(
            f"{path} holds an unknown architecture", expected=", ".join(ARCHITECTURES), got=str(architecture)
        )
    unsupported = {"normalize_activations": (None, False, "none"), "reshape_activations": (None, "none")}
    unsupported["finetuning_scaling_factor"] = (None, False)
    for key, fine in unsupported.items():
        if cfg.get(key) not in fine:
            raise LoadError(f"{path} needs {key}, which is not supported", expected=str(fine[-1]), got=str(cfg[key]))
    if architecture != "topk":
        return architecture, None
    if not isinstance(k, int):
        raise LoadError(f"{path}: cfg.json of a topk has no k", expected="a whole number", got=repr(k))
    return architecture, k


def _table(cfg: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """The JSON object under `key`, empty when absent."""
    found = cfg.get(key) or {}
    if not isinstance(found, dict):
        raise LoadError(f"{path}: {key} in cfg.json is not an object", expected="{...}", got=repr(found)[:80])
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise LoadError(f"no weights at {path}", expected=path.name, got="nothing")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise LoadError(
            f"{path} is not a whole safetensors file", got=str(error), do="fetch the file again; it may be truncated"
        ) from error
    for label, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise LoadError(
                f"{label} in {path} holds NaN or infinity", expected="finite numbers", do="fetch the file again"
            )
    return {label: tensor.to(torch.float32) for label, tensor in tensors.items()}


def _save(tensors: Mapping[str, Tensor | None], path: Path) -> None:
    """Whole or not at all; NaN is refused at write."""
    kept = {
        label: tensor.detach().cpu().contiguous().clone() for label, tensor in tensors.items() if tensor is not None
    }
    for label, tensor in kept.items():
        if not torch.isfinite(tensor).all():
            raise LoadError(f"{label} holds NaN or infinity and is not written to {path}", expected="finite numbers")
    if not kept:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(path.name + ".partial")
    save_file(kept, partial)
    os.replace(partial, path)


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def _folded(dictionary: SparseDictionary) -> SparseDictionary:
    """sae-lens may select on pre·‖W_dec‖ and divide the norm out again in decode; unit decoder rows do the same."""
    norm = dictionary.W_dec.norm(dim=-1).clamp_min(1e-12)
    return dictionary.replace(
        W_enc=dictionary.W_enc * norm, b_enc=dictionary.b_enc * norm, W_dec=dictionary.W_dec / norm[:, None]
    )


def _site(hook: object) -> str:
    """`blocks.2.hook_resid_post` and `model.layers.2` are `resid.2`; an unknown hook name stays as it is."""
    hook = str(hook)
    for site, pattern in _HOOKS:
        if found := re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), hook):
            return f"{site}.{found[1]}"
    if found := re.fullmatch(r"model\.layers\.(\d+)", hook):
        return f"resid.{found[1]}"
    return hook


def _hook_name(site: str) -> str:
    kind, _, layer = site.rpartition(".")
    return dict(_HOOKS)[kind].format(layer) if kind in dict(_HOOKS) else site
