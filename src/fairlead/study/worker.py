"""The half of a study that holds models: it fits arms and plays items, and never writes to a run directory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from fairlead.core.errors import BrowserError, BudgetExceeded, NotApplicable, RecordError
from fairlead.core.keys import derive_seed
from fairlead.core.ledger import Allowance, CapIgnored, Meter, dictionary_share
from fairlead.core.protocols import FitContext, Task
from fairlead.core.protocols import Fitted as FittedArm
from fairlead.core.records import FAILED, NOT_APPLICABLE, OVER_BUDGET
from fairlead.core.types import Decision, Episode, Item, Record, Trial
from fairlead.study import memory
from fairlead.study.play import Played, play, rollout
from fairlead.study.steps import Absent, Answer, Ended, Fit, Fitted, Play, Recorded, Step
from fairlead.study.studied import Study
from fairlead.study.subjects import Holdings


class Worker:
    """Takes one step after another. What a trial has opened on its model stays open until a step of another trial."""

    def __init__(self, study: Study, holdings: Holdings) -> None:
        self.study, self.holdings = study, holdings
        self._tasks: set[str] = set()
        self._world: Any = None
        self._of = ""  # the key of the trial whose world is open
        self._stack = ExitStack()

    async def do(self, step: Step) -> Answer:
        """Fit, or play a chunk. Errors that say something of the arm are answers; all others are raised: a browser
        that does not start ends the study, not one arm."""
        await self._task(step.trial.decoding)
        if isinstance(step, Fit):
            self._close()
            return await self._fit(step)
        if self._of != step.trial.key:
            self._close()
            try:
                fitted = self.study.arms[step.trial.arm].load(step.fitted)
            except Exception as error:
                return _ended(error)
            self._world = self._stack.enter_context(fitted.open(self.holdings.subjects[step.trial.model]))
            self._of = step.trial.key
        return await self._play(step)

    async def aclose(self) -> None:
        """Close what is open: the world of the last trial, and every task's browser."""
        self._close()
        for mode in sorted(self._tasks):
            task: Any = self.study.tasks[mode]
            if hasattr(task, "aclose"):
                await task.aclose()
        self._tasks.clear()

    def _close(self) -> None:
        self._stack.close()
        self._world, self._of = None, ""

    async def _task(self, decoding: str) -> Task[Any]:
        """The task for a decoding mode, opened when first needed (a browser starts here)."""
        task = self.study.tasks[decoding]
        if decoding not in self._tasks:
            self._tasks.add(decoding)
            if hasattr(task, "open"):
                await task.open()
        return task

    async def _fit(self, step: Fit) -> Fitted | Ended:
        trial, plan = step.trial, self.study.plan
        subject = self.holdings.subjects[trial.model]
        dictionary = self.holdings.dictionaries.get(trial.dictionary or "")
        meter: Meter = subject.meter
        share = dictionary_share(dictionary, plan.amortise)
        if share is None and plan.dictionary_flops_high is not None:
            share = plan.amortise * plan.dictionary_flops_high  # unknown: the cap reckons with the most it may be
        allowance = Allowance(plan.budget, meter.snapshot, arm=trial.arm, share=share)
        try:
            fitted = await self._fitted(step, subject, dictionary, allowance)
        except RecordError:
            raise
        except (Exception, CapIgnored) as error:
            return _ended(error, {"spent": asdict(allowance.total()), "over_budget": allowance.over})
        cost = {"spent": asdict(allowance.total()), "over_budget": allowance.over, "fingerprint": fitted.fingerprint}
        return Fitted(fitted.save, fitted.describe(), cost)

    async def _fitted(self, step: Fit, subject: Any, dictionary: Any, allowance: Allowance) -> FittedArm[Any]:
        study, trial, plan = self.study, step.trial, self.study.plan
        arm, task = study.arms[trial.arm], study.tasks[trial.decoding]

        async def roll(world: Any, items: Sequence[Item]) -> list[Episode]:
            allowance.check()
            return await rollout(task, items, world, study.chunk(trial.decoding))

        context = FitContext(
            subject=subject,
            dictionary=dictionary,
            train=study.items(trial.decoding, "train", plan.n_train),
            validation=study.items(trial.decoding, "validation", plan.n_validation),
            seed=derive_seed("fit", plan.task, trial.model, trial.arm, trial.seed),
            budget=allowance,
            rollout=roll,
            try_one=allowance.try_one,
            options=dict(arm.options[0]),
            sibling=lambda name: self._sibling(step, name),
        )
        clock, measured = time.perf_counter(), memory.begin()
        subject.meter.guard = allowance.guard
        try:
            return await arm.fit(context)
        finally:
            subject.meter.guard = None
            allowance.seconds = time.perf_counter() - clock
            allowance.peak = memory.peak() if measured else None

    def _sibling(self, step: Fit, name: str) -> FittedArm[Any]:
        """Another arm's Fitted on the same model and seed, loaded from disk."""
        self.study.same(step.trial, arm=name)  # PlanError when the plan has no such arm
        found = step.siblings.get(name, Absent("", ""))
        if isinstance(found, Absent):
            reason = found.reason or "it has not been fitted yet; declare it in the method's `siblings`"
            message = f"arm {step.trial.arm!r} needs the fit of {name!r}, which is not there"
            raise Absent(found.status, reason).error(message)
        return self.study.arms[name].load(found)

    async def _play(self, step: Play) -> tuple[Recorded, ...]:
        study, trial = self.study, step.trial
        items = study.test_items(trial)
        chunk = items[step.start : step.start + study.chunk(trial.decoding)]
        meter = self.holdings.subjects[trial.model].meter
        played = await play(study.tasks[trial.decoding], chunk, self._world, meter)
        _stop_without_browser(played)
        kept = _first_clusters(items, study.plan.traces)
        return tuple(self._recorded(trial, p, p.item.cluster in kept) for p in played if p.item.id in step.missing)

    def _recorded(self, trial: Trial, played: Played, keep: bool) -> Recorded:
        item, outcome = played.item, played.outcome
        trace = None
        if outcome is not None and (outcome.trace or outcome.decisions) and keep:
            trace = {
                "item": item.id,
                "arm": trial.arm,
                "model": trial.model,
                "decoding": trial.decoding,
                "seed": trial.seed,
                "steps": _steps(outcome.trace, outcome.decisions),
                "final": dict(outcome.data),
            }
        record = Record(
            trial=trial.key,
            arm=trial.arm,
            model=trial.model,
            decoding=trial.decoding,
            seed=trial.seed,
            item=item.id,
            cluster=item.cluster,
            split=item.split,
            strata=dict(item.strata),
            outcome=None if outcome is None else dict(outcome.data),
            score=None if played.score is None else dict(played.score.values),
            error=played.error,
            cost=played.cost,
            lock=self.study.lock,
        )
        return Recorded(record, trace)


