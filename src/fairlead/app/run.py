"""`fairlead run`: a plan, what it will cost, and the study itself."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fairlead.app import check
from fairlead.app.catalogue import plan_path
from fairlead.app.embedders import opener
from fairlead.app.models import open_dictionary, use_threads
from fairlead.app.placement import Settings, sized
from fairlead.core import plugins
from fairlead.core.crew import Cluster
from fairlead.core.errors import FairleadError, PlanError
from fairlead.core.ledger import forward_flops
from fairlead.core.lock import Lock
from fairlead.core.plan import Plan, check_plan, parse_plan
from fairlead.core.records import Run, check_unchanged
from fairlead.study import Progress, run_study
from fairlead.study.items import choose
from fairlead.study.ray_executor import OnRay
from fairlead.study.subjects import LoadDictionary, LoadModel

STEPS = 3  # agent steps an episode takes, for the preview only
TOKENS = 60  # prompt tokens a step, for the preview only
SECONDS = {"text": 0.01, "chromium": 0.06}  # per step on one CPU core with a pocket model, for the preview only


@dataclass(frozen=True)
class Job:
    """A plan that has been checked, and the directory its Records belong in."""

    plan: Plan
    text: str
    run_dir: Path

    @property
    def in_browser(self) -> bool:
        return self.plan.task_options.get("front") == "chromium"


@dataclass(frozen=True)
class Preview:
    """What a job will cost, before it costs anything. Estimates are of test episodes; fitting comes on top,
    at most `tuning_trials` attempts an arm."""

    question: str
    run_dir: str
    trials: int
    episodes: int
    done: int
    steps: int
    flops: float | None
    minutes: float
    tuning_trials: int | None
    in_browser: bool
    notes: tuple[str, ...] = ()  # what the task left out of its file, and why


def prepare(
    ref: str,
    *,
    limit: int | None = None,
    runs: Path = Path("runs"),
    run_dir: Path | None = None,
    models: Sequence[str] = (),
    dictionaries: Sequence[str] = (),
) -> Job:
    """Read and check a plan. `models` and `dictionaries` take the place of the plan's own: another study, with a hash
    of its own. Raises before anything is written: PlanError, UnknownName, PlanChanged when `run_dir` holds Records
    of another plan, BrowserError when the plan needs a browser and cannot have one."""
    path = plan_path(ref)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FairleadError(f"{path} is not a text file", expected="TOML in UTF-8", got=str(error)) from error
    text = with_models(text, models, dictionaries)
    plan = parse_plan(text).limited(limit)
    check_plan(plan)
    recorded = path.parent if path.name == "plan.toml" and (path.parent / "plan.json").exists() else None
    job = Job(plan, _limited(text, plan), run_dir or recorded or runs / plan.run_id(path.stem))
    check_unchanged(job.run_dir, plan)
    if job.in_browser:
        asyncio.run(_check_browser(int(plan.task_options.get("port", 0))))
    return job


def preview(job: Job) -> Preview:
    """Count trials and episodes, and guess at the rest from the sizes of the weights."""
    plan = job.plan
    task = plugins.get("tasks", plan.task)(plan.options_for_task(plan.decoding[0]))
    trials = [trial for trial in plan.trials() if trial.arm not in plan.not_applicable]
    offered, where = task.items("test"), f"task {plan.task!r}, split test"
    items = {n: len(choose(offered, n, plan.n_strata, where)) for n in {plan.n_of(t.arm) for t in trials}}
    episodes = sum(items[plan.n_of(trial.arm)] for trial in trials)
    done = min(_recorded(job.run_dir), episodes)
    steps = (episodes - done) * STEPS
    costs = [_step_flops(t.model) for t in trials]
    known = [c for c in costs if c is not None]
    flops = steps * sum(known) / len(trials) if len(known) == len(costs) else None
    seconds = SECONDS["chromium" if job.in_browser else "text"]
    return Preview(
        question=plan.question,
        run_dir=str(job.run_dir),
        trials=len(trials),
        episodes=episodes,
        done=done,
        steps=steps,
        flops=flops,
        minutes=steps * seconds / 60,
        tuning_trials=plan.budget.tuning_trials,
        in_browser=job.in_browser,
        notes=tuple(getattr(task, "notes", ())),
    )


def execute(
    job: Job,
    *,
    progress: Callable[[Progress], None] | None = None,
    threads: int = 1,
    lock: Lock | None = None,
    why: str = "run with --exploratory",
    load: Callable[..., Any] | None = None,
    warn: Callable[[str], None] | None = None,
    where: Cluster | None = None,
) -> Run:
    """Run what is missing of the job, and return the Run. Stopped at any moment, it goes on from there. Records are
    made under `lock` (`app.lock.required`); without one they are exploratory, and `why` is noted. `load` opens models
    in another way. `warn` is told, before anything is searched, where a dictionary does not seem to fit its model.
    `where` names a cluster whose workers load and run; this process then only records."""
    threads = 1 if job.in_browser else threads
    if where is not None:
        outfit = Outfit(job.plan, Settings.here(threads), job.in_browser)
        return run_study(
            job.plan,
            job.run_dir,
            executor=OnRay(outfit, sized(where, threads), warn=warn),
            progress=progress,
            text=job.text,
            lock=lock,
            why=why,
        )
    use_threads(threads)
    load = load or opener(job.plan)
    load = load if warn is None else _checking(load, job.plan, warn)
    return run_study(
        job.plan,
        job.run_dir,
        load_model=partial(load, beside_browser=True) if job.in_browser else load,
        load_dictionary=open_dictionary,
        progress=progress,
        text=job.text,
        lock=lock,
        why=why,
        one_at_a_time=True,
    )


@dataclass(frozen=True)
class Outfit:
    """What a worker on another machine loads a job's models with."""

    plan: Plan
    settings: Settings
    in_browser: bool

    def __call__(self, warn: Callable[[str], None]) -> tuple[LoadModel, LoadDictionary]:
        load = self.settings.wrap(_checking(opener(self.plan), self.plan, warn))
        return partial(load, beside_browser=True) if self.in_browser else load, self.settings.wrap(open_dictionary)


