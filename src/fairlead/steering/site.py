"""The hook at one site: reads the watched columns, adds what the levels ask for, leaves the rest alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from fairlead.core.errors import EditError
from fairlead.lm.hooks import ForwardInfo
from fairlead.steering.passes import Pass, Passes, Record, on_step
from fairlead.steering.tables import INF, SiteTable, settled

_EVERYWHERE = [0]
_FULL_ENCODE_ELEMENTS = 1 << 24  # latents held at once by a full encode


@dataclass(eq=False)
class _Level:
    """One layer of changes, [1, k] for one slot or [R, 1, k]."""

    alpha: Tensor
    beta: Tensor
    gain: Tensor  # 1 + beta
    bounds: tuple[Tensor, Tensor] | None  # (lo, hi)
    masks: list[int]  # the engine's masks in use; [0] means no masking
    position: Tensor  # which of them each column obeys
    looks: Tensor | None  # bool like alpha: the columns whose change depends on the reading; None: no column's does


@dataclass(eq=False)
class _View:
    """A site's tables for the rows of one batch: one slot for all rows, or each row with its own."""

    e: Tensor  # [k, d] for one slot, [R, d, k] else
    b: Tensor  # [k] or [R, 1, k]
    theta: Tensor | None  # None: every reading is a relu, or every one linear
    relu: bool
    write: Tensor  # [d, k] for one slot, [R, k, d] else
    levels: list[_Level]  # empty: nothing is edited here
    full: Tensor | None  # [.., k] latent indices, where a full encode is needed
    lazy: bool  # no change depends on those, so only the decision token's are read
    masks: list[int]  # all masks of all levels
    constant: Tensor | None  # [1, d] or [R, 1, d]: what is added everywhere when nothing depends on h


