"""Where trials are run. An executor differs from another in placement only: what is recorded is the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from fairlead.core.plan import Plan
from fairlead.core.records import Store
from fairlead.study.journal import Entry, Progress
from fairlead.study.studied import Study
from fairlead.study.subjects import Holdings, LoadDictionary, LoadModel, Survey
from fairlead.study.worker import Worker


class Executor(Protocol):
    """Knows a plan's models, and runs its trials."""

    def survey(self, plan: Plan, with_dictionaries: bool) -> Survey:
        """Load the plan's models somewhere, once, and say what they are."""
        ...

    def run(self, study: Study, store: Store, progress: Callable[[Progress], None]) -> None:
        """Run every trial that is not settled. The caller has settled what does not apply by the plan."""
        ...

    def close(self) -> None:
        """Let go of everything: called once, however the study ended."""
        ...


class Inline:
    """One trial after another, in this process."""

    def __init__(
        self, load_model: LoadModel, load_dictionary: LoadDictionary | None = None, *, one_at_a_time: bool = False
    ) -> None:
        self._load = (load_model, load_dictionary)
        self._one = one_at_a_time
        self._holdings: Holdings | None = None

    def survey(self, plan: Plan, with_dictionaries: bool) -> Survey:
        self._holdings = Holdings.load(
            plan, *self._load, with_dictionaries=with_dictionaries, one_at_a_time=self._one
        )
        return self._holdings.survey

    def run(self, study: Study, store: Store, progress: Callable[[Progress], None]) -> None:
        asyncio.run(self._run(study, store, progress))

    async def _run(self, study: Study, store: Store, progress: Callable[[Progress], None]) -> None:
        assert self._holdings is not None, "survey comes first"
        worker = Worker(study, self._holdings)
        try:
            for index, trial in enumerate(study.in_order()):
                entry = Entry(study, store, trial, lambda index=index: index, progress)  # type: ignore[misc]
                if not entry.settled:
                    await _walk(entry, worker)
        finally:
            await worker.aclose()

    def close(self) -> None:
        self._holdings = None


async def _walk(entry: Entry, worker: Worker) -> None:
    """All steps of one trial, on one worker."""
    steps = entry.steps()
    try:
        step = next(steps)
        while True:
            step = steps.send(await worker.do(step))
    except StopIteration:
        return
