"""Dictionaries: SAEs and the things an SAE must beat, all as one class over a linear encoder and decoder.

`load` reads every public format (`formats`), `save` writes the SAELens layout; `train` fits ReLU, TopK, BatchTopK
and Matryoshka SAEs on streamed activations; each family file (`sae`, `kmeans`, `pca`, ...) offers a `plugin` that fits
itself. Names resolve on first use, so importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairlead.dictionaries.base import SparseDictionary
    from fairlead.dictionaries.quality import calibrated, evaluate, with_statistics
    from fairlead.dictionaries.refs import load, load_sparse, save
    from fairlead.dictionaries.splice import ce_recovered
    from fairlead.dictionaries.stream import harvest
    from fairlead.dictionaries.train import TrainConfig
    from fairlead.dictionaries.transcoder import Transcoder

__all__ = [
    "SparseDictionary",
    "TrainConfig",
    "Transcoder",
    "calibrated",
    "ce_recovered",
    "evaluate",
    "harvest",
    "load",
    "load_sparse",
    "save",
    "with_statistics",
]

_HOME = {
    "SparseDictionary": "base",
    "TrainConfig": "train",
    "Transcoder": "transcoder",
    "calibrated": "quality",
    "ce_recovered": "splice",
    "evaluate": "quality",
    "harvest": "stream",
    "load": "refs",
    "load_sparse": "refs",
    "save": "refs",
    "with_statistics": "quality",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
