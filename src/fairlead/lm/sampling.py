"""Sampled decoding that depends on the seed and the prompt alone: not on the batch, the seat or the clock."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairlead.core.errors import FairleadError
from fairlead.lm.tree import Ids


@dataclass(frozen=True)
class Sampling:
    """Draws from softmax(scores / temperature)."""

    temperature: float
    seed: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise FairleadError(
                "cannot sample at this temperature",
                expected="a number above 0",
                got=repr(self.temperature),
                do="leave `sampled` out for the most probable answer",
            )

    def stream(self, ids: Ids, step: int) -> Iterator[float]:
        """Uniform numbers in [0, 1) of one prompt [P] at one agent step."""
        text = f"{self.seed}/{step}/".encode() + np.ascontiguousarray(ids, dtype=np.int64).tobytes()
        rng = np.random.Generator(np.random.Philox(int.from_bytes(hashlib.sha256(text).digest()[:8], "big")))
        while True:
            yield float(rng.random())

    def choose(self, scores: Tensor | Sequence[float], uniform: float) -> int:
        """The place in `scores` [n] (logits or log-probabilities) that `uniform` falls on."""
        weights = (torch.as_tensor(scores).double().cpu() / self.temperature).softmax(-1).cumsum(-1)
        return min(int(torch.searchsorted(weights, uniform * float(weights[-1]), right=True)), len(weights) - 1)
