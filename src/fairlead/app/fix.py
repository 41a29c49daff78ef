"""`fairlead fix`: from a file of failing cases to whatever mends them best, judged and ready to serve.

1. Read the cases and split them. Too few to say anything: stop, and say how many would do.
2. Measure the bare model on train and validation. Nothing fails: stop, and say so with an interval.
3. A plan with every cheap way of mending, one budget for each, and `winner`, the arm that does best on validation, as
   the claim. Locked, where the code is committed; run; judged against the bare model on test, once.
4. The verdict says whether fixing helped. What is served is the winner, a prompt as well as an edit.

It does not ask whether a latent was needed: for that, run a study with controls.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fairlead.app import lock as locking
from fairlead.app import report, run
from fairlead.app.fix_plan import CHUNK, CLAIM, LEAST, SPARE, Cases, Settings, plan_text, read
from fairlead.app.models import open_dictionary, open_model, use_threads
from fairlead.core import lock as locks
from fairlead.core.errors import LockError
from fairlead.core.ledger import dictionary_share
from fairlead.core.plan import check_plan, parse_plan
from fairlead.core.records import Run
from fairlead.core.types import Item
from fairlead.judge import Verdict
from fairlead.judge.stats import clustering, wilson
from fairlead.study import Progress
from fairlead.study.play import rollout

__all__ = ["Settings", "cost", "execute", "measure", "nothing", "prepare", "read", "too_few"]
TOO_FEW, NOTHING = "too few cases", "nothing needs fixing"


@dataclass(frozen=True)
class Bare:
    """The model as it is on train and validation: failures, and Wilson's interval of their share at the effective n.
    `seconds` and `flops` are of one case, on average."""

    n: int
    failed: int
    clusters: int
    low: float
    high: float
    seconds: float
    flops: float


@dataclass(frozen=True)
class Fixed:
    """How it ended. `status` is supported, refuted or inconclusive (that fixing helped), or why nothing was tried."""

    status: str
    said: tuple[str, ...]
    cases: dict[str, Any]
    bare: Bare | None = None
    run: str | None = None
    winner: dict[str, Any] | None = None
    rows: tuple[dict[str, Any], ...] = ()
    verdict: Verdict | None = None
    exploratory: str = ""  # why the run has no lock
    serve: str | None = None

    def to_json(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**found, "verdict": None if self.verdict is None else self.verdict.to_json()}


def too_few(cases: Cases) -> Fixed | None:
    """The end, when the file holds too few cases to try anything on."""
    if not cases.short:
        return None
    have = sum(cases.clusters.values())
    places = ", ".join(f"{name} has {cases.clusters[name]}, at least {LEAST[name]} are needed" for name in cases.short)
    said = [f"{_count(have)} are too few to mend anything and know that it helped: {places}"]
    if cases.would_do is not None and have >= cases.would_do:
        said.append("the cases are enough, but not where they lie: change their `split`, or --shares")
    elif cases.would_do is not None:
        said.append(
            f"{cases.would_do} would do: with {cases.needed} of them kept for the test, a gain of "
            f"{100 * cases.settings.effect:g} points is found with 80 % power, if {100 * SPARE:g} % of cases change "
            "beside the gain"
        )
    return Fixed(TOO_FEW, tuple(said), _about(cases))


def _count(clusters: int) -> str:
    return f"{clusters} case{'' if clusters == 1 else 's'} (cases with one prompt or cluster counted once)"


def _about(cases: Cases) -> dict[str, Any]:
    repeats = [list(pair) for pair in cases.task.repeats]
    return {
        "file": str(cases.settings.file), "items": dict(cases.items), "clusters": dict(cases.clusters),
        "repeats_left_out": repeats, "test_clusters_needed": cases.needed, "clusters_that_would_do": cases.would_do,
        "detectable": cases.detectable,
    }  # fmt: skip


def measure(cases: Cases, *, progress: Callable[[int, int], None] | None = None, threads: int = 1) -> Bare:
    """The bare model on train and validation; the test split stays closed."""
    use_threads(threads)
    subject = open_model(cases.settings.model)
    items: list[Item] = [*cases.task.items("train"), *cases.task.items("validation")]
    started = time.perf_counter()

    async def play() -> list[bool]:
        passed: list[bool] = []
        for start in range(0, len(items), CHUNK):
            part = await rollout(cases.task, items[start : start + CHUNK], subject, CHUNK)
            passed += [bool(episode.score.values["strict"]) for episode in part]
            if progress:
                progress(len(passed), len(items))
        return passed

    passed = asyncio.run(play())
    seconds = (time.perf_counter() - started) / len(items)
    failed, worth = len(passed) - sum(passed), clustering([float(p) for p in passed], [i.cluster for i in items])
    effective = worth.effective_n
    interval = wilson(failed / len(passed) * effective, effective)
    assert interval is not None
    flops = subject.meter.snapshot().flops / len(items)
    return Bare(len(passed), failed, worth.clusters, interval.low, interval.high, seconds, flops)


def nothing(cases: Cases, bare: Bare) -> Fixed | None:
    """The end, when no case fails, or when so few fail that no gain of the size asked for is left."""
    effect = cases.settings.effect
    share = f"{bare.failed} of {bare.n} cases fail (95 % [{100 * bare.low:.1f}, {100 * bare.high:.1f}] %)"
    if bare.failed == 0:
        return Fixed(NOTHING, (f"nothing needs fixing: {share}",), _about(cases), bare)
    if bare.high < effect:
        said = f"nothing needs fixing by {100 * effect:g} points: {share}, and no gain can be larger than what fails"
        return Fixed(NOTHING, (said, "for a smaller gain, lower --effect"), _about(cases), bare)
    return None


# ---- the plan


def prepare(cases: Cases) -> run.Job:
    """The plan as a job, checked. Nothing is written yet; PlanChanged when its directory holds another plan."""
    settings = cases.settings
    share = dictionary_share(open_dictionary(settings.dictionary)) if settings.dictionary else 0.0
    text = plan_text(cases, open_model(settings.model), share)
    plan = parse_plan(text)
    check_plan(plan)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", settings.file.stem)[:40] or "cases"
    return run.Job(plan, text, settings.runs / plan.run_id(f"fix-{stem}"))


@dataclass(frozen=True)
class Cost:
    """What is still to be done, at most: every arm that is tried spends its whole cap."""

    run_dir: str
    arms: tuple[str, ...]
    train: int
    validation: int
    test: int
    tuning_trials: int
    flops: float
    minutes: float


def cost(cases: Cases, job: run.Job, bare: Bare) -> Cost:
    """A preview. `minutes` is a bound, from the caps and the bare model's own speed; most arms stay far below."""
    plan = job.plan
    tried, flops = plan.budget.tuning_trials or 0, plan.budget.flops or 0.0
    fits = (len(plan.arms) - 1) * flops * bare.seconds / max(bare.flops, 1.0)
    minutes = (fits + len(plan.arms) * cases.items["test"] * bare.seconds) / 60
    sizes = (cases.items["train"], cases.items["validation"], cases.items["test"])
    return Cost(str(job.run_dir), plan.arms, *sizes, tried, flops, minutes)


