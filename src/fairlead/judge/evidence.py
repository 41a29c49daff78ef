"""What a row of the rubric may read, and what it may answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fairlead.core.plan import components
from fairlead.core.records import NOT_APPLICABLE, Run
from fairlead.judge.brittleness import Brittleness, Coverage
from fairlead.judge.costs import ArmCost
from fairlead.judge.fairness import Check
from fairlead.judge.question import Question, is_control, is_stress
from fairlead.judge.tables import Cells, Contrast

Answer = Literal["PASS", "FAIL", "HUMAN", "NOT MEASURED"]
PASS: Answer = "PASS"
FAIL: Answer = "FAIL"
HUMAN: Answer = "HUMAN"
NOT_MEASURED: Answer = "NOT MEASURED"


@dataclass(frozen=True)
class Finding:
    """A row's answer, why, and what it read."""

    result: Answer
    reason: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Everything that the rows read. Nothing here is computed by a row again."""

    run: Run
    cells: Cells
    question: Question
    status: str
    contrasts: tuple[Contrast, ...]
    checks: tuple[Check, ...]
    costs: tuple[ArmCost, ...]
    brittleness: tuple[Brittleness, ...]
    coverage: Coverage | None

    @property
    def protocol(self) -> Mapping[str, Any]:
        """The plan's `[protocol]`; empty without a plan."""
        return self.run.plan.protocol if self.run.plan is not None else {}

    @property
    def exploratory(self) -> bool:
        """True when a Record was made outside a lock."""
        return self.run.exploratory

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(model for model, _ in self.cells.groups))

    @property
    def measured_arms(self) -> tuple[str, ...]:
        """Arms with Records, stress arms left out."""
        return tuple(dict.fromkeys(arm for arms in self.cells.groups.values() for arm in arms))

    def excused(self) -> dict[str, str]:
        """Arms that do not apply, with the reason that the plan or the trial gives."""
        stated = dict(self.run.plan.not_applicable) if self.run.plan is not None else {}
        found = {s.trial.arm: s.reason for s in self.run.trials if s.status == NOT_APPLICABLE}
        return {arm: why.partition("\n")[0] for arm, why in {**found, **stated}.items()}

    def check(self, name: str) -> Check:
        """A fairness check by name."""
        return next(check for check in self.checks if check.name == name)

    def against(self, arm: str) -> tuple[Contrast, ...]:
        """The claim − `arm` on the primary measure within `where`, in the deciding mode: one a model."""
        q = self.question
        return tuple(
            c
            for c in self.contrasts
            if (c.arm, c.against, c.measure, c.decoding) == (q.claim, arm, q.primary, q.decoding)
            and dict(c.where) == dict(q.where)
        )

    def arms_of(self, *methods: str) -> tuple[str, ...]:
        """Measured arms, not controls and not with the claim in them, that one of these methods takes part in."""
        claim = self.question.claim
        return tuple(arm for arm in self.measured_arms if arm != claim and _is_of(arm, methods, claim))


def _is_of(arm: str, methods: tuple[str, ...], claim: str) -> bool:
    if is_control(arm) or is_stress(arm):
        return False
    return bool(names(arm) & set(methods)) and not set(claim.split("+")) <= set(arm.split("+"))


def names(arm: str) -> frozenset[str]:
    """The method names of an arm; an arm of foreign Records that is no arm here is its own name."""
    try:
        return frozenset(c.name for c in components(arm)) | {arm}
    except Exception:  # a foreign arm's name need not follow the grammar
        return frozenset({arm})


def shown(c: Contrast) -> str:
    """A contrast as one line of evidence."""
    d = c.difference
    if d.estimate is None or d.interval is None:
        return f"{c.arm} − {c.against} on {c.model}: not measured"
    return (
        f"{c.arm} − {c.against} on {c.model}: {100 * d.estimate:+.1f} points "
        f"[{100 * d.interval.low:+.1f}, {100 * d.interval.high:+.1f}]"
    )
