"""What edits do to the activations of one forward, as operations on tensors alone.

Δh = Σ_j g_j·(α_j + β_j·z_j)·d_j for all rows at once. The engine calls these as it goes; a compiled step holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairlead.lm.hooks import ForwardInfo
from fairlead.steering.rowtables import Sizes
from fairlead.steering.rowview import View, levels_of
from fairlead.steering.slots import ALL, CODES, ROLE
from fairlead.steering.tables import settled


class Flags:
    """What scopes ask of the tokens of one forward, made when the first of them asks."""

    def __init__(self) -> None:
        self._flags: Tensor | None = None

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


def holds(sizes: Sizes, view: View, z: Tensor, readings: Tensor) -> Tensor:
    """bool [n, T, levels * k]: whether each change's condition holds."""
    n, tokens = z.shape[:2]
    left = readings.gather(-1, view.cut["left"].expand(-1, tokens, -1))
    other = readings.gather(-1, view.cut["right"].expand(-1, tokens, -1))
    right = torch.where(view.cut["bare"], view.cut["level"], other)
    more, same = left > right, left == right
    less, same_want, more_want = view.cut["want"].unbind(1)
    holds = (more & more_want) | (same & same_want) | (~more & ~same & less)
    holds = holds.view(n, tokens, sizes.conditions, sizes.terms, sizes.tests).all(-1).any(-1)
    holds = torch.cat([torch.ones_like(holds[..., :1]), holds], dim=-1)
    return holds.gather(-1, view.cut["condition"].expand(-1, tokens, -1))


def where_open(view: View, told: Tensor, at: Tensor) -> Tensor:
    """bool [n, T, levels * k]: where each change's scope and step let it act. `told` is of Flags, `at`
    [n, T] positions."""
    code = view.cut["code"].expand(-1, told.shape[1], -1)
    return told.gather(-1, code) & (at[..., None] >= view.cut["start"]) & (at[..., None] <= view.cut["stop"])


def read(x: Tensor, view: View) -> Tensor:
    """z [n, T, k] of x [n, T, d]."""
    pre = torch.baddbmm(view.cut["b"], x, view.cut["e"])
    z = torch.relu(pre) if view.relu else torch.where(pre > view.cut["theta"], pre, 0.0)
    for dictionary, rows, latents in view.full:
        at = torch.tensor(rows, device=x.device)
        exact = dictionary.encode(x[at]).to(x.dtype)
        wanted = exact.gather(-1, latents.clamp_min(0).expand(-1, x.shape[1], -1))
        z = z.index_copy(0, at, torch.where(latents >= 0, wanted, z[at]))
    return z


def written(x: Tensor, total: Tensor, view: View) -> Tensor:
    """x [n, T, d] moved along the written directions by total [n, T, k]."""
    width = view.write.shape[1]
    moved = total if total.shape[-1] == width else total[..., :width]
    if width == 1:
        return torch.addcmul(x, moved, view.write)
    return torch.baddbmm(x, moved, view.write)


def change(z: Tensor, view: View, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(the change of each level [n, T, L * k], their sum [n, T, k])."""
    k = z.shape[-1]
    steps, total = [], None
    for i, level in enumerate(view.levels):
        t = z if total is None else z + total
        step = torch.addcmul(level.alpha, level.beta, t)
        if view.bounded:
            inside = torch.clamp(t + step, level.lo, level.hi) - t
            step = torch.where(level.bounded, inside, step)
        if total is not None:
            step = settled(step, z, t, (level.beta != 0) | level.bounded)
        if mask is not None:
            open_ = mask if mask.shape[-1] == 1 else mask[..., i * k : (i + 1) * k]
            step = torch.where(open_, step, view.zero)
        steps.append(step)
        total = step if total is None else total + step
    assert total is not None
    return (total if len(steps) == 1 else torch.cat(steps, dim=-1)), total


def readings(sizes: Mapping[str, Sizes], z: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
    """Those of all sites side by side, zeros where a site was not read: what conditions look into."""
    n, tokens = z.shape[:2]
    return torch.cat([seen[s] if s in seen else z.new_zeros(n, tokens, own.k) for s, own in sizes.items()], dim=-1)


@dataclass(frozen=True, eq=False)
class Acts:
    """What acts at the sites of a compiled step, by the tables' sizes: all of the work, whatever the rows' edits are.
    The tables of "" are `told` and `at` of the tokens."""

    sizes: Mapping[str, Sizes]

    def __call__(self, tables: Mapping[str, Mapping[str, Tensor]], fired: dict[str, Tensor]) -> Mapping[str, Any]:
        seen: dict[str, Tensor] = {}
        tokens = tables[""]

        def acting(name: str, sizes: Sizes) -> Any:
            def act(h: Tensor) -> Tensor:
                cut = tables[name]
                view = View(
                    0, h.shape[0], cut["steered"], False, True, True, sizes.conditions > 0, None, False, [],
                    levels_of(cut), cut["write"], h.new_zeros((), dtype=torch.float32), dict(cut),
                )  # fmt: skip
                x = h.float()
                z = seen[name] = read(x, view)
                open_ = where_open(view, tokens["told"], tokens["at"])
                if sizes.conditions:
                    open_ = open_ & holds(sizes, view, z, readings(self.sizes, z, seen))
                steps, total = change(z, view, open_)
                fired[name] = steps.ne(0).flatten(0, 1)
                return torch.where(cut["steered"], written(x, total, view).to(h.dtype), h)

            return act

        return {name: acting(name, sizes) for name, sizes in self.sizes.items()}
