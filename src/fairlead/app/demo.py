"""`fairlead demo`: the study in a real browser, its table, and its page, from one command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fairlead.app import lock, report, run
from fairlead.core.errors import LockError
from fairlead.judge import Verdict
from fairlead.study import Progress

PLAN = "demo"


@dataclass(frozen=True)
class Shown:
    """What the demo leaves: a run directory with Records, a verdict and a page."""

    run_dir: Path
    page: Path
    verdict: Verdict


def prepare(*, limit: int | None = None, runs: Path = Path("runs")) -> run.Job:
    """The demo's plan, checked; BrowserError says what to install when there is no Chromium."""
    return run.prepare(PLAN, limit=limit, runs=runs)


def execute(job: run.Job, *, progress: Callable[[Progress], None] | None = None) -> Shown:
    """Lock, run what is missing, judge, and write the page. Where it cannot be locked (uncommitted changes, or a lock
    of other code in the directory) the demo is exploratory, and says so."""
    try:
        lock.make(job)
        held, why = lock.required(job), ""
    except LockError as error:
        held, why = None, f"the demo could not be locked: {error.message}"
    run.execute(job, progress=progress, lock=held, why=why)
    verdict = report.verdict(job.run_dir)
    return Shown(job.run_dir, report.page(job.run_dir), verdict)
