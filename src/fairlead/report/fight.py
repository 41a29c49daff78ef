"""The fight as data for the page: contrasts to draw, the front, brittleness, coverage, costs against the reference.

A sentence that the claim beats its baselines comes from the judge's `claim_sentence` and from nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fairlead.core.types import Record
from fairlead.judge import Verdict
from fairlead.judge.brittleness import Brittleness
from fairlead.judge.costs import ArmCost, Ratio
from fairlead.judge.tables import NEUTRAL, Contrast, within
from fairlead.report import measured
from fairlead.report.headline import kind_of
from fairlead.report.numbers import MISSING, points, quantity
from fairlead.report.plots import Bar, Group, Spot, forest, pareto
from fairlead.report.source import BASELINE, Source
from fairlead.report.svg import Line, Point, curves

DOSES = {"dose_0_25": 0.25, "dose_0_5": 0.5, "dose_2": 2.0, "dose_4": 4.0}


@dataclass(frozen=True)
class Fight:
    """One model in the deciding mode."""

    model: str
    forest: Markup
    pareto: Markup
    best: str | None
    chosen: str
    detectable: tuple[tuple[str, float | None, float | None, int, float | None], ...]
    stress: Markup
    doses: Markup
    brittleness: Brittleness | None
    prices: tuple[tuple[str, str, str, str, str, str], ...]
    sensitivity: tuple[str, ...]
    side_effects: tuple[tuple[str, Contrast], ...]


def fights(source: Source) -> list[Fight]:
    """One per model, in the verdict's order."""
    verdict = source.verdict
    out = []
    for m in verdict.models:
        members = _members(verdict, m.model)
        costs = [c for c in verdict.costs if (c.model, c.decoding) == (m.model, verdict.question.decoding)]
        brittle = next((b for b in verdict.brittleness if b.model == m.model), None)
        out.append(
            Fight(
                m.model,
                forest(_groups(verdict, members), verdict.question.smallest_effect),
                pareto([s for c in costs if (s := _spot(c, verdict.question.claim)) is not None]),
                m.best,
                m.chosen,
                tuple(_detectable(c) for c in members),
                forest(_stress(brittle)) if brittle else Markup(""),
                _doses(source, m.model),
                brittle if brittle and brittle.of else None,
                tuple(_price(c) for c in costs if any(p.flops for p in c.per_success)),
                tuple(dict.fromkeys(c.sensitivity for c in costs if c.sensitivity)),
                tuple(_side_effects(verdict, m.model)),
            )
        )
    return out


def _members(verdict: Verdict, model: str) -> list[Contrast]:
    """The claim against every other arm on the primary measure, in the deciding mode."""
    q = verdict.question
    return [
        c
        for c in verdict.contrasts
        if (c.model, c.arm, c.measure, c.decoding) == (model, q.claim, q.primary, q.decoding)
        and dict(c.where) == dict(q.where)
    ]


def _groups(verdict: Verdict, members: Sequence[Contrast]) -> list[Group]:
    q = verdict.question
    seen: set[str] = set()
    wanted = (
        ("against the unedited model", [c for c in members if c.against == BASELINE]),
        ("against baselines", [c for c in members if c.against in q.rivals]),
        ("against controls", [c for c in members if kind_of(c.against) == "control"]),
        ("against the others", list(members)),
    )
    out = []
    for title, found in wanted:
        own = [c for c in found if c.against not in seen]
        seen |= {c.against for c in own}
        out.append(Group(title, tuple(_bar(c) for c in own)))
    return out


def _side_effects(verdict: Verdict, model: str) -> list[tuple[str, Contrast]]:
    """What the claim changes elsewhere, against none: the counterparts of the main slice, and neutral text."""
    q, found = verdict.question, []
    for c in verdict.contrasts:
        if (c.model, c.decoding, c.arm, c.against) != (model, q.decoding, q.claim, BASELINE):
            continue
        elsewhere = {k: v for k, v in c.where.items() if q.where.get(k) != v}
        if c.measure == q.primary and elsewhere:
            found.append((", ".join(f"{k} {v}" for k, v in elsewhere.items()), c))
        elif c.measure.startswith(NEUTRAL):
            found.append((c.measure.replace("_", " "), c))
    return found


