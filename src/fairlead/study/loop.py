"""The trial loop: fit, save, open, run the test items chunk by chunk, record, and mark complete last.

Interrupted at any moment and run again, a study leaves the same Records but for seconds: a trial keeps its
saved Fitted and its finished chunks, a chunk that was cut short is run again whole, and only what is
missing is appended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairlead.core import evaluations, plugins
from fairlead.core.errors import BrowserError, BudgetExceeded, LoadError, NotApplicable, PlanError, RecordError
from fairlead.core.keys import derive_seed, source_hash
from fairlead.core.ledger import Allowance, CapIgnored, Meter, dictionary_share
from fairlead.core.lock import Lock, code, packages
from fairlead.core.lock import check as check_lock
from fairlead.core.plan import REFERENCE, Facts, Plan, check_plan
from fairlead.core.protocols import FitContext, Fitted, Task
from fairlead.core.records import COMPLETE, FAILED, FINAL, NOT_APPLICABLE, OVER_BUDGET, Run, Store, check_unchanged
from fairlead.core.types import Cost, Decision, Episode, Item, Record, Trial
from fairlead.study import memory
from fairlead.study.arms import Arm, build, in_order
from fairlead.study.items import choose
from fairlead.study.play import Played, play, rollout
from fairlead.study.subjects import Subjects

LoadModel = Callable[[str], Any]
LoadDictionary = Callable[[str], Any]


@dataclass(frozen=True)
class Progress:
    """Where a study stands. `phase` is fit, run, done, failed, over_budget or not_applicable."""

    trial: Trial
    index: int
    trials: int
    phase: str
    done: int = 0
    total: int = 0
    message: str = ""


def run_study(
    plan: Plan,
    run_dir: str | Path,
    *,
    load_model: LoadModel,
    load_dictionary: LoadDictionary | None = None,
    progress: Callable[[Progress], None] | None = None,
    limit: int | None = None,
    text: str = "",
    adopt: Sequence[str | Path] = (),
    lock: Lock | None = None,
    why: str = "no lock was asked for",
    one_at_a_time: bool = False,
) -> Run:
    """Run what is missing of `plan` in `run_dir`, and return the Run.

    `load_model` and `load_dictionary` turn references into objects; study knows neither. `limit` lowers n
    (another plan, with another hash). `text` is the TOML as given, kept beside the Records. Complete trials
    with the same key are copied from the runs in `adopt`. Records are made under `lock`, which the study must match
    (LockError); without one they are exploratory, and `why` is noted. Raises before anything is written when a name,
    the weights or the dictionary are wrong, or when Records of another plan are there (PlanChanged). With
    `one_at_a_time` models are in memory one after another, and each is loaded twice.
    """
    plan = plan.limited(limit)
    check_unchanged(Path(run_dir), plan)
    check_plan(plan)
    study = _Study.prepare(plan, load_model, load_dictionary, progress or (lambda _: None), one_at_a_time)
    if lock is not None:
        check_lock(lock, plan, study.known)
    study.lock = None if lock is None else lock.hash
    with Store(run_dir) as store:
        store.begin(plan, study.trials, text=text, facts=study.known)
        if any(store.status(trial.key).get("status") not in FINAL for trial in study.trials):
            store.session({"lock": study.lock, "why": "" if lock else why, "code": code(), "packages": packages()})
        for other in adopt:
            for trial in study.trials:
                store.adopt(Path(other), trial.key)
        asyncio.run(study.run(store))
    return Run.open(run_dir)


def study_facts(
    plan: Plan, *, load_model: LoadModel, load_dictionary: LoadDictionary | None = None
) -> tuple[Facts, tuple[Trial, ...]]:
    """What a lock needs to know of a study: its facts, and its trials. Loads the models; runs nothing."""
    check_plan(plan)
    study = _Study.prepare(plan, load_model, load_dictionary, lambda _: None, one_at_a_time=True)
    return study.known, study.trials


@dataclass
class _Study:
    """What one call of `run_study` holds in memory."""

    plan: Plan
    tasks: dict[str, Task[Any]]
    arms: dict[str, Arm]
    subjects: Subjects
    dictionaries: dict[str, Any]
    progress: Callable[[Progress], None]
    trials: tuple[Trial, ...] = ()
    opened: set[str] = field(default_factory=set)
    known: Facts = field(default_factory=Facts)
    lock: str | None = None

    @classmethod
    def prepare(
        cls,
        plan: Plan,
        load_model: LoadModel,
        load_dictionary: LoadDictionary | None,
        progress: Callable[[Progress], None],
        one_at_a_time: bool = False,
    ) -> _Study:
        make = plugins.get("tasks", plan.task)
        tasks = {mode: make(plan.options_for_task(mode)) for mode in plan.decoding}
        names = [*plan.run_arms, *([REFERENCE] if plan.reference else [])]
        arms = {name: build(plan, name) for name in names}
        refs = (*plan.models, *filter(None, [plan.reference]))
        subjects = Subjects(load_model, refs, one_at_a_time=one_at_a_time)
        dictionaries: dict[str, Any] = {}
        if any(arm.uses_dictionary for arm in arms.values()):
            for model, ref in zip(plan.models, plan.dictionaries, strict=True):
                if ref is not None and load_dictionary is not None:
                    dictionaries[ref] = load_dictionary(ref)
                    _check_width(ref, dictionaries[ref], model, subjects.known[model].d_model)
        study = cls(plan, tasks, arms, subjects, dictionaries, progress)
        study.known = study.facts(make)
        study.trials = plan.trials(study.known)
        for split, wanted in (("train", plan.n_train), ("validation", plan.n_validation), ("test", plan.n)):
            study.items(plan.decoding[0], split, wanted)
        return study

    def facts(self, make_task: Any) -> Facts:
        """The content that keys hash: manifests, fingerprints, sources."""
        task = self.tasks[self.plan.decoding[0]]
        shared = {str(make_task.__module__), *(known.module for known in self.subjects.known.values())}
        theirs = {type(d).__module__ for d in self.dictionaries.values()}
        return Facts(
            manifests={split: task.manifest(split) for split in ("train", "validation", "test")},
            weights={ref: known.fingerprint for ref, known in self.subjects.known.items()},
            dictionaries={ref: d.fingerprint for ref, d in self.dictionaries.items()},
            sources={
                name: source_hash([*arm.modules, *shared, *(theirs if arm.uses_dictionary else ())])
                for name, arm in self.arms.items()
            },
            siblings={n: tuple(s for s in a.siblings if s in self.arms) for n, a in self.arms.items()},
            without_dictionary=frozenset(name for name, arm in self.arms.items() if not arm.uses_dictionary),
        )

    def test_items(self, trial: Trial) -> list[Item]:
        """What a trial is run on: all test items of the plan, or of fewer clusters by `[n_arms]`."""
        return self.items(trial.decoding, "test", self.plan.n_of(trial.arm))

    def items(self, decoding: str, split: str, wanted: int) -> list[Item]:
        strata = self.plan.n_strata if split == "test" else {}
        return choose(self.tasks[decoding].items(split), wanted, strata, f"task {self.plan.task!r}, split {split}")

    async def run(self, store: Store) -> None:
        order = in_order(self.arms)
        trials = sorted(
            self.trials, key=lambda t: (self._model_rank(t), order.index(t.arm) if t.arm in order else len(order))
        )
        for trial in trials:  # what does not apply by the plan is said first: other arms may ask for its fit
            if trial.arm in self.plan.not_applicable and store.status(trial.key).get("status") != NOT_APPLICABLE:
                store.finish(trial.key, NOT_APPLICABLE, planned=0, reason=self.plan.not_applicable[trial.arm])
        try:
            for index, trial in enumerate(trials):
                status = store.status(trial.key).get("status")
                if status not in FINAL:
                    await _OneTrial(self, store, trial, index, len(trials)).run()
        finally:
            for mode in sorted(self.opened):
                if hasattr(self.tasks[mode], "aclose"):
                    await self.tasks[mode].aclose()  # type: ignore[attr-defined]

    def _model_rank(self, trial: Trial) -> int:
        return len(self.plan.models) if trial.arm == REFERENCE else self.plan.models.index(trial.model)

    async def task(self, decoding: str) -> Task[Any]:
        """The task for a decoding mode, opened when first needed (a browser starts here)."""
        task = self.tasks[decoding]
        if decoding not in self.opened:
            self.opened.add(decoding)
            if hasattr(task, "open"):
                await task.open()
        return task

    def chunk(self, task: Task[Any]) -> int:
        """Items in lockstep: the plan's chunk, or fewer when the task has fewer lanes (browser contexts)."""
        lanes = getattr(task, "lanes", None)
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


