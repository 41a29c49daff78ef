"""The engine for rows that come and go: tables with a place for every row, written when one is taken, read as slices.

The algebra is that of `engine`, Δh = Σ_j g_j·(α_j + β_j·z_j)·d_j, and a test holds the two to each other; here every
row may have a set of its own, sets come while others run, and a forward costs the same whether the rows' edits are the
same or all different. Unedited rows are copied through, bit for bit. What fired is kept beside the keys and values, one
flag a token and edit, so that nothing is counted on the way and a row's past can be kept with its cache. What can be
made when rows change, or put off until somebody asks what fired, is not done in a forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairlead.core.errors import EditError
from fairlead.core.types import EditReport
from fairlead.lm.rows import Hook, Span, Traced
from fairlead.steering.edit import site_order
from fairlead.steering.rowmath import Acts, Flags, change, holds, read, readings, where_open, written
from fairlead.steering.rowtables import RowTables, Sizes, copy_fired, sizes_of
from fairlead.steering.rowview import View, make_view
from fairlead.steering.slots import Ids, RowEdits, in_scope


class RowEngine:
    """Edits of up to `rows` rows. `put` and `clear` change a row between forwards; `hooks` are for the next one."""

    def __init__(self, rows: int, d_model: int, device: torch.device) -> None:
        self.rows, self.d_model, self.device = rows, d_model, device
        self._held: list[tuple[RowEdits, int] | None] = [None] * rows
        self._sites: dict[str, RowTables] = {}
        self._views: dict[tuple[str, int, int], View] = {}
        self._hooks: dict[tuple[int, int], list[tuple[str, Hook]]] = {}
        self._seen: dict[str, Tensor] = {}  # readings of the forward at work, by site
        self._flags = Flags()
        self._decided: list[dict[str, tuple[list[float], list[float]]]] = [{} for _ in range(rows)]
        self._room = 0
        self._acts: Acts | None = None
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
        self._settle()
        held, self._held[row], self._decided[row] = self._held[row], None, {}
        self._views.clear()
        self._hooks.clear()
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
            needed, had = sizes_of(own), self._sites.get(name)
            if had is not None and had.sizes.fits(needed):
                continue
            sizes = (had.sizes if had else Sizes()).joined(needed.rounded())
            new = RowTables(name, self.d_model, self.rows, sizes, self.device)
            new.fired = new.fired.new_zeros(self.rows, self._room, new.code.shape[-1])
            if had is not None:
                copy_fired(had, new)
            self._sites[name], grown = new, True
        if grown:
            self._sites = {name: self._sites[name] for name in sorted(self._sites, key=site_order)}
            with torch.inference_mode():
                for row, held in enumerate(self._held):
                    if held is not None and held[0] is not edits:
                        self._write(row)

    # forwards

    def hooks(self, span: Span, room: int) -> list[tuple[str, Hook]]:
        """What belongs to the sites in the forward of `span`, whose rows have `room` tokens each."""
        if room != self._room:
            self._grow(room)
        self._seen.clear()
        self._flags = Flags()
        key = (span.first, span.count)
        if key not in self._hooks:
            here = self._held[span.first : span.first + span.count]
            sites = {site for held in here if held is not None for site in held[0].sites}
            self._hooks[key] = [(name, self._hook(name, span)) for name in self._sites if name in sites]
        return self._hooks[key]

    def flops(self, first: int, lengths: Sequence[int]) -> float:
        """What the hooks add to a forward of so many tokens a row."""
        held = self._held[first : first + len(lengths)]
        return float(sum(h[0].flops_per_token * n for h, n in zip(held, lengths, strict=True) if h is not None))

    def _grow(self, room: int) -> None:
        self._settle()
        self._room = room
        for site in self._sites.values():
            old = site.fired
            site.fired = old.new_zeros(self.rows, room, old.shape[-1])
            site.fired[:, : old.shape[1]] = old

    def _settle(self) -> None:
        for site in self._sites.values():
            site.settle()

    def _hook(self, name: str, span: Span) -> Hook:
        """For this site and the rows of this span, until one of them changes."""
        site, view = self._sites[name], self._view(name, span)

        def hook(h: Tensor, span: Span) -> Tensor:
            if h.shape[-1] != site.d:
                raise EditError(f"edits at {name} do not fit this model", expected=f"{site.d}", got=f"{h.shape[-1]}")
            x = h if h.dtype == torch.float32 else h.float()
            z = self._seen[name] = read(x, view)
            steps, total = change(z, view, self._mask(site, view, z, span))
            new = written(x, total, view)
            new = new if h.dtype == torch.float32 else new.to(h.dtype)
            new = new if view.steered is None else torch.where(view.steered, new, h)
            site.note(span, steps)
            if not span.decoding and span.deciding:
                self._decide(name, span, view, z, new)
            self.passes += 1
            return new

        return hook

    def _view(self, name: str, span: Span) -> View:
        key = (name, span.first, span.count)
        if key not in self._views:
            if len(self._views) > 256:
                self._views.clear()
                self._hooks.clear()
            own = [(h[0].sites.get(name) if h else None) for h in self._held[span.first : span.first + span.count]]
            self._views[key] = make_view(self._sites[name], own, span.first, self.device)
        return self._views[key]

    def _mask(self, site: RowTables, view: View, z: Tensor, span: Span) -> Tensor | None:
        """bool [n, T, levels * k]: where each change may be made; None where every one may."""
        if span.decoding and not isinstance(view.generated, bool):
            open_ = view.generated
        elif view.scoped or view.conditions:
            open_ = where_open(view, self._flags.of(span.info), span.info.positions)
        else:
            return span.info.real[..., None] if span.padded else None
        if not view.conditions:
            return open_
        if view.simple is not None:
            found = view.simple.of(z)
        else:
            found = holds(site.sizes, view, z, readings(self._sizes(), z, self._seen))
        return found if open_ is None else open_ & found

    def _sizes(self) -> dict[str, Sizes]:
        return {name: site.sizes for name, site in self._sites.items()}

    def traced(self, span: Span) -> Traced | None:
        """What `hooks` do in a span that decodes, as tables that a compiled step takes: all of the work, at every site
        that ever had edits. None where a row's latents can only be read by a full encode."""
        if span.room != self._room:
            self._grow(span.room)
        views = {name: self._view(name, span) for name in self._sites}
        if any(view.full for view in views.values()):
            return None
        if self._acts is None or self._acts.sizes != self._sizes():
            self._acts = Acts(self._sizes())
        told = {"told": Flags().of(span.info), "at": span.info.positions}
        cuts = {name: self._sites[name].cut(span.first, span.count) for name in views}
        for name, view in views.items():
            every = torch.ones(span.count, 1, 1, dtype=torch.bool, device=self.device)
            cuts[name]["steered"] = every if view.steered is None else view.steered

        def done(fired: Mapping[str, Tensor]) -> None:
            for name, flags in fired.items():
                self._sites[name].note(span, flags[:, None])
                self.passes += 1

        return Traced({"": told, **cuts}, self._acts, done)

    def _decide(self, name: str, span: Span, view: View, z: Tensor, new: Tensor) -> None:
        """The readings at decision tokens, before and after; a decision token is the last of its piece."""
        after = read(new[:, -1:].float(), view)[:, 0].tolist()
        before = z[:, -1].tolist()
        for row in span.deciding:
            self._decided[span.first + row][name] = (before[row], after[row])

    # what happened

    def fired(self, row: int, length: int) -> npt.NDArray[np.bool_]:
        """bool [length, edits]: at which of a row's first tokens each of its edits fired."""
        held = self._held[row]
        if held is None or not held[0].placed:
            return np.zeros((length, 0), dtype=bool)
        self._settle()
        found = {name: self._sites[name].fired[row, :length].cpu().numpy() for name in held[0].sites}
        flat = [found[p.site][:, p.level * self._sites[p.site].sizes.k + p.column] for p in held[0].placed]
        return np.stack(flat, axis=1)

    @torch.inference_mode()
    def put_fired(self, row: int, fired: npt.NDArray[np.bool_]) -> None:
        """The inverse of `fired`, for a row whose first tokens were read before."""
        self._settle()
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
