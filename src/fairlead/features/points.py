"""Decision points of rolled-out episodes, and how well a subject decides there, without rolling out again.

A point's measure is P(right): the probability of the right actions among the page's legal ones. Where a model
is sure of itself P hardly moves, so a search climbs the log-odds of right instead, cut off at a safe margin:
nothing is won by being surer, and what was sure may be spent down to the margin. Points are averaged within
a stratum (trap on, off, inverse) and strata count alike, so avoiding everything loses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import NotApplicable
from fairlead.core.types import Decision, Episode

WHOLE = "all"  # the stratum of everything, where items have no such stratum
MARGIN, FLOOR = 2.0, -20.0  # log-odds, in nats, between which a search counts them


@dataclass(frozen=True)
class Point:
    """One decision with something to decide: at least one legal action is right and at least one is not."""

    decision: Decision
    stratum: str = WHOLE
    cluster: str = ""

    @property
    def right(self) -> list[bool]:
        """Per legal action, whether it is right."""
        return [action in self.decision.right for action in self.decision.legal]

    @property
    def wrong(self) -> list[bool]:
        """Per legal action, whether it counts as wrong: the traps, or all that is not right where there is none."""
        traps = [a in self.decision.trap and a not in self.decision.right for a in self.decision.legal]
        return traps if any(traps) else [not r for r in self.right]

    @property
    def failed(self) -> bool:
        """Whether the action that was taken is not right."""
        return self.decision.chosen not in self.decision.right

    @property
    def critical(self) -> bool:
        """Whether there is a trap here, or the decision failed."""
        return self.failed or bool(self.decision.trap)


def points(episodes: Sequence[Episode], balance: str = "trap") -> list[Point]:
    """The decision points of episodes, each episode up to and including its first failure: what comes after
    it is another path. `balance` names the item stratum that is averaged over; items may lack it."""
    found = []
    for episode in episodes:
        stratum = episode.item.strata.get(balance, WHOLE)
        for decision in episode.outcome.decisions:
            point = Point(decision, stratum, episode.item.cluster)
            if any(point.right) and not all(point.right):
                found.append(point)
                if point.failed:
                    break
    return found


def choose(points: Sequence[Point], n: int, seed: int) -> list[Point]:
    """At most `n` points, as many of each stratum as it has; four fifths of them with a trap where there are so many.
    Failures are not sought out: they would count for more than their share where they are rare.
    Seeded; shorter prompts first, so that batches hold prompts of like length."""
    rng = random.Random(seed)
    names = sorted({p.stratum for p in points})
    chosen: list[Point] = []
    for place, name in enumerate(names):
        quota = (n - len(chosen)) // (len(names) - place)
        here = [p for p in points if p.stratum == name]
        rng.shuffle(here)
        critical, plain = [p for p in here if p.decision.trap], [p for p in here if not p.decision.trap]
        trapped = critical[: max(quota - len(plain), (4 * quota + 4) // 5)]
        chosen += [*trapped, *plain[: quota - len(trapped)]]
    return sorted(chosen, key=lambda p: (sum(len(m.content) for m in p.decision.messages), p.cluster, p.stratum))


def log_odds(logprobs: Sequence[Tensor | Sequence[float]], points: Sequence[Point]) -> Tensor:
    """log P(right) / P(not right) among its legal actions for every point, [N], from their log-probabilities."""
    values = []
    for scores, point in zip(logprobs, points, strict=True):
        held, right = torch.as_tensor(scores, dtype=torch.float32), torch.tensor(point.right)
        values.append(torch.logsumexp(held[right], 0) - torch.logsumexp(held[~right], 0))
    return torch.stack(values)


def measure(subject: Any, points: Sequence[Point]) -> Tensor:
    """Log-odds of right [N] under `subject` (a LocalSubject, maybe steered or prompted); P(right) is their sigmoid."""
    decisions = [p.decision for p in points]
    scores = subject.action_logprobs(
        [d.messages for d in decisions], [d.legal for d in decisions], [d.step for d in decisions]
    )
    return log_odds(scores, points)


def climbed(odds: Tensor, points: Sequence[Point]) -> float:
    """What a search climbs: log-odds of right between FLOOR and MARGIN, balanced over strata."""
    return balanced(odds.clamp(FLOOR, MARGIN), points)


def by_stratum(values: Tensor, points: Sequence[Point]) -> dict[str, float]:
    """Mean of `values` [N] in each stratum, and `all`: the mean of those means."""
    means = {
        name: float(values[torch.tensor([p.stratum == name for p in points])].mean())
        for name in sorted({p.stratum for p in points})
    }
    return {**means, WHOLE: sum(means.values()) / len(means)}


def balanced(values: Tensor, points: Sequence[Point]) -> float:
    """The objective: the mean over strata of the mean in each."""
    return by_stratum(values, points)[WHOLE]


def with_intervals(
    values: Tensor, points: Sequence[Point], *, seed: int = 0, resamples: int = 200
) -> dict[str, dict[str, float]]:
    """{stratum: {value, lo, hi}} with 95 % percentile intervals of a bootstrap over clusters."""
    clusters: dict[str, list[int]] = {}
    for place, point in enumerate(points):
        clusters.setdefault(point.cluster, []).append(place)
    members = [torch.tensor(m) for m in clusters.values()]
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[float]] = {}
    strata = {name: torch.tensor([p.stratum == name for p in points]) for name in {p.stratum for p in points}}
    for _ in range(resamples):
        picks = torch.randint(len(members), (len(members),), generator=generator).tolist()
        index = torch.cat([members[i] for i in picks])
        means = {n: float(values[index][mask[index]].mean()) for n, mask in strata.items() if bool(mask[index].any())}
        for name, value in means.items():
            drawn.setdefault(name, []).append(value)
        if len(means) == len(strata):
            drawn.setdefault(WHOLE, []).append(sum(means.values()) / len(means))
    found = by_stratum(values, points)
    return {name: {"value": value, **_interval(drawn.get(name, [value]))} for name, value in found.items()}


def _interval(values: Sequence[float]) -> dict[str, float]:
    lo, hi = torch.quantile(torch.tensor(values), torch.tensor([0.025, 0.975])).tolist()
    return {"lo": lo, "hi": hi}


def needed(points: Sequence[Point], split: str) -> Sequence[Point]:
    """The points, or NotApplicable where there are none."""
    if not points:
        raise NotApplicable(
            f"no decision points on {split}",
            expected="episodes whose decisions have right and wrong legal actions",
            do="raise n_train and n_validation, or check that the task labels its decisions",
        )
    return points
