"""The half of a study that writes: what a trial still needs, step by step, each answer on disk before the next step.

The journal is the source of truth. Whatever dies, and wherever, the steps of a trial are drawn up again from what is
on disk: a trial keeps its saved fit and its finished chunks, a chunk that was cut short is run again whole, and only
what is missing is appended.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fairlead.core import evaluations
from fairlead.core.errors import FairleadError
from fairlead.core.ledger import dictionary_share
from fairlead.core.records import COMPLETE, FAILED, FINAL, NOT_APPLICABLE, Store
from fairlead.core.types import Cost, Trial
from fairlead.study.arms import in_order
from fairlead.study.steps import Absent, Answer, Ended, Fit, Fitted, Play, Step
from fairlead.study.studied import Study


@dataclass(frozen=True)
class Progress:
    """Where a study stands. `phase` is fit, run, done, failed, over_budget, not_applicable, or given_up where its
    workers died on it. `index` trials were settled before this one."""

    trial: Trial
    index: int
    trials: int
    phase: str
    done: int = 0
    total: int = 0
    message: str = ""


@dataclass
class Entry:
    """One trial in the journal. `place` says how many trials were settled before it."""

    study: Study
    store: Store
    trial: Trial
    place: Callable[[], int]
    progress: Callable[[Progress], None]

    def say(self, phase: str, done: int = 0, total: int = 0, message: str = "") -> None:
        """Tell whoever watches."""
        self.progress(Progress(self.trial, self.place(), len(self.study.trials), phase, done, total, message))

    @property
    def settled(self) -> bool:
        """Nothing is left to do for it; a fit that failed is tried again by the next run."""
        return self.store.status(self.trial.key).get("status") in FINAL

    def steps(self) -> Generator[Step, Answer, None]:
        """What a worker has to do for this trial. Each answer is recorded before the next step is given; the
        completion marker comes last."""
        trial, study = self.trial, self.study
        items, size = study.test_items(trial), study.chunk(trial.decoding)
        path = self.store.fitted_dir(trial.key)
        if path is None and (owner := study.same(trial)).key != trial.key:
            shared = self._shared(owner)
            if isinstance(shared, Ended):
                return self.end(shared)
            path = shared
        if path is None:
            self.say("fit")
            fitted = yield Fit(trial, self._siblings())
            if isinstance(fitted, Ended):
                return self.end(fitted)
            assert isinstance(fitted, Fitted)
            path = self.store.save_fitted(trial.key, fitted.save, fitted.describe, fitted.cost)
        have = {record.item for record in self.store.records(trial.key)}
        for start in range(0, len(items), size):
            missing = frozenset(item.id for item in items[start : start + size]) - have
            if missing:
                played = yield Play(trial, path, start, missing)
                if isinstance(played, Ended):
                    return self.end(played)
                assert isinstance(played, tuple)
                self.store.append(
                    [p.record if p.trace is None else replace(p.record, trace=self.store.save_trace(p.trace))
                     for p in played]
                )  # fmt: skip
            self.say("run", min(start + size, len(items)), len(items))
        self._write_ledger()
        times = evaluations.count(trial.key, study.lock, self.store.records_hash(trial.key))
        self.store.finish(trial.key, COMPLETE, planned=len(items), evaluations=times)
        self.say("done", len(items), len(items))

    def end(self, ended: Ended) -> None:
        """An arm that is not run: does not apply, crashed, or was stopped. What its fit spent is kept."""
        if ended.unfinished is not None:
            self._write_ledger(ended.unfinished)
        planned = len(self.study.test_items(self.trial))
        self.store.finish(self.trial.key, ended.status, planned=planned, reason=ended.reason)
        self.say(ended.status, message=ended.reason)

    def needs(self) -> list[Trial]:
        """The trials whose fit this one asks for, where neither its own nor theirs is there yet."""
        owner = self.study.same(self.trial)
        if owner.key != self.trial.key:
            found = [owner]
        else:
            before = in_order(self.study.arms)
            names = before[: before.index(self.trial.arm)] if self.trial.arm in before else []
            asked = self.study.arms[self.trial.arm].siblings if names else ()
            found = [self.study.same(self.trial, arm=name) for name in names if name in asked]
        there = self.store.fitted_dir
        return [] if there(self.trial.key) else [trial for trial in found if there(trial.key) is None]

    def _shared(self, owner: Trial) -> Path | Ended:
        """One fit serves all decoding modes: a copy of the owner's, or why there is none."""
        if self.store.fitted_dir(owner.key) is not None:
            return self.store.share_fitted(owner.key, self.trial.key)
        absent = self._absent(owner)
        error: FairleadError = absent.error(f"no fit under {owner.decoding} decoding, which all decoding modes share")
        if absent.status == NOT_APPLICABLE:
            return Ended(NOT_APPLICABLE, str(error))
        return Ended(FAILED, f"fit: {type(error).__name__}: {error}")

    def _siblings(self) -> dict[str, Path | Absent]:
        """Where the fits of the other arms lie."""
        found: dict[str, Path | Absent] = {}
        for name in self.study.arms:
            if name != self.trial.arm and any(t.arm == name and t.model == self.trial.model for t in self.study.trials):
                owner = self.study.same(self.trial, arm=name)
                found[name] = self.store.fitted_dir(owner.key) or self._absent(owner)
        return found

    def _absent(self, owner: Trial) -> Absent:
        marker = self.store.status(owner.key)
        return Absent(str(marker.get("status", "")), str(marker.get("reason", "")))

    def _write_ledger(self, unfinished: Mapping[str, Any] | None = None) -> None:
        """What the trial cost, from what is on disk, so that an interruption changes nothing. `unfinished` is what a
        fit cost that came to no end."""
        trial, study = self.trial, self.study
        records = self.store.records(trial.key)
        fit, owner = unfinished or self.store.fit_cost(trial.key), study.same(trial)
        dictionary = study.dictionary(trial)
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
