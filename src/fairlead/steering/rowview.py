"""A site's tables for neighbouring rows, and what of the work none of these rows needs.

Most sets are simple: one level, no bounds, open wherever a token is generated, a latent compared with a number. What
is simple in all rows at once is decided here, when rows change, and not at every token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fairlead.steering.rowtables import RowTables
from fairlead.steering.slots import ALL, CLOSED, GENERATED, LAST, PROMPT, RowSite, Terms

_SIGNS = {">": 1.0, "<": -1.0, ">=": 1.0, "<=": -1.0}


@dataclass(frozen=True, eq=False)
class Simple:
    """Conditions that all compare one reading of this site with a number, the same way round: `left` [n, 1, flat] says
    which column, `level` what it is compared with, `sign` turns < into >. `free` are those without a condition."""

    left: Tensor
    level: Tensor
    sign: Tensor | None
    free: Tensor | None
    holds: Callable[[Tensor, Tensor], Tensor]

    def of(self, z: Tensor) -> Tensor:
        """bool [n, T, flat] for readings z [n, T, k]."""
        read = z.gather(-1, self.left if z.shape[1] == 1 else self.left.expand(-1, z.shape[1], -1))
        found = self.holds(read if self.sign is None else read * self.sign, self.level)
        return found if self.free is None else found | self.free


@dataclass(frozen=True, eq=False)
class Level:
    """The tables of one level, [n, 1, k] each."""

    alpha: Tensor
    beta: Tensor
    lo: Tensor
    hi: Tensor
    bounded: Tensor


@dataclass(eq=False)
class View:
    """`cut` are the tables' slices, `levels` those of them that belong to a level. `relu`: all thresholds are 0.
    `generated` says where changes may be made when every row reads one token that it generated: None everywhere, a bool
    [n, 1, flat], or False where that must be worked out from the tokens."""

    first: int
    count: int
    steered: Tensor | None  # bool [n, 1, 1]; None: every row has edits here
    relu: bool
    bounded: bool
    scoped: bool
    conditions: bool
    simple: Simple | None
    generated: Tensor | None | bool
    full: list[tuple[Any, list[int], Tensor]]  # (dictionary, rows of the span, latents [r, 1, k])
    levels: list[Level]
    write: Tensor  # [n, columns, d] without those behind the last that any row writes: gates' readings stand there
    zero: Tensor  # a number would be made a tensor at every use
    cut: dict[str, Tensor] = field(default_factory=dict)


def levels_of(cut: Mapping[str, Tensor]) -> list[Level]:
    """The tables of each level."""
    tables = [cut[name] for name in ("alpha", "beta", "lo", "hi", "bounded")]
    return [Level(*(table[:, i] for table in tables)) for i in range(tables[0].shape[1])]


def make_view(tables: RowTables, own: Sequence[RowSite | None], first: int, device: torch.device) -> View:
    """Of the rows from `first` on, whose sets at this site are `own`."""
    count = len(own)
    part = slice(first, first + count)
    code_here = tables.code[part]
    used = code_here != CLOSED
    plain = bool(((code_here == ALL) | ~used).all()) and all(_closed_only_where_empty(o) for o in own)
    conditions = any(o is not None and o.conditions for o in own)
    steered = [o is not None for o in own]
    cut = tables.cut(first, count)
    written = 1 + max((column for o in own if o is not None for _, column in o.masks), default=0)
    return View(
        first, count, None if all(steered) else torch.tensor(steered, device=device)[:, None, None],
        not bool(cut["theta"].any()), bool(cut["bounded"].any()), not plain, conditions,
        _simple(tables, own, device) if conditions else None, _generated(code_here, own),
        _full(own, device, tables.sizes.k), levels_of(cut), cut["write"][:, :written],
        cut["b"].new_zeros(()), cut,
    )  # fmt: skip


def _generated(code: Tensor, own: Sequence[RowSite | None]) -> Tensor | None | bool:
    """See View. Positions and roles are not known beforehand."""
    if not bool(((code == CLOSED) | ((code >= ALL) & (code <= LAST))).all()):
        return False
    open_ = (code == ALL) | (code == GENERATED)
    shut = bool(((code == PROMPT) | (code == LAST)).any()) or not all(_no_step_shuts(o) for o in own)
    return open_ if shut else None


def _simple(tables: RowTables, own: Sequence[RowSite | None], device: torch.device) -> Simple | None:
    sizes = tables.sizes
    shape = (len(own), 1, sizes.levels * sizes.k)
    left = torch.zeros(shape, dtype=torch.long)
    level, sign = torch.zeros(shape), torch.ones(shape)
    free = torch.zeros(shape, dtype=torch.bool)
    strict: set[bool] = set()
    for i, site in enumerate(own):
        for (lv, column), terms in (site.conditions if site else {}).items():
            test = _only(terms)
            if site is None or test is None or test.left[0] != site.site:
                return None
            at = (i, 0, lv * sizes.k + column)
            strict.add("=" not in test.op)
            sign[at] = _SIGNS[test.op]
            left[at], level[at] = test.left[1], test.level * sign[at]
        for lv, column in site.masks if site else ():
            free[i, 0, lv * sizes.k + column] = site is not None and (lv, column) not in site.conditions
    if len(strict) != 1:
        return None
    return Simple(
        left.to(device), level.to(device), sign.to(device) if bool((sign < 0).any()) else None,
        free.to(device) if bool(free.any()) else None, torch.gt if strict == {True} else torch.ge,
    )  # fmt: skip


def _only(terms: Terms) -> Any:
    """The one comparison of a condition with a number, or None where it is more than that."""
    if len(terms) != 1 or len(terms[0]) != 1:
        return None
    test = terms[0][0]
    return test if test.right is None and test.op in _SIGNS else None


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
    return site is None or (_no_step_shuts(site) and all(mask.scope.kind == "all" for mask in site.masks.values()))


def _no_step_shuts(site: RowSite | None) -> bool:
    return site is None or all(mask.gate.steps is None for mask in site.masks.values())
