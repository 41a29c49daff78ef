"""Gradient descent on right actions, for arms that learn weights: every setting is one tuning attempt, every epoch
is judged on validation, and the best epoch of the best setting is kept; doing nothing is tried first and wins ties.

Examples are the decision points of the bare subject's train episodes, each with a right action as the whole next
turn: what it did where that was right, the oracle's label where it failed. Options that these arms share:
epochs       passes over the examples at most; batch examples a step
patience     epochs without a better validation score before a setting is given up; one that is behind the best
             setting after TRUST epochs is given up, too
n_decisions  train decision points at most (0: all)
select, measure, balance, n_validation: see `prompt`
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from fairlead.core.errors import BudgetExceeded, NotApplicable
from fairlead.core.keys import derive_seed
from fairlead.core.protocols import FitContext
from fairlead.features.points import WHOLE, Point, choose, needed, points
from fairlead.lm.training import target_losses
from fairlead.methods import _choice
from fairlead.methods._choice import Judge

S = TypeVar("S")
T = TypeVar("T", covariant=True)
TRUST = 3  # epochs after which settings are compared
WARMUP, CLIP = 10, 1.0  # steps towards the full learning rate; largest norm of a step's gradient
DEFAULTS: dict[str, Any] = {
    "epochs": 8,
    "batch": 16,
    "patience": 3,
    "n_decisions": 480,
    "select": "decisions",
    "measure": "strict",
    "balance": "trap",
    "n_validation": 120,
}


class Learner(Protocol[T]):
    """What is learned: tensors that require gradients, the world they are at work in, and their present state."""

    @property
    def parameters(self) -> Sequence[Tensor]: ...

    @property
    def world(self) -> Any: ...

    def state(self) -> T: ...


@dataclass(frozen=True)
class Learned(Generic[S]):
    """The best state (None: doing nothing was best), its setting, and what was tried."""

    state: S | None
    setting: Mapping[str, Any]
    score: float | None
    tried: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0

    def about(self) -> dict[str, Any]:
        """What `describe` tells of the search."""
        chosen = {f"chosen_{k}": v for k, v in self.setting.items()} if self.state is not None else {}
        return {"tried": self.tried, "settings_left_out": self.left_out, "validation_score": self.score, **chosen}


def targets(found: Sequence[Point]) -> list[str]:
    """A right action of every point: the one that was taken, else the first that is legal."""
    return [
        d.chosen if d.chosen in d.right else next(a for a in d.legal if a in d.right)
        for d in (p.decision for p in found)
    ]


def check_local(subject: Any) -> None:
    """NotApplicable where the subject cannot be trained through."""
    if not hasattr(subject, "within") or not hasattr(subject, "action_logprobs"):
        raise NotApplicable("this subject's weights are not at hand: nothing can be learned", expected="a local model")


async def learn(
    ctx: FitContext[Any],
    options: Mapping[str, Any],
    settings: Sequence[Mapping[str, Any]],
    begin: Callable[[Mapping[str, Any], int], Learner[S]],
) -> Learned[S]:
    """Train every setting that the budget allows, in order. `begin(setting, seed)` makes a fresh Learner, in whose
    world the examples and the validation points are read; its seed differs from setting to setting."""
    episodes = await ctx.rollout(ctx.subject, ctx.train)
    found = needed(points(episodes, options["balance"]), "train")
    found = choose(found, options["n_decisions"] or len(found), ctx.seed)
    judge = await _choice.judge(ctx, {**options, "n_decisions": options["n_validation"]})
    search: _Search[S] = _Search(ctx, options, found, judge)
    try:
        ctx.try_one()
        search.settle(None, {}, await judge(ctx.subject))
        for number, setting in enumerate(settings):
            ctx.try_one()
            await search.descend(setting, begin(setting, derive_seed(ctx.seed, "learn", number)))
    except BudgetExceeded:
        pass  # what was reached so far counts
    state, setting, score = search.best
    return Learned(state, setting, score, search.tried, len(settings) + 1 - len(search.tried))


@dataclass
class _Search(Generic[S]):
    """The settings tried so far and the best state among their epochs."""

    ctx: FitContext[Any]
    options: Mapping[str, Any]
    found: Sequence[Point]
    judge: Judge
    best: tuple[S | None, Mapping[str, Any], float | None] = (None, {}, None)
    tried: list[dict[str, Any]] = field(default_factory=list)

    def settle(self, learner: Learner[S] | None, row: Mapping[str, Any], strata: Mapping[str, float]) -> None:
        """Keep this epoch's state if it is the best so far; the first to be judged is doing nothing."""
        if learner is None:
            self.tried.append({"score": strata[WHOLE], "strata": dict(strata)})
        score, highest = strata[WHOLE], self.best[2]
        if highest is None or score > highest:
            self.best = (None if learner is None else learner.state(), row, score)

    async def descend(self, setting: Mapping[str, Any], learner: Learner[S]) -> None:
        """Train one setting until nothing is won any more."""
        row: dict[str, Any] = {**setting, "score": None, "losses": [], "scores": []}
        self.tried.append(row)
        lead: list[float] = next(
            (t["scores"] for t in self.tried if t.get("score") == self.best[2] and "scores" in t), []
        )
        optimiser = torch.optim.AdamW(list(learner.parameters), lr=setting["lr"], weight_decay=0.0)
        steps = self.options["epochs"] * math.ceil(len(self.found) / self.options["batch"])
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
        rng = random.Random(derive_seed(self.ctx.seed, "batches"))
        for epoch in range(1, self.options["epochs"] + 1):
            loss = self._epoch(learner, optimiser, rate, rng)
            if not math.isfinite(loss):
                row["reason"] = f"the loss was not finite in epoch {epoch}"
                return
            strata = await self.judge(learner.world)
            row["losses"].append(loss)
            row["scores"].append(strata[WHOLE])
            self.settle(learner, setting, strata)
            if row["score"] is None or strata[WHOLE] > row["score"]:
                row |= {"score": strata[WHOLE], "strata": strata, "epoch": epoch}
            elif epoch - row["epoch"] >= self.options["patience"]:
                return
            if epoch >= TRUST and row["score"] < max(lead[:epoch], default=row["score"]):
                row["reason"] = f"behind the best setting after {epoch} epochs"
                return

    def _epoch(self, learner: Learner[S], optimiser: Any, rate: Any, rng: random.Random) -> float:
        """One pass in a drawn order; the mean loss over it, or NaN from the first step that is not finite."""
        order, batch, total = list(range(len(self.found))), self.options["batch"], 0.0
        rng.shuffle(order)
        for start in range(0, len(order), batch):
            if self.ctx.budget is not None:
                self.ctx.budget.check()
            here = [self.found[i] for i in order[start : start + batch]]
            decisions = [p.decision for p in here]
            messages, steps = [d.messages for d in decisions], [d.step for d in decisions]
            losses = target_losses(learner.world, messages, targets(here), steps)
            optimiser.zero_grad()
            losses.mean().backward()
            norm = torch.nn.utils.clip_grad_norm_(list(learner.parameters), CLIP)
            if not bool(torch.isfinite(norm)):
                return math.nan
            optimiser.step()
            rate.step()
            total += float(losses.detach().sum())
        return total / len(order)


def _rate(step: int, steps: int) -> float:
    """The share of the learning rate at a step: up in a line, then down along a cosine to the last of `steps`."""
    return min((step + 1) / WARMUP, 0.5 * (1.0 + math.cos(math.pi * min(step / steps, 1.0))))
