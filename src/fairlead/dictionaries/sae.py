"""Sparse autoencoders: the plugin trains one with the settings of `train.TrainConfig`."""

from __future__ import annotations

from typing import Any

from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.stream import Activations
from fairlead.dictionaries.train import TrainConfig, train


def fit(activations: Activations, n_features: int, seed: int = 0, **options: Any) -> SparseDictionary:
    """A TopK SAE (or `kind="batchtopk"`, "matryoshka", "relu"); `options` are fields of TrainConfig."""
    return train(activations, TrainConfig(n_features=n_features, seed=seed, **options))


plugin = fit