def _checking(load: Callable[..., Any], plan: Plan, warn: Callable[[str], None]) -> Callable[..., Any]:
    """`load`, which looks at a model's dictionary on a few train episodes of the text twin when first called."""
    seen: set[str] = set()
    options = plan.options_for_task(plan.decoding[0])
    if options.get("front") == "chromium":
        options = {**options, "front": "text"}

    def opened(ref: str, **how: Any) -> Any:
        subject, dictionary = load(ref, **how), plan.dictionary_of(ref)
        if dictionary is not None and ref not in seen and hasattr(subject, "activations"):
            for line in check.on_train(subject, open_dictionary(dictionary), plugins.get("tasks", plan.task)(options)):
                warn(line)
        seen.add(ref)
        return subject

    return opened


def with_models(text: str, models: Sequence[str], dictionaries: Sequence[str]) -> str:
    """A plan's text with other models and dictionaries in it. Models without dictionaries take the plan's away: they
    were made for the models that the plan names."""
    if not models and not dictionaries:
        return text
    plan = parse_plan(text)
    models = models or plan.models
    if dictionaries and len(dictionaries) != len(models):
        raise PlanError(
            "models and dictionaries do not match",
            expected=f"one --dictionary for each of {len(models)} models: {', '.join(models)}",
            got=f"{len(dictionaries)}: {', '.join(dictionaries)}",
        )
    start = re.search(r"^\[", text, re.MULTILINE)
    top, tables = (text[: start.start()], text[start.start() :]) if start else (text, "")
    value = r"""(?:\[[^\]]*\]|"[^"\n]*"|'[^'\n]*')[ \t]*(?:#.*)?\n?"""
    top = re.sub(rf"^(?:model|dictionary)[ \t]*=[ \t]*{value}", "", top, flags=re.MULTILINE)
    named = {"model": models, "dictionary": dictionaries}
    lines = [f"{key} = {json.dumps(list(refs))}" for key, refs in named.items() if refs]
    return "\n".join([top.rstrip("\n"), *lines, "", tables])


def _limited(text: str, plan: Plan) -> str:
    """The plan's text with the limit written into it, so that plan.toml beside the Records is what was run."""
    return re.sub(r"^n = \d+", f"n = {plan.n}", text, count=1, flags=re.MULTILINE)


async def _check_browser(port: int) -> None:
    from fairlead.tasks.shop.browser import find_browser
    from fairlead.tasks.shop.server import ShopServer

    find_browser()
    server = await ShopServer.start(port)
    await server.stop()


def _recorded(run_dir: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in (run_dir / "trials").glob("*.jsonl"))


def _step_flops(model: str) -> float | None:
    """One step of a model whose weights lie on this machine; None otherwise."""
    from fairlead.lm.estimate import estimate
    from fairlead.lm.find import POCKET, find

    if not model.startswith(POCKET) and not Path(model).is_dir():
        return None  # a name on the hub: a preview fetches nothing
    try:
        about = estimate(find(model))
    except FairleadError:
        return None
    return forward_flops(
        n_matmul=about.active_parameters, tokens=TOKENS, context=TOKENS, n_layers=about.n_layers, d_model=about.d_model
    )
