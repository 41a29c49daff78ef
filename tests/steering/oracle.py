"""The slow definition the engine is held to: encode all, change, decode all, add the error back, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairlead.lm.hooks import ROLES, ForwardInfo
from fairlead.steering import AllOf, AnyOf, Compare, Edit, Latent, Level, Op, Reading, Scope

COMPARE = {
    ">": lambda a, b: a > b, ">=": lambda a, b: a >= b, "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
}  # fmt: skip


def reading(direction: Any, x: Tensor, dictionary: Any, vectors: Mapping[str, Tensor]) -> float:
    if isinstance(direction, Latent):
        return float(dictionary.encode(x)[direction.index])
    v = vectors[direction.name]
    return float(v @ x / (v @ v))


def holds(condition: Any, site: str, arrived: Mapping[str, Tensor], held: Mapping[str, Any], vectors: Any) -> bool:
    if isinstance(condition, Compare):

        def value(r: Reading | Level) -> float:
            if isinstance(r, Level):
                scale = (
                    held[condition.left.site or site].max_activation[condition.left.direction.index]
                    if r.unit == "max"
                    else 1.0
                )
                return float(r.value * scale)
            there = r.site or site
            return reading(r.direction, arrived[there], held.get(there), vectors)

        return COMPARE[condition.op](value(condition.left), value(condition.right))
    parts = [holds(p, site, arrived, held, vectors) for p in condition.parts]
    assert isinstance(condition, AllOf | AnyOf)
    return all(parts) if isinstance(condition, AllOf) else any(parts)


def in_scope(scope: Scope, info: ForwardInfo, row: int, t: int) -> bool:
    if not info.real[row, t]:
        return False
    return bool(
        {
            "all": True,
            "prompt": info.is_prompt[row, t],
            "generated": not info.is_prompt[row, t],
            "last": info.is_last[row, t],
            "tokens": scope.start <= info.positions[row, t] <= scope.stop,
            "role": scope.kind == "role" and info.role[row, t] == ROLES[scope.role],
        }[scope.kind]
    )


def applies(edit: Edit, site: str, info: ForwardInfo, row: int, t: int, *rest: Any) -> bool:
    steps = edit.gate.steps
    now = int(info.step[row])
    if steps is not None and not (steps.first <= now and (steps.last is None or now <= steps.last)):
        return False
    if not in_scope(edit.scope, info, row, t):
        return False
    return edit.gate.when is None or holds(edit.gate.when, site, *rest)


def changed(edit: Edit, t: float, dictionary: Any) -> float:
    unit = float(dictionary.max_activation[edit.direction.index]) if edit.unit == "max" else 1.0  # type: ignore[union-attr]
    c = edit.value * unit
    return {
        Op.ADD: t + c, Op.SCALE: t * c, Op.CLAMP: c, Op.ABLATE: 0.0, Op.CAP_MAX: min(t, c), Op.CAP_MIN: max(t, c),
    }[edit.op]  # fmt: skip


def at_token(
    x: Tensor, edits: Sequence[Edit], site: str, dictionary: Any, vectors: Any, acts: Any
) -> tuple[Tensor, list[bool]]:
    """x [d] after `edits` (all at `site`), and which of them changed it. `acts(edit)` is its gate."""
    f = dictionary.encode(x)
    error = x - dictionary.decode(f)
    new, fired, moved = f.clone(), [], {}
    for edit in edits:
        key = edit.direction
        before = (
            float(new[key.index]) if isinstance(key, Latent) else moved.get(key, reading(key, x, dictionary, vectors))
        )
        after = changed(edit, before, dictionary) if acts(edit) else before
        fired.append(after != before)
        if isinstance(key, Latent):
            new[key.index] = after
        else:
            moved[key] = after
    out = dictionary.decode(new) + error
    for key, after in moved.items():
        out = out + (after - reading(key, x, dictionary, vectors)) * vectors[key.name]
    return out, fired


def run(
    arrived: Mapping[str, Tensor], sets: Sequence[Sequence[Edit]], site: str, info: ForwardInfo, held: Any, vectors: Any
) -> tuple[Tensor, list[list[int]]]:
    """The activations [B, T, d] at `site` after the edits there, and per row how often each edit fired."""
    out = arrived[site].clone()
    counts: list[list[int]] = []
    for row in range(out.shape[0]):
        slot = int(info.slot[row])
        edits = [] if slot == 0 else sets[slot - 1]
        total = [0] * len(edits)
        for t in range(out.shape[1]):
            if not edits or not info.real[row, t]:
                continue
            here = {s: h[row, t] for s, h in arrived.items()}

            def acts(edit: Edit, row: int = row, t: int = t, here: Any = here) -> bool:
                return applies(edit, site, info, row, t, here, held, vectors)

            out[row, t], fired = at_token(here[site], edits, site, held[site], vectors, acts)
            total = [a + b for a, b in zip(total, fired, strict=True)]
        counts.append(total)
    assert torch.isfinite(out).all()
    return out, counts