def _ended(error: BaseException, unfinished: Mapping[str, Any] | None = None) -> Ended:
    """How a trial ends on an error of its fit, or of loading what was fitted. What was spent is kept."""
    if isinstance(error, RecordError):
        raise error
    if isinstance(error, NotApplicable):
        return Ended(NOT_APPLICABLE, str(error))
    if isinstance(error, (BudgetExceeded, CapIgnored)):
        return Ended(OVER_BUDGET, f"stopped: {error.args[0]}", unfinished)
    return Ended(FAILED, f"fit: {type(error).__name__}: {error}", unfinished)


def _stop_without_browser(played: Sequence[Played]) -> None:
    """When the browser is gone for a whole chunk, stop: that says nothing about an arm, and running the study
    again goes on from here."""
    causes = [p.cause for p in played]
    if len(causes) > 1 and all(isinstance(cause, BrowserError) for cause in causes):
        assert causes[0] is not None
        raise causes[0]


def _first_clusters(items: Sequence[Item], n: int | None) -> frozenset[str]:
    clusters = list(dict.fromkeys(item.cluster for item in items))
    return frozenset(clusters if n is None else clusters[:n])


def _steps(trace: Sequence[Any], decisions: Sequence[Decision]) -> list[Any]:
    """The task's own steps; what a decision holds fills in where the task left it out."""
    by_step: Mapping[int, Decision] = {d.step: d for d in decisions}
    steps = list(trace) or [{"i": d.step} for d in decisions]
    merged = []
    for i, step in enumerate(steps):
        if not isinstance(step, Mapping):
            merged.append(step)
            continue
        found, decision = dict(step), by_step.get(step.get("i", i))
        if decision is not None:
            system = [m.content for m in decision.messages if m.role == "system"]
            filled = {
                "legal": list(decision.legal),
                "logprobs": None if decision.logprobs is None else list(decision.logprobs),
                "action": decision.chosen,
                "edits": [asdict(e) for e in decision.edits],
                "right": list(decision.right),
                "trap": list(decision.trap),
                "system": system[0] if system else "",
            }
            found = {**filled, **found}
        merged.append(found)
    return merged
