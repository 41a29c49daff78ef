"""The SAELens disk format: `cfg.json` and `sae_weights.safetensors` in one directory.

Read and written without sae-lens installed. Architectures: standard, jumprelu, topk, gated (folded into a
jumprelu), the training layouts batchtopk and matryoshka_batchtopk (which become jumprelus, with the scale of
`activation_scaler.json` folded in), and the transcoders. `onehot` (k-means) is ours alone. Inputs that are
normalised token by token (layer_norm, constant_norm_rescale) cannot be folded into weights and are refused, as
is `reshape_activations: hook_z`. What SAELens has no place for (maximum activation and firing rate per latent,
the calibrated threshold of a topk) lies beside them in `fairlead_stats.safetensors`.

Source of the format: the cfg fields and forward passes of sae-lens 6.54 (`SAEConfig`, `StandardSAE`,
`JumpReLUSAE`, `TopKSAE`, `GatedSAE`, `BatchTopKTrainingSAE`, `Transcoder`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fairlead.core.errors import LoadError
from fairlead.dictionaries import files, fold, hookpoints
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.transcoder import Transcoder

CFG, WEIGHTS, STATS = "cfg.json", "sae_weights.safetensors", "fairlead_stats.safetensors"
SCALER = "activation_scaler.json"
FILES = f"{CFG} and {WEIGHTS} (SAELens)"
ARCHITECTURES = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk", "onehot": "onehot"}
_TRAINING = ("batchtopk", "matryoshka_batchtopk")
_TRANSCODERS = {
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
_READ = (*ARCHITECTURES, "gated", *_TRAINING, *_TRANSCODERS)
_HOOKS = {
    "resid": "blocks.{}.hook_resid_post",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "attn": "blocks.{}.hook_attn_out",
    "mlp": "blocks.{}.hook_mlp_out",
    "mlp_in": "blocks.{}.ln2.hook_normalized",
}


def find(path: Path) -> Path | None:
    """The directory at `path` (or of its weights file), when it holds this format."""
    folder = path.parent if path.is_file() and path.name in (CFG, WEIGHTS) else path
    if not (folder / CFG).is_file() or (folder / "sae.safetensors").is_file():
        return None
    return folder


def site(path: Path) -> str:
    """What cfg.json says that it explains; the hook's own name where it is none of our sites."""
    cfg = _read_cfg(path)
    return _site(cfg, _table(cfg, "metadata", path))


def read(path: Path, *, site: str = "", k: int | None = None) -> SparseDictionary | Transcoder:
    """The dictionary in directory `path`. LoadError on anything missing, truncated, NaN, misshapen or unknown."""
    del k
    cfg = _read_cfg(path)
    weights = files.read_safetensors(files.inside(path, WEIGHTS))
    stats = _read_stats(path)
    scaler = files.read_json(files.inside(path, SCALER)) if (path / SCALER).is_file() else {}
    return from_parts(cfg, weights, stats, path, site=site, scale=scaler.get("scaling_factor"))


def from_parts(
    cfg: Mapping[str, Any], weights: Mapping[str, Tensor], stats: Mapping[str, Tensor], path: Path, *,
    site: str = "", scale: Any = None,
) -> SparseDictionary | Transcoder:  # fmt: skip
    """The dictionary that a cfg and its tensors describe; `scale` is what inputs were multiplied by."""
    architecture, k = _architecture(cfg, path, scale)
    if architecture in _TRANSCODERS:
        return _transcoder(cfg, weights, path, site, architecture)
    meta = _table(cfg, "metadata", path)
    own = _table(meta, "fairlead", path)
    dictionary = _family(cfg, weights, path, architecture, k).replace(
        name=str(own.get("name") or path.name),
        site=site or _site(cfg, meta),
        max_activation=stats.get("max_activation"),
        firing_rate=stats.get("firing_rate"),
        training_flops=own.get("training_flops"),
        metadata={key: value for key, value in own.items() if key not in ("name", "site", "training_flops")},
    )
    if dictionary.threshold is None and "threshold" in stats:
        dictionary = dictionary.replace(threshold=stats["threshold"])
    sizes = {"d_in": (cfg.get("d_in"), dictionary.d_in), "d_sae": (cfg.get("d_sae"), dictionary.n_features)}
    files.agree(path, sizes)
    by_norm = bool(cfg.get("rescale_acts_by_decoder_norm"))
    if scale not in (None, 1, 1.0):
        factor = files.number({"scaling_factor": scale}, "scaling_factor", path / SCALER)
        if factor <= 0:
            raise LoadError(f"{path / SCALER}: scaling_factor must be above 0", expected="> 0", got=str(factor))
        dictionary = fold.scaled_input(dictionary, factor)
        if by_norm and dictionary.threshold is not None:  # it speaks of pre·‖W_dec‖, and W_dec was just divided
            dictionary = dictionary.replace(threshold=dictionary.threshold / factor)
    return fold.unit_decoder(dictionary) if by_norm else dictionary


