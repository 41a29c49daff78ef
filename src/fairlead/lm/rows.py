"""Rows that come and go: one cache in which every row has its own length, and the forwards over a span of its rows.

A token's place in the cache is its position, so there is no padding in it and a row is joined or left without
touching another. What attention reads is a view of the rows that take part: nothing is gathered, and nothing is copied
as a row grows. Spans are neighbours, so whoever owns the rows keeps those that decode together side by side
(`move`). The forwards are charged to the meter with real tokens only, as all others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairlead.lm.checkpoint import Checkpoint
from fairlead.lm.hooks import ROLE_ASSISTANT, ForwardInfo, SiteHook
from fairlead.lm.sites import Attached
from fairlead.lm.tree import Ids

FIRST = 256  # tokens a row has room for at first; it doubles when one needs more


@dataclass(frozen=True, eq=False)
class Piece:
    """What one row reads in a forward: `ids` [t], the first of which stands at `start`. The first `prompt` tokens of
    the row are its prompt, whose `roles` [prompt] are None where they are not known."""

    ids: Ids
    start: int
    prompt: int
    roles: Ids | None = None
    step: int = 0
    steered: bool = False


@dataclass(frozen=True, eq=False)
class Span:
    """The rows first..first+n of one forward, T tokens each, the shorter ones padded on the left. `flat` says where in
    the cache, taken as [rows * room], the real tokens go; `picked` which of the n * T tokens those are (None: all).
    `deciding` are the rows, counted from `first`, whose last token here is the decision token."""

    first: int
    info: ForwardInfo
    flat: Tensor
    picked: Tensor | None
    deciding: tuple[int, ...]

    @property
    def count(self) -> int:
        return int(self.info.real.shape[0])


Hooks = Callable[[Span], Sequence[tuple[str, SiteHook]]]


class Rows:
    """Up to `most` rows on one model. Not for two threads at once."""

    def __init__(self, checkpoint: Checkpoint, most: int, meter: Any = None) -> None:
        self.checkpoint, self.most, self.meter = checkpoint, most, meter
        self.room = min(FIRST, checkpoint.shape.context)
        self._cache: Any = None

    @torch.inference_mode()
    def forward(self, first: int, pieces: Sequence[Piece], hooks: Hooks | None = None, flops: float = 0.0) -> Tensor:
        """Reads a piece for each of the rows from `first` on; the logits [n, V] behind each piece's last token. Nothing
        is spoilt by a forward that fails: it can be asked again. `flops` is what the hooks add, in all."""
        started = time.perf_counter()
        total = max(piece.start + len(piece.ids) for piece in pieces)
        self.checkpoint.fits(total)
        ids, span = self._lay_out(first, pieces, self._ensure(total))
        model, cache = self.checkpoint.model, self._cache
        cache.aim(span, total)
        at = span.info.positions
        keys = torch.arange(total, device=at.device)[None].expand(len(pieces), total)
        sees = keys[:, None, :] <= at.clamp(min=0)[:, :, None]
        with ExitStack() as stack:
            attached = Attached(stack, self.checkpoint.sites, tuple(hooks(span)) if hooks else (), span.info)
            logits = model(
                input_ids=ids,
                attention_mask=self.checkpoint.masks.build(sees, at, keys, model.dtype),
                position_ids=at.clamp(min=0),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        attached.check()
        self._charge(pieces, flops, time.perf_counter() - started)
        found: Tensor = logits
        return found

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of a row into another's place."""
        if self._cache is not None:
            for keys, values in self._cache.held():
                keys[target, :length] = keys[source, :length]
                values[target, :length] = values[source, :length]

    @torch.inference_mode()
    def take(self, row: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of a row's first `length` keys and values, a pair [length, heads, size] a layer."""
        held = self._cache.held() if self._cache is not None else []
        return [(keys[row, :length].clone(), values[row, :length].clone()) for keys, values in held]

    @torch.inference_mode()
    def put(self, row: int, kept: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        """The first `length` tokens of what `take` copied, into a row. No forward need have run since, but one must
        have run before: what was taken came from it."""
        self._ensure(length)
        for (keys, values), (k, v) in zip(self._cache.held(), kept, strict=True):
            keys[row, :length], values[row, :length] = k[:length], v[:length]

    @torch.inference_mode()
    def wipe(self, row: int) -> None:
        """Zeros in a row whose numbers cannot be trusted: masked places are multiplied by 0, and 0 times NaN is NaN."""
        if self._cache is not None:
            for keys, values in self._cache.held():
                keys[row].zero_()
                values[row].zero_()

    def bytes_a_token(self) -> int:
        """Memory of one token of one row, over all layers; 0 before the first forward."""
        held = self._cache.held() if self._cache is not None else []
        return sum(2 * keys.shape[2] * keys.shape[3] * keys.element_size() for keys, _ in held)

    def _ensure(self, total: int) -> int:
        while self.room < total:
            self.room = min(2 * self.room, self.checkpoint.shape.context)
        if self._cache is None:
            self._cache = _cache_class()(self.most)
        self._cache.grow(self.room)
        return self.room

    def _lay_out(self, first: int, pieces: Sequence[Piece], room: int) -> tuple[Tensor, Span]:
        count, width = len(pieces), max(len(piece.ids) for piece in pieces)
        ids = np.zeros((count, width), dtype=np.int64)
        positions = np.full((count, width), -1, dtype=np.int64)
        role = np.zeros((count, width), dtype=np.int64)
        prompts = np.array([piece.prompt for piece in pieces])
        for i, piece in enumerate(pieces):
            begin, stop = width - len(piece.ids), piece.start + len(piece.ids)
            ids[i, begin:] = piece.ids
            positions[i, begin:] = np.arange(piece.start, stop)
            if piece.roles is not None:
                told = piece.roles[piece.start : stop]
                role[i, begin : begin + len(told)] = told
                role[i, begin + len(told) :] = ROLE_ASSISTANT
        real = positions >= 0
        is_last = positions == prompts[:, None] - 1
        flat = ((first + np.arange(count))[:, None] * room + positions)[real]
        steered = np.array([piece.steered for piece in pieces])

        def to(array: np.ndarray[Any, Any]) -> Tensor:
            return torch.from_numpy(array).to(self.checkpoint.model.device)

        info = ForwardInfo(
            positions=to(positions),
            is_prompt=to(real & (positions < prompts[:, None])),
            is_last=to(is_last),
            real=to(real),
            step=to(np.array([piece.step for piece in pieces])),
            slot=to(np.where(steered, first + np.arange(count) + 1, 0)),
            role=to(role),
            roles_known=to(np.array([piece.roles is not None for piece in pieces])),
            request=to(first + np.arange(count)),
        )
        picked = None if real.all() else to(real.reshape(-1).nonzero()[0])
        return to(ids), Span(first, info, to(flat), picked, tuple(np.flatnonzero(is_last[:, -1]).tolist()))

    def _charge(self, pieces: Sequence[Piece], flops: float, seconds: float) -> None:
        if self.meter is None:
            return
        shape = self.checkpoint.shape
        for piece in pieces:
            flops += shape.flops(len(piece.ids), piece.start + len(piece.ids), 1)
        read = sum(max(0, min(piece.prompt - piece.start, len(piece.ids))) for piece in pieces)
        said = sum(piece.start + len(piece.ids) >= piece.prompt for piece in pieces)
        self.meter.charge(prompt_tokens=read, new_tokens=said, flops=flops, seconds=seconds, forwards=1)


_class: Any = None


def _cache_class() -> Any:
    """A transformers Cache over the rows; made when first needed, as transformers is slow to import."""
    global _class
    if _class is not None:
        return _class
    from transformers import Cache
    from transformers.cache_utils import CacheLayerMixin

    class RowCache(Cache):  # type: ignore[misc]
        """Keys and values [rows, room, heads, size] a layer. `aim` says where the next forward's tokens go."""

        def __init__(self, most: int) -> None:
            super().__init__(layer_class_to_replicate=CacheLayerMixin)
            self.most, self.room = most, 0
            self._keys: dict[int, Tensor] = {}
            self._values: dict[int, Tensor] = {}

        def aim(self, span: Span, total: int) -> None:
            self._span, self._total = span, total

        def held(self) -> list[tuple[Tensor, Tensor]]:
            return [(self._keys[i], self._values[i]) for i in sorted(self._keys)]

        def grow(self, room: int) -> None:
            if room == self.room:
                return
            for store in (self._keys, self._values):
                for layer, old in store.items():
                    store[layer] = old.new_zeros(old.shape[0], room, *old.shape[2:])
                    store[layer][:, : old.shape[1]] = old
            self.room = room

        def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            return self._written(self._keys, layer, keys), self._written(self._values, layer, values)

        def _written(self, store: dict[int, Tensor], layer: int, new: Tensor) -> Tensor:
            """new [n, heads, T, size] goes in; all that its rows hold comes out, [n, heads, total, size]."""
            if layer not in store:
                store[layer] = new.new_zeros(self.most, self.room, new.shape[1], new.shape[3])
            held, span = store[layer], self._span
            tokens = new.transpose(1, 2).reshape(-1, new.shape[1], new.shape[3])
            tokens = tokens if span.picked is None else tokens[span.picked]
            held.view(-1, *held.shape[2:]).index_copy_(0, span.flat, tokens)
            return held[span.first : span.first + span.count, : self._total].transpose(1, 2)

        def get_seq_length(self, *_: Any, **__: Any) -> int:
            return self._total - int(self._span.info.real.shape[1])

        def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
            return self._total, 0

    _class = RowCache
    return _class
