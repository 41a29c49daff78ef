"""The headline table as data: per model and decoding mode, one row per arm, the primary measure first.

Rates, intervals and contrasts are the judge's; only the funnel and the heat map's counts are summed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.core.plan import REFERENCE
from fairlead.core.types import Record
from fairlead.judge import stats
from fairlead.judge.tables import Contrast, is_control, within
from fairlead.judge.tables import Row as Measured
from fairlead.report.source import BASELINE, FUNNEL, Source

TRAPS = ("on", "off", "inverse")


@dataclass(frozen=True)
class Rate:
    """A mean with its interval. `value` None means not measured: there was nothing to count."""

    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    n: int = 0


@dataclass(frozen=True)
class Delta:
    """A paired difference on shared items, by cluster. `p_holm` is set inside the stated family, `q` outside it."""

    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    p: float | None = None
    p_holm: float | None = None
    n: int = 0
    q: float | None = None

    @property
    def corrected(self) -> float | None:
        """Holm's p inside the family, q outside it; the plain p where nothing was corrected."""
        found = self.q if self.p_holm is None else self.p_holm
        return self.p if found is None else found


@dataclass(frozen=True)
class Row:
    """One arm. `rates` are on the main slice (trap on); `sides` are the primary measure on its counterparts.
    `delta` is arm − none, `lead` is claim − arm."""

    arm: str
    kind: str  # headline | control | reference
    n: int
    errors: int
    clusters: int
    rates: Mapping[str, Rate]
    sides: Mapping[str, Rate]
    delta: Delta
    lead: Delta
    side_deltas: Mapping[str, Delta]
    funnel: tuple[tuple[str, float | None], ...]
    tokens_per_success: float | None
    flops_per_success: float | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """All arms of one model in one decoding mode. `sides` names the counterparts of the main slice."""

    model: str
    decoding: str
    rows: tuple[Row, ...]
    sides: tuple[str, ...]

    @property
    def warnings(self) -> list[tuple[str, list[str]]]:
        """Each warning once, with the arms that it holds for."""
        out: dict[str, list[str]] = {}
        for row in self.rows:
            for text in row.warnings:
                out.setdefault(text, []).append(row.arm)
        return list(out.items())

    def row(self, arm: str) -> Row | None:
        return next((row for row in self.rows if row.arm == arm), None)


def organism(model: str) -> bool:
    """Pocket models are model organisms: trained here to have the failure that the study looks for."""
    return model.startswith("pocket/")


def kind_of(arm: str) -> str:
    return "control" if is_control(arm) else "reference" if arm == REFERENCE else "headline"


def tables(source: Source) -> tuple[Table, ...]:
    """One table per (model, decoding), in the plan's order. The reference model's arm joins each of them."""
    look, order = _Look(source), [*source.arms, REFERENCE]
    places = {name: i for i, name in enumerate((*source.models, *source.decodings))}
    out = []
    for (model, decoding), arms in sorted(look.arms.items(), key=lambda e: [places.get(name, 99) for name in e[0]]):
        ranked = sorted(arms, key=lambda arm: (order.index(arm) if arm in order else len(order), arm))
        rows = tuple(look.row(model, decoding, arm) for arm in ranked)
        out.append(Table(model, decoding, rows, tuple(look.sides)))
    return tuple(out)


