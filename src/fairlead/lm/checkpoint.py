"""One loaded checkpoint: the weights, the chat, the sites, and what a forward costs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fairlead.core.errors import FairleadError
from fairlead.core.ledger import forward_flops
from fairlead.lm.chat import Chat
from fairlead.lm.masks import Masks
from fairlead.lm.sites import Sites

CHANGING_ROPE = ("dynamic", "longrope")  # their angles depend on the longest row of a batch


@dataclass(frozen=True)
class Shape:
    """The sizes that the FLOP formulas need."""

    n_layers: int
    d_model: int
    attention_width: int  # heads times head size
    body: int  # parameters that every token is multiplied with, but the LM head; of experts, those that are active
    head: int  # parameters of the LM head
    context: int  # longest sequence, in tokens
    blocks: tuple[int, ...] = ()  # the part of `body` that is in each block

    def flops(self, tokens: int, context: int, heads: int, layers: int | None = None) -> float:
        """FLOPs of `tokens` tokens read with full attention to `context`, `heads` of them through the LM head:
        2·N·T + 4·L·S·d·T, with the LM head's share of N counted where it is used. `layers` is how many blocks
        ran, where the forward stopped early; nothing then goes through the head."""
        whole = layers is None or layers >= self.n_layers
        return 2.0 * (self.head * heads if whole else 0) + forward_flops(
            n_matmul=self.body if whole else sum(self.blocks[:layers]),
            tokens=tokens,
            context=context,
            n_layers=self.n_layers if whole or layers is None else layers,
            d_model=self.attention_width,
        )


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What all Subjects made from one model share. `lock` keeps their forwards, and so their hooks, apart."""

    name: str
    fingerprint: str
    model: Any  # a transformers causal language model, in eval mode, without gradients
    chat: Chat
    sites: Sites
    shape: Shape
    masks: Masks = Masks()
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fits(self, prompt: int, answer: int = 0) -> None:
        """Raises when a sequence, in tokens, is longer than the model's context."""
        if prompt + answer > self.shape.context:
            raise FairleadError(
                "the prompt is longer than the model's context" if prompt > self.shape.context or not answer
                else "the prompt leaves no room in the model's context for its answer",
                expected=f"at most {self.shape.context} tokens, prompt and answer together",
                got=f"{prompt} and {answer}" if answer else f"{prompt}",
                do="ask for a shorter answer (max_tokens) or shorten the prompt" if answer else "shorten the prompt",
            )  # fmt: skip


def measure(model: nn.Module, sites: Sites, config: Any) -> Shape:
    """Reads a model's sizes off its weight matrices and its (text) configuration."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    active = getattr(config, "num_experts_per_tok", None)
    blocks = tuple(sum(n for _, n in matrices(block, active)) for block in sites.blocks)
    inside = {id(m) for block in sites.blocks for m in block.modules()} | {id(head)}
    linear = [m for m in model.modules() if id(m) not in inside and hasattr(m, "weight") and _multiplies(m)]
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        attention_width=config.num_attention_heads * head_size,
        body=sum(blocks) + sum(n for m in linear for _, n in matrices(m, active)),
        head=head.weight.numel(),
        context=_context(config),
        blocks=blocks,
    )


def matrices(module: nn.Module, active: int | None) -> Iterator[tuple[str, int]]:
    """(name, parameters a token is multiplied with) of every weight matrix in a module: linear layers, GPT-2's
    Conv1D, and stacks of experts [E, a, b], of which `active` act on a token."""
    for name, inner in module.named_modules():
        if hasattr(inner, "in_features") and hasattr(inner, "out_features"):  # quantised weights have other shapes
            yield name, _share(name, inner.in_features * inner.out_features, active, module)
            continue
        for key, weight in inner.named_parameters(recurse=False):
            if isinstance(inner, nn.Embedding) or "bias" in key or weight.ndim < 2:
                continue
            full = f"{name}.{key}"
            if weight.ndim == 3 and active:
                yield full, weight.numel() // weight.shape[0] * min(active, weight.shape[0])
            else:
                yield full, _share(full, weight.numel(), active, module)


def _share(name: str, size: int, active: int | None, module: nn.Module) -> int:
    """`size`, or the part of it that is active where the matrix belongs to one of a list of experts."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if part == "experts" and parts[i + 1].isdigit() and active:
            count = len(module.get_submodule(".".join(parts[: i + 1])))  # type: ignore[arg-type]
            return size * min(active, count) // count
    return size


def _multiplies(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _context(config: Any) -> int:
    """The longest sequence; where rotary angles change with length, the length up to which they do not."""
    longest = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    for entry in rope.values() if all(isinstance(v, Mapping) for v in rope.values()) else [rope]:
        if entry.get("rope_type") in CHANGING_ROPE:
            original = entry.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            longest = min(longest, int(original or longest))
    return longest
