"""Every row of the rubric: one fixture that passes and one that fails, and what a FAIL forbids."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.judge.fair import BASELINES, CONTROLS, PROTOCOL, SHA, fair_plan, fair_run

from fairlead.core.records import Run, TrialState
from fairlead.core.types import Trial
from fairlead.judge import Question, judge
from fairlead.judge.rubric import DECIDING, ROWS


def results(run: Run, question: Question | None = None) -> dict[str, str]:
    return {row.name: row.result for row in judge(run, question).rubric}


@pytest.fixture(scope="module")
def fair():
    return judge(fair_run())


def with_protocol(**changes):
    kept = {k: v for k, v in {**PROTOCOL, **changes}.items() if v is not None}
    return fair_run(fair_plan(protocol=kept))


def without(*arms):
    return fair_plan(arms=tuple(a for a in fair_plan().arms if a not in arms),
                     baselines=tuple(a for a in BASELINES if a not in arms))  # fmt: skip


def no_loose(run):
    return replace(run, records=tuple(replace(r, score={"strict": r.score["strict"]}) for r in run.records))


def over_budget(run):
    return replace(run, ledgers={k: {**v, "fit": {"flops": 9.95e11}} for k, v in run.ledgers.items()})


def other_dictionary(run):
    used = {"ref": "e", "share_flops": 1.0}
    return replace(run, ledgers={k: {**v, "dictionary": used} for k, v in run.ledgers.items()})


def rule(arms):
    return [{"rule": "no extra tokens", "why": "latency", "who_has_it": "a shop", "arms": arms}]


def human(verdict):
    return {row: {"verdict": verdict, "signer": "B", "reason": "contrived"} for row in ("task", "useful")}


FAILS = {
    "task": lambda: with_protocol(human=human("fail")),
    "useful": lambda: with_protocol(human=human("fail")),
    "constraints": lambda: with_protocol(constraints=rule(["feature"])),
    "budget": lambda: over_budget(fair_run()),
    "lock": lambda: fair_run(locked=False),
    "baselines": lambda: fair_run(without("lora")),
    "beat": lambda: fair_run(rates={"lora": 0.88}),
    "sample": lambda: fair_run(fair_plan(smallest_effect=0.01)),
    "necessity": lambda: fair_run(rates={"control.pca": 0.9}),
    "dictionary": lambda: other_dictionary(fair_run()),
    "public": lambda: with_protocol(artifacts=[{"url": "https://example.org", "sha256": "short"}]),
    "cherry_pick": lambda: with_protocol(concepts={"stratum": "category", "values": ["promo", "addon"]}),
    "brittle": lambda: fair_run(rates={f"stress.dose_{x}": 0.1 for x in ("0_25", "0_5", "2", "4")}
                                | {"stress.scope_all": 0.1, "stress.scope_last": 0.1}),
}  # fmt: skip


def test_a_fair_study_passes_every_row(fair):
    assert {row.name: row.result for row in fair.rubric} == {
        name: "HUMAN" if name in ("task", "useful") else "PASS" for name, *_ in ROWS
    }, [(row.name, row.reason) for row in fair.rubric if row.result == "FAIL"]
    assert fair.status == "supported" and fair.may_claim and fair.claim_sentence.startswith("feature beats each of")
    assert all(row.reason and row.criterion for row in fair.rubric)
    assert [row.name for row in fair.rubric if not row.gating] == ["useful"]


@pytest.mark.parametrize("name", [name for name, *_ in ROWS])
def test_each_row_can_fail_and_then_nothing_is_claimed(name):
    found = judge(FAILS[name]())
    row = next(row for row in found.rubric if row.name == name)
    assert row.result == "FAIL" and row.reason
    if row.gating:
        assert not found.may_claim and "beats" not in found.claim_sentence
        assert name.replace("_", " ") in found.claim_sentence


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("task", lambda: no_loose(fair_run())),
        ("task", lambda: with_protocol(origin=None)),
        ("task", lambda: with_protocol(human={"task": {"verdict": "pass", "reason": "no signer"}})),
        ("budget", lambda: fair_run(fair_plan(amortise=0.01))),
        ("lock", lambda: with_protocol(choice=None)),
        ("lock", lambda: replace(r := fair_run(), records=(replace(r.records[0], lock="other"), *r.records[1:]))),
        ("baselines", lambda: fair_run(keep=lambda r: r.arm != "lora" or r.seed == 0)),
        ("beat", lambda: fair_run(fair_plan(arms=("none", "feature"), baselines=()))),
        ("sample", lambda: fair_run(n=30)),
        ("public", lambda: with_protocol(artifacts=None)),
        ("cherry_pick", lambda: with_protocol(concepts=None)),
        ("cherry_pick", lambda: fair_run(fair_plan(where={"category": "promo"}))),
        ("brittle", lambda: fair_run(without("stress.dictionary_2"))),
        ("constraints", lambda: with_protocol(constraints=[{"rule": "no arms"}])),
    ],
)  # fmt: skip
def test_other_ways_to_fail(name, make):
    assert results(make())[name] == "FAIL"


def test_what_is_not_there_is_not_measured():
    bare = Run.of([replace(r, lock=None) for r in fair_run(locked=False).records])
    found = results(bare, Question("feature", "strict", 0.3, controls=tuple(f"control.{c}" for c in CONTROLS)))
    assert found["lock"] == "FAIL"
    not_measured = {"task", "useful", "constraints", "budget", "dictionary", "public", "cherry_pick"}
    assert {name for name, result in found.items() if result == "NOT MEASURED"} == not_measured
    unsigned = results(with_protocol(human=None))
    assert unsigned["task"] == "NOT MEASURED"
    some = fair_run(without("control.kmeans", "control.pca"))
    assert results(some)["necessity"] == "NOT MEASURED" and "necessity" in DECIDING and not judge(some).may_claim


def test_kmeans_is_a_control_and_no_contender():
    plan = fair_plan(arms=(*fair_plan().arms, "kmeans"), baselines=(*BASELINES, "kmeans"))
    assert results(fair_run(plan))["dictionary"] == "FAIL"


def test_a_reason_excuses_an_arm():
    plan = fair_plan(not_applicable={"lora": "no weights to train", "stress.dictionary_2": "there is one dictionary"},
                     baselines=tuple(b for b in BASELINES if b != "lora"))  # fmt: skip
    found = judge(fair_run(plan))
    assert {r.name: r.result for r in found.rubric}["baselines"] == "PASS" and found.may_claim
    assert any("n/a" in text for r in found.rubric if r.name == "baselines" for text in r.evidence)


def test_an_unknown_training_cost_needs_a_stated_range():
    run = fair_run()
    hidden = {k: {**v, "dictionary": {"ref": "d", "share_flops": None}} for k, v in run.ledgers.items()}
    assert results(replace(run, ledgers=hidden))["budget"] == "NOT MEASURED"
    stated = {"dictionary_flops_low": 1e9, "dictionary_flops_high": 1e12}
    found = judge(replace(run, ledgers=hidden, plan=fair_plan(prices=stated)))
    row = next(row for row in found.rubric if row.name == "budget")
    assert row.result == "PASS" and any("unknown: its share adds" in text for text in row.evidence)
    dear = replace(run, ledgers=hidden, plan=fair_plan(prices={"dictionary_flops_high": 1e15}))
    assert results(dear)["budget"] == "FAIL"


def test_a_constraint_that_binds_all_with_a_free_arm_passes():
    assert results(with_protocol(constraints=rule(["feature", *BASELINES])))["constraints"] == "PASS"
    alone = fair_plan(protocol={**PROTOCOL, "constraints": rule(["feature", *BASELINES])}, reference=None)
    assert results(fair_run(alone))["constraints"] == "FAIL"


def test_a_second_look_at_the_test_split_fails_the_lock():
    run = fair_run()
    again = tuple(replace(s, evaluations=2) for s in run.trials)
    assert results(replace(run, trials=again))["lock"] == "FAIL"


def test_a_trial_that_does_not_apply_counts_as_its_reason():
    run = fair_run(without("gcg"))
    trial = Trial("k", "gcg", "m", None, "constrained", 0)
    state = TrialState(trial, "not_applicable", "the model has no gradient here")
    assert results(replace(run, trials=(*run.trials, state)))["baselines"] == "PASS"


def test_the_hash_of_an_artifact_is_a_hash():
    assert results(with_protocol(artifacts=[{"url": "https://example.org", "sha256": SHA}]))["public"] == "PASS"
