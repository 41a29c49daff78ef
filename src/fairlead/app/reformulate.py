"""`fairlead reformulate`: which words does the model misread in these texts, and does saying what they mean help?

1. Read and split the questions: 40 % to discover, 20 to select, 40 to test, by cluster.
2. A plan: `reformulate` as the claim, beside doing nothing and the controls that would explain its gain away: notes
   that say only to read with care, labels dealt to other triggers, labels of other latents, the same model asked
   without a dictionary, other dictionaries, a searched prompt, a vote. Locked, where the code is committed; run;
   judged on test, once.
3. What was misread, where, and what the note did: from the Records. Finding nothing is a result, and is said so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.app import lock as locking
from fairlead.app import report, run
from fairlead.app.fix_plan import toml
from fairlead.app.models import open_dictionary, open_model, use_threads
from fairlead.core import lock as locks
from fairlead.core import plugins
from fairlead.core.errors import LockError, PlanError
from fairlead.core.ledger import dictionary_share
from fairlead.core.plan import check_plan, parse_plan
from fairlead.core.records import Run
from fairlead.methods.reformulate import DEFAULTS
from fairlead.report import rewrites
from fairlead.study import Progress
from fairlead.tasks.cases import file_hash

CLAIM = "reformulate"
CONTROLS = ("generic", "shuffled_label", "random_latent", "self", "probe", "edit", "pca", "kmeans")
OTHERS = ("prompt_search", "best_of_n.vote")
DECISIVE = ("shuffled_label", "random_latent", "self")  # without a win over these the dictionary was not needed
LEAST = {"train": 10, "validation": 5, "test": 10}  # clusters, under which nothing is tried
PASSES, ASKED = 300, 30_000
CHUNK = 32


@dataclass(frozen=True)
class Settings:
    """What the user asked for. `columns` are the task's column options by name; `effect` is the smallest gain of
    interest, a share of items."""

    file: Path
    model: str
    dictionary: str
    prompt: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    layout: str = ""
    effect: float = 0.05
    controls: tuple[str, ...] = CONTROLS
    others: tuple[str, ...] = OTHERS
    max_tokens: int = 0
    n: int = 0  # clusters of test items (0: all)
    trials: int = 20
    flops: float | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    runs: Path = Path("runs")


@dataclass(frozen=True)
class Ready:
    """Questions that can be asked, and the study as a job. Nothing is written yet. `items` and `clusters` by split;
    `notes` say what of the file was left out."""

    settings: Settings
    task: Any
    job: run.Job
    items: Mapping[str, int]
    clusters: Mapping[str, int]

    @property
    def notes(self) -> list[str]:
        return list(self.task.notes)


def prepare(settings: Settings) -> Ready:
    """Read, split and plan. Raises before anything is written: LoadError for the file, PlanError where it is too
    small, or a question too long."""
    unknown = sorted(set(settings.controls) - set(CONTROLS) - {"oracle", "wrong_gloss"})
    if unknown:
        raise PlanError(f"no control {unknown[0]!r}", expected=", ".join(CONTROLS), got=unknown[0])
    given = _task_options(settings)
    task = plugins.get("tasks", "questions")(given)
    items = {name: len(task.items(name)) for name in LEAST}
    clusters = {name: len({item.cluster for item in task.items(name)}) for name in LEAST}
    short = [f"{name} has {clusters[name]}, at least {n} are needed" for name, n in LEAST.items() if clusters[name] < n]
    if short:
        raise PlanError(
            "too few questions to find anything and know that it holds", expected="more clusters", got="; ".join(short)
        )
    subject = open_model(settings.model)
    _check_room(subject, task, int(settings.options.get("cap", DEFAULTS["cap"])))
    text = _plan_text(settings, given, clusters, _flops(settings, subject, task))
    plan = parse_plan(text)
    check_plan(plan)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", settings.file.stem)[:40] or "questions"
    job = run.Job(plan, text, settings.runs / plan.run_id(f"reformulate-{stem}"))
    return Ready(settings, task, job, items, clusters)


def _task_options(settings: Settings) -> dict[str, Any]:
    given: dict[str, Any] = {
        "file": str(settings.file), "sha256": file_hash(settings.file), "layout": settings.layout,
        "prompt": settings.prompt, "max_tokens": settings.max_tokens, **settings.columns,
    }  # fmt: skip
    return {k: v for k, v in given.items() if v not in ("", 0)}


def arms(settings: Settings) -> tuple[str, ...]:
    """Doing nothing, the claim, its controls, and what needs no dictionary."""
    return ("none", CLAIM, *(f"{CLAIM}.{name}" for name in settings.controls), *settings.others)


def _check_room(subject: Any, task: Any, note: int) -> None:
    """PlanError where a question, its answer and a note of `note` tokens are longer than the model's context."""
    checkpoint, long = subject.checkpoint, []
    every = [item for split in LEAST for item in task.items(split)]
    for item in every:
        asked = task.question(item)
        answers = [len(checkpoint.chat.action(choice)) + 1 for choice in asked.choices] or [asked.max_tokens]
        needed = len(subject.tokens(asked.messages).ids) + max(answers) + note
        if needed > checkpoint.shape.context:
            long.append((needed, item.id))
    if long:
        longest, one = max(long)
        raise PlanError(
            f"{len(long):,} of {len(every):,} questions leave no room in the model's context for an answer and a note",
            expected=f"at most {checkpoint.shape.context} tokens, {note} of a note among them",
            got=f"{longest} for question {one}",
            do="allow shorter answers (--max-tokens), or leave those rows out",
        )