@dataclass
class _OneTrial:
    study: _Study
    store: Store
    trial: Trial
    index: int
    trials: int
    allowance: Allowance | None = None

    def say(self, phase: str, done: int = 0, total: int = 0, message: str = "") -> None:
        self.study.progress(Progress(self.trial, self.index, self.trials, phase, done, total, message))

    async def run(self) -> None:
        trial = self.trial
        items = self.study.test_items(trial)
        await self.study.task(trial.decoding)  # a browser that does not start ends the study, not one arm
        try:
            path = await self.fitted_path()
            fitted = self.study.arms[trial.arm].load(path)
        except RecordError:
            raise
        except NotApplicable as reason:
            return self.end(NOT_APPLICABLE, len(items), str(reason))
        except (BudgetExceeded, CapIgnored) as error:
            return self.end(OVER_BUDGET, len(items), f"stopped: {error.args[0]}")
        except Exception as error:
            return self.end(FAILED, len(items), f"fit: {type(error).__name__}: {error}")
        await self.record(fitted, items)
        self.write_ledger()
        times = evaluations.count(trial.key, self.study.lock, self.store.records_hash(trial.key))
        self.store.finish(trial.key, COMPLETE, planned=len(items), evaluations=times)
        self.say("done", len(items), len(items))

    def end(self, status: str, planned: int, reason: str) -> None:
        """An arm that is not run: does not apply, crashed, or was stopped. What its fit spent is kept."""
        if self.allowance is not None and status != NOT_APPLICABLE:
            self.write_ledger({"spent": asdict(self.allowance.total()), "over_budget": self.allowance.over})
        self.store.finish(self.trial.key, status, planned=planned, reason=reason)
        self.say(status, message=reason)

    async def fitted_path(self) -> Path:
        """The saved Fitted, fitted now if it is not there. One fit serves all decoding modes."""
        path = self.store.fitted_dir(self.trial.key)
        if path is not None:
            return path
        owner = self.study.same(self.trial)
        if owner.key == self.trial.key:
            return await self.fit()
        if self.store.fitted_dir(owner.key) is None:
            marker = self.store.status(owner.key)
            why = f"no fit under {owner.decoding} decoding, which all decoding modes share"
            raise (NotApplicable if marker.get("status") == NOT_APPLICABLE else PlanError)(
                why, got=str(marker.get("reason", ""))
            )
        return self.store.share_fitted(owner.key, self.trial.key)

    async def fit(self) -> Path:
        plan, trial, study = self.study.plan, self.trial, self.study
        self.say("fit")
        arm, task = study.arms[trial.arm], await study.task(trial.decoding)
        subject = study.subjects[trial.model]
        dictionary = study.dictionaries.get(trial.dictionary or "")
        meter: Meter = subject.meter
        share = dictionary_share(dictionary, plan.amortise)
        if share is None and plan.dictionary_flops_high is not None:
            share = plan.amortise * plan.dictionary_flops_high  # unknown: the cap reckons with the most it may be
        allowance = Allowance(plan.budget, meter.snapshot, arm=trial.arm, share=share)
        self.allowance, clock = allowance, time.perf_counter()
        measured = memory.begin()

        async def roll(world: Any, items: Sequence[Item]) -> list[Episode]:
            allowance.check()
            return await rollout(task, items, world, study.chunk(task))

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
            sibling=self.sibling,
        )
        meter.guard = allowance.guard
        try:
            fitted = await arm.fit(context)
        finally:
            meter.guard = None
            allowance.seconds = time.perf_counter() - clock
            allowance.peak = memory.peak() if measured else None
        spent = asdict(allowance.total())
        cost = {"spent": spent, "over_budget": allowance.over, "fingerprint": fitted.fingerprint}
        return self.store.save_fitted(trial.key, fitted.save, fitted.describe(), cost)

    def sibling(self, name: str) -> Fitted[Any]:
        """Another arm's Fitted on the same model and seed, loaded from disk."""
        owner = self.study.same(self.trial, arm=name)
        path = self.store.fitted_dir(owner.key)
        if path is None:
            marker = self.store.status(owner.key)
            reason = str(marker.get("reason") or "it has not been fitted yet; declare it in the method's `siblings`")
            raise (NotApplicable if marker.get("status") == NOT_APPLICABLE else PlanError)(
                f"arm {self.trial.arm!r} needs the fit of {name!r}, which is not there", got=reason
            )
        return self.study.arms[name].load(path)

    async def record(self, fitted: Fitted[Any], items: Sequence[Item]) -> None:
        """Run the chunks that are not whole on disk; append what is missing of them."""
        study, trial = self.study, self.trial
        task, subject = await study.task(trial.decoding), study.subjects[trial.model]
        meter, size = subject.meter, study.chunk(task)
        have = {record.item for record in self.store.records(trial.key)}
        kept = _first_clusters(items, study.plan.traces)
        with fitted.open(subject) as world:
            for start in range(0, len(items), size):
                chunk = items[start : start + size]
                missing = [item.id for item in chunk if item.id not in have]
                if missing:
                    played = await play(task, chunk, world, meter)
                    _stop_without_browser(played)
                    self.store.append([self.to_record(p, kept) for p in played if p.item.id in missing])
                self.say("run", min(start + size, len(items)), len(items))

    def to_record(self, played: Played, kept: frozenset[str]) -> Record:
        trial, item, outcome = self.trial, played.item, played.outcome
        trace = None
        if outcome is not None and (outcome.trace or outcome.decisions) and item.cluster in kept:
            trace = self.store.save_trace(
                {
                    "item": item.id,
                    "arm": trial.arm,
                    "model": trial.model,
                    "decoding": trial.decoding,
                    "seed": trial.seed,
                    "steps": _steps(outcome.trace, outcome.decisions),
                    "final": dict(outcome.data),
                }
            )
        return Record(
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
            trace=trace,
            lock=self.study.lock,
        )

    def write_ledger(self, unfinished: Mapping[str, Any] | None = None) -> None:
        """What the trial cost, from what is on disk, so that an interruption changes nothing. `unfinished` is what a
        fit cost that came to no end."""
        trial, study = self.trial, self.study
        records = self.store.records(trial.key)
        fit, owner = unfinished or self.store.fit_cost(trial.key), study.same(trial)
        dictionary = study.dictionaries.get(trial.dictionary or "")
        share = dictionary_share(dictionary, study.plan.amortise)
        self.store.write_ledger(
            trial.key,
            {
                "arm": trial.arm,
                "model": trial.model,
                "decoding": trial.decoding,
                "seed": trial.seed,
                "fit": fit.get("spent"),
                "fit_shared_from": None if owner.key == trial.key else owner.key,
                "over_budget": fit.get("over_budget"),
                "run": asdict(sum((record.cost for record in records), Cost())),
                "dictionary": None if dictionary is None else {"ref": trial.dictionary, "share_flops": share},
                "budget": asdict(study.plan.budget),
                "items": len(records),
                "errors": sum(record.error is not None for record in records),
            },
        )


def _stop_without_browser(played: Sequence[Played]) -> None:
    """When the browser is gone for a whole chunk, stop: that says nothing about an arm, and running the study
    again goes on from here."""
    causes = [p.cause for p in played]
    if len(causes) > 1 and all(isinstance(cause, BrowserError) for cause in causes):
        assert causes[0] is not None
        raise causes[0]


def _check_width(ref: str, dictionary: Any, model: str, needed: int | None) -> None:
    width = getattr(dictionary, "d_in", None)
    if width is not None and needed is not None and width != needed:
        raise LoadError(
            f"dictionary {ref} does not fit model {model}",
            expected=f"d_in = {needed}",
            got=f"d_in = {width}",
            do="name a dictionary that was trained on this model's activations",
        )


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
