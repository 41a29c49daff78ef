"""Edits are data: frozen, hashable, serialisable values with a fingerprint. No torch in this file.

An `Edit` says what happens to one direction at one site: `op` changes the direction's reading z, `scope`
says at which tokens, `gate` says when. A reading is a latent's activation under its dictionary, or, for a
stored vector v, the coordinate v·h/|v|², so that `$v += 1` adds v itself and moves the reading by one.

Semantics of a list: at one site every reading is taken from the activation as it arrives there. Edits of
the same direction then compose, in order, on that reading; edits of different directions add up. So
`12 += 3; 12 <= 5` adds and then caps, and clamping twice is clamping once.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from fairlead.core.errors import EditError

SITE_KINDS = ("resid_pre", "attn", "mlp", "resid")  # in the order one block computes them
ROLES = ("system", "user", "assistant")
SCOPES = ("all", "prompt", "generated", "last", "tokens", "role")
COMPARISONS = (">", ">=", "<", "<=", "==", "!=")

Unit = Literal["raw", "max"]
"""`raw`: in the latent's own activation units. `max`: in units of its largest activation in training."""


class Op(StrEnum):
    """What happens to the reading z. In the algebra Δh = (α + β·z)·d."""

    ADD = "add"  # α = value, β = 0
    SCALE = "scale"  # α = 0, β = value − 1
    CLAMP = "clamp"  # α = value, β = −1
    ABLATE = "ablate"  # a clamp at 0
    PROJECT_OUT = "project_out"  # reads d·h/|d|² and removes it: nothing of d is left
    CAP_MAX = "cap_max"  # min(z, value)
    CAP_MIN = "cap_min"  # max(z, value)


VALUELESS = (Op.ABLATE, Op.PROJECT_OUT)
UNITLESS = (*VALUELESS, Op.SCALE)


def site_order(site: str) -> tuple[int, int]:
    """(layer, rank in the block): sites sort in the order a forward pass computes them.

    Raises EditError for what is not a site name."""
    found = re.fullmatch(r"([a-z_]+)\.(0|[1-9][0-9]*)", site)
    if found is None or found[1] not in SITE_KINDS:
        kinds = ", ".join(f"{k}.L" for k in SITE_KINDS)
        raise EditError(f"no site {site!r}", expected=f"one of {kinds}, L counting from 0", got=site)
    return int(found[2]), SITE_KINDS.index(found[1])


def _finite(value: float, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise EditError(f"{what} must be a finite number", expected="a finite number", got=repr(value))
    return float(value) + 0.0  # -0.0 becomes 0.0: one value, one fingerprint


def _whole(value: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise EditError(f"{what} must be a whole number from 0 up", expected="0, 1, 2, ...", got=repr(value))


@dataclass(frozen=True)
class Latent:
    """A latent of the dictionary at the edit's site."""

    index: int

    def __post_init__(self) -> None:
        _whole(self.index, "a latent's index")


@dataclass(frozen=True)
class StoredVector:
    """A named direction of the residual stream, kept beside the edits."""

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.name):
            raise EditError("not a vector name", expected="letters, digits and _", got=repr(self.name))


Direction = Latent | StoredVector


@dataclass(frozen=True)
class Scope:
    """At which tokens. `tokens` spans are absolute positions in the row, both ends included."""

    kind: Literal["all", "prompt", "generated", "last", "tokens", "role"] = "all"
    start: int = 0
    stop: int = 0
    role: str = ""

    def __post_init__(self) -> None:
        if self.kind not in SCOPES:
            raise EditError("no such scope", expected=", ".join(SCOPES), got=str(self.kind))
        if self.kind == "role" and self.role not in ROLES:
            raise EditError("no such role", expected=" or ".join(ROLES), got=self.role)
        _whole(self.start, "a token position")
        _whole(self.stop, "a token position")
        if self.stop < self.start:
            raise EditError("a token span must not end before it starts", got=f"tokens {self.start}..{self.stop}")
        if (self.kind != "tokens" and (self.start or self.stop)) or (self.kind != "role" and self.role):
            raise EditError(f"scope {self.kind!r} takes no other setting", got=repr(self))


@dataclass(frozen=True)
class Steps:
    """Agent steps, both ends included; `last` None means no end."""

    first: int
    last: int | None

    def __post_init__(self) -> None:
        _whole(self.first, "an agent step")
        if self.last is not None:
            _whole(self.last, "an agent step")
            if self.last < self.first:
                raise EditError("a span of steps must not end before it starts", got=f"{self.first}..{self.last}")


@dataclass(frozen=True)
class Reading:
    """A direction's reading at the same token, as it arrives at `site` (None: the edit's own site)."""

    direction: Direction
    site: str | None = None

    def __post_init__(self) -> None:
        if self.site is not None:
            site_order(self.site)


@dataclass(frozen=True)
class Level:
    """A number a reading is compared with."""

    value: float
    unit: Unit = "raw"

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _finite(self.value, "a level"))
        if self.unit not in ("raw", "max"):
            raise EditError("no such unit", expected="raw or max", got=str(self.unit))


