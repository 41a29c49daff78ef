"""Gemma Scope 1: `params.npz`, in folders such as `layer_20/width_16k/average_l0_71`.

Keys W_enc [d, m], W_dec [m, d], b_enc, b_dec, threshold [m]; f = relu(pre) where pre > threshold, inputs not
centred. Which model, layer and part stands in the path alone: the repository's name ends in -res, -mlp, -att
or -transcoders. Transcoders read the MLP's input behind its norm and explain what the MLP adds.
Source: the Gemma Scope tutorial and technical report (arXiv 2408.05147).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fairlead.core.errors import LoadError
from fairlead.dictionaries import files
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.transcoder import Transcoder

WEIGHTS = "params.npz"
FILES = f"{WEIGHTS} (Gemma Scope)"
KEYS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_PARTS = {"res": "resid.{}", "mlp": "mlp.{}", "att": "blocks.{}.attn.hook_z", "transcoders": "mlp.{}"}


def find(path: Path) -> Path | None:
    """The weights at `path`, a file or a folder."""
    if path.is_file():
        return path if path.suffix == ".npz" else None
    return files.inside(path, WEIGHTS) if (path / WEIGHTS).is_file() else None


def site(weights: Path) -> str:
    """What the path says; "" where it does not say the part and the layer."""
    part, layer = _part(weights), re.search(r"layer_(\d+)", str(weights.parent))
    return _PARTS[part].format(int(layer[1])) if part and layer else ""


def read(weights: Path, *, site: str = "", k: int | None = None) -> SparseDictionary | Transcoder:
    """The dictionary in file `weights`."""
    del k
    if "embedding" in weights.parts[-4:]:
        raise LoadError(
            f"{weights} is a dictionary of embeddings",
            expected="one of the residual stream, an MLP or a transcoder",
            got="an embedding dictionary, whose input scale no file of it says",
        )
    tensors = files.read_npz(weights)
    tensors = {f"W_{key[2:]}" if key.startswith("w_") else key: value for key, value in tensors.items()}
    files.need(tensors, KEYS, weights)
    parts: dict[str, Any] = {
        "name": "/".join(p for p in weights.parts[-4:-1] if p not in ("/", "..")),
        "site": site,
        "W_enc": files.matrix(tensors, "W_enc", weights),
        "W_dec": files.matrix(tensors, "W_dec", weights),
        "b_enc": files.vector(tensors, "b_enc", weights),
        "b_dec": files.vector(tensors, "b_dec", weights),
        "activation": "jumprelu",
        "threshold": files.vector(tensors, "threshold", weights, len(tensors["b_enc"])),
        "apply_b_dec_to_input": False,
        "metadata": _published(weights),
    }
    if _part(weights) == "transcoders":
        return Transcoder(site_in=f"mlp_in.{site.rpartition('.')[2]}", **parts)
    return SparseDictionary(**parts)


def _part(weights: Path) -> str | None:
    """Which part of the block the path speaks of: "gemma-scope-2b-pt-res" is "res"."""
    for name in reversed(weights.parts[:-1]):
        if "gemma-scope" in name and (found := re.search(r"-(res|mlp|att|transcoders)(?:$|-canonical|[^a-z])", name)):
            return found[1]
    return None


def _published(weights: Path) -> dict[str, Any]:
    found = re.search(r"average_l0_(\d+)", str(weights.parent))
    return {"published": {"l0": float(found[1]), "source": "the folder's name"}} if found else {}
