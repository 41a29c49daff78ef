"""The engine for rows that come and go: tables with a place for every row, written when one is taken, read as slices.

The algebra is that of `engine`, Δh = Σ_j g_j·(α_j + β_j·z_j)·d_j, and a test holds the two to each other; here every
row may have a set of its own, sets come while others run, and a forward costs the same whether the rows' edits are the
same or all different. Unedited rows are copied through, bit for bit. What fired is written beside the keys and values,
one flag a token and edit, so that nothing is counted on the way and a row's past can be kept with its cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairlead.core.errors import EditError
from fairlead.core.types import EditReport
from fairlead.lm.hooks import ForwardInfo, SiteHook
from fairlead.lm.rows import Span
from fairlead.steering.edit import site_order
from fairlead.steering.slots import ALL, CLOSED, CODES, FAR, ROLE, Ids, RowEdits, RowSite, code, in_scope
from fairlead.steering.tables import INF

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

    def _all(self) -> tuple[int, ...]:
        return self.k, self.levels, self.conditions, self.terms, self.tests


def _sizes(site: RowSite) -> Sizes:
    terms = list(dict.fromkeys(site.conditions.values()))
    return Sizes(
        site.e.shape[1],
        max(1, site.alpha.shape[0]),
        len(terms),
        max((len(t) for t in terms), default=1),
        max((len(one) for t in terms for one in t), default=1),
    )


class _Site:
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
        self.fired = zeros(0, flat, dtype=torch.bool)  # [rows, room, levels * k]

    def tensors(self) -> list[Tensor]:
        return [
            self.e, self.b, self.theta, self.write, self.alpha, self.beta, self.lo, self.hi, self.bounded, self.code,
            self.start, self.stop, self.condition, self.left, self.right, self.level, self.want, self.fired,
        ]  # fmt: skip

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


@dataclass(eq=False)
class _View:
    """A site's tables for a span of rows, and what of the work none of them needs."""

    first: int
    count: int
    steered: Tensor | None  # bool [n, 1, 1]; None: every row has edits here
    bounded: bool
    scoped: bool
    conditions: bool
    full: list[tuple[Any, list[int], Tensor]]  # (dictionary, rows of the span, latents [r, 1, k])
    cut: dict[str, Tensor] = field(default_factory=dict)