# ---- the run


def execute(
    cases: Cases, bare: Bare, job: run.Job, *, progress: Callable[[Progress], None] | None = None, threads: int = 1
) -> Fixed:
    """Lock, run what is missing, judge, and say what to serve. Killed and run again, it goes on from there."""
    lock, why = _lock(job)
    found = run.execute(job, progress=progress, threads=threads, lock=lock, why=why)
    verdict = report.verdict(job.run_dir)
    won = _winner(found)
    arm = "none" if won is None else str(won["arm"])
    settings = cases.settings
    place = f"{job.run_dir}/{CLAIM}"
    command = None if arm == "none" else f"fairlead serve {settings.model} --fitted {_quoted(place)}"
    return Fixed(
        status=verdict.status,
        said=_said(cases, verdict, won),
        cases=_about(cases),
        bare=bare,
        run=str(job.run_dir),
        winner=won,
        rows=tuple(report.as_rows(job.run_dir)),
        verdict=verdict,
        exploratory=why if lock is None else "",
        serve=command,
    )


def _lock(job: run.Job) -> tuple[locks.Lock | None, str]:
    """(the lock, why there is none). A lock names a commit, so uncommitted code of this package has none."""
    try:
        return locking.make(job).locks.current, ""
    except LockError as error:
        return None, f"not locked: {error.message}"


def _winner(found: Run) -> dict[str, Any] | None:
    for state in found.trials:
        if state.trial.arm == CLAIM and state.trial.key in found.fitted:
            about = found.fitted[state.trial.key]
            kept: dict[str, Any] = {
                k: about[k] for k in ("arm", "validation_score", "arms_tried", "prompt", "edit") if k in about
            }
            return {"arm": "none", **kept}
    return None


def _said(cases: Cases, verdict: Verdict, won: Mapping[str, Any] | None) -> tuple[str, ...]:
    said = []
    if won is None:
        said.append("no arm could be fitted")
    elif won["arm"] == "none":
        said.append("nothing that was tried does better than the bare model on validation")
    else:
        what = won.get("edit") or won.get("prompt") or ""
        said.append(f"best on validation: {won['arm']}" + (f" ({what})" if what else ""))
    said.append(f"fixing helped, by {100 * cases.settings.effect:g} points or more: {verdict.status}")
    if cases.needed is not None and cases.clusters["test"] < cases.needed and verdict.status == "inconclusive":
        said.append(
            f"{cases.clusters['test']} test clusters find a gain of {100 * (cases.detectable or 1):.0f} points with "
            f"80 % power; {cases.needed} of them ({cases.would_do} in all) would find {100 * cases.settings.effect:g}"
        )
    return tuple(said)


def _quoted(path: str) -> str:
    return path if re.fullmatch(r"[\w./+-]+", path) else "'" + path.replace("'", "'\\''") + "'"
