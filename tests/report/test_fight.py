"""The fight on the page: what is drawn, what is said, and what one FAIL forbids."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.judge.fair import BASELINES, STRESS, fair_plan, fair_run

from fairlead.core.records import Run
from fairlead.judge.costs import Ratio
from fairlead.report import html, terminal_table
from fairlead.report.fight import fights, ratio
from fairlead.report.plots import Bar, Group, Spot, forest, pareto
from fairlead.report.source import Source, read


def source(run: Run) -> Source:
    return Source(run, "fair", {})


def words(page: str) -> str:
    page = re.sub(r"<(style|script)[^>]*>.*?</\1>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def claims(text: str) -> list[str]:
    """Sentences that say the claim is above its baselines. What a row of the rubric asks, what the page defines and
    what it denies is not one."""
    found = re.findall(r"[^.]*\bbeats\b[^.]*\.", text)
    asked = ("The claim beats every baseline, not only competes", "forbids any sentence", "says that")
    return [s for s in found if not any(word in s for word in asked)]


@pytest.fixture(scope="module")
def fair() -> Source:
    return source(fair_run())


def test_a_fair_win_is_said_once_and_in_the_judges_words(fair):
    text = words(html.page(fair, max_items=1))
    assert fair.verdict.may_claim and fair.verdict.claim_sentence in text
    assert len(claims(text)) == 1 and claims(text)[0].strip() in fair.verdict.claim_sentence


@pytest.mark.parametrize(
    "make",
    [
        lambda: fair_run(locked=False),
        lambda: fair_run(rates={"lora": 0.88}),
        lambda: fair_run(fair_plan(protocol={})),
        lambda: fair_run(rates={"control.pca": 0.95}),
    ],
    ids=["no lock", "a baseline as good", "no protocol", "a control as good"],
)
def test_one_fail_and_no_sentence_says_so(make):
    found = source(make())
    text = words(html.page(found, max_items=1))
    assert not found.verdict.may_claim and claims(text) == []
    assert "Nothing here says that feature is better than its baselines" in text
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(terminal_table(found))
    said = " ".join(console.export_text().split())
    assert claims(said) == [] and "Nothing here says that feature is better" in said


def test_foreign_records_get_the_rubric_and_no_sentence(fair):
    bare = source(Run.of([replace(r, lock=None) for r in fair.records]))
    text = words(html.page(bare, max_items=1))
    assert claims(text) == [] and "nothing was locked" in text and "NOT MEASURED" in text


def test_the_page_draws_the_forest_the_front_and_the_stress_cells(fair):
    found = fights(fair)[0]
    assert all(f">{arm}<" in found.forest for arm in BASELINES) and "against controls" in found.forest
    assert found.pareto.count("<circle") == 17 and "log scale" in found.pareto
    assert all(s.replace("_", " ") in found.stress for s in STRESS) and "dose of the claim" in found.doses
    text = words(html.page(fair, max_items=1))
    assert "The sign is kept in 20 of 20 cells" in text and "concepts registered before the search" in text
    assert "13 rows" in text or "Thirteen rows" in text
    assert "Had one looked after every pair" in text and "Cost per success, against the reference" in text


def test_every_row_of_the_rubric_is_on_the_page(fair):
    text = words(html.page(fair, max_items=1))
    for row in fair.verdict.rubric:
        assert row.criterion.replace("'", "&#39;") in text and row.result in text


def test_a_synthetic_run_on_disk_has_a_fight(run: Path):
    found = fights(read(run))
    assert found[0].best == "prompt" and "prompt 0.700" in found[0].chosen


def test_plots_leave_out_what_is_missing_and_escape():
    drawn = forest([Group("<b>", (Bar("a & b", 0.1, 0.05, 0.2), Bar("c", None, None, None)))], 0.1)
    assert "&lt;b&gt;" in drawn and "a &amp; b" in drawn and "not measured" in drawn and "span win" in drawn
    assert forest([]) == "" and forest([Group("x", (Bar("c", None, None, None),))]) == ""
    assert pareto([Spot("a", 1e9, 0.5, None, None, True, "claim")]) == ""
    two = pareto([Spot("a", 1e9, 0.5, 0.4, 0.6, True, "claim"), Spot("b", 5e12, 0.9, 0.8, 1.0, True, "headline")])
    assert 'class="front"' in two and two.count("tick") >= 3
    assert ratio(None) == "—" and "no upper bound" in ratio(Ratio(2.0, 1.0, None), plain=True)


def test_side_effects_are_listed_neutral_text_among_them(run: Path, fair):
    assert [place for place, _ in fights(read(run))[0].side_effects] == ["trap off", "trap inverse"]
    loss = {"none": 2.0, "feature": 2.25}
    records = [replace(r, score={**r.score, "neutral_text_loss": loss.get(r.arm)}) for r in fair.records]
    found = source(replace(fair.run, records=tuple(records)))
    ((place, c),) = fights(found)[0].side_effects
    assert place == "neutral text loss" and c.difference.estimate == pytest.approx(0.25)
    assert "+0.250" in words(html.page(found, max_items=1))
