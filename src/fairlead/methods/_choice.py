"""How a tuned arm compares its candidates on validation: by decision points, or by whole episodes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from fairlead.core.errors import BudgetExceeded, PlanError
from fairlead.core.protocols import FitContext
from fairlead.core.types import Generation
from fairlead.features.points import WHOLE, Point, by_stratum, choose, log_odds, measure, needed, points
from fairlead.methods._world import Ask, together

T = TypeVar("T")
BATCH = 32  # decisions asked at once of a world that only acts
Judge = Callable[[Any], Awaitable[dict[str, float]]]
"""(world) -> score in each stratum, and `all`: the mean over strata."""


async def judge(ctx: FitContext[Any], options: Mapping[str, Any], *, hard: bool = False) -> Judge:
    """The judge that `options["select"]` names; see `prompt` for the options, `by_decisions` for `hard`."""
    if options["select"] == "rollouts":
        return _by_rollouts(ctx, options["measure"], options["balance"])
    if options["select"] == "decisions":
        episodes = await ctx.rollout(ctx.subject, ctx.validation)
        found = choose(points(episodes, options["balance"]), options["n_decisions"], ctx.seed)
        return by_decisions(needed(found, "validation"), hard=hard)
    raise PlanError("no such way to select", expected="decisions or rollouts", got=repr(options["select"]))


async def best(
    ctx: FitContext[Any], judged: Judge, candidates: Sequence[T], world: Callable[[T], Any]
) -> tuple[T, list[dict[str, float]]]:
    """(the first of the best, the scores of those tried). Each is one tuning attempt; the budget cuts the list
    short. The first candidate is doing nothing: it wins ties, and where nothing could be tried."""
    scores: list[dict[str, float]] = []
    for candidate in candidates:
        try:
            ctx.try_one()
            scores.append(await judged(world(candidate)))
        except BudgetExceeded:
            break
    place = max(range(len(scores)), key=lambda i: scores[i][WHOLE], default=0)
    return candidates[place], scores


def by_decisions(found: Sequence[Point], *, hard: bool = False) -> Judge:
    """Balanced P(right) at the decision points `found`; with `hard`, the share of points where the choice is right,
    which is all that can be compared where some candidates act without telling a probability."""

    async def run(world: Any) -> dict[str, float]:
        values = await (_choices if hard else _probabilities)(world, found)
        return by_stratum(values, found)

    return run


async def _probabilities(world: Any, found: Sequence[Point]) -> torch.Tensor:
    """P(right) [N], in batches where the world has them; of a world that only acts, whether it is right."""
    if hasattr(world, "action_logprobs"):
        return measure(world, found).sigmoid()
    values = []
    for point, said in zip(found, await _answers(world, found), strict=True):
        if said.legal_logprobs is None:
            values.append(float(said.text in point.decision.right))
        else:
            values.append(float(log_odds([said.legal_logprobs], [point]).sigmoid()))
    return torch.tensor(values)


async def _choices(world: Any, found: Sequence[Point]) -> torch.Tensor:
    """[N] 1.0 where the world's choice is right."""
    answers = await _answers(world, found)
    return torch.tensor([float(a.text in p.decision.right) for a, p in zip(answers, found, strict=True)])


async def _answers(world: Any, found: Sequence[Point]) -> list[Generation]:
    answers: list[Generation] = []
    for start in range(0, len(found), BATCH):
        decisions = [p.decision for p in found[start : start + BATCH]]
        for said in await together(world, [Ask(d.messages, d.step, d.legal) for d in decisions]):
            if isinstance(said, Exception):
                raise said
            answers.append(said)
    return answers


def purse(ctx: FitContext[Any], share: float = 0.6) -> Callable[[], bool]:
    """A question a search asks before each step: has it spent `share` of the FLOPs that were left when it began? The
    rest is for comparing what it found on validation. Always False without a cap."""
    left = getattr(ctx.budget, "flops_left", lambda: None)
    start = left()
    return lambda: start is not None and left() < (1.0 - share) * start


def validation_score(tried: Sequence[Mapping[str, Any]]) -> float | None:
    """What the chosen candidate scored on validation: the largest `score`. None where nothing could be tried."""
    return max((float(t["score"]) for t in tried), default=None)


def _by_rollouts(ctx: FitContext[Any], measured: str, balance: str) -> Judge:
    async def run(world: Any) -> dict[str, float]:
        groups: dict[str, list[float]] = {}
        for episode in await ctx.rollout(world, ctx.validation):
            value = episode.score.values.get(measured)
            if value is not None:
                groups.setdefault(episode.item.strata.get(balance, WHOLE), []).append(float(value))
        if not groups:
            raise PlanError(f"no episode measures {measured!r}", expected="a score the task gives", got=measured)
        means = {name: sum(values) / len(values) for name, values in sorted(groups.items())}
        return {**means, WHOLE: sum(means.values()) / len(means)}

    return run
