"""The keys and values of rows that come and go, and where in them the tokens of one forward belong.

A token's place is its position, so a row holds no padding and grows without being copied. Heads stand before tokens:
attention then reads each head's keys one after the other, which on a CPU takes less than half the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairlead.lm.hooks import ROLE_ASSISTANT, ForwardInfo
from fairlead.lm.tree import Ids


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


class Span:
    """The rows first..first+count of one forward, T tokens each, the shorter ones padded on the left, in a cache whose
    rows have `room` tokens. What is asked of it is made when it is first asked: most steps of decoding ask little."""

    def __init__(self, first: int, pieces: Sequence[Piece], room: int, device: torch.device) -> None:
        self.first, self.count, self.room, self.device = first, len(pieces), room, device
        self.pieces = pieces
        self.width = width = max(len(piece.ids) for piece in pieces)
        if width == 1:
            self.ids = np.array([piece.ids[0] for piece in pieces], dtype=np.int64)[:, None]
            self.positions = np.array([piece.start for piece in pieces], dtype=np.int64)[:, None]
        else:
            self.ids = np.zeros((self.count, width), dtype=np.int64)
            self.positions = np.full((self.count, width), -1, dtype=np.int64)  # -1 on padding
            for i, piece in enumerate(pieces):
                self.ids[i, width - len(piece.ids) :] = piece.ids
                self.positions[i, width - len(piece.ids) :] = np.arange(piece.start, piece.start + len(piece.ids))
        self._places: dict[int, tuple[Tensor, Tensor | None]] = {}

    @property
    def padded(self) -> bool:
        return any(len(piece.ids) < self.width for piece in self.pieces)

    @cached_property
    def decoding(self) -> bool:
        """Whether every row reads one token that it generated."""
        return self.width == 1 and all(piece.start >= piece.prompt for piece in self.pieces)

    @cached_property
    def deciding(self) -> tuple[int, ...]:
        """The rows, counted from `first`, whose last token here is the decision token."""
        return tuple(i for i, piece in enumerate(self.pieces) if piece.start + len(piece.ids) == piece.prompt)

    @cached_property
    def at(self) -> Tensor:
        """Positions [n, T] with 0 on padding."""
        return self.to(np.maximum(self.positions, 0) if self.padded else self.positions)

    def places(self, heads: int) -> tuple[Tensor, Tensor | None]:
        """Where in a store [rows, heads, room, ...], its first three axes as one, the real tokens go; and which of the
        n * heads * T that a layer makes those are (None: all)."""
        if heads not in self._places:
            row_heads = np.arange(self.first * heads, (self.first + self.count) * heads) * self.room
            flat = (row_heads.reshape(-1, heads, 1) + self.positions[:, None]).reshape(-1)
            if self.padded:
                real = np.broadcast_to(self.positions[:, None] >= 0, (self.count, heads, self.width))
                picked = np.flatnonzero(real)
                self._places[heads] = self.to(flat[picked]), self.to(picked)
            else:
                self._places[heads] = self.to(flat), None
        return self._places[heads]

    @cached_property
    def info(self) -> ForwardInfo:
        """Who each token is, as hooks may ask."""
        real = self.positions >= 0
        prompts = np.array([piece.prompt for piece in self.pieces])[:, None]
        role = np.zeros(self.positions.shape, dtype=np.int64)
        for i, piece in enumerate(self.pieces):
            if piece.roles is not None:
                told = piece.roles[piece.start : piece.start + len(piece.ids)]
                begin = self.width - len(piece.ids)
                role[i, begin : begin + len(told)] = told
                role[i, begin + len(told) :] = ROLE_ASSISTANT
        request = self.first + np.arange(self.count)
        return ForwardInfo(
            positions=self.to(self.positions),
            is_prompt=self.to(real & (self.positions < prompts)),
            is_last=self.to(self.positions == prompts - 1),
            real=self.to(real),
            step=self.to(np.array([piece.step for piece in self.pieces])),
            slot=self.to(np.where([piece.steered for piece in self.pieces], request + 1, 0)),
            role=self.to(role),
            roles_known=self.to(np.array([piece.roles is not None for piece in self.pieces])),
            request=self.to(request),
        )

    def to(self, array: np.ndarray[Any, Any]) -> Tensor:
        found = torch.from_numpy(array)
        return found if self.device.type == "cpu" else found.to(self.device)


class Store:
    """Keys and values [rows, heads, room, size] a layer, made when a layer first writes."""

    def __init__(self, most: int, room: int) -> None:
        self.most, self.room = most, room
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def held(self) -> list[tuple[Tensor, Tensor]]:
        return [(self._keys[i], self._values[i]) for i in sorted(self._keys)]

    def grow(self, room: int) -> None:
        if room == self.room:
            return
        for kept in (self._keys, self._values):
            for layer, old in kept.items():
                kept[layer] = old.new_zeros(*old.shape[:2], room, old.shape[3])
                kept[layer][:, :, : old.shape[2]] = old
        self.room = room

    def layer(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What a layer that makes such keys and values [n, heads, T, size] writes into."""
        if layer not in self._keys:
            for kept, like in ((self._keys, keys), (self._values, values)):
                kept[layer] = like.new_zeros(self.most, like.shape[1], self.room, like.shape[3])
        return self._keys[layer], self._values[layer]

    def update(self, layer: int, keys: Tensor, values: Tensor, span: Span, total: int) -> tuple[Tensor, Tensor]:
        """keys and values [n, heads, T, size] go in; all that their rows hold comes out, [n, heads, total, size]."""
        rows = slice(span.first, span.first + span.count)
        for held, new in zip(self.layer(layer, keys, values), (keys, values), strict=True):
            flat, picked = span.places(new.shape[1])
            tokens = new.reshape(-1, new.shape[3])
            held.view(-1, held.shape[3]).index_copy_(0, flat, tokens if picked is None else tokens[picked])
        return self._keys[layer][rows, :, :total], self._values[layer][rows, :, :total]


_class: Any = None


def cache_class() -> Any:
    """A transformers Cache over a Store; made when first needed, as transformers is slow to import."""
    global _class
    if _class is not None:
        return _class
    from transformers import Cache
    from transformers.cache_utils import CacheLayerMixin

    class RowCache(Cache):  # type: ignore[misc]
        """One forward's view of a Store."""

        def __init__(self, store: Store, span: Span, total: int) -> None:
            super().__init__(layer_class_to_replicate=CacheLayerMixin)
            self._store, self._span, self._total = store, span, total

        def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            return self._store.update(layer, keys, values, self._span, self._total)

        def get_seq_length(self, *_: Any, **__: Any) -> int:
            return self._total - self._span.width

        def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
            return self._total, 0

    _class = RowCache
    return _class
