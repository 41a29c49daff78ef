"""What is judged: the question as the plan registered it, and which arms it is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fairlead.core.plan import REFERENCE, Plan

BASELINE = "none"
NOTE_CONTROLS = frozenset(
    f"reformulate.{name}" for name in ("generic", "shuffled_label", "random_latent", "self", "pca", "kmeans")
)
Slice = Mapping[str, str]  # strata values that a record must have; empty is everything


@dataclass(frozen=True)
class Question:
    """Does `claim` beat each of `beat` and `baselines`, and each control, on `primary` within `where`, by at least
    `smallest_effect`? Decided in `decoding`, the constrained mode where there is one. `baselines` are those the
    plan names; the rubric asks about `rivals`, which are found by rule where it names none."""

    claim: str
    primary: str
    smallest_effect: float
    where: Slice = field(default_factory=dict)
    beat: tuple[str, ...] = (BASELINE,)
    controls: tuple[str, ...] = ()
    decoding: str = "constrained"
    baselines: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    power: float = 0.8

    @classmethod
    def of(cls, plan: Plan) -> Question:
        """The question as pre-registered. The family is `beat`, the named baselines and every control arm."""
        return cls(
            claim=plan.claim,
            primary=plan.primary,
            smallest_effect=plan.smallest_effect,
            where=dict(plan.where),
            beat=plan.beat,
            controls=tuple(arm for arm in plan.run_arms if is_control(arm) and arm != plan.claim),
            decoding="constrained" if "constrained" in plan.decoding else plan.decoding[0],
            baselines=tuple(arm for arm in plan.baselines if arm in plan.run_arms),
            rivals=plan.baseline_arms,
            power=plan.power,
        )

    @property
    def family(self) -> tuple[str, ...]:
        """The arms that the claim is tested against on each model: the stated family that Holm corrects over."""
        return tuple(dict.fromkeys((*self.beat, *self.baselines, *self.controls)))

    @property
    def must_reach(self) -> tuple[str, ...]:
        """The arms over which the smallest effect of interest must be reached."""
        return tuple(arm for arm in dict.fromkeys((*self.beat, *self.baselines)) if arm not in self.controls)


def is_control(arm: str) -> bool:
    """`control`, `control.random` ..., and the arms of `reformulate` that do all of it but the dictionary's part; not a
    chain that holds one."""
    return (arm.partition(".")[0] == "control" and "+" not in arm) or arm in NOTE_CONTROLS


def is_stress(arm: str) -> bool:
    """`stress.dose_2` ...: the claim under one changed factor. Judged for brittleness only."""
    return arm.partition(".")[0] == "stress"


def rivals(arms: Iterable[str], claim: str) -> tuple[str, ...]:
    """The arms that a claim must beat where nobody named them: all but none, the claim, chains with it, controls,
    stress arms and the reference model."""
    parts = frozenset(claim.split("+"))
    return tuple(
        arm
        for arm in dict.fromkeys(arms)
        if arm not in (BASELINE, REFERENCE, claim)
        and not parts <= frozenset(arm.split("+"))
        and not any(is_control(part) or is_stress(part) for part in arm.split("+"))
    )
