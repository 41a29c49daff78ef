"""Losses with gradients through a Subject, for adapters, hooks with parameters, and searches over tokens.

The weights stay frozen: a gradient reaches what a context or a hook of the Subject brought along, or the prompt's
own tokens. Everything is charged here, the backward pass together with the forward it belongs to.

A backward pass costs 2 FLOPs a weight and token for every matrix whose input carries a gradient, and twice the
attention's forward in every block whose attention does; below the lowest adapter nothing does. So what is charged
is `ledger.adapter_flops` (two forwards) less what lies below, plus the attention's second half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fairlead.core.types import Messages
from fairlead.lm.forwards import Packed, add_up, pack
from fairlead.lm.subject import LocalSubject, Metric, _parts, _value
from fairlead.lm.tree import EMPTY

Span = tuple[int, int]
"""Prompt tokens, from the first to before the last, counted from the prompt's start."""


def target_losses(
    subject: LocalSubject, prompts: Sequence[Messages], targets: Sequence[str], steps: Sequence[int] | None = None
) -> Tensor:
    """Mean negative log-likelihood [N], in nats a token, of each target as the whole next turn, its end included.

    The prompts are as `generate` has them, this Subject's lines, edits and contexts at work. With gradients enabled
    (the default of torch) the result can be differentiated by the parameters of those contexts and hooks, and the
    backward pass is charged as if it followed; under `torch.no_grad()` only the forward is. One forward for every
    `max_batch` prompts."""
    rows, trees = subject._rows(prompts, steps, None), subject._trees(prompts, [[t] for t in targets], end_turn=True)
    found: list[Tensor] = []
    with subject._alone(), watched(subject) as carried:
        for part in _parts(len(rows), subject.max_batch):
            packed = pack(rows[part], trees[part], subject.model)
            keep = packed.ids.shape[1] - packed.width + 1
            logits, charge = subject._forwards()._run(packed, keep=keep)
            scores = add_up(logits, trees[part])
            charge(0)
            if logits.requires_grad:
                carried.charge(subject, packed, keep)
            found += [-s[0] / t.lengths[0] for s, t in zip(scores, trees[part], strict=True)]
            subject._collect(len(rows[part]))
    return torch.stack(found)


def token_gradients(
    subject: LocalSubject,
    prompts: Sequence[Messages],
    legal: Sequence[Sequence[str]],
    metrics: Sequence[Metric],
    spans: Sequence[Span],
    steps: Sequence[int] | None = None,
) -> tuple[Tensor, list[float]]:
    """(d total / d one-hot [n, V], every prompt's metric) of a metric over the actions' log-probabilities.

    Entry [i, v] is how fast the sum of all prompts' metrics grows as token i of every prompt's span turns into v,
    to first order. All spans have n tokens. A metric is as in `LocalSubject.attribution`."""
    rows, trees = subject._rows(prompts, steps, None), subject._trees(prompts, legal, end_turn=True)
    (size,) = {stop - start for start, stop in spans}
    embed = subject.model.get_input_embeddings()
    total = torch.zeros(size, subject.d_model, device=subject.model.device)
    values: list[float] = []
    with subject._alone(), torch.enable_grad(), watched(subject) as carried:
        for part in _parts(len(rows), subject.max_batch):
            packed = pack(rows[part], trees[part], subject.model)
            keep = packed.ids.shape[1] - packed.width + 1
            with _leaf(embed) as leaf:
                logits, charge = subject._forwards()._run(packed, keep=keep)
            scores = add_up(logits, trees[part])
            found = [_value(m, s) for m, s in zip(metrics[part], scores, strict=True)]
            (gradient,) = torch.autograd.grad(torch.stack(found).sum(), leaf[0])
            charge(0)
            carried.charge(subject, packed, keep)
            for row, (start, stop) in enumerate(spans[part]):
                first = packed.width - packed.lengths[row]
                total += gradient[row, first + start : first + stop].float()
            values += [float(v.detach()) for v in found]
            subject._collect(len(rows[part]))
        with torch.no_grad():
            table = embed(torch.arange(embed.weight.shape[0], device=total.device)).float()
            _charge(subject, 2.0 * table.numel() * size)
            return total @ table.T, values


