"""One set of edits, compiled for any row of a batch whose rows come and go: plain tensors, no row yet.

`compile_row` checks a set as `compile_edits` does and leaves, per site, what `steering.rowwise` copies into a row's
place of its tables. Conditions become sums of products (an `or` of `and`s of comparisons), so that those of all rows
are evaluated at once, without a branch and without a Python loop over rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fairlead.core.errors import EditError
from fairlead.lm.hooks import ROLES
from fairlead.steering.edit import SITE_KINDS, AllOf, Compare, Condition, Edit, Latent, Level, Scope
from fairlead.steering.edit import fingerprint as edits_fingerprint
from fairlead.steering.language import format as format_edits
from fairlead.steering.passes import on_step
from fairlead.steering.tables import Column, Context, Mask, Placed, SiteTable, build, place

CLOSED, ALL, PROMPT, GENERATED, LAST, SPAN, ROLE = 0, 1, 2, 3, 4, 5, 6  # scope codes; ROLE + role id
CODES = ROLE + len(ROLES) + 1
FAR = 1 << 40
TERMS, TESTS = 16, 16  # of one condition, as an `or` of `and`s
_BITS = {"prompt": 1, "generated": 1, "last": 2, "role": 4}

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Test:
    """One comparison: two readings as (site, column), or a reading and a number."""

    left: tuple[str, int]
    right: tuple[str, int] | None
    level: float
    op: str


Terms = tuple[tuple[Test, ...], ...]
"""A condition: it holds where all tests of some term hold."""


@dataclass(frozen=True, eq=False)
class RowSite:
    """One row's tables at one site: k columns, L levels."""

    site: str
    e: Tensor  # [d, k]
    b: Tensor  # [1, k]
    theta: Tensor  # [1, k]
    write: Tensor  # [k, d]
    alpha: Tensor  # [L, 1, k]
    beta: Tensor  # [L, 1, k]
    lo: Tensor  # [L, 1, k]
    hi: Tensor  # [L, 1, k]
    full: Tensor  # [1, k] latents that only a full encode can read, else -1
    masks: Mapping[tuple[int, int], Mask]  # (level, column) -> where the edit there may act
    conditions: Mapping[tuple[int, int], Terms]
    dictionary: Any


@dataclass(frozen=True, eq=False)
class RowEdits:
    """A compiled set. `texts` are its edits, one each, as reports name them; `depends` are the bits of a token's
    `signature` that its activations depend on."""

    edits: tuple[Edit, ...]
    fingerprint: str
    texts: tuple[str, ...]
    placed: tuple[Placed, ...]
    sites: Mapping[str, RowSite]
    depends: int
    approximate: bool
    flops_per_token: int

    def at_step(self, step: int) -> str:
        """What a row's keys and values depend on: the edits, and those of them that their steps let act."""
        acting = [p.mask.gate.steps is None or on_step(p.mask.gate.steps, step) for p in self.placed]
        return f"{self.fingerprint}/{''.join('01'[a] for a in acting)}"

    @property
    def reads_roles(self) -> bool:
        return bool(self.depends & 4)


def compile_row(
    edits: Sequence[Edit],
    dictionaries: Mapping[str, Any],
    vectors: Mapping[str, Tensor] | None = None,
    *,
    d_model: int,
    n_layers: int,
    threshold: bool = False,
) -> RowEdits:
    """The edits as tables for one row. EditError for all that cannot be applied."""
    sites = [f"{kind}.{layer}" for layer in range(n_layers) for kind in SITE_KINDS]
    context = Context(dictionaries, vectors or {}, d_model, sites, threshold)
    placed, columns = place(edits, 0, context)
    masks = {mask: i for i, mask in enumerate(dict.fromkeys(p.mask for p in placed))}
    at = {(site, c.key): j for site, found in columns.items() for j, c in enumerate(found)}
    terms = {m: _terms(m, at) for m in masks if m.gate.when is not None}
    found = {}
    for site, own in columns.items():
        here = [p for p in placed if p.site == site]
        found[site] = _row_site(build(site, [own], [here], masks, context), here, terms)
    rough = any(context.rough(site) for site in found)
    return RowEdits(
        tuple(edits), _fingerprint(edits, columns, context, rough), tuple(format_edits((e,)) for e in edits),
        tuple(placed), found, _depends(placed), rough, sum(_flops(site) for site in found.values()),
    )  # fmt: skip


def signature(prompt: int, total: int, roles: Ids | None) -> Ids:
    """[total] what scopes can tell of each token beside its place: bit 0 prompt, bit 1 decision token, then its role;
    generated tokens are the assistant's."""
    at = np.arange(total)
    role = np.full(total, ROLES["assistant"])
    if roles is None:
        role[:] = 0
    else:
        role[: min(prompt, total)] = roles[:total][:prompt]
    return (at < prompt) + 2 * (at == prompt - 1) + 4 * role


