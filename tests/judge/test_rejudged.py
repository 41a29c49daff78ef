"""A published study, re-judged: the page's tables are made here from its files, and hold what was found by hand.

The files are not part of the project; without them these tests skip. `FAIRLEAD_WRITE_DOCS=1 python -m pytest
tests/judge/test_rejudged.py` writes the page's tables again.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from tests.judge.test_stats import DATA
from tests.test_docs import written

from fairlead.app.imported import Rejudged, rejudge

PAGE = Path(__file__).parents[2] / "docs" / "re-judged.md"
MAP = "arm=policy,item=task_id,cluster=task_id,success=success,strict=strict_success"
RENAMED = {
    "baseline": "none", "targeted": "feature", "prompt-only": "prompt", "prompt-plus-targeted": "prompt+feature",
    "wrong-sign": "control.wrong_sign", "random": "control.random", "noise": "control.noise",
    "baseline-strict-prompt": "reference",
}  # fmt: skip
THEIRS = {new: old for old, new in RENAMED.items()}
PRINTED = {"none": "4.7–20.1", "feature": "44.1–68.4", "prompt": "61.0–82.9", "prompt+feature": "62.8–84.2",
           "reference": "94.0–100.0"}  # fmt: skip
CONTROLS = ("control.wrong_sign", "control.random", "control.noise")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the published files are not here")


@cache
def judged(claim: str, beat: str) -> Rejudged:
    names = [f"{old}={new}" for old, new in RENAMED.items()]
    return rejudge([DATA], MAP, claim=claim, rename=names, beat=[beat], smallest_effect=0.1)


def sae() -> Rejudged:
    return judged("feature", "none")


def stacked() -> Rejudged:
    return judged("prompt+feature", "prompt")


def span(low: float, high: float) -> str:
    return f"{100 * low:.1f}–{100 * high:.1f}"


def whole(found: Rejudged, arm: str, measure: str):
    return next(r for r in found.table if (r.arm, r.measure, dict(r.where)) == (arm, measure, {}))


def against(found: Rejudged, arm: str):
    return next(c for c in found.verdict.contrasts if c.against == arm and c.measure == "success" and not c.where
                and c.arm == found.verdict.question.claim)  # fmt: skip


def tied(found: Rejudged, one: str, other: str) -> int:
    """Tasks on which two arms succeed equally often."""
    wins: dict[str, dict[str, int]] = {one: {}, other: {}}
    for record in found.records:
        if record.arm in wins:
            tasks = wins[record.arm]
            tasks[record.cluster] = tasks.get(record.cluster, 0) + bool(record.score["success"])
    return sum(wins[one][task] == wins[other][task] for task in wins[one])


def test_the_published_intervals_to_the_printed_digit():
    for arm, printed in PRINTED.items():
        row = whole(sae(), arm, "success")
        assert span(row.interval.low, row.interval.high) == printed and row.n == 60 and row.clusters == 20
        assert row.clustered.high - row.clustered.low > row.interval.high - row.interval.low  # 60 are not 60


def test_stacking_cannot_be_told_from_the_prompt_alone():
    found = against(stacked(), "prompt").difference
    assert found.p == 1.0 and found.estimate == pytest.approx(1 / 60) and found.interval.low < 0 < found.interval.high
    assert tied(stacked(), "prompt+feature", "prompt") == 18
    assert stacked().verdict.status != "supported"


def test_the_direction_of_the_edit_matters():
    assert against(sae(), "control.wrong_sign").difference.p == pytest.approx(0.0005, abs=0.0004)


def test_what_was_not_recorded_is_not_measured():
    absent = {arm for arm in {r.arm for r in sae().records} if whole(sae(), arm, "strict").value is None}
    assert absent == {"none", *CONTROLS, "feature", "prompt"}
    for arm in absent:
        row = whole(sae(), arm, "strict")
        assert (row.successes, row.n, row.not_measured) == (None, 0, 60)


def test_the_rubric_forbids_the_claim_and_says_why():
    for found in (sae(), stacked()):
        failed = {row.name for row in found.verdict.rubric if row.result == "FAIL"}
        assert not found.verdict.may_claim and {"lock", "baselines"} <= failed


def rates() -> str:
    lines = ["| Arm | Successes | Wilson at 60 (as published) | Clustered by task | Worth, of 60 | Strict |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for arm in dict.fromkeys(r.arm for r in sae().records):
        row, strict = whole(sae(), arm, "success"), whole(sae(), arm, "strict")
        told = "NOT MEASURED"
        if strict.value is not None:
            told = f"{strict.successes} of {strict.n} = {100 * strict.value:.1f} %"
        lines.append(
            f"| {THEIRS.get(arm, arm)} | {row.successes} = {100 * row.value:.1f} % "
            f"| {span(row.interval.low, row.interval.high)} | {span(row.clustered.low, row.clustered.high)} "
            f"| {row.effective_n:.1f} | {told} |"
        )
    return "\n".join(lines)


def contrasts() -> str:
    lines = ["| Contrast | Difference, points | 95 %, by task | p, by task | Tasks tied |", "|---|---|---|---|---|"]
    asked = [(sae(), "none"), (sae(), "prompt"), *((sae(), control) for control in CONTROLS),
             (stacked(), "prompt"), (stacked(), "feature")]  # fmt: skip
    for found, arm in asked:
        claim, d = found.verdict.question.claim, against(found, arm).difference
        spread = f"{100 * d.interval.low:+.1f} to {100 * d.interval.high:+.1f}"
        lines.append(
            f"| {THEIRS.get(claim, claim)} − {THEIRS.get(arm, arm)} | {100 * d.estimate:+.1f} | {spread} "
            f"| {d.p:.4f} | {tied(found, claim, arm)} of {d.clusters} |"
        )
    return "\n".join(lines)


def rubric() -> str:
    lines = ["| Row | targeted | prompt-plus-targeted | Why (targeted) |", "|---|---|---|---|"]
    for one, other in zip(sae().verdict.rubric, stacked().verdict.rubric, strict=True):
        lines.append(f"| {one.criterion} | {one.result} | {other.result} | {one.reason.replace('|', '/')} |")
    return "\n".join(lines)


def verdicts() -> str:
    told = []
    for found in (sae(), stacked()):
        verdict = found.verdict
        name = THEIRS[verdict.question.claim]
        beaten = ", ".join(THEIRS.get(arm, arm) for arm in verdict.question.beat)
        told.append(f"*{name} against {beaten}*: **{verdict.status}**. {verdict.claim_sentence}")
    return "\n\n".join(told)


@pytest.mark.parametrize("part", [rates, contrasts, rubric, verdicts])
def test_the_page_holds_what_the_files_give(part):
    written(PAGE, part.__name__, part())
