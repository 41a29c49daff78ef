"""From edits to tables: validation, then tensors [slot, k, d] that a hook reads without looking at an Edit.

One column per direction that is read at a site. A column's reading is z = φ(e·h + b) with φ(p) = p where
p > θ, else 0: θ = 0 is a relu, θ_j a jumprelu, −∞ the identity. Edits of the same column stack as levels;
a level adds clip(α + β·t, lo − t, hi − t) to the running reading t. Slot 0 is all zeros.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import EditError
from fairlead.steering.edit import (
    AllOf,
    AnyOf,
    Compare,
    Condition,
    Direction,
    Edit,
    Gate,
    Latent,
    Level,
    Op,
    Reading,
    Scope,
    StoredVector,
    readings,
    site_order,
)
from fairlead.steering.language import format as format_edits

INF = float("inf")
_ROUNDING = 4 * torch.finfo(torch.float32).eps
Key = tuple[str, Direction]  # ("read" | "out", direction): one column


@dataclass(frozen=True)
class Context:
    """Everything edits are checked against."""

    dictionaries: Mapping[str, Any]  # site -> dictionary
    vectors: Mapping[str, Tensor]
    d_model: int | None
    sites: Collection[str] | None
    threshold_mode: bool

    def rough(self, site: str) -> bool:
        """Whether latents at `site` are read by a threshold that only stands in for the real thing."""
        held = self.dictionaries.get(site)
        return self.threshold_mode and held is not None and not getattr(held, "exact_rows", False)


@dataclass(frozen=True)
class Mask:
    """Where an edit may act: scope, agent steps, and a condition whose readings name their site."""

    scope: Scope
    gate: Gate
    set_index: int  # conditions read columns, and columns are numbered per set; -1 without a condition


@dataclass(frozen=True)
class Placed:
    """An edit in the tables."""

    edit: Edit
    site: str
    column: int
    level: int
    mask: Mask


@dataclass
class Column:
    """One direction at one site: how it is read (e, b, θ, or the dictionary's full encode) and written (d)."""

    key: Key
    e: Tensor
    b: float
    theta: float
    d: Tensor
    full: int  # latent index when reading needs the whole dictionary, else -1


@dataclass(frozen=True, eq=False)
class SiteTable:
    """The tensors of one site. S slots (0 is zero), k columns, L levels."""

    site: str
    d: int
    e: Tensor  # [S, d, k]
    b: Tensor  # [S, 1, k]
    theta: Tensor  # [S, 1, k]
    write: Tensor  # [S, k, d]
    alpha: Tensor  # [S, L, 1, k]
    beta: Tensor  # [S, L, 1, k]
    lo: Tensor  # [S, L, 1, k]
    hi: Tensor  # [S, L, 1, k]
    mask: Tensor  # [S, L, 1, k] which of the engine's masks: 0 acts everywhere; -1 where there is no edit
    full: Tensor  # [S, 1, k] latent index read by the full encode, else -1
    matters: Tensor  # bool [S, 1, k]: the change depends on this reading (an add alone needs none)
    dictionary: Any


def place(edits: Sequence[Edit], set_index: int, context: Context) -> tuple[list[Placed], dict[str, list[Column]]]:
    """Columns and levels for one set of edits; raises EditError on whatever cannot be applied."""
    columns: dict[str, dict[Key, Column]] = {}
    depth: dict[tuple[str, Key], int] = {}
    placed = []
    for edit in edits:
        site = _site(edit, context)
        key: Key = ("out" if edit.op is Op.PROJECT_OUT else "read", edit.direction)
        at_site = columns.setdefault(site, {})
        if edit.op not in (Op.ADD, Op.PROJECT_OUT):
            _check_read_here(edit.direction, site, context, edit)
        if key not in at_site:
            at_site[key] = _column(key, site, context)
        level = depth.get((site, key), 0)
        depth[site, key] = level + 1
        mask = _mask(edit, site, set_index, context, columns)
        placed.append(Placed(edit, site, list(at_site).index(key), level, mask))
    for site, at_site in columns.items():
        _check_clashes([p for p in placed if p.site == site])
        _dual([p for p in placed if p.site == site and p.edit.op is Op.PROJECT_OUT], at_site)
    return placed, {site: list(at_site.values()) for site, at_site in columns.items()}


def strength(edit: Edit, site: str, context: Context) -> float:
    """The edit's value in activation units."""
    return _in_units(edit.value, edit.unit, edit.direction, site, context)


def _refuse(edit: Edit | None, message: str, **parts: str) -> EditError:
    return EditError(f"cannot apply `{format_edits((edit,))}`: {message}" if edit else message, **parts)


def _site(edit: Edit, context: Context) -> str:
    site = edit.site
    if site is None:
        if len(context.dictionaries) != 1:
            held = ", ".join(sorted(context.dictionaries)) or "none"
            raise _refuse(
                edit,
                "it names no site",
                expected="a site, or exactly one dictionary to take it from",
                got=f"dictionaries at: {held}",
                do=f"write e.g. `@resid.2: {format_edits((edit,))}`",
            )
        site = next(iter(context.dictionaries))
    _check_site(site, context, edit)
    return site


def _check_site(site: str, context: Context, edit: Edit | None) -> None:
    site_order(site)
    if context.sites is not None and site not in context.sites:
        listed = sorted(context.sites, key=site_order)
        raise _refuse(edit, f"this model has no site {site!r}", expected=", ".join(listed), got=site)


def _dictionary(site: str, context: Context) -> Any:
    if site not in context.dictionaries:
        raise EditError(
            f"no dictionary at {site}",
            expected="a dictionary for every site whose latents are named",
            got=", ".join(sorted(context.dictionaries)) or "no dictionary",
            do=f"give one for {site}, or edit a site that has one",
        )
    dictionary = context.dictionaries[site]
    if context.d_model is not None and dictionary.d_in != context.d_model:
        raise EditError(
            f"dictionary {dictionary.name} does not fit this model",
            expected=f"width {context.d_model} (the model's residual stream)",
            got=f"width {dictionary.d_in}",
            do="choose a dictionary trained on this model",
        )
    return dictionary


def _check_index(index: int, dictionary: Any) -> None:
    if index >= dictionary.n_features:
        raise EditError(
            f"latent {index} is not in dictionary {dictionary.name}",
            expected=f"0 to {dictionary.n_features - 1}",
            got=str(index),
            do="run `fairlead find` to list latents of this dictionary",
        )


def _vector(name: str, site: str, context: Context) -> Tensor:
    if name not in context.vectors:
        known = ", ".join("$" + n for n in sorted(context.vectors)) or "no vectors"
        raise EditError(f"no stored vector ${name}", expected=known, got=f"${name}", do="store it under this name")
    vector = context.vectors[name].detach().to(torch.float32)
    width = context.d_model or (context.dictionaries[site].d_in if site in context.dictionaries else None)
    if vector.ndim != 1 or (width is not None and len(vector) != width):
        shape = str(tuple(vector.shape))
        raise EditError(f"stored vector ${name} does not fit {site}", expected=f"[{width or 'd'}]", got=shape)
    if not torch.isfinite(vector).all() or not bool(vector.any()):
        raise EditError(f"stored vector ${name} is no direction", expected="finite numbers, not all 0")
    return vector


def _column(key: Key, site: str, context: Context) -> Column:
    how, direction = key
    if isinstance(direction, StoredVector):
        v = _vector(direction.name, site, context)
        return Column(key, v / (v @ v), 0.0, -INF, v, -1)
    dictionary = _dictionary(site, context)
    _check_index(direction.index, dictionary)
    d = dictionary.decoder_rows([direction.index])[0].detach().to(torch.float32)
    if not torch.isfinite(d).all() or not bool(d.any()):
        raise EditError(
            f"latent {direction.index} of {dictionary.name} writes nothing",
            expected="a finite decoder row, not all 0",
            do="choose a live latent",
        )
    if how == "out" or _reads_elsewhere(dictionary):
        return Column(key, d / (d @ d), 0.0, -INF, d, -1)
    theta = _theta(direction.index, dictionary, context.threshold_mode)
    if theta is None:
        return Column(key, torch.zeros_like(d), 0.0, -INF, d, direction.index)
    rows, biases = dictionary.encoder_rows([direction.index])
    return Column(key, rows[0].detach().to(torch.float32), float(biases[0]), theta, d, -1)


def _reads_elsewhere(dictionary: Any) -> bool:
    """Whether it is a transcoder: its latents are read at another site than they write to, so what can be
    edited here is its decoder row as a plain direction, read by projection."""
    return hasattr(dictionary, "site_in")


def _check_read_here(direction: Direction, site: str, context: Context, edit: Edit | None) -> None:
    """EditError when an edit or a condition needs the value of a transcoder's latent."""
    held = context.dictionaries.get(site)
    if isinstance(direction, Latent) and held is not None and _reads_elsewhere(held):
        raise _refuse(
            edit,
            f"latent {direction.index} belongs to the transcoder {held.name}, which reads {held.site_in}",
            expected="an added strength (`+=`, `-=`) or `-> out`, which need no reading",
            got=f"something that reads the latent at {site}",
            do="add its decoder row, or take a dictionary of the residual stream",
        )


def _theta(index: int, dictionary: Any, threshold_mode: bool) -> float | None:
    """The latent's own threshold, or None when reading it exactly needs the whole dictionary."""
    activation = getattr(dictionary, "activation", None)
    readable = hasattr(dictionary, "encoder_rows")
    threshold = getattr(dictionary, "threshold", None)
    if readable and getattr(dictionary, "exact_rows", False):
        if activation == "relu":
            return 0.0
        if activation == "jumprelu" and threshold is not None:
            return max(float(threshold[index]), 0.0)
        if activation in ("identity", "signed"):
            return -INF
    if threshold_mode and activation != "onehot":
        if not readable or threshold is None:
            raise EditError(
                f"{dictionary.name} has no calibrated threshold, so its latents cannot be read row by row",
                do="use the exact mode, or calibrate the dictionary first",
            )
        return max(float(threshold[index]), 0.0)
    return None


def _in_units(value: float, unit: str, direction: Direction, site: str, context: Context) -> float:
    if unit == "raw" or not isinstance(direction, Latent):
        return value
    dictionary = _dictionary(site, context)
    _check_index(direction.index, dictionary)
    largest = getattr(dictionary, "max_activation", None)
    scale = float(largest[direction.index]) if largest is not None else float("nan")
    if not 0.0 < scale < INF:
        raise EditError(
            f"{value}x of latent {direction.index}: its largest activation is not known",
            expected="a dictionary with a measured, positive max_activation for it",
            got="not measured" if largest is None else f"{scale}",
            do="give the strength without x, or measure the dictionary's activations",
        )
    return value * scale


def _mask(edit: Edit, site: str, set_index: int, context: Context, columns: dict[str, dict[Key, Column]]) -> Mask:
    if edit.gate.when is None:
        return Mask(edit.scope, edit.gate, -1)
    when = _resolve(edit.gate.when, edit, site, context)
    for reading in readings(when):
        assert reading.site is not None
        _check_read_here(reading.direction, reading.site, context, edit)
        key: Key = ("read", reading.direction)
        at_site = columns.setdefault(reading.site, {})
        if key not in at_site:
            at_site[key] = _column(key, reading.site, context)
    return Mask(edit.scope, Gate(edit.gate.steps, when), set_index)


def _resolve(condition: Condition, edit: Edit, site: str, context: Context) -> Condition:
    """The condition with every site filled in and every level in activation units."""
    if isinstance(condition, AllOf | AnyOf):
        return type(condition)(tuple(_resolve(p, edit, site, context) for p in condition.parts))
    left = _resolve_reading(condition.left, edit, site, context)
    if isinstance(condition.right, Reading):
        return Compare(left, condition.op, _resolve_reading(condition.right, edit, site, context))
    level = condition.right
    assert left.site is not None
    value = _in_units(level.value, level.unit, left.direction, left.site, context)
    return Compare(left, condition.op, Level(value))


def _resolve_reading(reading: Reading, edit: Edit, site: str, context: Context) -> Reading:
    there = reading.site or site
    _check_site(there, context, edit)
    if site_order(there) > site_order(site):
        raise _refuse(
            edit,
            f"its condition reads {there}, which comes after {site} in the same pass",
            expected=f"{site} or an earlier site",
            got=there,
            do="condition on an earlier site, or edit a later one",
        )
    return Reading(reading.direction, there)


def _may_meet(a: Edit, b: Edit) -> bool:
    """Whether both edits could act at one token."""
    s, t = a.gate.steps, b.gate.steps
    if s is not None and t is not None:
        ends = (INF if s.last is None else s.last, INF if t.last is None else t.last)
        if s.first > ends[1] or t.first > ends[0]:
            return False
    return {a.scope.kind, b.scope.kind} not in ({"prompt", "generated"}, {"last", "generated"})


def _check_clashes(placed: list[Placed]) -> None:
    for p, q in combinations(placed, 2):
        mixed = (p.edit.op is Op.PROJECT_OUT) != (q.edit.op is Op.PROJECT_OUT)
        if mixed and p.edit.direction == q.edit.direction and _may_meet(p.edit, q.edit):
            both = format_edits((p.edit, q.edit))
            raise EditError(
                f"cannot apply `{both}`: one edit removes the direction that the other changes",
                expected="one of them, or scopes or steps that never meet",
            )


def _dual(placed: list[Placed], at_site: dict[Key, Column]) -> None:
    """Directions projected out together leave nothing of their span: read them in the dual basis."""
    columns = list(dict.fromkeys(list(at_site)[p.column] for p in placed))
    if len(columns) < 2:
        return
    d = torch.stack([at_site[k].d for k in columns])
    unit = d / d.norm(dim=1, keepdim=True)
    if bool(((unit @ unit.T).abs().triu(1) < 1e-6).all()):
        return
    if len({p.mask for p in placed}) > 1:
        raise EditError(
            f"cannot apply `{format_edits([p.edit for p in placed])}`: directions that are not orthogonal "
            "are projected out together, so they must act at the same tokens",
            expected="the same scope, steps and condition",
            do="give them one statement: `$a -> out, $b -> out at ...`",
        )
    dual = torch.linalg.pinv(d.double()).T.to(torch.float32)
    for key, e in zip(columns, dual, strict=True):
        at_site[key].e = e


def build(
    site: str, sets: Sequence[list[Column]], placed: Sequence[list[Placed]], masks: Mapping[Mask, int], context: Context
) -> SiteTable:
    """The tensors of one site from the columns and placed edits of every set (in slot order, from slot 1)."""
    d = next(len(c.d) for columns in sets for c in columns)
    if any(len(c.d) != d for columns in sets for c in columns):
        raise EditError(f"directions of different widths at {site}", expected=f"width {d}")
    n, k = len(sets) + 1, max(len(columns) for columns in sets)
    levels = max((p.level + 1 for edits in placed for p in edits), default=0)
    e, write = torch.zeros(n, d, k), torch.zeros(n, k, d)
    b, theta, full = torch.zeros(n, 1, k), torch.zeros(n, 1, k), torch.full((n, 1, k), -1)
    alpha, beta = torch.zeros(n, levels, 1, k), torch.zeros(n, levels, 1, k)
    lo, hi = torch.full_like(alpha, -INF), torch.full_like(alpha, INF)
    mask = torch.full((n, levels, 1, k), -1)
    for slot, columns in enumerate(sets, 1):
        for j, column in enumerate(columns):
            e[slot, :, j], write[slot, j] = column.e.cpu(), column.d.cpu()
            b[slot, 0, j], theta[slot, 0, j], full[slot, 0, j] = column.b, column.theta, column.full
        for p in placed[slot - 1]:
            at = (slot, p.level, 0, p.column)
            value = strength(p.edit, site, context)
            mask[at] = masks[p.mask]
            if p.edit.op is Op.ADD:
                alpha[at] = value
            elif p.edit.op is Op.SCALE:
                beta[at] = value - 1.0
            elif p.edit.op is Op.CAP_MAX:
                hi[at] = value
            elif p.edit.op is Op.CAP_MIN:
                lo[at] = value
            else:  # clamp, ablate, project out: to a value, which is 0 for the last two
                alpha[at], beta[at] = value, -1.0
    matters = ((beta != 0) | (lo > -INF) | (hi < INF)).any(1)
    held = context.dictionaries.get(site)
    return SiteTable(site, d, e, b, theta, write, alpha, beta, lo, hi, mask, full, matters, held)


def settled(step: Tensor, z: Tensor, t: Tensor, looks: Tensor) -> Tensor:
    """`step` with 0 where it only takes back what rounding did to t, the reading z as the levels before have set it.
    `3 = 1; 3 <= 1` fires once: whether 1 came out as 1.0000001 depends on which tokens were read together. `looks` are
    the columns whose step depends on t at all."""
    return torch.where((step.abs() <= _ROUNDING * (z.abs() + t.abs())) & looks, 0.0, step)
