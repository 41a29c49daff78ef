"""Random dictionaries and hand-made forwards for the steering tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.lm.conftest import checkpoint
from torch import Tensor

from fairlead.dictionaries.base import SparseDictionary
from fairlead.lm.hooks import ForwardInfo
from fairlead.lm.load import load
from fairlead.lm.subject import LocalSubject

D, M = 12, 40


def dictionary(
    activation: str = "relu", site: str = "resid.1", seed: int = 0, d: int = D, m: int = M
) -> SparseDictionary:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    return SparseDictionary(
        f"random-{activation}", site, draw(d, m), draw(m, d), draw(m), draw(d),
        activation=activation,  # type: ignore[arg-type]
        threshold=draw(m).abs() * 2 if activation in ("jumprelu", "topk") else None,
        k=5 if activation == "topk" else None,
        max_activation=draw(m).abs() + 1.0,
    )  # fmt: skip


def forward_info(
    tokens: int = 6,
    slots: Sequence[int] = (1,),
    *,
    prompt: int = 4,
    first: int = 0,
    steps: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    roles_known: bool = True,
) -> ForwardInfo:
    """Rows of `tokens` tokens from position `first` on; `prompt` prompt tokens in all; `pads` on the left."""
    b = len(slots)
    column = torch.arange(tokens).expand(b, tokens) + first
    positions = column - torch.tensor(pads or [0] * b)[:, None]
    real = positions >= 0
    is_prompt = (column < prompt) & real
    return ForwardInfo(
        positions=torch.where(real, positions, -1),
        is_prompt=is_prompt,
        is_last=(column == prompt - 1) & real,
        real=real,
        step=torch.tensor(steps or [0] * b),
        slot=torch.tensor(slots),
        role=torch.where(is_prompt, torch.where(positions < 2, 1, 2), 3) * real,
        roles_known=torch.full((b,), roles_known),
        request=torch.arange(b),
    )


def activations(b: int = 1, t: int = 6, d: int = D, seed: int = 1) -> Tensor:
    return torch.randn(b, t, d, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LocalSubject:
    torch.set_num_threads(1)
    folder: Path = checkpoint(tmp_path_factory.mktemp("steered"), layers=3, width=32)
    return load(folder)


@pytest.fixture
def subject(loaded: LocalSubject) -> LocalSubject:
    return loaded.metered(None)
