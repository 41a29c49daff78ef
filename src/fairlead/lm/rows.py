"""Rows that come and go: one cache in which every row has its own length, and the forwards over a span of its rows.

There is no padding in the cache (see rowcache), so a row is joined or left without touching another. What attention
reads is a view of the rows that take part: nothing is gathered, and nothing is copied as a row grows. Spans are
neighbours, so whoever owns the rows keeps those that decode together side by side (`move`). The forwards are those of
`lean` where the model has its shape, else the model's own, and are charged to the meter with real tokens only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import NotApplicable
from fairlead.lm.checkpoint import Checkpoint
from fairlead.lm.graph import Graph, Traced
from fairlead.lm.lean import Lean, find_lean
from fairlead.lm.rowcache import Piece, Span, Store, cache_class
from fairlead.lm.sites import Attached

FIRST = 256  # tokens a row has room for at first; it doubles when one needs more

Hook = Callable[[Tensor, Span], Tensor]
"""As a SiteHook, but that it is given the span, whose `info` is made when asked for."""
Hooks = Callable[[Span], Sequence[tuple[str, Hook]]]

__all__ = ["FIRST", "Hook", "Hooks", "Piece", "Rows", "Span", "Traced"]


class Rows:
    """Up to `most` rows on one model. Not for two threads at once."""

    def __init__(self, checkpoint: Checkpoint, most: int, meter: Any = None, backend: str | None = None) -> None:
        """`backend` is torch.compile's: decode steps are then one compiled function. NotApplicable where the model has
        no lean forward to compile."""
        self.checkpoint, self.most, self.meter = checkpoint, most, meter
        self.room = min(FIRST, checkpoint.shape.context)
        self.device, self._dtype = checkpoint.model.device, checkpoint.model.dtype
        self.lean: Lean | None = find_lean(checkpoint.model, checkpoint.masks)
        self._store = Store(most + (backend is not None), self.room)
        self.graph: Graph | None = None
        if backend is not None:
            if self.lean is None:
                raise NotApplicable(
                    f"{checkpoint.name} has no compiled path",
                    expected="a model of Llama's shape, such as Llama, Mistral, Qwen2 or Qwen3",
                    do="leave --compile out: its own forward serves it, with the same edits",
                )
            self.graph = Graph(self.lean, checkpoint.masks, self._store, backend)

    @torch.inference_mode()
    def forward(
        self, first: int, pieces: Sequence[Piece], hooks: Hooks | None = None, flops: float = 0.0,
        traced: Callable[[Span], Traced | None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Reads a piece for each of the rows from `first` on; the logits [n, V] behind each piece's last token. Nothing
        is spoilt by a forward that fails: it can be asked again. `flops` is what the hooks add, in all. `traced` is
        what `hooks` do in the form that can be compiled, None for a span where they cannot."""
        started = time.perf_counter()
        total = max(piece.start + len(piece.ids) for piece in pieces)
        self.checkpoint.fits(total)
        span = Span(first, pieces, self._ensure(total), self.device)
        logits = self._graph_forward(span, total, traced)
        if logits is None:
            logits = self._plain_forward(span, total, tuple(hooks(span)) if hooks else ())
        self._charge(pieces, flops, time.perf_counter() - started)
        return logits

    def _graph_forward(self, span: Span, total: int, traced: Any) -> Tensor | None:
        """None where this span, or its edits, are for the plain forward."""
        if self.graph is None or traced is None or span.first or not span.decoding or self.graph.lean.watched():
            return None
        wide = self.graph.filled(span)
        edits = traced(wide)
        return None if edits is None else self.graph.forward(wide, span.count, total, edits)

    def _plain_forward(self, span: Span, total: int, asked: Sequence[tuple[str, Hook]]) -> Tensor:
        keys = torch.arange(total, device=self.device)[None].expand(span.count, total)
        masks = self.checkpoint.masks.build(keys[:, None] <= span.at[:, :, None], span.at, keys, self._dtype)
        if self.lean is not None and self.lean.can(asked) and not self.lean.watched():
            return self.lean.forward(span, total, masks, self._store, asked)
        return self._own_forward(span, total, masks, asked)

    def _own_forward(self, span: Span, total: int, masks: Any, hooks: Sequence[tuple[str, Hook]]) -> Tensor:
        """The model's own forward, with hooks in its modules."""
        with ExitStack() as stack:
            attached = Attached(stack, self.checkpoint.sites, hooks, span)
            logits: Tensor = self.checkpoint.model(
                input_ids=span.to(span.ids),
                attention_mask=masks,
                position_ids=span.at,
                past_key_values=cache_class()(self._store, span, total),
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        attached.check()
        return logits

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of a row into another's place."""
        for keys, values in self._store.held():
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]

    @torch.inference_mode()
    def take(self, row: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of a row's first `length` keys and values, a pair [heads, length, size] a layer."""
        return [(k[row, :, :length].clone(), v[row, :, :length].clone()) for k, v in self._store.held()]

    @torch.inference_mode()
    def put(self, row: int, kept: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        """The first `length` tokens of what `take` copied, into a row. No forward need have run since, but one must
        have run before: what was taken came from it."""
        self._ensure(length)
        for (keys, values), (k, v) in zip(self._store.held(), kept, strict=True):
            keys[row, :, :length], values[row, :, :length] = k[:, :length], v[:, :length]

    @torch.inference_mode()
    def wipe(self, row: int) -> None:
        """Zeros in a row whose numbers cannot be trusted: masked places are multiplied by 0, and 0 times NaN is NaN."""
        for keys, values in self._store.held():
            keys[row].zero_()
            values[row].zero_()

    def bytes_a_token(self) -> int:
        """Memory of one token of one row, over all layers; 0 before the first forward."""
        return sum(x.shape[1] * x.shape[3] * x.element_size() for pair in self._store.held() for x in pair)

    def _ensure(self, total: int) -> int:
        while self.room < total:
            self.room = min(2 * self.room, self.checkpoint.shape.context)
        self._store.grow(self.room)
        return self.room

    def _charge(self, pieces: Sequence[Piece], flops: float, seconds: float) -> None:
        if self.meter is None:
            return
        shape = self.checkpoint.shape
        for piece in pieces:
            flops += shape.flops(len(piece.ids), piece.start + len(piece.ids), 1)
        read = sum(max(0, min(piece.prompt - piece.start, len(piece.ids))) for piece in pieces)
        said = sum(piece.start + len(piece.ids) >= piece.prompt for piece in pieces)
        self.meter.charge(prompt_tokens=read, new_tokens=said, flops=flops, seconds=seconds, forwards=1)
