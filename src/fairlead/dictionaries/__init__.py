"""Dictionaries: SAEs and the things an SAE must beat, all as one class over a linear encoder and decoder.

`load` and `save` speak the SAELens disk format; `train` fits ReLU, TopK, BatchTopK and Matryoshka SAEs on
streamed activations; each family file (`sae`, `kmeans`, `pca`, ...) offers a `plugin` that fits itself.
Names resolve on first use, so importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairlead.dictionaries.base import SparseDictionary
    from fairlead.dictionaries.quality import calibrated, evaluate, with_statistics
    from fairlead.dictionaries.refs import load, save
    from fairlead.dictionaries.splice import ce_recovered
    from fairlead.dictionaries.stream import harvest
    from fairlead.dictionaries.train import TrainConfig

__all__ = [
    "SparseDictionary",
    "TrainConfig",
    "calibrated",
    "ce_recovered",
    "evaluate",
    "harvest",
    "load",
    "save",
    "with_statistics",
]

_HOME = {
    "SparseDictionary": "base",
    "TrainConfig": "train",
    "calibrated": "quality",
    "ce_recovered": "splice",
    "evaluate": "quality",
    "harvest": "stream",
    "load": "refs",
    "save": "refs",
    "with_statistics": "quality",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
