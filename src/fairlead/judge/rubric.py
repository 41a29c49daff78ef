"""The rubric of a fair fight: thirteen rows, one of which does not gate. Each is PASS, FAIL, HUMAN or NOT MEASURED,
with its reason and what it read. One FAIL forbids every sentence that says the claim beats its baselines.

The rows follow fair_fight.md §2. PASS and FAIL come from Records, ledgers, the plan and the lock. HUMAN is a
judgement that a named person signed in `[protocol.human.<row>]`; a signed `fail` is FAIL. NOT MEASURED is neither:
the evidence is not there. The rows in `DECIDING` must pass for a claim; the others must not fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fairlead.judge import rows_fight, rows_protocol
from fairlead.judge.evidence import FAIL, PASS, Answer, Evidence, Finding, shown

DECIDING = ("lock", "baselines", "beat", "sample", "necessity")


@dataclass(frozen=True)
class RubricRow:
    """One row. `gating` is False for the row that is only a plus."""

    name: str
    criterion: str
    result: Answer
    reason: str
    evidence: tuple[str, ...]
    gating: bool = True


ROWS: tuple[tuple[str, str, Callable[[Evidence], Finding]], ...] = (
    ("task", "The task is interesting, not spurious, and scored strictly and leniently", rows_protocol.task),
    ("useful", "Somebody in the real world would use it (a plus)", rows_protocol.useful),
    ("constraints", "Constraints are realistic, and an arm without them is reported", rows_protocol.constraints),
    ("budget", "One compute budget, a tenth of the dictionary's training included", rows_protocol.budget),
    ("lock", "Locked before the test split was opened", rows_protocol.lock),
    ("baselines", "Every fair baseline was run, or is n/a with a reason", rows_fight.baselines),
    ("beat", "The claim beats every baseline, not only competes", rows_fight.beat),
    ("sample", "The sample is large enough for the effect of interest", rows_fight.sample),
    ("necessity", "The dictionary's features are needed", rows_fight.necessity),
    ("dictionary", "The dictionary was named in advance", rows_protocol.dictionary),
    ("public", "Artifacts are public", rows_protocol.public),
    ("cherry_pick", "Concepts were registered before the search", rows_fight.cherry_pick),
    ("brittle", "The claim survives one changed factor at a time", rows_fight.brittle),
)
NOT_GATING = ("useful",)


def rubric(seen: Evidence) -> tuple[RubricRow, ...]:
    """All rows, in the order of the table."""
    found = []
    for name, criterion, row in ROWS:
        answer = row(seen)
        found.append(
            RubricRow(name, criterion, answer.result, answer.reason, answer.evidence, name not in NOT_GATING)
        )
    return tuple(found)


def may_claim(seen: Evidence, rows: Sequence[RubricRow]) -> tuple[bool, str]:
    """Whether a report may say that the claim beats its baselines, and the one sentence that it prints."""
    failed = [row.name for row in rows if row.gating and row.result == FAIL]
    open_ = [row.name for row in rows if row.name in DECIDING and row.result not in (PASS, FAIL)]
    claim = seen.question.claim
    failed, open_ = [[name.replace("_", " ") for name in names] for names in (failed, open_)]
    if not failed and not open_ and seen.status == "supported" and not seen.exploratory:
        return True, f"{claim} beats each of its baselines: {', '.join(seen.question.rivals)}; {_margin(seen)}."
    why = []
    if seen.exploratory:
        why.append("the run is exploratory")
    if seen.status != "supported":
        why.append(f"the verdict is {seen.status}")
    if failed:
        why.append(f"the rubric fails on {', '.join(failed)}")
    if open_:
        why.append(f"not measured: {', '.join(open_)}")
    return False, f"Nothing here says that {claim} is better than its baselines: {'; '.join(why)}."


def _margin(seen: Evidence) -> str:
    """claim − max(baselines), the most cautious way: its smallest margin over a baseline, on any model."""
    found = [c for arm in seen.question.rivals for c in seen.against(arm) if c.difference.estimate is not None]
    least = min(found, key=lambda c: c.difference.estimate or 0.0)
    return f"the smallest margin is {shown(least)}"