@torch.no_grad()
def span_losses(subject: LocalSubject, prompts: Sequence[Messages], spans: Sequence[Span]) -> Tensor:
    """Mean negative log-likelihood [N], in nats a token, of each prompt's tokens in its span, given those before."""
    rows = subject._rows(prompts, None, None)
    found: list[Tensor] = []
    with subject._alone():
        for part in _parts(len(rows), subject.max_batch):
            packed = pack(rows[part], [EMPTY] * len(rows[part]), subject.model)
            logits, charge = subject._forwards()._run(packed, keep=packed.width)
            charge(0)
            _charge(subject, 2.0 * subject.checkpoint.shape.head * sum(n - 1 for n in packed.lengths))
            for row, (start, stop) in enumerate(spans[part]):
                first = packed.width - packed.lengths[row]
                here = slice(first + max(start, 1), first + stop)
                before = logits[row, here.start - 1 : here.stop - 1].float().log_softmax(-1)
                found.append(-before.gather(1, packed.ids[row, here, None]).mean())
            subject._collect(len(rows[part]))
    return torch.stack(found)


@dataclass
class Carried:
    """What carried a gradient in the latest forward, seen by hooks on the model's weight matrices."""

    every: dict[int, int] = field(default_factory=dict)  # a matrix's weights
    those: set[int] = field(default_factory=set)  # matrices whose input carried a gradient
    last: dict[int, int] = field(default_factory=dict)  # block -> the matrix its attention ran last

    def charge(self, subject: LocalSubject, packed: Packed, keep: int) -> None:
        """The backward pass of the forward over `packed`, to the Subject's meter."""
        shape, share = subject.checkpoint.shape, sum(self.every[i] for i in self.those) / sum(self.every.values())
        layers = sum(last in self.those for last in self.last.values())
        flops = 0.0
        for length, nodes in zip(packed.lengths, packed.nodes, strict=True):
            read = length + nodes
            flops += 2.0 * shape.body * share * read + 2.0 * shape.head * min(keep, 1 + nodes)
            flops += 8.0 * layers * shape.attention_width * read * read
            flops += 2.0 * subject._hook_flops * read
        _charge(subject, flops)


@contextmanager
def watched(subject: LocalSubject) -> Iterator[Carried]:
    """Notes, in every forward inside, which frozen matrices get an input that carries a gradient."""
    found, head = Carried(), subject.model.get_output_embeddings()
    handles: list[Any] = []
    block_of: dict[int, int] = {}
    for number, block in enumerate(subject.checkpoint.sites.blocks):
        parts = [part for name, part in block.named_children() if "attn" in name or "attention" in name]
        block_of |= {id(m): number for part in parts or [block] for m in part.modules()}

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        (found.those.add if args[0].requires_grad else found.those.discard)(id(module))
        if id(module) in block_of:
            found.last[block_of[id(module)]] = id(module)

    for module in subject.model.modules():
        weight = getattr(module, "weight", None)
        if module is head or not _is_matrix(module) or not isinstance(weight, Tensor) or weight.requires_grad:
            continue
        found.every[id(module)] = weight.numel()
        handles.append(module.register_forward_pre_hook(look))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_matrix(module: nn.Module) -> bool:
    """A linear layer, quantised or not, or GPT-2's Conv1D."""
    leaf = next(module.children(), None) is None
    return leaf and (hasattr(module, "in_features") or type(module).__name__ == "Conv1D")


@contextmanager
def _leaf(embed: nn.Module) -> Iterator[list[Tensor]]:
    """Makes the embeddings of the next forward a leaf to differentiate by; it is the list's one entry."""
    found: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_(True))
        return found[-1] * 1.0

    handle = embed.register_forward_hook(cut)
    try:
        yield found
    finally:
        handle.remove()


def _charge(subject: LocalSubject, flops: float) -> None:
    if subject.meter is not None:
        subject.meter.charge(flops=flops)