@dataclass(frozen=True)
class Compare:
    """One comparison of readings at the same token."""

    left: Reading
    op: str
    right: Reading | Level

    def __post_init__(self) -> None:
        if self.op not in COMPARISONS:
            raise EditError("no such comparison", expected=" ".join(COMPARISONS), got=str(self.op))
        if isinstance(self.right, Level) and self.right.unit == "max" and isinstance(self.left.direction, StoredVector):
            raise EditError("a stored vector has no largest activation", do="give the level without x")


@dataclass(frozen=True)
class AllOf:
    """Every part holds. Nested AllOf are flattened."""

    parts: tuple[Condition, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _flat(self.parts, AllOf))


@dataclass(frozen=True)
class AnyOf:
    """At least one part holds. Nested AnyOf are flattened."""

    parts: tuple[Condition, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _flat(self.parts, AnyOf))


Condition = Compare | AllOf | AnyOf


def _flat(parts: Iterable[Condition], kind: type[AllOf] | type[AnyOf]) -> tuple[Condition, ...]:
    flat = tuple(q for p in parts for q in (p.parts if isinstance(p, kind) else (p,)))
    if len(flat) < 2:
        raise EditError("a compound condition needs two parts or more", got=repr(flat))
    return flat


@dataclass(frozen=True)
class Gate:
    """When: on which agent steps, and under which condition on activations. Both must hold."""

    steps: Steps | None = None
    when: Condition | None = None


@dataclass(frozen=True)
class Edit:
    """One change of one direction. `site` None means the site of the one dictionary at hand."""

    direction: Direction
    op: Op
    value: float = 0.0
    unit: Unit = "raw"
    site: str | None = None
    scope: Scope = field(default_factory=Scope)
    gate: Gate = field(default_factory=Gate)

    def __post_init__(self) -> None:
        object.__setattr__(self, "op", _op(self.op))
        object.__setattr__(self, "value", _finite(self.value, "an edit's value"))
        if self.unit not in ("raw", "max"):
            raise EditError("no such unit", expected="raw or max", got=str(self.unit))
        if self.op in VALUELESS and self.value != 0.0:
            raise EditError(f"{self.op.value} takes no value", got=repr(self.value))
        if self.unit == "max" and self.op in UNITLESS:
            raise EditError(f"{self.op.value} takes no unit", do="give the number without x")
        if self.unit == "max" and isinstance(self.direction, StoredVector):
            raise EditError("a stored vector has no largest activation", do="give the strength without x")
        if self.site is not None:
            site_order(self.site)

    def _repr_html_(self) -> str:
        from fairlead.core import notebook
        from fairlead.steering.language import format as written  # that file needs this one

        return notebook.box("edit", notebook.code(written((self,))), notebook.line(fingerprint((self,))[:12]))

    def readings(self) -> tuple[Reading, ...]:
        """What its condition reads, left to right."""
        return readings(self.gate.when) if self.gate.when is not None else ()


def _op(op: Any) -> Op:
    try:
        return Op(op)
    except ValueError:
        raise EditError("no such operation", expected=", ".join(o.value for o in Op), got=repr(op)) from None


def readings(condition: Condition) -> tuple[Reading, ...]:
    """What a condition reads, left to right."""
    if isinstance(condition, Compare):
        return (condition.left, condition.right) if isinstance(condition.right, Reading) else (condition.left,)
    return tuple(r for part in condition.parts for r in readings(part))


# JSON. Defaults are left out, so that a file is readable aloud and adding a setting changes no fingerprint.