class _Look:
    """The verdict's rows and contrasts, found by name."""

    def __init__(self, source: Source) -> None:
        verdict = source.verdict
        self.source, self.where = source, dict(verdict.question.where)
        self.claim, self.measures = verdict.question.claim, source.measures
        self.measured = {(r.model, r.decoding, r.arm, _slice(r.where), r.measure): r for r in verdict.rows}
        self.compared = {(c.model, c.decoding, c.arm, c.against, _slice(c.where)): c for c in verdict.contrasts
                         if c.measure == self.measures[0]}  # fmt: skip
        self.costs = {(c.model, c.decoding, c.arm): c for c in verdict.costs}
        self.sides = _sides(source.records, self.where)
        self.arms: dict[tuple[str, str], list[str]] = {}
        for cost in verdict.costs:
            self.arms.setdefault((cost.model, cost.decoding), []).append(cost.arm)

    def row(self, model: str, decoding: str, arm: str) -> Row:
        here = (model, decoding, arm)
        main = self.measured.get((*here, _slice(self.where), self.measures[0]))
        own = [r for r in self.source.records if (r.decoding, r.arm) == (decoding, arm) and within(r, self.where)
               and (r.model == model or arm == REFERENCE)]  # fmt: skip
        cost = self.costs[here]
        n = len(own)
        errors = sum(r.error is not None for r in own)
        return Row(
            arm=arm, kind=kind_of(arm), n=n, errors=errors, clusters=main.clusters if main else 0,
            rates={name: _rate(self.measured.get((*here, _slice(self.where), name))) for name in self.measures},
            sides={s: _rate(self.measured.get((*here, _slice(w), self.measures[0]))) for s, w in self.sides.items()},
            delta=self._delta(*here, BASELINE, self.where),
            lead=self._delta(model, decoding, self.claim, arm, self.where),
            side_deltas={s: self._delta(*here, BASELINE, w) for s, w in self.sides.items()},
            funnel=funnel(own), tokens_per_success=cost.tokens_per_success, flops_per_success=cost.flops_per_success,
            warnings=_warnings(main.clusters if main else 0, errors, n),
        )  # fmt: skip

    def _delta(self, model: str, decoding: str, arm: str, against: str, where: Mapping[str, str]) -> Delta:
        return _delta(self.compared.get((model, decoding, arm, against, _slice(where))))


def _slice(where: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(where.items())


def _sides(records: Sequence[Record], where: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The other values of the strata that the main slice fixes: trap off and inverse beside trap on."""
    out: dict[str, dict[str, str]] = {}
    for key, value in where.items():
        seen = {r.strata[key] for r in records if key in r.strata} - {value}
        for other in [t for t in TRAPS if t in seen] + sorted(seen.difference(TRAPS)):
            out[other] = {**where, key: other}
    return out


def _rate(row: Measured | None) -> Rate:
    if row is None or row.value is None:
        return Rate()
    interval = row.clustered or row.interval
    return Rate(row.value, interval.low if interval else None, interval.high if interval else None, row.n)


def _delta(found: Contrast | None) -> Delta:
    if found is None:
        return Delta()
    d = found.difference
    low, high = (d.interval.low, d.interval.high) if d.interval else (None, None)
    return Delta(d.estimate, low, high, d.p, found.p_holm, d.pairs, found.q)


def _warnings(clusters: int, errors: int, n: int) -> tuple[str, ...]:
    out = []
    if clusters < stats.FEW_CLUSTERS:
        out.append(f"{clusters} clusters, fewer than {stats.FEW_CLUSTERS}: read the intervals as rough")
    if errors:
        out.append(f"{errors} of {n} items ended in an error and have no score")
    return tuple(out)


def funnel(records: Sequence[Record]) -> tuple[tuple[str, float | None], ...]:
    """Share of all steps that got as far as each stage; None when a Record lacks the count."""
    outcomes = [r.outcome for r in records if r.outcome and "steps" in r.outcome and "funnel" in r.outcome]
    total = sum(int(o["steps"]) for o in outcomes)
    out: list[tuple[str, float | None]] = []
    for stage in FUNNEL:
        counts = [o["funnel"].get(stage) for o in outcomes]
        measured = total > 0 and all(c is not None for c in counts)
        out.append((stage, sum(counts) / total if measured else None))
    return tuple(out)


def heat(source: Source) -> dict[str, Any]:
    """Counts for the heat map: cells[model|decoding|arm][measure][category][trap] = [successes, n]."""
    cells: dict[str, Any] = {}
    categories: dict[str, None] = {}
    traps: set[str] = set()
    for r in source.records:
        category, trap = r.strata.get("category", "all"), r.strata.get("trap", "all")
        categories[category] = None
        traps.add(trap)
        for name, value in (r.score or {}).items():
            if isinstance(value, bool):
                where = cells.setdefault("|".join((r.model, r.decoding, r.arm)), {}).setdefault(name, {})
                cell = where.setdefault(category, {}).setdefault(trap, [0, 0])
                cell[0] += int(value)
                cell[1] += 1
    order = [t for t in TRAPS if t in traps] + sorted(traps.difference(TRAPS))
    about = {"claim": source.claim, "measures": list(source.measures), "categories": list(categories), "traps": order}
    return {**about, "cells": cells}
