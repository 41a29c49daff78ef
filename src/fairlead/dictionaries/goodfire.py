"""Goodfire: one torch pickle, `NAME-SAE-lLAYER.pth` or `.pt`.

Keys encoder_linear.weight [m, d], encoder_linear.bias [m], decoder_linear.weight [d, m], decoder_linear.bias
[d]; the forward is decoder(relu(encoder(x))), inputs not centred. The layer stands in the file name alone.
Source: the class in the model card of Goodfire/Llama-3.1-8B-Instruct-SAE-l19.
"""

from __future__ import annotations

import re
from pathlib import Path

from fairlead.dictionaries import files
from fairlead.dictionaries.base import SparseDictionary

FILES = "one *-SAE-lLAYER.pth or .pt (Goodfire)"
KEYS = ("encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias")


def find(path: Path) -> Path | None:
    """The weights at `path`, a file or a folder that holds one such file."""
    if path.is_file():
        other = path.name == "ae.pt" or path.name.endswith(".sae.pt")
        return path if path.suffix in (".pth", ".pt") and not other else None
    held = [p for p in sorted(path.glob("*.pt*")) if find(p) == p and (p.suffix == ".pth" or "SAE" in p.name)]
    return files.inside(path, held[0].name) if len(held) == 1 else None


def site(weights: Path) -> str:
    """What the file's name says: `...-l19.pth` is resid.19."""
    found = re.search(r"-l(\d+)$", weights.stem)
    return f"resid.{int(found[1])}" if found else ""


def read(weights: Path, *, site: str = "", k: int | None = None) -> SparseDictionary:
    """The dictionary in file `weights`."""
    del k
    tensors = files.read_pickle(weights)
    files.need(tensors, KEYS, weights)
    return SparseDictionary(
        name=weights.stem,
        site=site,
        W_enc=files.matrix(tensors, KEYS[0], weights).T,
        W_dec=files.matrix(tensors, KEYS[2], weights).T,
        b_enc=files.vector(tensors, KEYS[1], weights),
        b_dec=files.vector(tensors, KEYS[3], weights),
        activation="relu",
        apply_b_dec_to_input=False,
    )
