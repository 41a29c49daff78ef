"""EleutherAI sparsify: `cfg.json` and `sae.safetensors`, in a folder named after the module (`layers.5.mlp`).

Keys encoder.weight [m, d], encoder.bias, W_dec [m, d], b_dec and, with skip_connection, W_skip [d_out, d_in].
f keeps the k largest of relu(encoder(x − b_dec)); with `transcode` the input is the module's input, not
centred, and the output is its output. With a skip connection x·W_skipᵀ is added, x not centred.
Source: sparse_coder.py, config.py and fused_encoder.py of EleutherAI/sparsify at 9d3b136.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairlead.core.errors import LoadError
from fairlead.dictionaries import files, hookpoints
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.transcoder import Transcoder

CFG, WEIGHTS = "cfg.json", "sae.safetensors"
FILES = f"{CFG} and {WEIGHTS} (EleutherAI sparsify)"
KEYS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
_INPUT = {"resid": "resid_pre", "mlp": "mlp_in"}


def find(path: Path) -> Path | None:
    """The weights at `path`, a folder (or its weights file)."""
    if path.is_file():
        return path if path.name == WEIGHTS else None
    return files.inside(path, WEIGHTS) if (path / WEIGHTS).is_file() else None


def site(weights: Path) -> str:
    """What the folder's name says; "" where it is no module's name."""
    named = hookpoints.site_of(weights.parent.name)
    return "resid_pre.0" if named == "embed_tokens" else named if hookpoints.known(named) else ""


def read(weights: Path, *, site: str = "", k: int | None = None) -> SparseDictionary | Transcoder:
    """The dictionary in file `weights` and the settings beside it."""
    del k
    path = files.inside(weights.parent, CFG)
    cfg = files.read_json(path)
    for key, fine in (("activation", (None, "topk")), ("signed", (None, False))):
        if cfg.get(key) not in fine:
            raise LoadError(f"{path} needs {key}, which is not supported", expected=str(fine[-1]), got=str(cfg[key]))
    tensors = files.read_safetensors(weights)
    skip, transcode = bool(cfg.get("skip_connection")), bool(cfg.get("transcode"))
    files.need(tensors, (*KEYS, "W_skip") if skip else KEYS, weights)
    wanted = files.whole(cfg, "k", path)
    parts: dict[str, Any] = {
        "name": weights.parent.name,
        "site": site,
        "W_enc": files.matrix(tensors, "encoder.weight", weights).T,
        "W_dec": files.matrix(tensors, "W_dec", weights),
        "b_enc": files.vector(tensors, "encoder.bias", weights),
        "b_dec": files.vector(tensors, "b_dec", weights),
        "activation": "topk",
        "k": wanted,
        "apply_b_dec_to_input": not transcode,
        "metadata": {"published": {"l0": float(wanted), "source": CFG}} if wanted else {},
    }
    found: SparseDictionary | Transcoder
    if skip or transcode:
        kind, _, layer = site.rpartition(".")
        read_at = f"{_INPUT.get(kind, kind + '_in')}.{layer}" if transcode else site
        found = Transcoder(site_in=read_at, W_skip=tensors["W_skip"].T if skip else None, **parts)
    else:
        found = SparseDictionary(**parts)
    m = cfg.get("num_latents") or None
    if m is None and isinstance(cfg.get("expansion_factor"), int):
        m = found.d_in * cfg["expansion_factor"]
    files.agree(weights.parent, {"d_in": (cfg.get("d_in"), found.d_in), "num_latents": (m, found.n_features)})
    return found