class RowEngine:
    """Edits of up to `rows` rows. `put` and `clear` change a row between forwards; `hooks` are for the next one."""

    def __init__(self, rows: int, d_model: int, device: torch.device) -> None:
        self.rows, self.d_model, self.device = rows, d_model, device
        self._held: list[tuple[RowEdits, int] | None] = [None] * rows
        self._sites: dict[str, _Site] = {}
        self._views: dict[tuple[str, int, int], _View] = {}
        self._decided: list[dict[str, tuple[list[float], list[float]]]] = [{} for _ in range(rows)]
        self._room = 0
        self.passes = 0  # hooks that ran to their end, ever: a replayed graph must move it too

    # rows

    def put(self, row: int, edits: RowEdits, step: int = 0) -> None:
        """The row's edits from here on, at an agent step."""
        self.clear(row)
        self._held[row] = (edits, step)
        self._make_room(edits)
        with torch.inference_mode():
            self._write(row)

    def clear(self, row: int) -> None:
        """The row has no edits."""
        held, self._held[row], self._decided[row] = self._held[row], None, {}
        self._views.clear()
        with torch.inference_mode():
            for site in held[0].sites if held else ():
                self._sites[site].clear(row)

    def move(self, source: int, target: int) -> None:
        """A row's edits and what they did, into another's place."""
        self.clear(target)
        held = self._held[source]
        self._held[target], self._decided[target] = held, dict(self._decided[source])
        with torch.inference_mode():
            for site in held[0].sites if held else ():
                for tensor in self._sites[site].tensors():
                    tensor[target] = tensor[source]
        self.clear(source)

    def edited(self, row: int) -> bool:
        held = self._held[row]
        return held is not None and bool(held[0].edits)

    def _write(self, row: int) -> None:
        held = self._held[row]
        assert held is not None
        for site, own in held[0].sites.items():
            self._sites[site].put(row, own, held[1], self._offsets())

    def _offsets(self) -> dict[str, int]:
        """Where each site's readings begin among those of all sites, which conditions look into."""
        found, at = {}, 0
        for name, site in self._sites.items():
            found[name] = at
            at += site.sizes.k
        return found

    def _make_room(self, edits: RowEdits) -> None:
        """Larger tables where a set does not fit, in powers of two; then every row is written again."""
        grown = False
        for name, own in edits.sites.items():
            needed, had = _sizes(own), self._sites.get(name)
            if had is not None and had.sizes.fits(needed):
                continue
            sizes = (had.sizes if had else Sizes()).joined(Sizes(*(_up(n) for n in needed._all())))
            new = _Site(name, self.d_model, self.rows, sizes, self.device)
            new.fired = new.fired.new_zeros(self.rows, self._room, new.code.shape[-1])
            if had is not None:
                _copy_fired(had, new)
            self._sites[name], grown = new, True
        if grown:
            self._sites = {name: self._sites[name] for name in sorted(self._sites, key=site_order)}
            with torch.inference_mode():
                for row, held in enumerate(self._held):
                    if held is not None and held[0] is not edits:
                        self._write(row)

    # forwards

    def hooks(self, span: Span, room: int) -> list[tuple[str, SiteHook]]:
        """What belongs to the sites in the forward of `span`, whose rows have `room` tokens each."""
        if room != self._room:
            self._grow(room)
        rows = range(span.first, span.first + span.count)
        sites = {site for r in rows if (held := self._held[r]) is not None for site in held[0].sites}
        if not sites:
            return []
        seen: dict[str, Tensor] = {}
        flags = _Flags()
        ordered = [name for name in self._sites if name in sites]
        return [(name, self._hook(name, span, seen, flags)) for name in ordered]

    def flops(self, first: int, lengths: Sequence[int]) -> float:
        """What the hooks add to a forward of so many tokens a row."""
        held = self._held[first : first + len(lengths)]
        return float(sum(h[0].flops_per_token * n for h, n in zip(held, lengths, strict=True) if h is not None))

    def _grow(self, room: int) -> None:
        self._room = room
        for site in self._sites.values():
            old = site.fired
            site.fired = old.new_zeros(self.rows, room, old.shape[-1])
            site.fired[:, : old.shape[1]] = old

    def _hook(self, name: str, span: Span, seen: dict[str, Tensor], flags: _Flags) -> SiteHook:
        def hook(h: Tensor, info: ForwardInfo) -> Tensor:
            site, view = self._sites[name], self._view(name, span)
            if h.shape[-1] != site.d:
                raise EditError(f"edits at {name} do not fit this model", expected=f"{site.d}", got=f"{h.shape[-1]}")
            x = h if h.dtype == torch.float32 else h.float()
            z = _read(x, view)
            seen[name] = z
            change, total = _change(z, view, self._mask(site, view, info, seen, flags))
            new = torch.baddbmm(x, total, view.cut["write"]).to(h.dtype)
            new = new if view.steered is None else torch.where(view.steered, new, h)
            fired = (change != 0).flatten(2).flatten(0, 1)
            where = fired if span.picked is None else fired[span.picked]
            site.fired.view(-1, where.shape[-1]).index_copy_(0, span.flat, where)
            if span.deciding:
                self._decide(name, span, view, z, new)
            self.passes += 1
            return new

        return hook

    def _view(self, name: str, span: Span) -> _View:
        key = (name, span.first, span.count)
        if key not in self._views:
            if len(self._views) > 256:
                self._views.clear()
            self._views[key] = self._make_view(self._sites[name], span.first, span.count)
        return self._views[key]

    def _make_view(self, site: _Site, first: int, count: int) -> _View:
        part = slice(first, first + count)
        own = [(h[0].sites.get(site.site) if h else None) for h in self._held[part]]
        code_here = site.code[part]
        used = code_here != CLOSED
        plain = bool(((code_here == ALL) | ~used).all()) and all(_closed_only_where_empty(o) for o in own)
        steered = [o is not None for o in own]
        names = ("e", "b", "theta", "write", "alpha", "beta", "lo", "hi", "bounded")
        view = _View(
            first, count,
            None if all(steered) else torch.tensor(steered, device=self.device)[:, None, None],
            bool(site.bounded[part].any()), not plain, any(o is not None and o.conditions for o in own),
            _full(own, self.device, site.sizes.k),
            {n: getattr(site, n)[part] for n in names},
        )  # fmt: skip
        if view.scoped or view.conditions:
            view.cut |= {n: getattr(site, n)[part] for n in ("code", "start", "stop", "condition")}
        if view.conditions:
            shape = (count, 1, -1)
            left, right = site.left[part].reshape(shape), site.right[part].reshape(shape)
            view.cut |= {
                "left": left, "right": right.clamp_min(0), "bare": right < 0, "level": site.level[part].reshape(shape),
                "want": site.want[part].reshape(count, 3, 1, -1),
            }  # fmt: skip
        return view

    def _mask(
        self, site: _Site, view: _View, info: ForwardInfo, seen: dict[str, Tensor], flags: _Flags
    ) -> Tensor | None:
        """bool [n, T, levels * k]: where each change may be made; None where every one may."""
        if not (view.scoped or view.conditions):
            return None if flags.all_real(info) else info.real[..., None]
        told = flags.of(info)
        code = view.cut["code"].expand(-1, told.shape[1], -1)
        at = info.positions[..., None]
        open_ = told.gather(-1, code) & (at >= view.cut["start"]) & (at <= view.cut["stop"])
        if not view.conditions:
            return open_
        n, tokens = told.shape[:2]
        readings = torch.cat(
            [seen[s] if s in seen else told.new_zeros(n, tokens, t.sizes.k, dtype=torch.float32)
             for s, t in self._sites.items()], dim=-1,
        )  # fmt: skip
        left = readings.gather(-1, view.cut["left"].expand(-1, tokens, -1))
        other = readings.gather(-1, view.cut["right"].expand(-1, tokens, -1))
        right = torch.where(view.cut["bare"], view.cut["level"], other)
        more, same = left > right, left == right
        less, same_want, more_want = view.cut["want"].unbind(1)
        holds = (more & more_want) | (same & same_want) | (~more & ~same & less)
        sizes = site.sizes
        holds = holds.view(n, tokens, sizes.conditions, sizes.terms, sizes.tests).all(-1).any(-1)
        holds = torch.cat([torch.ones_like(holds[..., :1]), holds], dim=-1)
        return open_ & holds.gather(-1, view.cut["condition"].expand(-1, tokens, -1))

    def _decide(self, name: str, span: Span, view: _View, z: Tensor, new: Tensor) -> None:
        """The readings at decision tokens, before and after; a decision token is the last of its piece."""
        after = _read(new[:, -1:].float(), view)[:, 0].tolist()
        before = z[:, -1].tolist()
        for row in span.deciding:
            self._decided[span.first + row][name] = (before[row], after[row])

    # what happened

    def fired(self, row: int, length: int) -> npt.NDArray[np.bool_]:
        """bool [length, edits]: at which of a row's first tokens each of its edits fired."""
        held = self._held[row]
        if held is None or not held[0].placed:
            return np.zeros((length, 0), dtype=bool)
        found = {name: self._sites[name].fired[row, :length].cpu().numpy() for name in held[0].sites}
        flat = [found[p.site][:, p.level * self._sites[p.site].sizes.k + p.column] for p in held[0].placed]
        return np.stack(flat, axis=1)

    @torch.inference_mode()
    def put_fired(self, row: int, fired: npt.NDArray[np.bool_]) -> None:
        """The inverse of `fired`, for a row whose first tokens were read before."""
        held = self._held[row]
        for j, p in enumerate(held[0].placed if held else ()):
            site = self._sites[p.site]
            flags = torch.from_numpy(np.ascontiguousarray(fired[:, j])).to(self.device)
            site.fired[row, : len(fired), p.level * site.sizes.k + p.column] = flags

    def reports(self, row: int, signatures: Ids) -> tuple[EditReport, ...]:
        """As `Engine.reports`, for one row whose tokens have these signatures."""
        held = self._held[row]
        if held is None:
            return ()
        edits, fired = held[0], self.fired(row, len(signatures)).sum(0)
        decided = self._decided[row]
        out = []
        for j, p in enumerate(edits.placed):
            before, after = decided.get(p.site, (None, None))
            out.append(
                EditReport(
                    edits.texts[j], int(fired[j]), int(in_scope(p.mask.scope, signatures).sum()),
                    None if before is None else before[p.column], None if after is None else after[p.column],
                )  # fmt: skip
            )
        return tuple(out)


