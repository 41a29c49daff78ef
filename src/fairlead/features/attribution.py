"""What one backward pass says of every latent: how far the preference for the right action would move.

The preference is M = log Σ p(right) − log Σ p(wrong), wrong being the trap actions, or all that is not right.
With g = ∂M/∂h at a token, suppressing latent i there moves M by about −f_i·(g·d_i), and adding its largest
activation by max_i·(g·d_i). An edit acts on all tokens in its scope, so both are summed over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import EditError
from fairlead.features.points import Point


@dataclass(frozen=True, eq=False)
class Effects:
    """First-order change of M per latent, a row per point: `suppress` and `amplify` [N, m]; `margin` [N] is M."""

    suppress: Tensor
    amplify: Tensor
    margin: Tensor

    def mean(self, values: Tensor, points: Sequence[Point]) -> Tensor:
        """[m]: the mean of `values` [N, m] over the strata of the means within each."""
        names = sorted({p.stratum for p in points})
        rows = [values[torch.tensor([p.stratum == name for p in points])].mean(0) for name in names]
        return torch.stack(rows).mean(0)


def preference(point: Point) -> Callable[[Tensor], Tensor]:
    """M as a function of the log-probabilities [n_legal] of the point's legal actions."""
    right, wrong = torch.tensor(point.right), torch.tensor(point.wrong)

    def metric(scores: Tensor) -> Tensor:
        return torch.logsumexp(scores[right], 0) - torch.logsumexp(scores[wrong], 0)

    return metric


def gradients(subject: Any, site: str, points: Sequence[Point]) -> Any:
    """Activations at `site` and gradients of the preference there, per point: one backward pass."""
    decisions = [p.decision for p in points]
    return subject.attribution(
        [d.messages for d in decisions], [d.legal for d in decisions], [preference(p) for p in points],
        site, [d.step for d in decisions],
    )  # fmt: skip


def attribute(subject: Any, dictionary: Any, points: Sequence[Point], scope: str = "all") -> Effects:
    """Effects of every latent at every point. `scope` is "all" (all prompt tokens; "prompt" is the same here)
    or "last" (the decision token). Needs the dictionary's max_activation."""
    if scope not in ("all", "prompt", "last"):
        raise EditError("no attribution in this scope", expected="all, prompt or last", got=scope)
    found = gradients(subject, dictionary.site, points)
    suppress, amplify = [], []
    every = torch.arange(dictionary.n_features)
    rows = dictionary.decoder_rows(every).float()
    with torch.inference_mode():
        for x, g in zip(found.activations, found.gradients, strict=True):
            x, g = (x[-1:], g[-1:]) if scope == "last" else (x, g)
            along = g.float() @ rows.T
            suppress.append(-(dictionary.encode(x.float()) * along).sum(0))
            amplify.append(dictionary.max_activation * along.sum(0))
    return Effects(torch.stack(suppress), torch.stack(amplify), torch.tensor(found.metric))
