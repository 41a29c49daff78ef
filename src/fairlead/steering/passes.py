"""What happens in one forward: which rows are steered, where masks open, and what the edits did there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import EditError
from fairlead.lm.hooks import ROLES, ForwardInfo
from fairlead.steering.edit import AllOf, Compare, Condition, Level, Reading, Scope, Steps
from fairlead.steering.tables import Key, Mask, Placed

_COMPARE: dict[str, Callable[[Tensor, Any], Tensor]] = {
    ">": torch.gt, ">=": torch.ge, "<": torch.lt, "<=": torch.le, "==": torch.eq, "!=": torch.ne,
}  # fmt: skip
_KEEP_ELEMENTS = 1 << 23  # changes kept before they are reduced to counts


Last = tuple[Tensor, Tensor, Tensor]
"""Rows of decision tokens [n], their readings before [n, k] and after [n, k]."""


@dataclass(eq=False)
class Record:
    """What one site did in one pass. Tensors cover the steered rows only."""

    site: str
    steps: list[Tensor]  # per level, the change of each reading [R, T, k]; empty when nothing could act
    last: Callable[[], Last | None] | Last | None  # a function where the pass has one token a row: most never need it


@dataclass(eq=False)
class Pass:
    """One forward: which rows are steered, and what the sites so far have read."""

    info: ForwardInfo
    slots: list[int]
    rows: Tensor | None  # indices of steered rows; None when all are
    steered: tuple[int, ...]  # their slots
    readings: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    records: list[Record] = field(default_factory=list)
    flags: dict[str, bool] = field(default_factory=dict)

    @property
    def steps(self) -> list[int]:
        """The agent steps of the steered rows."""
        steps: list[int] = self.of(self.info.step).tolist()
        return steps

    def of(self, tensor: Tensor) -> Tensor:
        """The steered rows of a tensor."""
        return tensor if self.rows is None else tensor[self.rows]

    def any(self, name: str) -> bool:
        """Whether any token of the pass has the flag `is_prompt` or `is_last`."""
        if name not in self.flags:
            self.flags[name] = bool(getattr(self.info, name).any())
        return self.flags[name]


@dataclass
class Tally:
    """Counts of one request."""

    slot: int
    fired: list[int]
    seen: list[int]
    before: list[float | None]
    after: list[float | None]


class Passes:
    """The forwards since the last report. Tensors are kept as they come and reduced when someone asks."""

    def __init__(
        self,
        placed: Sequence[Sequence[Placed]],
        masks: Sequence[Mask],
        columns: Sequence[Mapping[tuple[str, Key], int]],
    ) -> None:
        self.placed, self.masks, self._columns = placed, masks, columns
        self._passes: list[Pass] = []
        self._kept = 0
        self._tallies: dict[int, Tally] = {}

    def begin(self, info: ForwardInfo, site: str) -> Pass:
        """The pass that `info` describes; a new one when `site` has already run in the last."""
        last = self._passes[-1] if self._passes else None
        if last is not None and last.info is info and site not in last.done:
            return last
        slots = info.slot.tolist()
        if max(slots, default=0) > len(self.placed) or min(slots, default=0) < 0:
            expected = f"slot 0..{len(self.placed)}"
            raise EditError("a row asks for edits that were not compiled", expected=expected, got=str(slots))
        rows = None if all(slots) else info.slot.nonzero()[:, 0]
        new = Pass(info, slots, rows, tuple(slot for slot in slots if slot))
        if self._kept > _KEEP_ELEMENTS:
            self._reduce()
        self._passes.append(new)
        self.kept(info.real.numel())
        return new

    def mask(self, number: int, run: Pass) -> Tensor:
        """[R, T] of 0 and 1: where mask `number` lets edits act in this pass."""
        if number not in run.masks:
            mask = self.masks[number]
            open_ = scope_mask(mask.scope, run)
            steps = mask.gate.steps
            if steps is not None:
                inside = [on_step(steps, s) for s in run.steps]
                if not all(inside):
                    open_ = open_ & torch.tensor(inside, device=open_.device)[:, None]
            if mask.gate.when is not None:
                open_ = open_ & self._holds(mask.gate.when, mask.set_index, run)
            run.masks[number] = open_
        return run.masks[number]

    def _holds(self, condition: Condition, set_index: int, run: Pass) -> Tensor:
        if isinstance(condition, Compare):
            right = condition.right
            other = right.value if isinstance(right, Level) else self._reading(right, set_index, run)
            return _COMPARE[condition.op](self._reading(condition.left, set_index, run), other)
        parts = [self._holds(p, set_index, run) for p in condition.parts]
        both = torch.logical_and if isinstance(condition, AllOf) else torch.logical_or
        out = parts[0]
        for part in parts[1:]:
            out = both(out, part)
        return out

    def _reading(self, reading: Reading, set_index: int, run: Pass) -> Tensor:
        assert reading.site is not None
        if reading.site not in run.readings:
            raise EditError(f"a condition reads {reading.site}, which did not run before it in this pass")
        return run.readings[reading.site][..., self._columns[set_index][reading.site, ("read", reading.direction)]]

    def kept(self, elements: int) -> None:
        self._kept += elements

    # counting

    def tallies(self) -> dict[int, Tally]:
        """Counts by request, since this was last asked."""
        self._reduce()
        tallies, self._tallies = self._tallies, {}
        return tallies

    def _reduce(self) -> None:
        """Turns kept passes into counts. Passes over the same rows (decode steps) are counted together."""
        passes, self._passes, self._kept = self._passes, [], 0
        groups: dict[tuple[Any, ...], list[Pass]] = {}
        for run in passes:
            shape = tuple((record.site, len(record.steps)) for record in run.records)
            groups.setdefault((tuple(run.slots), tuple(run.info.request.tolist()), shape), []).append(run)
        for (slots, requests, _), runs in groups.items():
            for slot, request in zip(slots, requests, strict=True):
                if request not in self._tallies or self._tallies[request].slot != slot:
                    n = len(self.placed[slot - 1]) if slot else 0
                    self._tallies[request] = Tally(slot, [0] * n, [0] * n, [None] * n, [None] * n)
            here = [request for slot, request in zip(slots, requests, strict=True) if slot]
            if here:
                self._count(runs, here)

    def _count(self, runs: list[Pass], requests: list[int]) -> None:
        real = torch.cat([run.of(run.info.real) for run in runs], dim=1)
        scopes: dict[Scope, list[int]] = {}
        for mask in self.masks:
            if mask.scope not in scopes:
                everywhere = mask.scope.kind == "all"
                seen = real if everywhere else torch.cat([scope_mask(mask.scope, run) for run in runs], dim=1)
                scopes[mask.scope] = seen.sum(1).tolist()
        fired: dict[str, list[Any]] = {}
        for i, record in enumerate(runs[0].records):
            levels = []
            for level in range(len(record.steps)):
                changed = torch.cat([run.records[i].steps[level] for run in runs], dim=1) != 0
                levels.append(changed.logical_and_(real[..., None]).sum(1).tolist())
            fired[record.site] = levels
        for row, request in enumerate(requests):
            tally = self._tallies[request]
            for j, p in enumerate(self.placed[tally.slot - 1]):
                tally.seen[j] += scopes[p.mask.scope][row]
                if fired.get(p.site):
                    tally.fired[j] += fired[p.site][p.level][row][p.column]
        if not bool(torch.cat([run.info.is_last for run in runs], dim=1).any()):
            return
        for run in runs:
            for record in run.records:
                self._decision(record, requests)

    def _decision(self, record: Record, requests: list[int]) -> None:
        last = record.last() if callable(record.last) else record.last
        if last is None:
            return
        site = record.site
        for row, before, after in zip(*(t.tolist() for t in last), strict=True):
            tally = self._tallies[requests[row]]
            for j, p in enumerate(self.placed[tally.slot - 1]):
                if p.site == site:
                    tally.before[j], tally.after[j] = before[p.column], after[p.column]


def on_step(steps: Steps, step: int) -> bool:
    return steps.first <= step and (steps.last is None or step <= steps.last)


def scope_mask(scope: Scope, run: Pass) -> Tensor:
    """bool [R, T]: the steered rows' tokens in scope, padding excluded."""
    info = run.info
    real = run.of(info.real)
    if scope.kind == "all":
        return real
    if scope.kind == "prompt":
        return run.of(info.is_prompt) & real
    if scope.kind == "generated":
        return ~run.of(info.is_prompt) & real
    if scope.kind == "last":
        return run.of(info.is_last) & real
    if scope.kind == "tokens":
        positions = run.of(info.positions)
        return (positions >= scope.start) & (positions <= scope.stop) & real
    if not bool(run.of(info.roles_known).all()):
        raise EditError(
            f"`at role {scope.role}` cannot be applied: this chat template gives no role spans",
            expected="a template whose turns can be told apart",
            do="use another scope: all, prompt, generated, last or tokens A..B",
        )
    return (run.of(info.role) == ROLES[scope.role]) & real