class _Flags:
    """What scopes ask of the tokens of one forward, made when the first of them asks."""

    def __init__(self) -> None:
        self._flags: Tensor | None = None
        self._real: bool | None = None

    def all_real(self, info: ForwardInfo) -> bool:
        if self._real is None:
            self._real = info.real.shape[1] == 1 or bool(info.real.all())
        return self._real

    def of(self, info: ForwardInfo) -> Tensor:
        """bool [n, T, CODES]: the place of a scope's code says whether the token is in it."""
        if self._flags is None:
            real = info.real
            flags = torch.zeros(*real.shape, CODES, dtype=torch.bool, device=real.device)
            for place, value in enumerate((real, info.is_prompt, ~info.is_prompt, info.is_last, real), ALL):
                flags[..., place] = value & real
            known = info.roles_known[:, None] & real
            flags.scatter_(2, (ROLE + info.role)[..., None], known[..., None])
            self._flags = flags
        return self._flags


def _read(x: Tensor, view: _View) -> Tensor:
    """z [n, T, k] of x [n, T, d]."""
    pre = torch.baddbmm(view.cut["b"], x, view.cut["e"])
    z = torch.where(pre > view.cut["theta"], pre, torch.zeros_like(pre))
    for dictionary, rows, latents in view.full:
        at = torch.tensor(rows, device=x.device)
        exact = dictionary.encode(x[at]).to(x.dtype)
        wanted = exact.gather(-1, latents.clamp_min(0).expand(-1, x.shape[1], -1))
        z = z.index_copy(0, at, torch.where(latents >= 0, wanted, z[at]))
    return z


