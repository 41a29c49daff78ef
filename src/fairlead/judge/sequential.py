"""The anytime-valid view of a run: had one looked after every pair, when could the comparison have stopped?

It says nothing that the confirmatory test does not correct for; it is shown beside it, and it decides only in
studies whose plan registers `stop = {rule = "anytime"}`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairlead.core.records import Run
from fairlead.core.stopping import ALPHA, first_stop, rule
from fairlead.judge.question import Question
from fairlead.judge.tables import Cells, pair


@dataclass(frozen=True)
class Sequential:
    """The claim against one arm, one pair a cluster in the order of the Records. `stopped_at` counts clusters."""

    model: str
    against: str
    clusters: int
    wins: int
    losses: int
    e: float
    stopped_at: int | None
    alpha: float
    registered: bool


def sequential(run: Run, cells: Cells, question: Question) -> tuple[Sequential, ...]:
    """One per model and arm of the family, in the deciding mode; yes-or-no measures only."""
    alpha = rule(run.plan.stop) if run.plan is not None else None
    found = []
    for (model, decoding), arms in cells.groups.items():
        if decoding != question.decoding:
            continue
        mine = cells.get(model, decoding, question.claim, question.where)
        for arm in dict.fromkeys((*question.family, *question.rivals)):
            if arm not in arms or not len(mine) or question.primary not in cells.columns.measures:
                continue
            theirs = cells.get(model, decoding, arm, question.where)
            one, two, _ = pair(cells.columns, mine, theirs)
            x, y = cells.values(one, question.primary), cells.values(two, question.primary)
            both = ~(np.isnan(x) | np.isnan(y))
            if not both.any() or not cells.columns.is_yes_no(one[both], question.primary):
                continue
            x, y, clusters = x[both], y[both], cells.columns.cluster[one][both]
            first = np.sort(np.unique(clusters, return_index=True)[1])
            at, tally = first_stop(zip((x[first] > 0).tolist(), (y[first] > 0).tolist(), strict=True), alpha or ALPHA)
            found.append(
                Sequential(model, arm, len(first), tally.wins, tally.losses, tally.e, at, alpha or ALPHA,
                           alpha is not None)
            )  # fmt: skip
    return tuple(found)
