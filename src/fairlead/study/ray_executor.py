"""Trials on Ray: one worker a device holds model and dictionary; this process alone reads and writes the journal.

What a worker is told and what it answers travels as bytes, so no disk need be shared. A worker that outlives whoever
asked has nothing to write to; two who would both write are kept apart by the run directory's lock (core.records).
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from fairlead.core.crew import Cluster, Crew, refuse_given_up
from fairlead.core.errors import RecordError, WorkerError
from fairlead.core.keys import derive_seed, source_hash
from fairlead.core.plan import Plan
from fairlead.core.records import Store
from fairlead.core.types import Trial
from fairlead.study.journal import Entry, Progress
from fairlead.study.steps import Absent, Answer, Fit, Fitted, Play, Step
from fairlead.study.studied import Study
from fairlead.study.subjects import Holdings, LoadDictionary, LoadModel, Survey
from fairlead.study.worker import Worker

Files = Mapping[str, bytes]
Warn = Callable[[str], None]
Outfit = Callable[[Warn], tuple[LoadModel, LoadDictionary | None]]


@dataclass(frozen=True)
class Hello:
    """What a worker says first: its models, the keys of its trials, the source it runs, and what it warns of."""

    survey: Survey
    keys: tuple[str, ...]
    source: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Sent:
    """A step on its way: the files of fits by trial key, where the worker does not have them yet."""

    step: Step
    lock: str | None
    files: Mapping[str, Files] = field(default_factory=dict)


class Away:
    """The worker on its machine: unpacks what it is sent into a folder of its own, works, and packs the answer."""

    def __init__(self, plan: Plan, outfit: Outfit) -> None:
        self._plan, self._outfit = plan, outfit

    def hello(self) -> Hello:
        """Load everything once. The outfit comes first: it may make plugins known."""
        warnings: list[str] = []
        loaders = self._outfit(warnings.append)

        def look(with_dictionaries: bool) -> Survey:
            self._holdings = Holdings.load(
                self._plan, *loaders, with_dictionaries=with_dictionaries, one_at_a_time=True
            )
            return self._holdings.survey

        study = Study.of(self._plan, look)
        self._worker = Worker(study, self._holdings)
        self._folder = Path(tempfile.mkdtemp(prefix="fairlead-worker-"))
        self._loop = asyncio.new_event_loop()
        keys = tuple(trial.key for trial in study.trials)
        return Hello(study.survey, keys, source_hash(["fairlead.study"]), tuple(warnings))

    def do(self, sent: Sent) -> Answer:
        """One step."""
        for key, files in sent.files.items():
            unpack(files, self._at(key))
        self._worker.study.lock = sent.lock
        answer = self._loop.run_until_complete(self._worker.do(self._placed(sent.step)))
        if isinstance(answer, Fitted):
            place = self._at(sent.step.trial.key)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            answer.save(place)
            answer = replace(answer, save=partial(unpack, pack(place)))
        return answer

    def close(self) -> None:
        """Close the browser, and leave nothing."""
        self._loop.run_until_complete(self._worker.aclose())
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _placed(self, step: Step) -> Step:
        """The step with this machine's paths in it; a sibling's stands for its trial by name."""
        if isinstance(step, Play):
            return replace(step, fitted=self._at(step.trial.key))
        return replace(
            step, siblings={n: at if isinstance(at, Absent) else self._at(at.name) for n, at in step.siblings.items()}
        )

    def _at(self, key: str) -> Path:
        return self._folder / key


@dataclass(frozen=True)
class _Job:
    """A trial as a job of the crew."""

    entry: Entry
    declared: tuple[str, ...]
    ended: Callable[[], None]

    @property
    def key(self) -> str:
        return self.entry.trial.key

    @property
    def name(self) -> str:
        trial = self.entry.trial
        return f"arm {trial.arm!r} on {trial.model}, {trial.decoding}, seed {trial.seed}"

    @property
    def likes(self) -> str:
        return self.entry.trial.model

    def waits(self, unsettled: frozenset[str]) -> bool:
        return any(trial.key in unsettled for trial in self.entry.needs())

    def steps(self) -> Generator[Sent, Answer, None]:
        """The trial's steps with the files that they need; what a worker was sent or has made is not sent again."""
        lock, steps, has = self.entry.study.lock, self.entry.steps(), False
        try:
            step = next(steps)
            while True:
                files: dict[str, Files] = {}
                if isinstance(step, Play) and not has:
                    files = {step.trial.key: pack(step.fitted)}
                elif isinstance(step, Fit):  # only the arms that it declares: the others' fits stay here
                    step = replace(step, siblings={n: at for n, at in step.siblings.items() if n in self.declared})
                    files = {at.name: pack(at) for at in step.siblings.values() if isinstance(at, Path)}
                answer = yield Sent(step, lock, files)
                has = True
                step = steps.send(answer)
        except StopIteration:
            self.ended()


