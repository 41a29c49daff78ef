"""A plan with its names resolved: tasks, arms, facts, trials, items. It holds no model, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fairlead.core import plugins
from fairlead.core.errors import PlanError
from fairlead.core.keys import source_hash
from fairlead.core.plan import REFERENCE, Facts, Plan
from fairlead.core.protocols import Task
from fairlead.core.types import Item, Trial
from fairlead.study.arms import Arm, build, in_order
from fairlead.study.items import choose
from fairlead.study.subjects import KnownDictionary, Survey

Look = Callable[[bool], Survey]  # told whether an arm uses a dictionary


@dataclass
class Study:
    """What a plan and a survey of its models determine."""

    plan: Plan
    tasks: dict[str, Task[Any]]
    arms: dict[str, Arm]
    survey: Survey
    known: Facts = field(default_factory=Facts)
    trials: tuple[Trial, ...] = ()
    lock: str | None = None

    @classmethod
    def of(cls, plan: Plan, look: Look) -> Study:
        """Resolve a plan's names, look at its models, and draw up its trials. PlanError, UnknownName, LoadError."""
        make = plugins.get("tasks", plan.task)
        tasks = {mode: make(plan.options_for_task(mode)) for mode in plan.decoding}
        names = [*plan.run_arms, *([REFERENCE] if plan.reference else [])]
        arms = {name: build(plan, name) for name in names}
        study = cls(plan, tasks, arms, look(any(arm.uses_dictionary for arm in arms.values())))
        study.known = study._facts(make)
        study.trials = plan.trials(study.known)
        for split, wanted in (("train", plan.n_train), ("validation", plan.n_validation), ("test", plan.n)):
            study.items(plan.decoding[0], split, wanted)
        return study

    def _facts(self, make_task: Any) -> Facts:
        """The content that keys hash: manifests, fingerprints, sources."""
        task, survey = self.tasks[self.plan.decoding[0]], self.survey
        shared = {str(make_task.__module__), *(known.module for known in survey.models.values())}
        theirs = {known.module for known in survey.dictionaries.values()}
        return Facts(
            manifests={split: task.manifest(split) for split in ("train", "validation", "test")},
            weights={ref: known.fingerprint for ref, known in survey.models.items()},
            dictionaries={ref: known.fingerprint for ref, known in survey.dictionaries.items()},
            sources={
                name: source_hash([*arm.modules, *shared, *(theirs if arm.uses_dictionary else ())])
                for name, arm in self.arms.items()
            },
            siblings={n: tuple(s for s in a.siblings if s in self.arms) for n, a in self.arms.items()},
            without_dictionary=frozenset(name for name, arm in self.arms.items() if not arm.uses_dictionary),
        )

    def dictionary(self, trial: Trial) -> KnownDictionary | None:
        """What is known of a trial's dictionary."""
        return self.survey.dictionaries.get(trial.dictionary or "")

    def test_items(self, trial: Trial) -> list[Item]:
        """What a trial is run on: all test items of the plan, or of fewer clusters by `[n_arms]`."""
        return self.items(trial.decoding, "test", self.plan.n_of(trial.arm))

    def items(self, decoding: str, split: str, wanted: int) -> list[Item]:
        """The items of the first `wanted` clusters of a split."""
        strata = self.plan.n_strata if split == "test" else {}
        return choose(self.tasks[decoding].items(split), wanted, strata, f"task {self.plan.task!r}, split {split}")

    def in_order(self) -> list[Trial]:
        """All trials, model by model, every arm after those whose fit it asks for."""
        order = in_order(self.arms)
        return sorted(
            self.trials, key=lambda t: (self._model_rank(t), order.index(t.arm) if t.arm in order else len(order))
        )

    def _model_rank(self, trial: Trial) -> int:
        return len(self.plan.models) if trial.arm == REFERENCE else self.plan.models.index(trial.model)

    def chunk(self, decoding: str) -> int:
        """Items in lockstep: the plan's chunk, or fewer when the task has fewer lanes (browser contexts)."""
        lanes = getattr(self.tasks[decoding], "lanes", None)
        return self.plan.chunk if lanes is None else max(1, min(self.plan.chunk, int(lanes)))

    def same(self, trial: Trial, *, arm: str | None = None) -> Trial:
        """The trial that owns the fit: the same coordinates in the first decoding mode, maybe of another arm."""
        arm = arm or trial.arm
        for other in self.trials:
            if (other.arm, other.model, other.seed) == (arm, trial.model, trial.seed):
                if other.decoding == self.plan.decoding[0]:
                    return other
        raise PlanError(
            f"arm {trial.arm!r} needs arm {arm!r}",
            expected=f"{arm} among the plan's arms",
            got=", ".join(self.plan.arms),
            do=f"add {arm!r} to arms",
        )