def _change(z: Tensor, view: _View, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(the change of each level [n, T, L, k], their sum [n, T, k])."""
    alpha, beta = view.cut["alpha"], view.cut["beta"]
    levels, k = alpha.shape[1], alpha.shape[-1]
    steps, total = [], None
    for i in range(levels):
        t = z if total is None else z + total
        step = torch.addcmul(alpha[:, i], beta[:, i], t)
        if view.bounded:
            inside = torch.clamp(t + step, view.cut["lo"][:, i], view.cut["hi"][:, i]) - t
            step = torch.where(view.cut["bounded"][:, i], inside, step)
        if mask is not None:
            open_ = mask if mask.shape[-1] == 1 else mask[..., i * k : (i + 1) * k]
            step = torch.where(open_, step, torch.zeros_like(step))
        steps.append(step)
        total = step if total is None else total + step
    assert total is not None
    return torch.stack(steps, dim=2), total


def _full(own: Sequence[RowSite | None], device: torch.device, k: int) -> list[tuple[Any, list[int], Tensor]]:
    """Rows whose latents only a full encode can read, by dictionary."""
    found: dict[int, tuple[Any, list[int], list[Tensor]]] = {}
    for i, site in enumerate(own):
        if site is None or not bool((site.full >= 0).any()):
            continue
        entry = found.setdefault(id(site.dictionary), (site.dictionary, [], []))
        entry[1].append(i)
        wide = torch.full((1, k), -1, dtype=torch.long)
        wide[:, : site.full.shape[1]] = site.full
        entry[2].append(wide)
    return [(d, rows, torch.stack(latents).to(device)) for d, rows, latents in found.values()]


def _closed_only_where_empty(site: RowSite | None) -> bool:
    """Whether no edit of the row is shut out by scope or step."""
    return site is None or all(mask.scope.kind == "all" and mask.gate.steps is None for mask in site.masks.values())


def _copy_fired(old: _Site, new: _Site) -> None:
    for level in range(old.sizes.levels):
        k = old.sizes.k
        new.fired[:, :, level * new.sizes.k : level * new.sizes.k + k] = old.fired[:, :, level * k : (level + 1) * k]


def _up(n: int) -> int:
    return 1 << (n - 1).bit_length() if n > 0 else 0

