"""`fairlead find`: the features behind a plan's failures, found on train, chosen on validation, shown on cards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fairlead.app import check
from fairlead.app.catalogue import plan_path
from fairlead.app.models import open_dictionary, open_model, use_threads
from fairlead.core import plugins
from fairlead.core.errors import PlanError
from fairlead.core.keys import derive_seed
from fairlead.core.ledger import Allowance, dictionary_share
from fairlead.core.plan import Plan, components, read_plan
from fairlead.core.protocols import FitContext
from fairlead.core.types import Episode, Item
from fairlead.study.items import choose
from fairlead.study.play import rollout

METHOD = "feature"
Progress = Callable[[int, int], None]  # episodes rolled out, and how many at most


@dataclass(frozen=True)
class Search:
    """What will be searched: one model of a plan, its train and validation items, on the text twin."""

    plan: Plan
    model: str
    dictionary: str
    train: tuple[Item, ...]
    validation: tuple[Item, ...]


@dataclass(frozen=True)
class Found:
    """The chosen edit as a line of the edit language ("" when doing nothing was best), and how it was found."""

    model: str
    dictionary: str
    edit: str
    about: dict[str, Any]
    flops: float
    tuning_trials: int


def prepare(
    ref: str, *, model: str | None = None, dictionary: str | None = None, limit: int | None = None
) -> Search:
    """Read a plan and choose its items: at most `limit` instances of train and of validation. The test split
    stays closed, and pages come from the text twin, which gives the same prompts as the browser. `dictionary`
    takes the place of the plan's; with it any model can be named."""
    plan = read_plan(plan_path(ref))
    if dictionary is not None:
        plan = replace(plan, models=(model or plan.models[0],), dictionaries=(dictionary,))
    if plan.task_options.get("front") == "chromium":
        plan = replace(plan, task_options={**plan.task_options, "front": "text"})
    model = model or plan.models[0]
    if model not in plan.models:
        raise PlanError(
            f"the plan has no model {model!r}",
            expected=" or ".join(plan.models),
            got=model,
            do="for another model name its --dictionary too",
        )
    dictionary = plan.dictionary_of(model)
    if dictionary is None:
        raise PlanError("the plan names no dictionary", expected='dictionary = "NAME@SITE"', do="add one to the plan")
    task = _task(plan)
    sizes = [(split, n if limit is None else min(n, limit)) for split, n in _splits(plan)]
    train, validation = (tuple(choose(task.items(s), n, {}, f"task {plan.task!r}, split {s}")) for s, n in sizes)
    return Search(plan, model, dictionary, train, validation)


def execute(
    job: Search,
    *,
    progress: Progress | None = None,
    threads: int = 1,
    warn: Callable[[str], None] = lambda _: None,
) -> Found:
    """Roll out the bare model, search, and choose. Nothing is written. `warn` is told, before the search, where the
    dictionary does not seem to fit the model."""
    use_threads(threads)
    plan, task = job.plan, _task(job.plan)
    subject, dictionary = open_model(job.model), open_dictionary(job.dictionary)
    options = plan.options_of(components(METHOD)[0]) if METHOD in plan.arms else {}
    allowance = Allowance(plan.budget, subject.meter.snapshot, arm=METHOD, share=dictionary_share(dictionary))
    checked: list[Episode] = []
    total, done = len(job.train) + len(job.validation), 0

    async def roll(world: Any, items: Sequence[Item]) -> list[Episode]:
        nonlocal done
        found: list[Episode] = []
        for start in range(0, len(items), plan.chunk):
            found += await rollout(task, items[start : start + plan.chunk], world, plan.chunk)
            done = min(total, done + min(plan.chunk, len(items) - start))
            if progress:
                progress(done, total)
        if not checked and world is subject:
            checked.extend(found)
            for line in check.on_episodes(subject, dictionary, found):
                warn(line)
        return found

    def alone(name: str) -> Any:
        raise PlanError(f"find fits {METHOD} alone", got=f"it asks for {name}")

    context = FitContext(
        subject=subject,
        dictionary=dictionary,
        train=job.train,
        validation=job.validation,
        seed=derive_seed("fit", plan.task, job.model, METHOD, plan.seeds[0]),
        budget=allowance,
        rollout=roll,
        try_one=allowance.try_one,
        options=options,
        sibling=alone,
    )
    fitted = asyncio.run(plugins.get("methods", METHOD)(None, options).fit(context))
    about = dict(fitted.describe())
    spent = allowance.spent()
    return Found(job.model, job.dictionary, str(about.pop("edit", "")), about, spent.flops, spent.tuning_trials)


def _task(plan: Plan) -> Any:
    return plugins.get("tasks", plan.task)(plan.options_for_task(plan.decoding[0]))


def _splits(plan: Plan) -> tuple[tuple[str, int], ...]:
    return (("train", plan.n_train), ("validation", plan.n_validation))
