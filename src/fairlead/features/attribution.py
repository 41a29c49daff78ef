"""What one backward pass says of every latent: how far the preference for the right action would move.

The preference is M = log Σ p(right) − log Σ p(wrong), wrong being the trap actions, or all that is not right.
With g = ∂M/∂h at a token, suppressing latent i there moves M by about −f_i·(g·d_i), and adding its largest
activation by max_i·(g·d_i). An edit acts on all tokens in its scope, so both are summed over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import EditError
from fairlead.features.points import Point

DENSE_AT_ONCE = 2**24  # latents held at once: 256 tokens of 65,536


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


def only(found: Any, places: Sequence[int]) -> Any:
    """The part of what `gradients` gave that belongs to the points at `places`."""
    names = ("activations", "gradients", "logprobs", "metric")
    return replace(found, **{name: [getattr(found, name)[i] for i in places] for name in names})


def attribute(
    subject: Any, dictionary: Any, points: Sequence[Point], scope: str = "all", *, found: Any = None
) -> Effects:
    """Effects of every latent at every point. `scope` is "all" (all prompt tokens; "prompt" is the same here)
    or "last" (the decision token). Needs the dictionary's max_activation. `found` is what `gradients` gave for
    these points, where that is known. A prompt's latents are dense for DENSE_AT_ONCE / m tokens at a time."""
    if scope not in ("all", "prompt", "last"):
        raise EditError("no attribution in this scope", expected="all, prompt or last", got=scope)
    found = gradients(subject, dictionary.site, points) if found is None else found
    suppress, amplify = [], []
    every = torch.arange(dictionary.n_features)
    rows = dictionary.decoder_rows(every).float()
    step = max(1, DENSE_AT_ONCE // dictionary.n_features)
    with torch.inference_mode():
        for x, g in zip(found.activations, found.gradients, strict=True):
            x, g = (x[-1:], g[-1:]) if scope == "last" else (x, g)
            lost, moved = [], []
            for part, slope in zip(x.split(step), g.split(step), strict=True):
                along = slope.float() @ rows.T
                lost.append(-(dictionary.encode(part.float()) * along).sum(0))
                moved.append(along.sum(0))
            suppress.append(_sum(lost))
            amplify.append(dictionary.max_activation * _sum(moved))
    return Effects(torch.stack(suppress), torch.stack(amplify), torch.tensor(found.metric))


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """The sum; of one part, that part, bit for bit."""
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)
