"""The plan of `fairlead fix`: the cases, how many would do, which arms are tried, and with what budget."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.core import plugins
from fairlead.core.errors import PlanError
from fairlead.core.plan import components
from fairlead.core.types import Message
from fairlead.judge.power import Assumed, clusters_needed, smallest
from fairlead.tasks.cases import CasesTask, file_hash

# In the order in which they are preferred when validation cannot tell them apart: cheapest to serve first.
ARMS = ("none", "prompt", "prompt_search", "vector", "feature", "prompt+feature", "probe_gated", "refusal", "few_shot",
        "best_of_n")  # fmt: skip
CLAIM = "winner"
WORDINGS = (
    "Follow the instructions to the letter.",
    "Read the question twice before you answer.",
    "Think about what is asked, and answer only that.",
    "Answer with the answer alone, and nothing else.",
    "Check your answer before you give it.",
)
LEAST = {"train": 8, "validation": 6, "test": 15}  # clusters, under which nothing is tried
SPARE = 0.1  # share of cases assumed to change beside the net gain, half for the better and half for the worse
PASSES, ASKED = 300, 30_000  # the FLOP cap of a fit: so many forwards of each tuning case, and at least so many in all
CHUNK = 16


@dataclass(frozen=True)
class Settings:
    """What the user asked for. `effect` is the smallest gain of interest, a share of cases."""

    file: Path
    model: str
    dictionary: str | None = None
    effect: float = 0.2
    shares: tuple[float, float, float] = (0.3, 0.2, 0.5)
    seed: int = 0
    trials: int = 20
    flops: float | None = None
    max_tokens: int = 64
    free: bool = False
    allow_code: bool = False
    wordings: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    runs: Path = Path("runs")


@dataclass(frozen=True)
class Cases:
    """The file, split. `clusters` and `items` are counted by split, `repeats` are lines left out as repeats."""

    settings: Settings
    task: Any
    items: Mapping[str, int]
    clusters: Mapping[str, int]
    needed: int | None  # test clusters that find `effect` with 80 % power, if SPARE holds
    would_do: int | None  # clusters in all that would put so many into test
    detectable: float | None  # the smallest gain these test clusters find with 80 % power

    @property
    def short(self) -> tuple[str, ...]:
        """The splits that hold too little to try anything."""
        return tuple(name for name, least in LEAST.items() if self.clusters[name] < least)


def read(settings: Settings) -> Cases:
    """Read and split the file. Raises LoadError with the line that cannot be used."""
    if not 0 < settings.effect <= 1:
        raise PlanError("no such smallest effect", expected="a share above 0, up to 1", got=f"{settings.effect:g}")
    task = CasesTask(_task_options(settings))
    items = {name: len(task.items(name)) for name in LEAST}
    clusters = {name: len({item.cluster for item in task.items(name)}) for name in LEAST}
    assumed = Assumed(clusters["test"], discordance=min(1.0, settings.effect + SPARE))
    needed = clusters_needed(settings.effect, assumed)
    return Cases(settings, task, items, clusters, needed, _would_do(needed, settings.shares), smallest(assumed))


def _would_do(needed: int | None, shares: Sequence[float]) -> int | None:
    if needed is None or min(shares) <= 0:
        return None
    wanted = {**LEAST, "test": max(needed, LEAST["test"])}
    return max(math.ceil(n * sum(shares) / share) for n, share in zip(wanted.values(), shares, strict=True))


def _task_options(settings: Settings) -> dict[str, Any]:
    return {
        "file": str(settings.file),
        "sha256": file_hash(settings.file),
        "shares": list(settings.shares),
        "decoding": "free" if settings.free else "constrained",
        "max_tokens": settings.max_tokens,
        "allow_code": settings.allow_code,
    }


def arms_of(settings: Settings) -> tuple[str, ...]:
    """The arms to try: those asked for, or every cheap one that is installed; those with a feature if there is a
    dictionary. Doing nothing is always one of them."""
    have = set(plugins.names("methods"))
    wanted = settings.arms or tuple(
        arm
        for arm in ARMS
        if all(c.name in have for c in components(arm)) and (settings.dictionary or "feature" not in arm)
    )
    return tuple(dict.fromkeys(("none", *wanted)))


def plan_text(cases: Cases, subject: Any, share: float | None) -> str:
    """The plan as TOML, so that it can be read, locked and run again by name."""
    settings = cases.settings
    arms = arms_of(settings)
    if CLAIM in arms:
        raise PlanError(f"{CLAIM!r} chooses among the arms, and is not one of them", got=", ".join(arms))
    flops = settings.flops or _rounded(_cap(cases, subject) + (share or 0.0))
    top: dict[str, Any] = {
        "question": f"Does fixing help on {settings.file.name}, by {100 * settings.effect:g} points?",
        "task": "cases",
        "model": settings.model,
        **({"dictionary": settings.dictionary} if settings.dictionary else {}),
        "seeds": [settings.seed],
        "arms": [*arms, CLAIM],
        "claim": CLAIM,
        "beat": ["none"],
        "primary": "strict",
        "smallest_effect": settings.effect,
        "decoding": ["free" if settings.free or not cases.task.has_choices else "constrained"],
        "n": cases.clusters["test"],
        "n_train": cases.clusters["train"],
        "n_validation": cases.clusters["validation"],
        "chunk": CHUNK,
        "traces": 30,
    }
    budget = {"tuning_trials": max(settings.trials, len(arms)), "flops": flops}
    task = {k: v for k, v in _task_options(settings).items() if k != "decoding"}
    lines = [f"{key} = {toml(value)}" for key, value in top.items()]
    lines += ["", "[budget]", *(f"{k} = {toml(v)}" for k, v in budget.items())]
    lines += ["", "[task_options]", *(f"{k} = {toml(v)}" for k, v in task.items())]
    for name, table in _options(cases, arms).items():
        lines += ["", f'[options."{name}"]', *(f"{k} = {toml(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _options(cases: Cases, arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each method's table: whole cases decide where answers are written freely, since decisions are then a stand-in."""
    settings = cases.settings
    tables: dict[str, dict[str, Any]] = {CLAIM: {"of": list(arms)}}
    for name in dict.fromkeys(c.name for arm in arms for c in components(arm)):
        known = getattr(importlib.import_module(plugins.get("methods", name).__module__), "DEFAULTS", {})
        table: dict[str, Any] = {}
        if not cases.task.chosen_only and "select" in known:
            table["select"] = "rollouts"
        if name == "prompt":
            table["pool"] = list(dict.fromkeys((*settings.wordings, *WORDINGS)))
        table |= settings.options.get(name, {})
        if table:
            tables[name] = table
    return tables


def _cap(cases: Cases, subject: Any) -> float:
    """FLOPs that each arm may spend on its fit: PASSES forwards of every tuning case, and at least ASKED forwards."""
    prompts = [t for s in ("train", "validation") for c in cases.task.cases[s] for t in [_prompt(c)]]
    lengths = [len(subject.tokens(p).ids) for p in prompts[:100]]
    mean = sum(lengths) / len(lengths)
    return float(subject.checkpoint.shape.flops(mean, mean, 1) * max(ASKED, PASSES * len(prompts)))


def _prompt(case: Any) -> Any:
    return tuple(t for t in case.turns if isinstance(t, Message))


def _rounded(value: float) -> float:
    return float(f"{value:.1e}")


def toml(value: Any) -> str:
    """A value as TOML; its texts are JSON's, which TOML reads as they are."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
