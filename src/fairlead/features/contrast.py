"""Which latents differ, at the decision token, between decisions that were right and decisions that were not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairlead.features.points import Point


@dataclass(frozen=True, eq=False)
class Contrast:
    """Per latent [m]: `difference` of mean activations (wrong minus right), `auroc` of telling wrong from right
    by the activation (0.5 where it tells nothing), and `log_odds` of firing (wrong over right, with half a
    count added everywhere). `n_right` and `n_wrong` decisions; with none of either, nothing is measured: NaN."""

    difference: Tensor
    auroc: Tensor
    log_odds: Tensor
    n_right: int
    n_wrong: int


def contrast(latents: Tensor, wrong: Sequence[bool]) -> Contrast:
    """`latents` [N, m] at the decision tokens; `wrong[i]` whether decision i was wrong."""
    mask = torch.tensor(list(wrong), dtype=torch.bool)
    bad, good = latents[mask], latents[~mask]
    n_wrong, n_right = len(bad), len(good)
    if not n_wrong or not n_right:
        nothing = torch.full((latents.shape[1],), torch.nan)
        return Contrast(nothing, nothing, nothing, n_right, n_wrong)
    ranks = _ranks(latents)
    statistic = ranks[mask].sum(0) - n_wrong * (n_wrong + 1) / 2
    fires = [((x > 0).sum(0) + 0.5, (x <= 0).sum(0) + 0.5) for x in (bad, good)]
    log_odds = (fires[0][0] / fires[0][1]).log() - (fires[1][0] / fires[1][1]).log()
    return Contrast(bad.mean(0) - good.mean(0), statistic / (n_wrong * n_right), log_odds, n_right, n_wrong)


def at_decisions(subject: Any, dictionary: Any, points: Sequence[Point]) -> tuple[Tensor, Contrast]:
    """(latents [N, m] at the decision tokens, their contrast between failed and right decisions)."""
    prompts = [p.decision.messages for p in points]
    steps = [p.decision.step for p in points]
    x = subject.activations(prompts, [dictionary.site], "last", steps)[dictionary.site].float()
    latents = dictionary.encode(x)
    return latents, contrast(latents, [p.failed for p in points])


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1 down each column of [N, m]; ties share their mean rank."""
    ordered, order = values.sort(0)
    n = len(values)
    place = torch.arange(1, n + 1, dtype=torch.float64)[:, None].expand(values.shape)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    group = starts.long().cumsum(0) - 1
    total = torch.zeros(values.shape, dtype=torch.float64).scatter_add(0, group, place)
    count = torch.zeros(values.shape, dtype=torch.float64).scatter_add(0, group, torch.ones_like(place))
    shared = (total / count.clamp(min=1)).gather(0, group)
    return torch.zeros(values.shape, dtype=torch.float64).scatter(0, order, shared)
