"""How much of the claim survives when one factor at a time is changed, and how many of the concepts that were
registered have a usable feature. Stress arms (`stress.dose_2`, `stress.paraphrase_1` ...) are fitted from the claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairlead.core.records import NOT_APPLICABLE, Run
from fairlead.judge.question import BASELINE, Question
from fairlead.judge.stats import Difference, Interval, Ints, wilson
from fairlead.judge.tables import Cells, compare

KEPT = 0.8  # share of cells in which the sign must be kept
FACTORS: Mapping[str, tuple[str, int]] = {
    "seeds": ("seed", 3),
    "paraphrases": ("paraphrase", 5),
    "dose": ("dose", 4),
    "layer": ("layer", 4),
    "positions": ("scope", 2),
    "dictionary": ("dictionary", 1),
}


@dataclass(frozen=True)
class StressCell:
    """The claim's effect (arm − none) with one factor changed. `kept`: it has the sign of the unchanged effect
    on the same items; None where there was nothing to compare."""

    factor: str
    variant: str
    difference: Difference
    kept: bool | None


@dataclass(frozen=True)
class Brittleness:
    """All cells of one model in the deciding mode. `missing` names factors with too few cells and no reason;
    `worst` the cell with the smallest effect. `held` needs the sign kept in 80 % of cells."""

    model: str
    effect: Difference
    cells: tuple[StressCell, ...]
    kept: int
    of: int
    worst: str | None
    missing: tuple[str, ...]
    excused: tuple[str, ...]

    @property
    def held(self) -> bool:
        return self.of > 0 and self.kept >= KEPT * self.of


@dataclass(frozen=True)
class Concept:
    """One registered concept: the claim's effect on its items. Usable: its interval lies above 0."""

    value: str
    difference: Difference
    usable: bool


@dataclass(frozen=True)
class Coverage:
    """Concepts with a usable feature, of all that were registered before the search, over all models."""

    stratum: str
    registered: tuple[str, ...]
    concepts: tuple[tuple[str, Concept], ...]
    usable: int
    attempted: int
    interval: Interval | None
    missing: tuple[str, ...]


def brittleness(run: Run, cells: Cells, question: Question) -> tuple[Brittleness, ...]:
    """One per model, in the deciding mode; empty where the claim or none has no Records."""
    found = []
    for (model, decoding), arms in cells.groups.items():
        if decoding != question.decoding or question.claim not in arms or BASELINE not in arms:
            continue
        claim = cells.get(model, decoding, question.claim, question.where)
        none = cells.get(model, decoding, BASELINE, question.where)
        tested = [*_seeds(cells, claim, none, question)]
        for arm, own in cells.stress.get((model, decoding), {}).items():
            variant = arm.partition(".")[2]
            rows = cells.columns.within(own, question.where)
            effect = compare(cells, rows, none, question.primary)
            tested.append(_cell(_factor(variant), variant, effect, compare(cells, _same(cells, claim, rows), none,
                                                                           question.primary)))  # fmt: skip
        found.append(_model(model, compare(cells, claim, none, question.primary), tested, _excused(run)))
    return tuple(found)


def _factor(variant: str) -> str:
    return next((name for name, (prefix, _) in FACTORS.items() if variant.startswith(prefix)), "other")


def _same(cells: Cells, claim: Ints, rows: Ints) -> Ints:
    """The claim's rows on the items that a stress arm was run on."""
    return claim[np.isin(cells.columns.item[claim], cells.columns.item[rows])]


def _seeds(cells: Cells, claim: Ints, none: Ints, question: Question) -> list[StressCell]:
    seeds = np.unique(cells.columns.seed[claim])
    if len(seeds) < 2:
        return []
    whole = compare(cells, claim, none, question.primary)
    return [
        _cell("seeds", f"seed {i}", compare(cells, claim[cells.columns.seed[claim] == seed],
                                            none[cells.columns.seed[none] == seed], question.primary), whole)
        for i, seed in enumerate(seeds)
    ]  # fmt: skip


def _cell(factor: str, variant: str, effect: Difference, unchanged: Difference) -> StressCell:
    kept = None
    if effect.estimate is not None and unchanged.estimate is not None:
        kept = effect.estimate * unchanged.estimate > 0
    return StressCell(factor, variant, effect, kept)


def _model(model: str, effect: Difference, tested: list[StressCell], excused: Mapping[str, str]) -> Brittleness:
    measured = [c for c in tested if c.kept is not None and c.difference.estimate is not None]
    worst = min(measured, key=lambda c: c.difference.estimate or 0.0, default=None)
    missing, waived = [], []
    for name, (prefix, wanted) in FACTORS.items():
        have = sum(c.factor == name for c in measured)
        reasons = {reason for variant, reason in excused.items() if variant.startswith(prefix)}
        if have < wanted and reasons:
            waived.append(f"{name}: {'; '.join(sorted(reasons))}")
        elif have < wanted:
            missing.append(f"{name} ({have} of {wanted})")
    return Brittleness(
        model,
        effect,
        tuple(tested),
        sum(bool(c.kept) for c in measured),
        len(measured),
        None if worst is None else worst.variant,
        tuple(missing),
        tuple(waived),
    )


def _excused(run: Run) -> dict[str, str]:
    """Stress variants that do not apply, with the reason: from the plan, or from the trial itself."""
    stated = dict(run.plan.not_applicable) if run.plan is not None else {}
    stated |= {s.trial.arm: s.reason for s in run.trials if s.status == NOT_APPLICABLE}
    return {
        arm.partition(".")[2]: why.partition("\n")[0] for arm, why in stated.items() if arm.startswith("stress.")
    }


def coverage(run: Run, cells: Cells, question: Question) -> Coverage | None:
    """Registered concepts against those with an effect above 0. None where none were registered."""
    table = registered(run)
    if table is None:
        return None
    stratum, values = table
    concepts: list[tuple[str, Concept]] = []
    missing = []
    for (model, decoding), arms in cells.groups.items():
        if decoding != question.decoding or question.claim not in arms:
            continue
        for value in values:
            where = {**question.where, stratum: value}
            effect = compare(cells, cells.get(model, decoding, question.claim, where),
                             cells.get(model, decoding, BASELINE, where), question.primary)  # fmt: skip
            if effect.estimate is None:
                missing.append(value)
            usable = effect.interval is not None and effect.interval.low > 0
            concepts.append((model, Concept(value, effect, usable)))
    won = sum(c.usable for _, c in concepts)
    return Coverage(stratum, values, tuple(concepts), won, len(concepts), wilson(won, len(concepts)),
                    tuple(dict.fromkeys(missing)))  # fmt: skip


def registered(run: Run) -> tuple[str, tuple[str, ...]] | None:
    """The concepts of `[protocol] concepts = {stratum, values}`; None where the plan has none."""
    protocol: Mapping[str, Any] = run.plan.protocol if run.plan is not None else {}
    stated = protocol.get("concepts")
    if not isinstance(stated, Mapping) or not stated.get("stratum"):
        return None
    values = stated.get("values")
    if not isinstance(values, list | tuple) or not values:
        return None
    return str(stated["stratum"]), tuple(str(v) for v in values)
