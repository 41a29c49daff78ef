"""The tables of one site: a place for every row, as wide as the widest set of edits, written when a row is taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairlead.lm.rowcache import Span
from fairlead.steering.slots import CLOSED, FAR, Ids, RowSite, code
from fairlead.steering.tables import INF

CUT = ("e", "b", "theta", "write", "alpha", "beta", "lo", "hi", "bounded", "code", "start", "stop", "condition")
NOTED = 64  # forwards whose flags are written at once
_WANTS = {">": (0, 0, 1), ">=": (0, 1, 1), "<": (1, 0, 0), "<=": (1, 1, 0), "==": (0, 1, 0), "!=": (1, 0, 1)}


@dataclass(frozen=True)
class Sizes:
    """How much room a row has at one site: columns, levels, conditions, terms of each, tests of each term."""

    k: int = 1
    levels: int = 1
    conditions: int = 0
    terms: int = 1
    tests: int = 1

    def fits(self, other: Sizes) -> bool:
        return self.joined(other) == self

    def joined(self, other: Sizes) -> Sizes:
        return Sizes(*(max(a, b) for a, b in zip(self._all(), other._all(), strict=True)))

    def rounded(self) -> Sizes:
        """In powers of two."""
        return Sizes(*(1 << (n - 1).bit_length() if n > 0 else 0 for n in self._all()))

    def _all(self) -> tuple[int, ...]:
        return self.k, self.levels, self.conditions, self.terms, self.tests


def sizes_of(site: RowSite) -> Sizes:
    """What one set needs at a site."""
    terms = list(dict.fromkeys(site.conditions.values()))
    return Sizes(
        site.e.shape[1],
        max(1, site.alpha.shape[0]),
        len(terms),
        max((len(t) for t in terms), default=1),
        max((len(one) for t in terms for one in t), default=1),
    )


class RowTables:
    """One site's tables for all rows. The tensors' first axis is the row."""

    def __init__(self, site: str, d: int, rows: int, sizes: Sizes, device: torch.device) -> None:
        self.site, self.d, self.rows, self.sizes, self.device = site, d, rows, sizes, device
        k, levels = sizes.k, sizes.levels

        def zeros(*shape: int, fill: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.full((rows, *shape), fill, dtype=dtype, device=device)

        self.e, self.b, self.theta, self.write = zeros(d, k), zeros(1, k), zeros(1, k), zeros(k, d)
        self.alpha, self.beta = zeros(levels, 1, k), zeros(levels, 1, k)
        self.lo, self.hi = zeros(levels, 1, k, fill=-INF), zeros(levels, 1, k, fill=INF)
        self.bounded = zeros(levels, 1, k, dtype=torch.bool)
        flat = levels * k
        self.code = zeros(1, flat, fill=CLOSED, dtype=torch.long)
        self.start, self.stop = zeros(1, flat, dtype=torch.long), zeros(1, flat, fill=FAR, dtype=torch.long)
        self.condition = zeros(1, flat, dtype=torch.long)  # 0: none; else its number from 1
        tests = (sizes.conditions, sizes.terms, sizes.tests)
        self.left, self.right = zeros(*tests, dtype=torch.long), zeros(*tests, dtype=torch.long)
        self.level = zeros(*tests)
        self.want = zeros(3, *tests, dtype=torch.bool)  # less, equal, greater
        self.fired = zeros(0, flat, dtype=torch.bool)  # [rows, room, levels * k], when settled
        self._noted: list[tuple[Span, Tensor]] = []

    def tensors(self) -> list[Tensor]:
        return [
            self.e, self.b, self.theta, self.write, self.alpha, self.beta, self.lo, self.hi, self.bounded, self.code,
            self.start, self.stop, self.condition, self.left, self.right, self.level, self.want, self.fired,
        ]  # fmt: skip

    def cut(self, first: int, count: int) -> dict[str, Tensor]:
        """The tables of neighbouring rows, as the operations of a forward take them."""
        part = slice(first, first + count)
        found = {name: getattr(self, name)[part] for name in CUT}
        if self.sizes.conditions:
            shape = (count, 1, -1)
            left, right = self.left[part].reshape(shape), self.right[part].reshape(shape)
            found |= {
                "left": left, "right": right.clamp_min(0), "bare": right < 0, "level": self.level[part].reshape(shape),
                "want": self.want[part].reshape(count, 3, 1, -1),
            }  # fmt: skip
        return found

    def note(self, span: Span, steps: Tensor) -> None:
        """What was changed at the tokens of a forward, [n, T, levels * k], or of its first n rows; an edit fired where
        that is not 0. `settle` writes it."""
        self._noted.append((span, steps))
        if len(self._noted) >= NOTED:
            self.settle()

    @torch.inference_mode()
    def settle(self) -> None:
        """Writes what was noted, all at once: in a forward it would be a fifth of what the edits cost. Where a token
        was read twice, as after a forward that failed, the later reading counts."""
        if not self._noted:
            return
        noted, self._noted = self._noted, []
        room = self.fired.shape[1]
        at = np.concatenate([_places(span.positions[: len(steps)], span.first, room) for span, steps in noted])
        _, last = np.unique(at[::-1], return_index=True)
        kept = len(at) - 1 - last[0 if at.min() >= 0 else 1 :]  # padding's place is -1
        flags = torch.cat([steps.flatten(0, 1) for _, steps in noted]).bool()
        places, chosen = (torch.from_numpy(x).to(self.device) for x in (at[kept], kept))
        self.fired.view(-1, flags.shape[1]).index_copy_(0, places, flags[chosen])

    def clear(self, row: int) -> None:
        """Row as nobody's: nothing is read, nothing is written."""
        for tensor in (self.e, self.b, self.theta, self.write, self.alpha, self.beta, self.condition, self.want):
            tensor[row] = 0
        self.lo[row], self.hi[row], self.bounded[row], self.code[row] = -INF, INF, False, CLOSED
        self.fired[row] = False

    def put(self, row: int, own: RowSite, step: int, offsets: dict[str, int]) -> None:
        k, levels = own.e.shape[1], own.alpha.shape[0]
        self.e[row, :, :k], self.b[row, :, :k], self.theta[row, :, :k] = own.e, own.b, own.theta
        self.write[row, :k] = own.write
        self.alpha[row, :levels, :, :k], self.beta[row, :levels, :, :k] = own.alpha, own.beta
        self.lo[row, :levels, :, :k], self.hi[row, :levels, :, :k] = own.lo, own.hi
        self.bounded[row] = (self.lo[row] > -INF) | (self.hi[row] < INF)
        number = {terms: i for i, terms in enumerate(dict.fromkeys(own.conditions.values()))}
        for (level, column), mask in own.masks.items():
            at = level * self.sizes.k + column
            self.code[row, 0, at], self.start[row, 0, at], self.stop[row, 0, at] = code(mask, step)
            if (level, column) in own.conditions:
                self.condition[row, 0, at] = 1 + number[own.conditions[level, column]]
        for terms, q in number.items():
            for m, tests in enumerate(terms):
                self.want[row, :, q, m] = True  # tests that are not there hold
                for c, test in enumerate(tests):
                    at_test = (row, q, m, c)
                    self.left[at_test] = offsets[test.left[0]] + test.left[1]
                    self.right[at_test] = -1 if test.right is None else offsets[test.right[0]] + test.right[1]
                    self.level[at_test] = test.level
                    self.want[row, :, q, m, c] = torch.tensor(_WANTS[test.op], dtype=torch.bool)


def _places(positions: Ids, first: int, room: int) -> Ids:
    """Where tokens at these positions [n, T] of the rows from `first` on lie in [rows * room]; -1 for padding."""
    rows = np.arange(first, first + len(positions))[:, None]
    return np.where(positions >= 0, rows * room + positions, -1).reshape(-1)


def copy_fired(old: RowTables, new: RowTables) -> None:
    """What fired, into larger tables of the same site."""
    for level in range(old.sizes.levels):
        k = old.sizes.k
        new.fired[:, :, level * new.sizes.k : level * new.sizes.k + k] = old.fired[:, :, level * k : (level + 1) * k]
