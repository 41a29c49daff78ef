"""Linear readouts with an L2 penalty, fitted by L-BFGS in double precision: the same numbers on every run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 200  # L-BFGS iterations at most


@dataclass(frozen=True, eq=False)
class Linear:
    """x [.., f] to scores x·weight + bias [..]. `flops` is what fitting it took."""

    weight: Tensor
    bias: float = 0.0
    flops: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return x.float() @ self.weight.to(x.device) + self.bias


def binary(x: Tensor, y: Tensor, c: float, weights: Tensor | None = None) -> Linear:
    """P(y) = σ(score) for rows x [n, f], labels y [n]; weighted mean loss + |w|² / (2·c·n) on standardised inputs."""
    held = torch.ones(len(x)) if weights is None else weights
    held = (held / held.mean()).double()

    def loss(z: Tensor) -> Tensor:
        return (held * torch.nn.functional.binary_cross_entropy_with_logits(z, y.double(), reduction="none")).mean()

    return _fit(x, loss, c, len(x), biased=True)


def choice(x: Sequence[Tensor], right: Sequence[Tensor], c: float, weights: Tensor | None = None) -> Linear:
    """P(option) = softmax of the scores among a menu's options: menus x[i] [a_i, f], right[i] bool [a_i]; the loss is
    −log P(right), weighted over the menus. For two options this is the logistic probe on their difference."""
    sizes = torch.tensor([len(m) for m in x])
    owner, wanted = torch.repeat_interleave(torch.arange(len(x)), sizes), torch.cat(list(right))
    held = torch.ones(len(x)) if weights is None else weights
    held = (held / held.mean()).double()

    def loss(z: Tensor) -> Tensor:
        top = torch.full((len(x),), -torch.inf, dtype=z.dtype).scatter_reduce(0, owner, z.detach(), "amax")
        mass = (z - top[owner]).exp()
        everything = torch.zeros(len(x), dtype=z.dtype).index_add(0, owner, mass)
        good = torch.zeros(len(x), dtype=z.dtype).index_add(0, owner, mass * wanted)
        return -(held * ((good + 1e-30).log() - everything.log())).mean()

    return _fit(torch.cat(list(x)), loss, c, len(x), biased=False)


def _fit(x: Tensor, loss: Callable[[Tensor], Tensor], c: float, n: int, *, biased: bool) -> Linear:
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().cpu().double()
        mean, scale = x.mean(0), x.std(0, correction=0)
        scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.inf)  # a constant input gets no weight
        rows = (x - mean) / scale
        w = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
        b = torch.zeros(1, dtype=torch.float64, requires_grad=biased)
        search = torch.optim.LBFGS([w, b] if biased else [w], max_iter=ROUNDS, line_search_fn="strong_wolfe")
        count = 0

        def closure() -> Tensor:
            nonlocal count
            count += 1
            search.zero_grad()
            value = loss(rows @ w + b) + (w @ w) / (2 * c * n)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        search.step(closure)  # type: ignore[arg-type]
    weight = (w.detach() / scale).float()
    bias = float(b.detach() - (mean @ (w.detach() / scale))) if biased else 0.0
    return Linear(weight, bias, 4.0 * x.numel() * count)


def even(strata: Sequence[str]) -> Tensor:
    """Weights [n] with which every stratum counts alike, mean 1."""
    names = sorted(set(strata))
    return torch.tensor([len(strata) / (len(names) * strata.count(s)) for s in strata])


def folds(clusters: Sequence[str], n: int, seed: int) -> list[list[int]]:
    """At most n parts of the places 0, 1, ...; no cluster in two of them. One part where there is one cluster."""
    names = sorted(set(clusters))
    random.Random(seed).shuffle(names)
    part = {name: i % n for i, name in enumerate(names)}
    found = [[i for i, c in enumerate(clusters) if part[c] == k] for k in range(n)]
    return [f for f in found if f]
