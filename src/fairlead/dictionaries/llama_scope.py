"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors`.

Keys encoder.weight [m, d], encoder.bias, decoder.weight [d, m], decoder.bias. The weights speak of activations
scaled to an average norm of √d (norm_activation "dataset-wise"). With a = √d / norm_in and o = √d / norm_out
the project's own loader divides encoder.bias by a and decoder.bias by o, multiplies decoder.weight by a/o, and,
where `sparsity_include_decoder_norm` (the default) is set, makes decoder columns unit norm *before* the scalar
threshold is applied, so that the gate is (x·W + b/a)·‖decoder column‖ > jump_relu_threshold. The threshold
is in the model's own units and is not scaled. Here the norm goes into the threshold instead (one per latent),
so that no matrix is copied; latents are pre-activations in the model's units, which is also how the project
reports them since 2025.
Source: sae.py, config.py and post_processing.py of OpenMOSS/Language-Model-SAEs at b932639 (November 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fairlead.core.errors import LoadError
from fairlead.dictionaries import files, hookpoints
from fairlead.dictionaries.base import SparseDictionary, wide
from fairlead.dictionaries.fold import decoder_norms, unit_decoder
from fairlead.dictionaries.transcoder import Transcoder

CFG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
FILES = f"{CFG} and {WEIGHTS} (Llama Scope)"
KEYS = ("encoder.weight", "encoder.bias", "decoder.weight")


def find(path: Path) -> Path | None:
    """The weights at `path`, a folder."""
    if path.is_dir() and (path / CFG).is_file() and (path / WEIGHTS).is_file():
        return files.inside(path, WEIGHTS)
    return None


def site(weights: Path) -> str:
    """What hyperparams.json says that it explains."""
    cfg = _cfg(weights)
    return hookpoints.site_of(cfg.get("hook_point_out") or cfg.get("hook_point_in"))


def read(weights: Path, *, site: str = "", k: int | None = None) -> SparseDictionary | Transcoder:
    """The dictionary in file `weights` and the settings above it."""
    del k
    cfg, path = _cfg(weights), weights.parents[1] / CFG
    a, o = factors(cfg, path, table=files.table(cfg, "dataset_average_activation_norm", path), keys=("in", "out"))
    threshold = files.number(cfg, "jump_relu_threshold", path) if cfg.get("jump_relu_threshold") else 0.0
    act = str(cfg.get("act_fn", "relu")).lower()
    if act == "topk" and threshold > 0:
        act = "jumprelu"  # the project converts such a topk for inference
    tensors = files.read_safetensors(weights)
    files.need(tensors, KEYS + (("decoder.bias",) if cfg.get("use_decoder_bias", True) else ()), weights)
    include = bool(cfg.get("sparsity_include_decoder_norm", True))
    norms = decoder_norms(tensors["decoder.weight"].T) * (a / o)
    found = assemble(
        cfg,
        path,
        site,
        {
            "name": path.parent.name,
            "W_enc": files.matrix(tensors, "encoder.weight", weights).T,
            "W_dec": files.matrix(tensors, "decoder.weight", weights).T,
            "b_enc": files.vector(tensors, "encoder.bias", weights) / a,
            "b_dec": _bias(tensors, weights) / o,
            "activation": act,
            "threshold": threshold / norms if include else norms.new_full(norms.shape, threshold),
            "apply_b_dec_to_input": bool(cfg.get("apply_decoder_bias_to_pre_encoder", True)),
        },
        rescale=a / o,
        by_norm=include,
    )
    sizes = {"d_model": (cfg.get("d_model"), found.d_in), "d_sae": (cfg.get("d_sae"), found.n_features)}
    files.agree(path.parent, sizes)
    return found


def factors(
    cfg: Mapping[str, Any], path: Path, *, table: Mapping[str, Any], keys: tuple[str, str]
) -> tuple[float, float]:
    """(a, o): what inputs and outputs were multiplied by in training. LoadError for norms taken per token or
    per batch, which no fixed weights can express."""
    how = cfg.get("norm_activation", "dataset-wise")
    if how in ("inference", "none", None):
        return 1.0, 1.0
    if how != "dataset-wise":
        raise LoadError(
            f"{path} normalises every activation by itself",
            expected="norm_activation dataset-wise or inference",
            got=str(how),
            do="not supported: the scale depends on each token, so it cannot be folded into the weights",
        )
    missing = [key for key in keys if key not in table]
    if missing:
        raise LoadError(
            f"{path} scales activations by their average norm and does not give it",
            expected="dataset_average_activation_norm with " + " and ".join(keys),
            got=", ".join(map(str, table)) or "nothing",
            do='write "dataset_average_activation_norm": {"' + keys[0] + '": NORM, ...} into it, from the model card',
        )
    root = math.sqrt(float(files.whole(cfg, "d_model", path) or 0))
    norms = [files.number(table, key, path) for key in keys]
    if min(norms) <= 0 or root == 0:
        raise LoadError(f"{path}: average norms must be above 0", expected="d_model and norms", got=str(norms))
    return root / norms[0], root / norms[1]


def assemble(
    cfg: Mapping[str, Any], path: Path, site: str, parts: dict[str, Any], *, rescale: float, by_norm: bool
) -> SparseDictionary | Transcoder:
    """A dictionary, or a transcoder where input and output differ; W_dec still lacks the factor `rescale`.
    `by_norm`: a topk chooses by pre·‖W_dec‖."""
    if cfg.get("use_glu_encoder"):
        raise LoadError(f"{path} needs use_glu_encoder, which is not supported", expected="false", got="true")
    act = parts["activation"]
    if act not in ("relu", "jumprelu", "topk"):
        raise LoadError(f"{path} names an unknown act_fn", expected="relu, jumprelu or topk", got=str(act))
    if act != "jumprelu":
        parts["threshold"] = None
    if act == "topk":
        parts["k"] = files.whole(cfg, "top_k", path)
    if rescale != 1.0:
        parts["W_dec"] = parts["W_dec"].to(wide(parts["W_dec"])) * rescale
    l0 = files.whole(cfg, "top_k", path) if act in ("jumprelu", "topk") else None
    parts["metadata"] = {"published": {"l0": float(l0), "source": path.name}} if l0 else {}
    read_at = hookpoints.site_of(cfg.get("hook_point_in"))
    written_at = hookpoints.site_of(cfg.get("hook_point_out")) or read_at
    if read_at == written_at:
        found = SparseDictionary(site=site, **parts)
        return unit_decoder(found) if act == "topk" and by_norm else found
    if act == "topk" and by_norm:
        raise LoadError(f"{path} is a transcoder whose topk sees decoder norms", do="not supported")
    return Transcoder(site_in=read_at, site=site, **parts)


def _cfg(weights: Path) -> dict[str, Any]:
    return files.read_json(files.inside(weights.parents[1], CFG))


def _bias(tensors: Mapping[str, Tensor], weights: Path) -> Tensor:
    if "decoder.bias" in tensors:
        return files.vector(tensors, "decoder.bias", weights)
    return tensors["decoder.weight"].new_zeros(len(tensors["decoder.weight"])).float()
