"""`fairlead plan --power`: what a plan can see before it is run, and how many clusters would do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fairlead.app.catalogue import plan_path
from fairlead.core import plugins
from fairlead.core.errors import FairleadError
from fairlead.core.plan import Plan, check_plan, parse_plan
from fairlead.core.records import Run
from fairlead.judge import Question
from fairlead.judge.pilot import pilot
from fairlead.judge.power import Assumed, clusters_needed, power, simulate, smallest
from fairlead.judge.stats import FEW_CLUSTERS
from fairlead.study.items import choose

ALPHA = 0.05
DISCORDANCE = 0.3  # share of pairs whose outcomes differ, where no pilot says otherwise


@dataclass(frozen=True)
class Power:
    """What a plan finds. Effects are differences of success rates (0.1 is 10 points). `alpha` is Holm's strictest
    level, .05 over the number of comparisons. None: no number of clusters up to a million, or no effect, would do."""

    question: str
    claim: str
    comparisons: int
    alpha: float
    clusters: int
    pairs_per_cluster: int
    discordance: float
    icc: float
    source: str
    effect: float
    wanted: float
    power: float
    simulated: float
    worlds: int
    detectable: float | None
    clusters_needed: int | None

    @property
    def enough(self) -> bool:
        return self.simulated >= self.wanted and self.clusters >= FEW_CLUSTERS


def read(ref: str, *, limit: int | None = None) -> Plan:
    """The plan, checked; nothing is run and no weights are opened."""
    plan = parse_plan(plan_path(ref).read_text(encoding="utf-8")).limited(limit)
    check_plan(plan)
    return plan


def execute(
    plan: Plan,
    *,
    records: Path | None = None,
    discordance: float | None = None,
    icc: float | None = None,
    worlds: int = 2_000,
    progress: Callable[[int, int], None] | None = None,
) -> Power:
    """Power, detectable effect and clusters needed for the plan's smallest effect. The spread comes from a pilot's
    Records where given, else from the assumptions, which are stated."""
    if plan.smallest_effect <= 0:
        raise FairleadError(
            "the plan has no smallest effect of interest", expected="smallest_effect above 0", got="0"
        )
    question = Question.of(plan)
    clusters, size = _items(plan, question)
    if records is not None:
        assumed, _ = pilot(Run.open(records), question, clusters)
    else:
        text = "assumed; give --records RUN of a pilot to measure it"
        assumed = Assumed(clusters, size, DISCORDANCE, 1.0, text)
    assumed = replace(
        assumed,
        discordance=assumed.discordance if discordance is None else discordance,
        icc=assumed.icc if icc is None else icc,
    )
    against = dict.fromkeys((*question.family, *question.rivals))
    comparisons = max(1, len(against) * len(plan.models))
    alpha, effect = ALPHA / comparisons, plan.smallest_effect
    return Power(
        question=plan.question,
        claim=plan.claim,
        comparisons=comparisons,
        alpha=alpha,
        clusters=assumed.clusters,
        pairs_per_cluster=assumed.size,
        discordance=assumed.discordance,
        icc=assumed.icc,
        source=assumed.source,
        effect=effect,
        wanted=plan.power,
        power=power(effect, assumed, alpha=alpha),
        simulated=simulate(effect, assumed, worlds=worlds, alpha=alpha, progress=progress),
        worlds=worlds,
        detectable=smallest(assumed, wanted=plan.power, alpha=alpha),
        clusters_needed=clusters_needed(effect, assumed, wanted=plan.power, alpha=alpha),
    )


def _items(plan: Plan, question: Question) -> tuple[int, int]:
    """Clusters of the test split within `where`, and pairs in each: its renderings there, times the seeds."""
    task = plugins.get("tasks", plan.task)(plan.options_for_task(plan.decoding[0]))
    items = choose(task.items("test"), plan.n, plan.n_strata, f"task {plan.task!r}, split test")
    inside = [i for i in items if all(i.strata.get(k) == v for k, v in question.where.items())]
    clusters = len({i.cluster for i in inside})
    if not clusters:
        raise FairleadError("no test item lies within the plan's `where`", got=str(dict(question.where)))
    return clusters, max(1, round(len(inside) / clusters)) * len(plan.seeds)
