"""A step of decoding as one compiled function, the edits inside it as tensors.

A hook is Python, and a captured graph that is replayed calls none: the text would be fluent and unsteered. So no hook
is used here. What the edits are comes in as tables, what fired goes out as flags, and both are arguments and results of
the function that is compiled. Prompts, and rows whose edits need Python at each token, are read by the plain forward.

Shapes are few: rows are filled up to a power of two with a row that nobody reads, keys to a multiple of 64. Rows that
fill up write behind all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairlead.lm.lean import Act, Lean
from fairlead.lm.masks import Masks
from fairlead.lm.rowcache import Piece, Span, Store

KEYS = 64  # keys read are a multiple of this

Tables = Mapping[str, Mapping[str, Tensor]]  # by site


@dataclass(frozen=True, eq=False)
class Traced:
    """Edits as a function may hold them. `acting(tables, fired)` gives what acts at each site and leaves its flags
    [n, flat] in `fired`; it is traced, so it reads nothing but its arguments. `done` is told the flags."""

    tables: Tables
    acting: Callable[[Tables, dict[str, Tensor]], Mapping[str, Act]]
    done: Callable[[Mapping[str, Tensor]], None]


class Graph:
    """Decode steps of a lean forward, compiled by `backend`. The store's last row is nobody's."""

    def __init__(self, lean: Lean, masks: Masks, store: Store, backend: str) -> None:
        self.lean, self.masks, self.store = lean, masks, store
        self.steps = 0  # that were answered by the compiled function
        self._run = torch.compile(self._step, backend=backend)

    def filled(self, span: Span) -> Span:
        """The span with rows that nobody reads behind it, up to a power of two."""
        most = self.store.most - 1
        count = min(1 << (span.count - 1).bit_length(), most)
        nobody = Piece(np.zeros(1, dtype=np.int64), 0, 0)
        return Span(0, [*span.pieces, *[nobody] * (count - span.count)], span.room, span.device)

    def forward(self, wide: Span, count: int, total: int, edits: Traced) -> Tensor:
        """The logits [count, V] of the first `count` rows of a span that was filled up."""
        keys = torch.arange(min(-(-total // KEYS) * KEYS, wide.room), device=wide.device)[None].expand(wide.count, -1)
        masks = self.masks.build(keys[:, None] <= wide.at[:, :, None], wide.at, keys, self.lean.dtype)
        cos, sin = self.lean.angles(wide.at, wide.room)
        held = self.store.held()
        heads = held[0][0].shape[1]
        flat = wide.places(heads)[0].clone()
        flat[count * heads :] = (self.store.most - 1) * heads * wide.room
        logits, fired = self._run(wide.to(wide.ids), cos, sin, masks, held, flat, edits.tables, edits.acting)
        edits.done({site: flags[:count] for site, flags in fired.items()})
        self.steps += 1
        found: Tensor = logits[:count]
        return found

    def _step(
        self, ids: Tensor, cos: Tensor, sin: Tensor, masks: Any, held: Sequence[tuple[Tensor, Tensor]], flat: Tensor,
        tables: Tables, acting: Callable[[Tables, dict[str, Tensor]], Mapping[str, Act]],
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        count = ids.shape[0]
        total = (next(iter(masks.values())) if isinstance(masks, dict) else masks).shape[-1]
        fired: dict[str, Tensor] = {}

        def update(layer: int, *new: Tensor) -> tuple[Tensor, Tensor]:
            for store, tokens in zip(held[layer], new, strict=True):
                store.view(-1, store.shape[3]).index_copy_(0, flat, tokens.reshape(-1, tokens.shape[3]))
            keys, values = held[layer]
            return keys[:count, :, :total], values[:count, :, :total]

        return self.lean.body(ids, cos, sin, masks, update, acting(tables, fired)), fired
