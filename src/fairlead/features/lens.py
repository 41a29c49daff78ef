"""The logit lens: which tokens a direction promotes, read through the model's last norm and its unembedding.

The last norm is found by what it does (its output is what the head reads), and its gain is read off its answers, so
RMSNorm, RMSNorm with 1 + weight, and LayerNorm need no case of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairlead.core.errors import NotApplicable


@dataclass(frozen=True, eq=False)
class Lens:
    """`gain` [d] of the last norm, whether that norm takes the mean away first, and the unembedding [V, d]."""

    gain: Tensor
    centred: bool
    unembedding: Tensor

    @torch.inference_mode()
    def logits(self, directions: Tensor) -> Tensor:
        """[n, V]: what one unit of each direction [n, d] adds to the logits, the norm's division left out."""
        x = directions.to(self.gain)
        x = x - x.mean(1, keepdim=True) if self.centred else x
        return ((x * self.gain).to(self.unembedding.dtype) @ self.unembedding.T).float()


@torch.inference_mode()
def lens_of(subject: Any) -> Lens:
    """The lens of a LocalSubject's checkpoint, charged as the one token it is found with. NotApplicable where no norm
    feeds the head."""
    model = subject.model
    head = model.get_output_embeddings()
    with subject.checkpoint.lock:
        norm = _last_norm(model, head)
    if subject.meter is not None:
        subject.meter.charge(prompt_tokens=1, flops=subject.checkpoint.shape.flops(1, 1, 1), forwards=1)
    if norm is None:
        raise NotApplicable(
            f"no logit lens for {type(model).__name__}", expected="a norm whose output the unembedding reads"
        )
    weight = head.weight
    width = weight.shape[1]
    signs = torch.ones(1, 1, width, device=weight.device, dtype=weight.dtype)
    signs[..., 1::2] = -1.0
    even = torch.ones_like(signs)

    def odd_part(x: Tensor) -> Tensor:
        return ((norm(x) - norm(-x)) / 2).float()[0, 0]

    gain = odd_part(signs) * signs.float()[0, 0]
    centred = float(odd_part(even).abs().max()) < 1e-3 * float(gain.abs().max())
    return Lens(gain, centred, weight)


def _last_norm(model: Any, head: nn.Module) -> nn.Module | None:
    """The last module without children, before the head, whose output the head reads at the last token."""
    ran: list[tuple[nn.Module, Tensor]] = []
    read: list[Tensor] = []

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            ran.append((module, output))

    def before(_module: nn.Module, args: Any) -> None:
        read.append(args[0])

    leaves = [m for m in model.modules() if m is not head and not list(m.children())]
    handles = [m.register_forward_hook(after) for m in leaves] + [head.register_forward_pre_hook(before)]
    try:
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for module, output in reversed(ran):
        if read and output.shape == read[0].shape and torch.equal(output, read[0]):
            return module
    return None
