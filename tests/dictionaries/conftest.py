"""A planted world of activations: known sparse directions, and dictionaries small enough for milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.train import TrainConfig, train

D, TRUE, FEATURES, K = 48, 64, 96, 4


@dataclass(frozen=True, eq=False)
class Planted:
    activations: Tensor  # [n, D]
    directions: Tensor  # [TRUE, D], unit rows

    def recovered(self, dictionary: SparseDictionary) -> float:
        """Share of planted directions that some decoder row matches with cosine above 0.9."""
        cosine = self.directions @ functional.normalize(dictionary.W_dec, dim=-1).T
        return float((cosine.amax(1) > 0.9).float().mean())


def plant(rows: int, seed: int) -> Planted:
    """`rows` activations of one world, whose directions and firing rates are fixed; `seed` draws the rows."""
    world, generator = torch.Generator().manual_seed(77), torch.Generator().manual_seed(seed)
    directions = functional.normalize(torch.randn(TRUE, D, generator=world), dim=-1)
    rate = torch.rand(TRUE, generator=world) + 0.1
    on = torch.rand(rows, TRUE, generator=generator) < rate / rate.sum() * K
    strength = 1 + torch.rand(rows, TRUE, generator=generator)
    noise = 0.01 * torch.randn(rows, D, generator=generator)
    return Planted((on * strength) @ directions + noise + 0.3, directions)


def quick(**changes: object) -> TrainConfig:
    settings = {"n_features": FEATURES, "k": K, "steps": 400, "batch": 256, "held_out": 1024, "dead_after": 4000}
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


def random_dictionary(
    activation: str = "relu", d: int = 8, m: int = 20, seed: int = 0, **changes: object
) -> SparseDictionary:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    extra: dict[str, object] = {"threshold": normal(m).abs()} if activation == "jumprelu" else {}
    if activation == "topk":
        extra["k"] = 3
    return SparseDictionary(
        name=activation, site="resid.2", W_enc=normal(d, m), W_dec=normal(m, d), b_enc=normal(m), b_dec=normal(d),
        activation=activation, **{**extra, **changes},  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(scope="session")
def planted() -> Planted:
    torch.set_num_threads(1)
    return plant(12_000, seed=11)


@pytest.fixture(scope="session")
def trained(planted: Planted) -> SparseDictionary:
    return train(planted.activations, quick(name="planted", site="resid.2", steps=800))
