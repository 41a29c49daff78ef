"""Gemma Scope 2: `config.json` and `params.safetensors`, in folders such as `resid_post/layer_17_width_16k_l0_medium`.

Keys w_enc [d_in, m], w_dec [m, d_out], b_enc, b_dec, threshold [m] and, for some transcoders,
affine_skip_connection [d_in, d_out]; f = relu(pre) where pre > threshold, inputs not centred. config.json
names the modules it reads and explains (hf_hook_point_in, hf_hook_point_out); where it is absent, as in some
folders, the folder's name says it. Cross-layer transcoders (`clt`) write to many layers and are refused.
Source: the published config.json files, and the layout that sae-lens 6.54 reads.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fairlead.core.errors import LoadError
from fairlead.dictionaries import files, hookpoints
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.transcoder import Transcoder

CFG, WEIGHTS = "config.json", "params.safetensors"
FILES = f"{CFG} and {WEIGHTS} (Gemma Scope 2)"
KEYS = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
SKIP = "affine_skip_connection"
_FOLDERS = {
    "resid_post": "model.layers.{}.output",
    "attn_out": "model.layers.{}.self_attn.o_proj.input",
    "mlp_out": "model.layers.{}.post_feedforward_layernorm.output",
    "transcoder": "model.layers.{}.pre_feedforward_layernorm.output",
}


def find(path: Path) -> Path | None:
    """The weights at `path`, a folder (or its weights file)."""
    if path.is_file():
        return path if path.name == WEIGHTS else None
    return files.inside(path, WEIGHTS) if (path / WEIGHTS).is_file() else None


def site(weights: Path) -> str:
    """The place it explains, in our words."""
    return _sites(weights)[1]


def read(weights: Path, *, site: str = "", k: int | None = None) -> SparseDictionary | Transcoder:
    """The dictionary in file `weights` and the settings beside it."""
    del k
    cfg = _cfg(weights)
    if cfg.get("architecture", "jump_relu") != "jump_relu" or "clt" in weights.parent.name:
        raise LoadError(
            f"{weights.parent} holds another architecture than a jumprelu",
            expected="jump_relu, for one layer",
            got=f"{cfg.get('architecture', 'jump_relu')} in {weights.parent.name}",
            do="cross-layer transcoders are not read: they write to many layers",
        )
    tensors = files.read_safetensors(weights)
    files.need(tensors, (*KEYS, SKIP) if cfg.get("affine_connection") else KEYS, weights)
    b_enc = files.vector(tensors, "b_enc", weights)
    parts: dict[str, Any] = {
        "name": f"{weights.parent.parent.name}/{weights.parent.name}",
        "site": site,
        "W_enc": files.matrix(tensors, "w_enc", weights),
        "W_dec": files.matrix(tensors, "w_dec", weights),
        "b_enc": b_enc,
        "b_dec": files.vector(tensors, "b_dec", weights),
        "activation": "jumprelu",
        "threshold": files.vector(tensors, "threshold", weights, len(b_enc)),
        "apply_b_dec_to_input": False,
        "metadata": _published(cfg),
    }
    read_at, written_at = _sites(weights)
    if SKIP not in tensors and read_at == written_at:
        return SparseDictionary(**parts)
    skip = files.matrix(tensors, SKIP, weights) if SKIP in tensors else None
    return Transcoder(site_in=read_at or site, W_skip=skip, **parts)


def _cfg(weights: Path) -> dict[str, Any]:
    beside = weights.parent / CFG
    return files.read_json(files.inside(weights.parent, CFG)) if beside.is_file() else {}


def _sites(weights: Path) -> tuple[str, str]:
    """(where it reads, what it explains); "" where neither settings nor names say."""
    cfg = _cfg(weights)
    hook_in, hook_out = cfg.get("hf_hook_point_in"), cfg.get("hf_hook_point_out")
    if not hook_in:
        layer = re.search(r"layer_(\d+)", weights.parent.name)
        folder = next((f for f in _FOLDERS if f in weights.parent.parent.name), None)
        if layer is None or folder is None:
            return "", ""
        hook_in = _FOLDERS[folder].format(layer[1])
        hook_out = _FOLDERS["mlp_out"].format(layer[1]) if folder == "transcoder" else None
    return hookpoints.site_of(hook_in), hookpoints.site_of(hook_out or hook_in)


def _published(cfg: dict[str, Any]) -> dict[str, Any]:
    l0 = cfg.get("l0")
    told = isinstance(l0, int | float) and not isinstance(l0, bool) and l0 > 0
    return {"published": {"l0": float(l0), "source": CFG}} if told and l0 is not None else {}
