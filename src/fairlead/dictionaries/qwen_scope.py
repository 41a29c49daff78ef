"""Qwen Scope: one torch pickle a layer, `layer{n}.sae.pt`.

Keys W_enc [m, d], W_dec [d, m], b_enc [m], b_dec [d]; per token the k largest of the pre-activations are kept,
inputs not centred. k stands in the repository's name alone (`SAE-Res-Qwen3-8B-Base-W64K-L0_50`): it is read
from the folders above the file, or given as `#k=50` behind the reference.
Source: the model cards of Qwen/SAE-Res-*, and the layout that sae-lens 6.54 reads.
"""

from __future__ import annotations

import re
from pathlib import Path

from fairlead.core.errors import LoadError
from fairlead.dictionaries import files
from fairlead.dictionaries.base import SparseDictionary

FILES = "layer{n}.sae.pt (Qwen Scope)"
KEYS = ("W_enc", "W_dec", "b_enc", "b_dec")


def find(path: Path) -> Path | None:
    """The weights at `path`: such a file, or a folder that holds one alone."""
    if path.is_file():
        return path if re.fullmatch(r"layer\d+\.sae\.pt", path.name) else None
    held = sorted(path.glob("layer*.sae.pt"))
    return files.inside(path, held[0].name) if len(held) == 1 else None


def site(weights: Path) -> str:
    """What the file's name says: `layer5.sae.pt` is resid.5."""
    return f"resid.{int(weights.name.removeprefix('layer').removesuffix('.sae.pt'))}"


def read(weights: Path, *, site: str = "", k: int | None = None) -> SparseDictionary:
    """The dictionary in file `weights`."""
    named = next((int(m[1]) for p in weights.parents if (m := re.search(r"-L0_(\d+)$", p.name))), None)
    wanted = k or named
    if wanted is None:
        raise LoadError(
            f"how many latents of {weights.name} are on per token is written nowhere",
            expected="a folder named like the repository (...-L0_50), or #k=50 behind the reference",
            got=str(weights.parent),
            do=f"write {weights}#k=50, with the number from the model card",
        )
    tensors = files.read_pickle(weights)
    files.need(tensors, KEYS, weights)
    return SparseDictionary(
        name=f"{weights.parent.name}/{weights.name}",
        site=site,
        W_enc=files.matrix(tensors, "W_enc", weights).T,
        W_dec=files.matrix(tensors, "W_dec", weights).T,
        b_enc=files.vector(tensors, "b_enc", weights),
        b_dec=files.vector(tensors, "b_dec", weights),
        activation="topk",
        k=wanted,
        apply_b_dec_to_input=False,
        metadata={"published": {"l0": float(wanted), "source": "the repository's name"}} if named == wanted else {},
    )