def in_scope(scope: Scope, signatures: Ids) -> npt.NDArray[np.bool_]:
    """bool [total]: the tokens a scope covers, as their signatures tell."""
    if scope.kind == "tokens":
        at = np.arange(len(signatures))
        return (at >= scope.start) & (at <= scope.stop)
    if scope.kind == "role":
        return (signatures >> 2) == ROLES[scope.role]
    wanted = {"all": np.ones_like(signatures), "prompt": signatures & 1, "generated": 1 - (signatures & 1)}
    return (wanted[scope.kind] if scope.kind in wanted else signatures & 2) > 0


def code(mask: Mask, step: int) -> tuple[int, int, int]:
    """(scope code, first position, last position) of a mask at an agent step."""
    if mask.gate.steps is not None and not on_step(mask.gate.steps, step):
        return CLOSED, 0, FAR
    scope = mask.scope
    if scope.kind == "tokens":
        return SPAN, scope.start, scope.stop
    codes = {"all": ALL, "prompt": PROMPT, "generated": GENERATED, "last": LAST}
    return codes[scope.kind] if scope.kind in codes else ROLE + ROLES[scope.role], 0, FAR


def _row_site(table: SiteTable, placed: Sequence[Placed], terms: Mapping[Mask, Terms]) -> RowSite:
    """Slot 1 of a table of one set."""
    return RowSite(
        table.site, table.e[1], table.b[1], table.theta[1], table.write[1], table.alpha[1], table.beta[1],
        table.lo[1], table.hi[1], table.full[1],
        {(p.level, p.column): p.mask for p in placed},
        {(p.level, p.column): terms[p.mask] for p in placed if p.mask in terms},
        table.dictionary,
    )  # fmt: skip


def _terms(mask: Mask, at: Mapping[Any, int]) -> Terms:
    assert mask.gate.when is not None
    found = _sum(mask.gate.when, at)
    if len(found) > TERMS or max(map(len, found)) > TESTS:
        raise EditError(
            "a condition is too long to be evaluated beside others",
            expected=f"at most {TERMS} alternatives of at most {TESTS} comparisons, `and` multiplied out",
            got=f"{len(found)} of up to {max(map(len, found))}",
        )
    return found


def _sum(condition: Condition, at: Mapping[Any, int]) -> Terms:
    if isinstance(condition, Compare):
        return ((_test(condition, at),),)
    parts = [_sum(part, at) for part in condition.parts]
    if not isinstance(condition, AllOf):
        return tuple(term for part in parts for term in part)
    size = 1
    for part in parts:
        size *= len(part)
    if size > TERMS:
        return tuple(((),) * (TERMS + 1))  # refused by the caller, before it is multiplied out
    return tuple(tuple(t for term in chosen for t in term) for chosen in product(*parts))


def _test(compare: Compare, at: Mapping[Any, int]) -> Test:
    def place_of(reading: Any) -> tuple[str, int]:
        return reading.site, at[reading.site, ("read", reading.direction)]

    if isinstance(compare.right, Level):
        return Test(place_of(compare.left), None, compare.right.value, compare.op)
    return Test(place_of(compare.left), place_of(compare.right), 0.0, compare.op)


def _depends(placed: Sequence[Placed]) -> int:
    bits = 0
    for p in placed:
        bits |= _BITS.get(p.mask.scope.kind, 0)
    return bits & 3 | (-4 if bits & 4 else 0)  # a role is several bits


def _flops(site: RowSite) -> int:
    """Reads and writes, 2 FLOPs a weight, and the full encode where one is needed."""
    full = bool((site.full >= 0).any())
    encode = 2 * site.e.shape[0] * int(site.dictionary.n_features) if full else 0
    return 4 * site.e.shape[0] * site.e.shape[1] + encode


def _fingerprint(
    edits: Sequence[Edit], columns: Mapping[str, Sequence[Column]], context: Context, rough: bool
) -> str:
    vectors = {c.key[1].name: c.d for found in columns.values() for c in found if not isinstance(c.key[1], Latent)}
    data = {
        "edits": edits_fingerprint(edits),
        "dictionaries": {s: context.dictionaries[s].fingerprint for s in columns if s in context.dictionaries},
        "vectors": {name: hashlib.sha256(v.cpu().numpy().tobytes()).hexdigest() for name, v in sorted(vectors.items())},
        "topk": "threshold" if rough else "exact",
    }
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