def to_json(edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """The edits as JSON values."""
    return [_edit_json(e) for e in edits]


def from_json(data: Any) -> tuple[Edit, ...]:
    """The inverse of `to_json`. Raises EditError on an unknown or missing key."""
    if not isinstance(data, list):
        raise EditError("edits must be a JSON list", expected="[{...}, ...]", got=type(data).__name__)
    return tuple(_edit_from(item) for item in data)


def fingerprint(edits: Sequence[Edit]) -> str:
    """sha256 over the canonical JSON: the same on every machine and in every process."""
    text = json.dumps(to_json(edits), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _direction_json(direction: Direction) -> dict[str, Any]:
    return {"latent": direction.index} if isinstance(direction, Latent) else {"vector": direction.name}


def _edit_json(edit: Edit) -> dict[str, Any]:
    out: dict[str, Any] = {**_direction_json(edit.direction), "op": edit.op.value}
    if edit.op not in VALUELESS:
        out["value"] = edit.value
    if edit.unit != "raw":
        out["unit"] = edit.unit
    if edit.site is not None:
        out["site"] = edit.site
    scope = edit.scope
    if scope.kind == "tokens":
        out["scope"] = {"tokens": [scope.start, scope.stop]}
    elif scope.kind == "role":
        out["scope"] = {"role": scope.role}
    elif scope.kind != "all":
        out["scope"] = scope.kind
    if edit.gate.steps is not None:
        out["steps"] = [edit.gate.steps.first, edit.gate.steps.last]
    if edit.gate.when is not None:
        out["when"] = _condition_json(edit.gate.when)
    return out


def _reading_json(reading: Reading) -> dict[str, Any]:
    out = _direction_json(reading.direction)
    return out if reading.site is None else {**out, "site": reading.site}


def _condition_json(condition: Condition) -> dict[str, Any]:
    if isinstance(condition, Compare):
        right = condition.right
        if isinstance(right, Level):
            level: dict[str, Any] = {"value": right.value}
            return {
                "left": _reading_json(condition.left),
                "is": condition.op,
                "right": level if right.unit == "raw" else {**level, "unit": right.unit},
            }
        return {"left": _reading_json(condition.left), "is": condition.op, "right": _reading_json(right)}
    return {"all" if isinstance(condition, AllOf) else "any": [_condition_json(p) for p in condition.parts]}


def _keys(data: Any, allowed: Iterable[str], what: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise EditError(f"{what} must be a JSON object", got=type(data).__name__)
    unknown = sorted(set(data) - set(allowed))
    if unknown:
        raise EditError(f"{what} has an unknown key", expected=", ".join(sorted(allowed)), got=", ".join(unknown))
    return data


def _need(data: dict[str, Any], key: str, what: str) -> Any:
    if key not in data:
        raise EditError(f"{what} lacks {key!r}", got=", ".join(sorted(data)) or "nothing")
    return data[key]


def _direction_from(data: dict[str, Any], what: str) -> Direction:
    if ("latent" in data) == ("vector" in data):
        raise EditError(f"{what} needs exactly one of latent and vector", got=", ".join(sorted(data)))
    return Latent(data["latent"]) if "latent" in data else StoredVector(data["vector"])


def _pair(value: Any, what: str) -> tuple[Any, Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise EditError(f"{what} must be a list of two", got=repr(value))
    return value[0], value[1]


def _scope_from(data: Any) -> Scope:
    if isinstance(data, str):
        return Scope(data)  # type: ignore[arg-type]  # Scope checks it
    found = _keys(data, ("tokens", "role"), "a scope")
    if "tokens" in found:
        start, stop = _pair(found["tokens"], "a token span")
        return Scope("tokens", start, stop)
    return Scope("role", role=_need(found, "role", "a scope"))


def _reading_from(data: Any) -> Reading:
    found = _keys(data, ("latent", "vector", "site"), "a reading")
    return Reading(_direction_from(found, "a reading"), found.get("site"))


def _condition_from(data: Any) -> Condition:
    found = _keys(data, ("all", "any", "left", "is", "right"), "a condition")
    for key, kind in (("all", AllOf), ("any", AnyOf)):
        if key in found:
            if len(found) != 1 or not isinstance(found[key], list):
                raise EditError(f"a condition with {key!r} holds one list and nothing else", got=repr(data))
            return kind(tuple(_condition_from(p) for p in found[key]))
    right = _need(found, "right", "a condition")
    bare = isinstance(right, dict) and "value" in right
    if bare:
        level = _keys(right, ("value", "unit"), "a level")
    other = Level(level["value"], level.get("unit", "raw")) if bare else _reading_from(right)
    return Compare(_reading_from(_need(found, "left", "a condition")), _need(found, "is", "a condition"), other)


def _edit_from(data: Any) -> Edit:
    allowed = ("latent", "vector", "op", "value", "unit", "site", "scope", "steps", "when")
    found = _keys(data, allowed, "an edit")
    op = _op(_need(found, "op", "an edit"))
    value = found.get("value", 0.0) if op in VALUELESS else _need(found, "value", "an edit")
    steps = Steps(*_pair(found["steps"], "steps")) if "steps" in found else None
    when = _condition_from(found["when"]) if "when" in found else None
    return Edit(
        _direction_from(found, "an edit"),
        op,
        value,
        found.get("unit", "raw"),
        found.get("site"),
        _scope_from(found["scope"]) if "scope" in found else Scope(),
        Gate(steps, when),
    )
