"""Stress arms, concepts, costs, the Pareto front, and the anytime view, on studies whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.judge.fair import STRESS, fair_plan, fair_run

from fairlead.core.records import Run
from fairlead.judge import judge


@pytest.fixture(scope="module")
def fair():
    return judge(fair_run())


def test_every_factor_is_a_cell_and_the_worst_is_named(fair):
    found = fair.brittleness[0]
    assert {c.variant for c in found.cells} == {*STRESS, "seed 0", "seed 1", "seed 2"}
    assert found.kept == found.of == len(found.cells) and found.held and not found.missing
    weak = judge(fair_run(rates={"stress.layer_plus_2": 0.32})).brittleness[0]
    assert weak.worst == "layer_plus_2" and weak.held


def test_a_lost_sign_is_counted_and_a_missing_factor_named():
    lost = judge(fair_run(rates={"stress.dose_4": 0.1})).brittleness[0]
    assert lost.kept == lost.of - 1 and [c.variant for c in lost.cells if c.kept is False] == ["dose_4"]
    arms = tuple(a for a in fair_plan().arms if "paraphrase" not in a)
    plain = judge(fair_run(fair_plan(arms=arms, seeds=(0,)))).brittleness[0]
    assert plain.missing == ("seeds (0 of 3)", "paraphrases (0 of 5)")


def test_stress_arms_stay_out_of_the_tables_and_the_family(fair):
    assert not any("stress" in r.arm for r in fair.rows) and not any("stress" in c.arm for c in fair.contrasts)
    assert not any("stress" in c.arm for c in fair.costs)


def test_a_stress_arm_on_fewer_items_is_compared_on_those():
    few = fair_run(keep=lambda r: not r.arm.startswith("stress.") or int(r.item[1:]) < 20)
    cell = next(c for c in judge(few).brittleness[0].cells if c.variant == "dose_2")
    assert cell.difference.clusters == 20 and cell.kept


def test_coverage_counts_usable_concepts_of_all_registered(fair):
    assert (fair.coverage.usable, fair.coverage.attempted) == (2, 2) and fair.coverage.interval.low < 0.5
    run = fair_run()
    spoiled = {"strict": False, "loose": False}
    hit = {("feature", "promo")}
    dull = [replace(r, score=spoiled) if (r.arm, r.strata["category"]) in hit else r for r in run.records]
    found = judge(replace(run, records=tuple(dull))).coverage
    assert found.usable == 1 and [c.value for _, c in found.concepts if not c.usable] == ["promo"]


def test_the_front_holds_the_cheap_and_the_good(fair):
    front = {c.arm for c in fair.costs if c.front}
    assert "reference" in front and "feature" in front and "control.pca" not in front
    cost = {c.arm: c for c in fair.costs}
    assert cost["feature"].flops_per_item == pytest.approx(1e8 + (5e10 + 1e10) / 10_000)
    uses = judge(fair_run(fair_plan(prices={"uses": 100}))).costs
    assert next(c for c in uses if c.arm == "feature").flops_per_item == pytest.approx(1e8 + 6e8)


def test_cost_per_success_strict_and_loose_against_the_reference(fair):
    cost = {c.arm: c for c in fair.costs}
    strict, loose = cost["feature"].per_success
    assert (strict.measure, loose.measure) == ("strict", "loose")
    assert strict.flops.value == pytest.approx(180 * (1e8 + 6e6) / cost["feature"].successes)
    assert strict.flops.low < strict.flops.value < strict.flops.high and loose.flops.value < strict.flops.value
    assert strict.to_reference.low < strict.to_reference.value < strict.to_reference.high < 0.5
    assert strict.usd is None
    priced = judge(fair_run(fair_plan(prices={"flops_per_second": 1e12, "usd_per_gpu_second": 0.001}))).costs
    mine = next(c for c in priced if c.arm == "feature").per_success[0]
    assert mine.usd == pytest.approx(mine.flops.value / 1e12 * 0.001)


def test_an_arm_that_may_never_succeed_has_no_upper_price():
    rare = judge(fair_run(rates={"gcg": 0.06}))
    found = next(c for c in rare.costs if c.arm == "gcg").per_success[0].flops
    assert found is None or found.high is None or found.high > 3 * found.value


def test_the_anytime_view_stops_early_and_says_whether_it_was_registered(fair):
    found = {s.against: s for s in fair.sequential}
    assert found["none"].stopped_at < 60 and found["none"].e > 20 and not found["none"].registered
    planned = judge(fair_run(fair_plan(stop={"rule": "anytime", "alpha": 0.01})))
    assert planned.sequential[0].registered and planned.sequential[0].alpha == 0.01


def test_the_best_baseline_is_chosen_on_validation_where_it_is_known():
    run = fair_run(rates={"lora": 0.88})
    scores = {"lora": 0.3, "prompt": 0.5}
    arms = {s.trial.key: s.trial.arm for s in run.trials}
    told = {
        key: {"validation_score": scores.get(arm, 0.4), "selected_by": "rollouts"} for key, arm in arms.items()
    }
    chosen = judge(replace(run, fitted=told))
    assert chosen.models[0].best == "prompt" and chosen.status == "supported"
    assert "lora" not in {c.against for c in chosen.contrasts if c.family}
    assert not chosen.may_claim, "lora was not beaten on test: no sentence"
    unknown = judge(run)
    assert unknown.models[0].best is None and unknown.status != "supported"
    other = {"tried": [{"score": 0.9}], "selected_by": "decisions"}
    mixed = {**told, next(k for k in told if k.startswith("gcg")): other}
    assert "different validation measures" in judge(replace(run, fitted=mixed)).models[0].chosen
    mute = {key: {"validation_score": 0.4} for key in told}
    assert "by which measure" in judge(replace(run, fitted=mute)).models[0].chosen


def test_a_million_rows_need_no_bootstrap():
    """Many clusters take the closed form: 20,000 items in four arms are judged in about a second."""
    plan = fair_plan(arms=("none", "feature", "lora", "control.pca"), baselines=("lora",), seeds=(0,), reference=None)
    records = fair_run(plan).records
    many = [replace(r, item=f"{r.item}/{i}", cluster=f"{r.item}/{i}") for i in range(80) for r in records]
    assert judge(Run.of(many, plan)).status == "supported"
