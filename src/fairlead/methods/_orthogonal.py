"""Weights that cannot write a direction: W ← W − r̂(r̂ᵀW) for everything that adds to the residual stream.

That is every embedding, and of each block the last linear layer of its attention and of its MLP. Swapped in for the
length of a batch and put back as the very parameters they were, so that other Subjects of the model are not touched; a
tied LM head keeps its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fairlead.core.errors import NotApplicable

Swap = tuple[nn.Module, str, nn.Parameter]  # a module, the name of its parameter, what to put there


def orthogonalised(subject: Any, direction: Tensor) -> Callable[[], AbstractContextManager[None]]:
    """A context for `LocalSubject.within` in which the model cannot write `direction` [d]. The weights are worked out
    when it is first entered. NotApplicable where the parts that write to the stream cannot be told."""
    writers = _writers(subject)
    swaps: list[Swap] = []

    @contextmanager
    def context() -> Iterator[None]:
        if not swaps:
            swaps.extend(_without(module, name, axis, direction) for module, name, axis in writers)
        kept = [(module, name, module._parameters[name]) for module, name, _ in swaps]
        try:
            for module, name, new in swaps:
                module._parameters[name] = new
            yield
        finally:
            for module, name, old in kept:
                module._parameters[name] = old

    return context


def _writers(subject: Any) -> list[tuple[nn.Module, str, int]]:
    """(module, parameter, the axis that runs along the residual stream) of all that writes to it."""
    width, sites = subject.d_model, subject.checkpoint.sites
    if not sites.additive:
        raise NotApplicable("this model's blocks are no sum of attention and MLP, so their weights cannot be projected")
    found: list[tuple[nn.Module, str, int]] = [
        (module, "weight", 1)
        for module in subject.model.modules()
        if isinstance(module, nn.Embedding) and module.embedding_dim == width
    ]
    for part in (*sites.attn, *sites.mlp):
        layers = [m for m in part.modules() if _out(m) == width]
        if not layers:
            raise NotApplicable("a part of this model writes to the stream by no linear layer", got=type(part).__name__)
        found.append((layers[-1], "weight", 0 if isinstance(layers[-1], nn.Linear) else 1))
        if getattr(layers[-1], "bias", None) is not None:
            found.append((layers[-1], "bias", 0))
    for module, name, _ in found:
        if not module._parameters[name].is_floating_point():  # type: ignore[union-attr]
            raise NotApplicable("quantised weights cannot be projected", do="load the model in a floating-point dtype")
    return found


def _out(module: nn.Module) -> int | None:
    """How wide a linear layer's output is; GPT-2 writes its weights the other way round."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.weight.shape[1] if type(module).__name__ == "Conv1D" else None  # type: ignore[index,union-attr,return-value]


def _without(module: nn.Module, name: str, axis: int, direction: Tensor) -> Swap:
    old = module._parameters[name]
    assert old is not None
    with torch.inference_mode(False), torch.no_grad():
        unit = direction.to(old.device, torch.float32).clone()
        unit = unit / unit.norm()
        wide = old.detach().float()
        wide = wide if axis == 0 or wide.dim() == 1 else wide.T
        new = wide - (unit * (unit @ wide) if wide.dim() == 1 else torch.outer(unit, unit @ wide))
        new = new if axis == 0 or wide.dim() == 1 else new.T
        return module, name, nn.Parameter(new.to(old.dtype).contiguous(), requires_grad=False)