class OnRay:
    """Runs trials on a Ray cluster, in an order drawn from the plan, trials of one model rather on one worker.

    `outfit` is called on every worker and gives its loaders; it is pickled, so it is a function or a class of a module
    that is installed there. `warn` is told what the first worker's loaders warn of.
    """

    def __init__(self, outfit: Outfit, cluster: Cluster | None = None, *, warn: Warn | None = None) -> None:
        self._outfit, self._cluster, self._warn = outfit, cluster or Cluster(), warn
        self._stack = ExitStack()
        self._crew: Crew | None = None
        self._first: Hello | None = None

    def survey(self, plan: Plan, with_dictionaries: bool) -> Survey:  # noqa: ARG002  (a worker sees for itself)
        make = partial(Away, plan, self._outfit)
        self._crew = self._stack.enter_context(Crew(make, self._cluster))
        self._first = self._crew.hello()
        for line in self._first.warnings if self._warn else ():
            self._warn(line)  # type: ignore[misc]
        return self._first.survey

    def run(self, study: Study, store: Store, progress: Callable[[Progress], None]) -> None:
        """Run what is not settled. WorkerError at the end where trials were given up; they are left incomplete."""
        assert self._crew is not None and self._first is not None, "survey comes first"
        keys, source = tuple(trial.key for trial in study.trials), source_hash(["fairlead.study"])

        def accept(hello: Hello) -> None:
            if (hello.keys, hello.source) != (keys, source):
                raise WorkerError(
                    "a worker would run another study",
                    expected="the same code, weights, dictionaries and data on every machine",
                    got=_difference(hello, self._first, source),
                    do="install the same version of Fairlead, and bring the same files to every machine",
                )

        accept(self._first)
        self._crew.accept = accept
        settled = 0

        def count() -> None:
            nonlocal settled
            settled += 1

        jobs = []
        for trial in _drawn(study):
            entry = Entry(study, store, trial, lambda: settled, progress)
            if entry.settled:
                count()
            else:
                arm = study.arms.get(trial.arm)
                jobs.append(_Job(entry, () if arm is None else arm.siblings, count))
        given_up = self._crew.work(jobs)
        for given in given_up:
            given.job.entry.say("given_up", message=given.why)
        refuse_given_up(given_up, f"of {len(study.trials)} trials")

    def close(self) -> None:
        self._stack.close()
        self._crew = None


def pack(folder: Path) -> dict[str, bytes]:
    """A saved fit as bytes, by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def unpack(files: Files, folder: Path) -> None:
    """What `pack` packed, at `folder`."""
    for name, content in files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RecordError("a saved fit with a file outside its folder", got=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _drawn(study: Study) -> list[Trial]:
    """All trials in an order drawn from the plan's hash, so that a crash or a drift does not fall on one arm."""
    trials = study.in_order()
    random.Random(derive_seed("order", study.plan.hash)).shuffle(trials)
    return trials


def _difference(hello: Hello, first: Hello | None, source: str) -> str:
    if hello.source != source:
        return "other source in fairlead.study"
    if first is not None and hello.survey != first.survey:
        return "other weights or dictionaries"
    return "other data, tasks or methods"