def _bar(c: Contrast) -> Bar:
    low, high = (c.difference.interval.low, c.difference.interval.high) if c.difference.interval else (None, None)
    same = " ≈" if c.p_equivalent is not None and c.p_equivalent <= 0.05 else ""
    return Bar(f"{c.against}", c.difference.estimate, low, high, same)


def _detectable(c: Contrast) -> tuple[str, float | None, float | None, int, float | None]:
    d = c.difference
    return c.against, d.mde, d.effective_n, d.clusters, c.p_equivalent


def _stress(found: Brittleness) -> list[Group]:
    factors = dict.fromkeys(cell.factor for cell in found.cells)
    unchanged = found.effect
    first = Bar("the claim itself", unchanged.estimate, *_ends(unchanged.interval))
    groups = [Group("unchanged", (first,))] if found.of else []
    for factor in factors:
        cells = [cell for cell in found.cells if cell.factor == factor]
        bars = tuple(
            Bar(cell.variant.replace("_", " "), cell.difference.estimate, *_ends(cell.difference.interval),
                "" if cell.kept or cell.kept is None else "sign lost")
            for cell in cells
        )  # fmt: skip
        groups.append(Group(factor, bars))
    return groups


def _ends(interval: object) -> tuple[float | None, float | None]:
    return (getattr(interval, "low", None), getattr(interval, "high", None))


def _doses(source: Source, model: str) -> Markup:
    """Success over the dose of the claim's edit: 0 is none, 1 the claim; from the stress arms' Records."""
    q = source.verdict.question
    own: dict[str, list[Record]] = {}
    for r in source.records:
        if (r.model, r.decoding) == (model, q.decoding) and within(r, q.where):
            own.setdefault(r.arm, []).append(r)
    arms = {f"stress.{name}": dose for name, dose in DOSES.items() if f"stress.{name}" in own}
    if not arms:
        return Markup("")
    items = {r.item for arm in arms for r in own[arm]}
    places = {BASELINE: 0.0, q.claim: 1.0, **arms}
    spots = []
    for arm, dose in sorted(places.items(), key=lambda pair: pair[1]):
        rate = measured.rate([r for r in own.get(arm, []) if r.item in items], q.primary)
        if rate.value is not None:
            spots.append(Point(dose, rate.value, rate.lo, rate.hi))
    return curves([Line(q.primary, tuple(spots))], "dose of the claim’s edit (1: as fitted)", height=240)


def _spot(c: ArmCost, claim: str) -> Spot | None:
    if c.success is None or c.flops_per_item is None:
        return None
    low, high = (c.interval.low, c.interval.high) if c.interval else (None, None)
    kind = "claim" if c.arm == claim else kind_of(c.arm)
    return Spot(c.arm, c.flops_per_item, c.success, low, high, c.front, kind)


def _price(c: ArmCost) -> tuple[str, str, str, str, str, str]:
    """(arm, strict FLOPs, strict against the reference, loose FLOPs, loose against the reference, strict dollars)."""
    by_name = {p.measure: p for p in c.per_success}
    strict, loose = by_name.get("strict"), by_name.get("loose")
    usd = MISSING if strict is None or strict.usd is None else f"{strict.usd:.2g}"
    return (
        c.arm,
        ratio(strict.flops if strict else None),
        ratio(strict.to_reference if strict else None, plain=True),
        ratio(loose.flops if loose else None),
        ratio(loose.to_reference if loose else None, plain=True),
        usd,
    )


def ratio(found: Ratio | None, *, plain: bool = False) -> str:
    """A ratio with its interval as text; no upper end is said."""
    if found is None:
        return MISSING

    def said(x: float) -> str:
        return f"{x:.2g}" if plain else quantity(x)

    high = "no upper bound" if found.high is None else said(found.high)
    return f"{said(found.value)} ({said(found.low)} – {high})"


def counted(verdict: Verdict) -> str:
    """The rubric in one line: how many rows of each kind."""
    order = ("PASS", "HUMAN", "NOT MEASURED", "FAIL")
    counts = {name: sum(row.result == name for row in verdict.rubric) for name in order}
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n)


__all__ = ["Fight", "counted", "fights", "points", "ratio"]