def _flops(settings: Settings, subject: Any, task: Any) -> float:
    """The cap of a fit: so many forwards of each item it may see, and the dictionary's share."""
    if settings.flops is not None:
        return settings.flops
    items = [*task.items("train"), *task.items("validation")]
    lengths = [len(str(item.data.get("text", ""))) / 3 + 64 for item in items[:200]]
    mean = sum(lengths) / len(lengths)
    share = dictionary_share(open_dictionary(settings.dictionary)) or 0.0
    flops = subject.checkpoint.shape.flops(mean, mean, 1) * max(ASKED, PASSES * len(items)) + share
    return float(f"{flops:.1e}")


def _plan_text(settings: Settings, given: Mapping[str, Any], clusters: Mapping[str, int], flops: float) -> str:
    """The plan as TOML, so that it can be read, locked and run again by name."""
    decisive = [f"{CLAIM}.{name}" for name in DECISIVE if name in settings.controls]
    top: dict[str, Any] = {
        "question": f"Does saying what {settings.model} misreads in {settings.file.name} help?",
        "task": "questions",
        "model": settings.model,
        "dictionary": settings.dictionary,
        "seeds": [settings.seed],
        "arms": list(arms(settings)),
        "claim": CLAIM,
        "beat": ["none", *decisive],
        **({"baselines": list(settings.others)} if settings.others else {}),
        "primary": "strict",
        "smallest_effect": settings.effect,
        "n": min(settings.n or clusters["test"], clusters["test"]),
        "n_train": clusters["train"],
        "n_validation": clusters["validation"],
        "chunk": CHUNK,
        "traces": 60,
    }
    tables = {name: {"select": "rollouts"} for name in OTHERS if name in settings.others}
    lines = [f"{key} = {toml(value)}" for key, value in top.items()]
    lines += ["", "[budget]", f"tuning_trials = {settings.trials}", f"flops = {flops!r}"]
    lines += ["", "[task_options]", *(f"{k} = {toml(v)}" for k, v in given.items())]
    if settings.options:
        lines += ["", f"[options.{CLAIM}]", *(f"{k} = {toml(v)}" for k, v in settings.options.items())]
    for name, table in tables.items():
        lines += ["", f'[options."{name.partition(".")[0]}"]', *(f"{k} = {toml(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


# ---- the run


def execute(
    ready: Ready, *, progress: Callable[[Progress], None] | None = None, threads: int = 1
) -> dict[str, Any]:
    """Lock, run what is missing, judge, and say what was misread. Killed and run again, it goes on from there."""
    use_threads(threads)
    job = ready.job
    try:
        lock, why = locking.make(job).locks.current, ""
    except LockError as error:
        lock, why = None, f"not locked: {error.message}"
    found = run.execute(job, progress=progress, threads=threads, lock=lock, why=why)
    return told(job.run_dir, found, lock, why, ready)


def told(run_dir: Path, found: Run, lock: locks.Lock | None, why: str, ready: Ready) -> dict[str, Any]:
    """Everything the verb says, from the Records and what was fitted; also written beside them as a page."""
    verdict = report.verdict(run_dir)
    page = report.page(run_dir)
    section = rewrites.told(run_dir)
    failed = {s.trial.arm: s.reason or s.status for s in found.trials if s.status != "complete"}
    return {
        "run": str(run_dir), "page": str(page), "question": ready.job.plan.question,
        "items": dict(ready.items), "clusters": dict(ready.clusters), "notes": ready.notes, "status": verdict.status,
        "said": said(section, verdict.status, ready), "reasons": list(verdict.reasons), "rows": report.as_rows(run_dir),
        "rewrites": section, "not_run": failed, "exploratory": why if lock is None else "",
    }  # fmt: skip


def said(section: Mapping[str, Any] | None, status: str, ready: Ready) -> list[str]:
    """The sentences a reader came for."""
    searches: Sequence[Mapping[str, Any]] = section["searches"] if section else ()
    if not searches:
        return [f"{CLAIM} could not be fitted: see the run"]
    lines = []
    for search in searches:
        n, latents = search["wrong"] + search["right"], search["latents"]
        lines.append(
            f"{search['model']}: {search['wrong']} of {n} items were answered wrongly where it was looked for; "
            f"{latents['passed']} of {latents['fired']} latents tell them from the others"
        )
        if not search["kept"]:
            lines.append("nothing that is misread was found and confirmed: no prompt is changed, and no claim is made")
        mine = [d for d in section["arms"] if (d["arm"], d["model"]) == (CLAIM, search["model"])] if section else []
        lines += [
            f"{d['annotated']} of {d['n']} test items annotated, {d['of_right'][0]} of the {d['of_right'][1]} that are "
            f"read rightly: {d['fixed']} fixed, {d['broken']} broken; {d['leaked']} discarded, telling the answer"
            for d in mine
        ]
    lines.append(f"annotating helps, by {100 * ready.settings.effect:g} points or more: {status}")
    return lines