def _family(
    cfg: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path, architecture: str, k: int | None
) -> SparseDictionary:
    """The dictionary before its names, statistics and foldings."""
    file, centred = path / WEIGHTS, bool(cfg.get("apply_b_dec_to_input", True))
    if architecture == "gated":
        files.need(weights, ("W_enc", "W_dec", "b_dec", "r_mag", "b_gate", "b_mag"), file)
        r_mag, b_gate, b_mag = (files.vector(weights, key, file) for key in ("r_mag", "b_gate", "b_mag"))
        W_enc, W_dec = (files.matrix(weights, key, file) for key in ("W_enc", "W_dec"))
        b_dec = files.vector(weights, "b_dec", file)
        return fold.gated("", "", W_enc, W_dec, b_dec, r_mag=r_mag, b_gate=b_gate, b_mag=b_mag,
                          apply_b_dec_to_input=centred)  # fmt: skip
    activation, gate = ARCHITECTURES.get(architecture, "jumprelu"), []
    if architecture in _TRAINING:
        gate = ["topk_threshold"]
    elif activation == "jumprelu":
        gate = ["log_threshold" if "log_threshold" in weights else "threshold"]
    files.need(weights, ["W_enc", "W_dec", "b_enc", "b_dec", *gate], file)
    threshold = files.vector(weights, gate[0], file, weights["b_enc"].numel()) if gate else None
    if gate == ["log_threshold"] and threshold is not None:
        threshold = threshold.exp()
    return SparseDictionary(
        name="",
        site="",
        W_enc=files.matrix(weights, "W_enc", file),
        W_dec=files.matrix(weights, "W_dec", file),
        b_enc=files.vector(weights, "b_enc", file),
        b_dec=files.vector(weights, "b_dec", file),
        activation=activation,  # type: ignore[arg-type]
        threshold=threshold,
        k=k,
        apply_b_dec_to_input=centred,
    )


def _transcoder(
    cfg: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path, site: str, architecture: str
) -> Transcoder:
    file, meta, jump = path / WEIGHTS, _table(cfg, "metadata", path), "jumprelu" in architecture
    keys = ["W_enc", "W_dec", "b_enc", "b_dec", *(["threshold"] if jump else [])]
    files.need(weights, [*keys, "W_skip"] if "skip" in architecture else keys, file)
    read_at = hookpoints.site_of(meta.get("hook_name") or cfg.get("hook_name"))
    written_at = hookpoints.site_of(meta.get("hook_name_out") or cfg.get("hook_name_out"))
    own = _table(meta, "fairlead", path)
    stats = _read_stats(path)
    found = Transcoder(
        name=str(own.get("name") or path.name),
        site_in=read_at,
        site=site or written_at,
        W_enc=files.matrix(weights, "W_enc", file),
        W_dec=files.matrix(weights, "W_dec", file),
        b_enc=files.vector(weights, "b_enc", file),
        b_dec=files.vector(weights, "b_dec", file),
        activation=_TRANSCODERS[architecture],  # type: ignore[arg-type]
        threshold=files.vector(weights, "threshold", file) if jump else None,
        W_skip=files.matrix(weights, "W_skip", file).T if "skip" in architecture else None,
        max_activation=stats.get("max_activation"),
        firing_rate=stats.get("firing_rate"),
        training_flops=own.get("training_flops"),
        metadata={key: value for key, value in own.items() if key not in ("name", "site", "training_flops")},
    )
    sizes = {"d_in": (cfg.get("d_in"), found.d_in), "d_sae": (cfg.get("d_sae"), found.n_features)}
    files.agree(path, {**sizes, "d_out": (cfg.get("d_out"), found.d_out)})
    return found


