"""A linear probe that scores what could be done on a page, from the model's own activations.

Two places are read at one site: the last token of the action, as if it followed the prompt, and the action's object,
which is the end of the line of the last message that names the action's first argument (zeros where none does). A
causal model has read the goal by then, so what it knows of the object stands there; at the end of `click("5")` little
may be left of it. The model's own log-probability of the action is one more input, so that a probe that has nothing to
add is no worse than the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairlead.core.keys import content_key
from fairlead.core.types import Messages
from fairlead.features.points import Point, balanced, log_odds
from fairlead.methods._logistic import Linear, choice, even, folds
from fairlead.methods._steered import tensor_hash

FOLDS = 4


@dataclass(frozen=True)
class Cell:
    """One setting of the probe, with its balanced P(right) on held-out parts of train."""

    site: str
    c: float
    score: float = 0.0


@dataclass(frozen=True, eq=False)
class Scorer:
    """The fitted probe. A score is the log-odds of nothing: only differences between a page's actions mean anything."""

    site: str
    c: float
    weight: Tensor  # [2 d + 1]: object, end of action, log-probability

    @property
    def fingerprint(self) -> str:
        return content_key([self.site, tensor_hash(self.weight)])

    def __call__(
        self, subject: Any, prompts: Sequence[Messages], options: Sequence[Sequence[str]], steps: Sequence[int]
    ) -> list[Tensor]:
        """One score an option, [n_options] a prompt: two forwards over all of them."""
        menus = read(subject, prompts, options, [self.site], steps)[self.site]
        _charge(subject, 2.0 * len(self.weight) * sum(len(m) for m in menus))
        return [Linear(self.weight)(menu) for menu in menus]


def read(
    subject: Any,
    prompts: Sequence[Messages],
    options: Sequence[Sequence[str]],
    sites: Sequence[str],
    steps: Sequence[int],
) -> dict[str, list[Tensor]]:
    """{site: inputs of the probe [n_options, 2 d + 1], one a prompt}."""
    places = [[named(subject, p, o) for o in menu] for p, menu in zip(prompts, options, strict=True)]
    found = subject.action_activations(prompts, options, sites, steps, places=places)
    own = subject.action_logprobs(prompts, options, steps)
    return {
        site: [torch.cat([m.float().cpu(), lp.float().cpu()[:, None]], 1) for m, lp in zip(menus, own, strict=True)]
        for site, menus in found.items()
    }


def named(subject: Any, prompt: Messages, action: str) -> int | None:
    """The prompt token that ends the line of the last message which names the action's first quoted argument as a word
    of its own: the first such line, one that writes it in brackets before others."""
    argument = re.search(r'"([^"]+)"', action)
    if argument is None:
        return None
    rendered = subject.tokens(prompt)
    start = max(rendered.text.rfind(prompt[-1].content[:200]), 0)
    word = re.escape(argument[1])
    hit = re.compile(rf"\[{word}\]").search(rendered.text, start)
    hit = hit or re.compile(rf"(?<!\w){word}(?!\w)").search(rendered.text, start)
    if hit is None:
        return None
    stop = rendered.text.find("\n", hit.end())
    stop = max(min(len(rendered.text) if stop < 0 else stop, start + len(prompt[-1].content)), hit.end())
    inside = ((rendered.offsets[:, 1] <= stop) & (rendered.offsets[:, 1] > hit.start())).nonzero()[0]
    return int(inside[-1]) if len(inside) else None


def survey(
    subject: Any, found: Sequence[Point], sites: Sequence[str], strengths: Sequence[float], seed: int
) -> tuple[list[Cell], dict[str, list[Tensor]]]:
    """(every site × C, the inputs read). Best first by P(right) on held-out parts of the train points, but each site's
    best penalty before any second one: settings of one site are much alike, and sites overfit differently."""
    asked = [p.decision for p in found]
    menus = read(subject, [d.messages for d in asked], [d.legal for d in asked], sites, [d.step for d in asked])
    parts = folds([p.cluster for p in found], FOLDS, seed)
    cells = []
    for site in sites:
        for c in strengths:
            odds = torch.zeros(len(found))
            for part in parts:
                rest = [i for i in range(len(found)) if i not in set(part)] or part
                probe = fit(subject, [menus[site][i] for i in rest], [found[i] for i in rest], site, c)
                scores = [Linear(probe.weight)(menus[site][i]) for i in part]
                odds[torch.tensor(part)] = log_odds(scores, [found[i] for i in part])
            cells.append(Cell(site, c, balanced(odds.sigmoid(), found)))
    ranked = sorted(cells, key=lambda cell: -cell.score)
    first = {cell.site: cell for cell in reversed(ranked)}
    return sorted(ranked, key=lambda cell: first[cell.site] is not cell), menus


def fit(subject: Any, menus: Sequence[Tensor], found: Sequence[Point], site: str, c: float) -> Scorer:
    """The probe of some menus, strata counting alike."""
    right = [torch.tensor(p.right) for p in found]
    probe = choice(menus, right, c, even([p.stratum for p in found]))
    _charge(subject, probe.flops)
    return Scorer(site, c, probe.weight)


def _charge(subject: Any, flops: float) -> None:
    if getattr(subject, "meter", None) is not None:
        subject.meter.charge(flops=flops)
