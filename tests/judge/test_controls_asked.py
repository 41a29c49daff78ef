"""Controls show that a latent was needed; a claim that is charged for no dictionary says nothing of the kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fairlead.core.records import Run
from fairlead.core.types import Cost, Record
from fairlead.judge import judge
from fairlead.judge.question import Question


def run(ledgers: dict[str, Any]) -> Run:
    def record(arm: str, item: int, good: bool) -> Record:
        place = {"item": f"i{item}", "cluster": f"c{item}", "split": "test", "strata": {}}
        return Record(f"t-{arm}", arm, "m", "constrained", 0, **place, outcome={}, score={"strict": good}, error=None,
                      cost=Cost())  # fmt: skip

    records = [record(arm, i, good) for arm, good in (("none", False), ("fix", True)) for i in range(50)]
    return replace(Run.of(records), ledgers=ledgers)


def ledger(dictionary: Any) -> dict[str, Any]:
    budget = {"tuning_trials": 3, "flops": 1.0}
    return {"arm": "fix", "model": "m", "dictionary": dictionary, "fit": None, "budget": budget, "over_budget": False}


@pytest.mark.parametrize(
    ("ledgers", "status"),
    [
        ({"t-fix": ledger(None)}, "supported"),
        ({"t-fix": ledger({"ref": "d", "share_flops": 1.0})}, "inconclusive"),
        ({}, "inconclusive"),
    ],
)
def test_only_a_claim_without_a_dictionary_goes_without_controls(ledgers: dict[str, Any], status: str):
    found = judge(run(ledgers), Question("fix", "strict", 0.2))
    assert found.status == status, found.reasons
    assert {c.name: c.result for c in found.checks}["controls"] == ("pass" if status == "supported" else "fail")


def test_notes_without_the_dictionarys_part_are_controls():
    from fairlead.judge.question import is_control

    assert is_control("reformulate.shuffled_label") and is_control("reformulate.pca") and is_control("control.noise")
    assert not any(map(is_control, ("reformulate", "reformulate.edit", "reformulate.oracle", "prompt+control.noise")))