def write(dictionary: SparseDictionary | Transcoder, path: Path) -> None:
    """Write `dictionary` to directory `path` (made if absent); `cfg.json` comes last and marks it whole.

    LoadError for a transcoder that SAELens has no layout for (a topk one, or one whose input is centred)."""
    through = isinstance(dictionary, Transcoder)
    if through and (dictionary.activation not in ("relu", "jumprelu") or dictionary.apply_b_dec_to_input):
        raise LoadError(
            f"{dictionary.name} cannot be written: the SAELens layout has no such transcoder",
            expected="relu or jumprelu, its input not centred",
            got=dictionary.activation,
        )
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
    if isinstance(dictionary, Transcoder):
        jump, skip = "jumprelu_" if architecture == "jumprelu" else "", dictionary.W_skip is not None
        cfg |= {"architecture": f"{jump}{'skip_' if skip else ''}transcoder", "d_out": dictionary.d_out}
        metadata |= {"hook_name": _hook_name(dictionary.site_in), "hook_name_out": metadata["hook_name"]}
        weights["W_skip"] = None if dictionary.W_skip is None else dictionary.W_skip.T
    if dictionary.activation == "topk":
        cfg["k"] = dictionary.k
    _save(weights, path / WEIGHTS)
    _save(stats, path / STATS)
    _replace(path / CFG, json.dumps(cfg, indent=2, allow_nan=False).encode() + b"\n")


def _read_stats(path: Path) -> dict[str, Tensor]:
    return files.read_safetensors(files.inside(path, STATS)) if (path / STATS).exists() else {}


def _read_cfg(path: Path) -> dict[str, Any]:
    if not (path / CFG).exists():
        raise LoadError(f"no dictionary at {path}", expected=f"{CFG} and {WEIGHTS}", got=f"no {CFG}")
    return files.read_json(files.inside(path, CFG))


def _architecture(cfg: Mapping[str, Any], path: Path, scale: Any) -> tuple[str, int | None]:
    """(architecture, k); also reads pre-6 files, where a topk was a standard with an activation function."""
    architecture, k = cfg.get("architecture", "standard"), cfg.get("k")
    function = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
    if architecture == "standard" and function == "topk":
        architecture, k = "topk", _table(cfg, "activation_fn_kwargs", path).get("k")
    elif architecture == "standard" and function != "relu":
        architecture = f"standard with {function}"
    if str(architecture) not in _READ:
        raise LoadError(f"{path} holds an unknown architecture", expected=", ".join(_READ), got=str(architecture))
    if cfg.get("normalize_activations") == "expected_average_only_in" and scale is None:
        raise LoadError(
            f"{path} multiplies its inputs by a scale that it does not give",
            expected=f'normalize_activations none, or {SCALER} with "scaling_factor"',
            got="normalize_activations expected_average_only_in",
            do=f'write {{"scaling_factor": √d / average norm of the activations}} into {path / SCALER}',
        )
    unsupported: dict[str, tuple[Any, ...]] = {
        "normalize_activations": (None, False, "expected_average_only_in", "none"),
        "reshape_activations": (None, "none"),
        "finetuning_scaling_factor": (None, False),
    }
    for key, fine in unsupported.items():
        if cfg.get(key) not in fine:
            raise LoadError(
                f"{path} needs {key}, which is not supported",
                expected=str(fine[-1]),
                got=str(cfg[key]),
                do="choose a dictionary of the residual stream, or one whose inputs are not normalised per token",
            )
    if architecture != "topk":
        return architecture, None
    if not isinstance(k, int) or isinstance(k, bool):
        raise LoadError(f"{path}: cfg.json of a topk has no k", expected="a whole number", got=repr(k))
    return architecture, k


def _table(cfg: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """The JSON object under `key` of cfg.json, empty when absent."""
    return files.table(cfg, key, path / CFG)


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


def _site(cfg: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
    """The site of a cfg: ours when it was written here, else what its hook's name stands for."""
    own = meta.get("fairlead")
    if isinstance(own, dict) and own.get("site"):
        return str(own["site"])
    out = meta.get("hook_name_out") or cfg.get("hook_name_out")
    hook = out or meta.get("hook_name") or cfg.get("hook_name") or cfg.get("hook_point") or meta.get("hf_hook_name")
    return hookpoints.site_of(hook)


def _hook_name(site: str) -> str:
    kind, _, layer = site.rpartition(".")
    return _HOOKS[kind].format(layer) if kind in _HOOKS else site
