"""What Records of a pilot say about the spread of a comparison that is still to be made."""

from __future__ import annotations

import numpy as np

from fairlead.core.errors import RecordError
from fairlead.core.records import Run
from fairlead.judge.power import Assumed
from fairlead.judge.question import Question
from fairlead.judge.stats import clustering
from fairlead.judge.tables import Cells, pair


def pilot(run: Run, question: Question, clusters: int) -> tuple[Assumed, str]:
    """The comparison of the claim with the widest spread in a pilot, planned for `clusters` clusters, and the arm
    it is with. Raises RecordError when the pilot compares nothing."""
    cells = Cells(run.records)
    found: list[tuple[float, Assumed, str]] = []
    for (model, decoding), arms in cells.groups.items():
        mine = cells.get(model, decoding, question.claim, question.where)
        for arm in dict.fromkeys((*question.family, *question.rivals)):
            if arm not in arms or not len(mine):
                continue
            one, two, _ = pair(cells.columns, mine, cells.get(model, decoding, arm, question.where))
            deltas = cells.values(one, question.primary) - cells.values(two, question.primary)
            seen = ~np.isnan(deltas)
            if seen.sum() < 2:
                continue
            group = clustering(deltas[seen], cells.columns.cluster[one][seen])
            size = max(1, round(group.n / group.clusters))
            icc = 1.0 if group.icc is None else group.icc
            text = f"pilot: {group.n} pairs in {group.clusters} clusters against {arm} on {model}"
            assumed = Assumed(clusters, size, float(np.mean(deltas[seen] ** 2)), icc, text)
            found.append((assumed.spread(0.0), assumed, arm))
    if not found:
        raise RecordError(
            "the pilot compares the claim with nothing",
            expected=f"Records of {question.claim} and of one of {', '.join((*question.family, *question.rivals))}",
            do="run a pilot with those arms, or leave --records out",
        )
    _, assumed, arm = max(found, key=lambda entry: entry[0])
    return assumed, arm
