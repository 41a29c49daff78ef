"""How large an edit is: the change it writes to activations, by the algebra of the hook engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import NotApplicable
from fairlead.steering import Compare, Edit, Latent, Level, Op, Reading
from fairlead.steering import format as format_edits


def change(edits: Sequence[Edit], dictionary: Any, x: Tensor) -> Tensor:
    """Δh [n, d] that edits of different latents write to activations x [n, d] in scope, where their gates are open.

    NotApplicable for edits other than add, scale, clamp and ablate of a latent, and for gates other than one
    latent above a level."""
    total = torch.zeros_like(x)
    for edit in edits:
        z = reading(edit, dictionary, x)
        if edit.op is Op.ADD:
            moved = torch.full_like(z, raw(edit, dictionary))
        elif edit.op is Op.SCALE:
            moved = (edit.value - 1.0) * z
        else:
            moved = raw(edit, dictionary) - z
        if edit.gate.when is not None:
            moved = moved * is_open(edit, dictionary, x)
        total = total + moved[:, None] * dictionary.decoder_rows([_index(edit)])[0].float()
    return total


def norm(edits: Sequence[Edit], dictionary: Any, x: Tensor) -> float:
    """Mean ‖Δh‖ over the rows of x."""
    return float(change(edits, dictionary, x).norm(dim=1).mean())


def reading(edit: Edit, dictionary: Any, x: Tensor) -> Tensor:
    """The latent's activation [n] on x."""
    found: Tensor = dictionary.encode_rows(x, [_index(edit)])[:, 0]
    return found


def watched(edits: Sequence[Edit]) -> list[int]:
    """Every latent the edits read: those they change, then those their gates compare."""
    return list(dict.fromkeys([*map(_index, edits), *(_gate(e)[0] for e in edits if e.gate.when is not None)]))


def is_open(edit: Edit, dictionary: Any, x: Tensor) -> Tensor:
    """1.0 where the edit's gate is open on x, else 0.0: [n]."""
    latent, level = _gate(edit)
    scale = float(dictionary.max_activation[latent]) if level.unit == "max" else 1.0
    open_: Tensor = dictionary.encode_rows(x, [latent])[:, 0] > level.value * scale
    return open_.float()


def _gate(edit: Edit) -> tuple[int, Level]:
    match edit.gate.when:
        case Compare(Reading(Latent(index), None), ">", Level() as level):
            return index, level
    raise NotApplicable(
        f"the size of `{format_edits((edit,))}` cannot be matched",
        expected="a gate of the form `when 12 > 0.5`, or none",
    )


def raw(edit: Edit, dictionary: Any) -> float:
    """The edit's value in activation units."""
    return edit.value * (float(dictionary.max_activation[_index(edit)]) if edit.unit == "max" else 1.0)


def in_raw(edit: Edit, dictionary: Any) -> Edit:
    """The same edit in activation units, its gate's level included: it needs no max_activation any more."""
    gate = edit.gate
    if gate.when is not None:
        latent, level = _gate(edit)
        scale = float(dictionary.max_activation[latent]) if level.unit == "max" else 1.0
        gate = replace(gate, when=Compare(Reading(Latent(latent)), ">", Level(level.value * scale)))
    return replace(edit, value=raw(edit, dictionary), unit="raw", gate=gate)


def mirrored(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """The edits whose change is −Δh at every token: an added amount is negated, `scale s` becomes `scale 2 − s`,
    and a clamp of z to c becomes 2z − c (so ablating becomes doubling)."""
    out: list[Edit] = []
    for edit in edits:
        _index(edit)
        if edit.op is Op.ADD:
            out.append(replace(edit, value=-edit.value))
        elif edit.op is Op.SCALE:
            out.append(replace(edit, value=2.0 - edit.value))
        else:
            out.append(replace(edit, op=Op.SCALE, value=2.0, unit="raw"))
            if edit.op is Op.CLAMP and edit.value:
                out.append(replace(edit, op=Op.ADD, value=-edit.value))
    return tuple(out)


def _index(edit: Edit) -> int:
    if not isinstance(edit.direction, Latent) or edit.op not in (Op.ADD, Op.SCALE, Op.CLAMP, Op.ABLATE):
        raise NotApplicable(
            f"the size of `{format_edits((edit,))}` cannot be matched",
            expected="edits that add to, scale, clamp or ablate a latent",
        )
    return edit.direction.index
