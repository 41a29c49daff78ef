"""One loaded checkpoint: the weights, the chat, the sites, and what a forward costs."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fairlead.core.errors import FairleadError
from fairlead.core.ledger import forward_flops
from fairlead.lm.chat import Chat
from fairlead.lm.sites import Sites


@dataclass(frozen=True)
class Shape:
    """The sizes that the FLOP formulas need."""

    n_layers: int
    d_model: int
    attention_width: int  # heads times head size
    body: int  # parameters that every token is multiplied with: linear layers but the LM head
    head: int  # parameters of the LM head
    context: int  # longest sequence, in tokens

    def flops(self, tokens: int, context: int, heads: int) -> float:
        """FLOPs of `tokens` tokens read with full attention to `context`, `heads` of them through the LM head:
        2·N·T + 4·L·S·d·T, with the LM head's share of N counted where it is used."""
        return 2.0 * self.head * heads + forward_flops(
            n_matmul=self.body, tokens=tokens, context=context, n_layers=self.n_layers, d_model=self.attention_width
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
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fits(self, tokens: int) -> None:
        """Raises when a sequence is longer than the model's context."""
        if tokens > self.shape.context:
            raise FairleadError(
                "the prompt is longer than the model's context",
                expected=f"at most {self.shape.context} tokens, prompt and answer together",
                got=f"{tokens}",
                do="shorten the observation or the history",
            )


def measure(model: nn.Module, config: Any) -> Shape:
    """Reads a model's sizes off its linear layers and its configuration."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear: Iterable[nn.Linear] = (m for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        attention_width=config.num_attention_heads * head_size,
        body=sum(m.weight.numel() for m in linear),
        head=head.weight.numel(),
        context=config.max_position_embeddings,
    )