class SiteEditor:
    """The hook at one site."""

    def __init__(self, passes: Passes, table: SiteTable, read_by_conditions: bool) -> None:
        self.passes, self.table, self.read_by_conditions = passes, table, read_by_conditions
        self._views: dict[tuple[int, ...], _View] = {}
        self._device: torch.device | None = None

    @property
    def flops_per_token(self) -> int:
        wanted = self.table.matters | self.read_by_conditions
        full = bool((wanted & (self.table.full >= 0)).any())
        encode = 2 * self.table.d * int(self.table.dictionary.n_features) if full else 0
        return 4 * self.table.d * self.table.e.shape[-1] + encode

    def __call__(self, h: Tensor, info: ForwardInfo) -> Tensor:
        """h [B, T, d] with the edits applied; the very tensor when no row can change."""
        run = self.passes.begin(info, self.table.site)
        run.done.add(self.table.site)
        if not run.steered:
            return h
        view = self._view(run.steered, h)
        if not view.levels and not self.read_by_conditions:
            return h
        if not self.read_by_conditions and self._idle(view, run):
            run.records.append(Record(self.table.site, [], self._soon(h, h, view, run)))
            return h
        x = run.of(h)
        wide = x if x.dtype == torch.float32 else x.float()
        if view.constant is not None:
            steps = [level.alpha.expand(*x.shape[:-1], -1) for level in view.levels]
            x = (wide + view.constant).to(h.dtype)
        else:
            z = self._read(wide, view, view.lazy)
            if self.read_by_conditions:
                run.readings[self.table.site] = z
            steps, total = self._change(z, view, run)
            x = x if total is None else self._write(wide, total, view).to(h.dtype)
            self.passes.kept(len(steps) * steps[0].numel() if steps else 0)
        new = h if not steps else x if run.rows is None else h.index_copy(0, run.rows, x)
        kept = [s.detach() if s.requires_grad else s for s in steps]
        run.records.append(Record(self.table.site, kept, self._soon(h, new, view, run)))
        return new

    # tables for the rows at hand

    def _view(self, slots: tuple[int, ...], h: Tensor) -> _View:
        if self._device != h.device:
            if h.shape[-1] != self.table.d:
                raise EditError(
                    f"edits at {self.table.site} do not fit this model",
                    expected=f"activations of width {self.table.d}",
                    got=f"width {h.shape[-1]}",
                )
            self._views, self._device = {}, h.device
        key = slots[:1] if slots.count(slots[0]) == len(slots) else slots
        if key not in self._views:
            if len(self._views) > 64:
                self._views.clear()
            self._views[key] = self._make_view(key)
        return self._views[key]

    def _make_view(self, slots: tuple[int, ...]) -> _View:
        with torch.inference_mode(False):  # tables outlive the forward that first needs them
            at: Any = slots[0] if len(slots) == 1 else torch.tensor(slots)
            t = self.table

            def pick(tensor: Tensor) -> Tensor:
                return tensor[at].to(self._device)

            levels = [
                self._make_level(*(pick(x[:, level]) for x in (t.alpha, t.beta, t.lo, t.hi, t.mask)))
                for level in range(t.mask.shape[1])
                if bool((t.mask[at][..., level, :, :] >= 0).any())
            ]
            theta, full, e, b, write = pick(t.theta), pick(t.full), pick(t.e), pick(t.b), pick(t.write)
            masks = sorted({number for level in levels for number in level.masks})
            adds = not self.read_by_conditions and not bool(pick(t.matters).any()) and masks == _EVERYWHERE
            relu, identity = bool((theta == 0).all()), bool((theta == -INF).all())
            constant = torch.stack([level.alpha for level in levels]).sum(0) @ write if adds and levels else None
            if len(slots) == 1:
                e, b, write = e.T.contiguous(), b[0], write.T.contiguous()
            return _View(
                e, b, None if relu or identity else theta, relu, write, levels,
                full if bool((full >= 0).any()) else None,
                not self.read_by_conditions and not bool((pick(t.matters) & (full >= 0)).any()),
                masks, constant,
            )  # fmt: skip

    def _make_level(self, alpha: Tensor, beta: Tensor, lo: Tensor, hi: Tensor, mask: Tensor) -> _Level:
        bounded = bool((lo > -INF).any()) or bool((hi < INF).any())
        numbers = [int(i) for i in torch.unique(mask) if i >= 0]
        position = torch.zeros_like(mask)
        for i, number in enumerate(numbers):
            position[mask == number] = i
        looks = (beta != 0) | (lo > -INF) | (hi < INF)
        return _Level(
            alpha, beta, 1.0 + beta, (lo, hi) if bounded else None, numbers, position, looks if looks.any() else None
        )

    # reading and changing

    def _read(self, x: Tensor, view: _View, lazy: bool = False) -> Tensor:
        """z [R, T, k] of x [R, T, d]; with `lazy`, 0 for latents that would need a full encode."""
        pre = linear(x, view.e, view.b) if view.e.dim() == 2 else torch.baddbmm(view.b, x, view.e)
        if view.theta is not None:
            z = torch.where(pre > view.theta, pre, torch.zeros_like(pre))
        else:
            z = pre.relu() if view.relu else pre
        return z if lazy or view.full is None else torch.where(view.full >= 0, self._encode(x, view.full), z)

    def _encode(self, x: Tensor, ids: Tensor) -> Tensor:
        """The latents `ids` of x by the dictionary's own encode, a piece of tokens at a time."""
        dictionary = self.table.dictionary
        size = max(1, _FULL_ENCODE_ELEMENTS // (dictionary.n_features * max(1, x.shape[0])))
        index = ids.clamp_min(0).expand(x.shape[0], 1, ids.shape[-1])
        pieces = [
            dictionary.encode(piece).to(x.dtype).gather(-1, index.expand(-1, piece.shape[1], -1))
            for piece in x.split(size, dim=1)
        ]
        return torch.cat(pieces, dim=1)

    def _change(self, z: Tensor, view: _View, run: Pass) -> tuple[list[Tensor], Tensor | None]:
        """(change per level, their sum), each [R, T, k]."""
        steps: list[Tensor] = []
        total: Tensor | None = None
        for level in view.levels:
            t = z if total is None else z + total
            if level.bounds is None:
                step = torch.addcmul(level.alpha, level.beta, t)
            else:
                step = torch.clamp(torch.addcmul(level.alpha, level.gain, t), *level.bounds) - t
            if total is not None and level.looks is not None:
                step = settled(step, z, t, level.looks)
            if level.masks != _EVERYWHERE:
                step = step * self._mask(level, run, step)
            steps.append(step)
            total = step if total is None else total + step
        return steps, total

    def _write(self, x: Tensor, change: Tensor, view: _View) -> Tensor:
        """x [R, T, d] plus the change [R, T, k] of its readings."""
        return x + linear(change, view.write) if view.write.dim() == 2 else torch.baddbmm(x, change, view.write)

    def _mask(self, level: _Level, run: Pass, like: Tensor) -> Tensor:
        found = [self.passes.mask(number, run) for number in level.masks]
        if len(found) == 1:
            return found[0][..., None]
        return torch.stack(found, dim=-1).gather(-1, level.position.expand(like.shape))

    def _idle(self, view: _View, run: Pass) -> bool:
        """Whether gates and scopes close every edit here, as the pass's agent steps and tokens show."""
        for number in view.masks:
            mask = self.passes.masks[number]
            steps = mask.gate.steps
            if steps is not None and not any(on_step(steps, s) for s in run.steps):
                continue
            if mask.scope.kind == "prompt" and not run.any("is_prompt"):
                continue
            if mask.scope.kind == "last" and not run.any("is_last"):
                continue
            return False
        return True

    def _soon(self, h: Tensor, new: Tensor, view: _View, run: Pass) -> Any:
        """The decision tokens' readings: now for a prompt, when asked for a decode step (tensors that small keep)."""
        if h.shape[1] > 1:
            return self._last(h, new, view, run)
        self.passes.kept(2 * h.numel())
        return lambda: self._last(h.detach(), new.detach(), view, run)

    def _last(self, h: Tensor, new: Tensor, view: _View, run: Pass) -> Any:
        """Readings at the decision tokens of steered rows, before and after."""
        if not run.any("is_last"):
            return None
        row, column = run.of(run.info.is_last).nonzero(as_tuple=True)
        if not len(row):
            return None
        own = _rows_of(view, row)
        before = self._read(_at(run.of(h), row, column), own)[:, 0]
        after = before if new is h else self._read(_at(run.of(new), row, column), own)[:, 0]
        return row, before.detach(), after.detach()


def _at(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return x[row, column].unsqueeze(1).float()


def _rows_of(view: _View, row: Tensor) -> _View:
    """The view for single tokens taken from rows `row`."""
    if view.e.dim() == 2:
        return view
    full = view.full[row] if view.full is not None else None
    theta = view.theta[row] if view.theta is not None else None
    return _View(view.e[row], view.b[row], theta, view.relu, view.write, [], full, False, [], None)
