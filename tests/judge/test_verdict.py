"""Verdicts from made-up Records: each rule can say yes and can say no."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.core.errors import RecordError
from fairlead.core.keys import canonical
from fairlead.core.records import Run
from fairlead.core.types import Cost, Record
from fairlead.judge import Question, judge

RATES = {"none": 0.2, "prompt": 0.5, "feature": 0.7, "control.random": 0.25, "control.empty": 0.2}
QUESTION = Question("feature", "strict", 0.1, {"trap": "on"}, ("none",), ("control.random", "control.empty"))


def made(rates=RATES, models=("m",), decodings=("constrained",), n=80, seed=0):
    """Records whose arms succeed at the given rates when the trap is on, and always when it is off."""
    records = []
    for model in models:
        for decoding in decodings:
            for arm, rate in rates.items():
                rng = random.Random(f"{seed}{model}{decoding}{arm}")
                for i in range(n):
                    for trap in ("on", "off"):
                        won = trap == "off" or rng.random() < rate
                        records.append(
                            Record(
                                trial=f"{model}/{decoding}/{arm}",
                                arm=arm,
                                model=model,
                                decoding=decoding,
                                seed=0,
                                item=f"{i}/{trap}",
                                cluster=str(i),
                                split="test",
                                strata={"trap": trap, "category": "promo" if i % 2 else "upsell"},
                                outcome={"funnel": {"emitted": 4, "valid": 3, "grounded": 3, "executed": 2}},
                                score={"strict": won, "loose": True, "fell": None, "share": 0.5},
                                error=None,
                                cost=Cost(prompt_tokens=100, new_tokens=10, flops=1e6, forwards=2),
                            )
                        )
    return records


def check(verdict, name):
    return next(c for c in verdict.checks if c.name == name).result


def test_supported_with_reasons():
    verdict = judge(Run.of(made()), QUESTION)
    assert verdict.status == "supported" and [m.status for m in verdict.models] == ["supported"]
    assert {c.against for c in verdict.contrasts if c.family} == {"none", "control.random", "control.empty"}
    assert all(c.p_holm >= c.difference.p for c in verdict.contrasts if c.family)
    assert "feature − none on strict (trap = on)" in verdict.models[0].reasons[0]
    assert check(verdict, "budget parity") == "not measured"
    json.loads(canonical(verdict.to_json()))


def test_refuted_when_the_effect_is_excluded():
    verdict = judge(Run.of(made({**RATES, "feature": 0.1}, n=200)), QUESTION)
    assert verdict.status == "refuted"


def test_refuted_when_a_control_does_as_well():
    verdict = judge(Run.of(made({**RATES, "control.random": 0.8}, n=200)), QUESTION)
    assert verdict.status == "refuted"
    assert any("control.random" in r and "excluded" in r for r in verdict.models[0].reasons)


def test_inconclusive_when_small():
    verdict = judge(Run.of(made({**RATES, "feature": 0.35}, n=30)), QUESTION)
    assert verdict.status == "inconclusive"
    assert any("unreliable below 40" in w for w in verdict.warnings)


def test_real_but_too_small_is_not_supported():
    rates = {**RATES, "feature": 0.3, "control.random": 0.1, "control.empty": 0.1}
    verdict = judge(Run.of(made(rates, n=1500)), replace(QUESTION, smallest_effect=0.3))
    assert verdict.status == "refuted"


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (lambda rs: [r for r in rs if not r.arm.startswith("control")], "controls"),
        (lambda rs: [r for r in rs if r.arm != "none"], "arms"),
        (lambda rs: [*rs, rs[0]], "unique"),
        (lambda rs: [r for r in rs if r.arm != "feature" or int(r.cluster) > 9], "pairs"),
        (lambda rs: [fail(r) if r.arm == "feature" and int(r.cluster) < 9 else r for r in rs], "error parity"),
        (lambda rs: [replace(rs[0], score={"strict": True, "loose": False}), *rs[1:]], "strict implies loose"),
        (lambda rs: [replace(rs[0], outcome={"funnel": {"emitted": 1, "valid": 2}}), *rs[1:]], "action funnel"),
    ],
)
def test_a_failed_check_makes_it_inconclusive(harm, name):
    verdict = judge(Run.of(harm(made())), QUESTION)
    assert check(verdict, name) == "fail"
    assert verdict.status == "inconclusive" and any(name in r for r in verdict.reasons)


def fail(record):
    return replace(record, score=None, error="run: RuntimeError: no")


def test_open_trials_and_broken_budgets_fail():
    run = Run.of(made())
    cut = replace(run, trials=tuple(replace(s, status="partial") for s in run.trials))
    assert check(judge(cut, QUESTION), "complete") == "fail"
    ledger = {"arm": "feature", "model": "m", "over_budget": True, "fit": {"flops": 9.0}, "budget": {"flops": 1.0}}
    over = replace(run, ledgers={"m/constrained/feature": ledger})
    assert check(judge(over, QUESTION), "budget parity") == "fail"
    kept = {**ledger, "over_budget": False, "dictionary": {"ref": "d", "share_flops": None}}
    fine = judge(replace(run, ledgers={"m/constrained/feature": kept}), QUESTION)
    assert (check(fine, "budget parity"), check(fine, "dictionary share")) == ("pass", "not measured")
    more = {**kept, "arm": "none", "budget": {"flops": 2.0}}
    unequal = replace(run, ledgers={"m/constrained/feature": kept, "m/constrained/none": more})
    assert check(judge(unequal, QUESTION), "budget parity") == "fail"


def test_an_effect_in_free_mode_only_is_format():
    both = made({**RATES, "feature": 0.2}) + made(decodings=("free",))
    verdict = judge(Run.of(both), QUESTION)
    assert verdict.status != "supported"
    assert "feature" in verdict.models[0].format_only and "prompt" not in verdict.models[0].format_only
    assert any("format" in r for r in verdict.models[0].reasons)


def test_two_of_three_models_carry_the_study():
    records = made(models=("a", "b")) + made({**RATES, "feature": 0.1}, models=("c",), n=200)
    verdict = judge(Run.of(records), QUESTION)
    assert [m.status for m in verdict.models] == ["supported", "supported", "refuted"]
    assert verdict.status == "supported" and "2 supported" in verdict.reasons[0]
    half = judge(Run.of([r for r in records if r.model != "b"]), QUESTION)
    assert half.status == "inconclusive"


def test_rows_keep_not_measured_apart():
    records = made()
    records[0] = replace(records[0], score={**records[0].score, "strict": None})
    records[2] = fail(records[2])
    rows = judge(Run.of(records), QUESTION).rows
    row = next(r for r in rows if (r.arm, r.measure, r.where) == ("none", "strict", {"trap": "on"}))
    assert (row.n, row.not_measured, row.errors) == (78, 1, 1)
    fell = next(r for r in rows if (r.arm, r.measure, r.where) == ("none", "fell", {}))
    assert (fell.value, fell.interval, fell.n) == (None, None, 0)
    share = next(r for r in rows if (r.arm, r.measure, r.where) == ("none", "share", {}))
    assert share.value == 0.5 and share.interval is None and share.clustered.low == 0.5
    crossed = [r for r in rows if len(r.where) == 2 and r.measure == "strict" and r.arm == "none"]
    assert len(crossed) == 4
    whole = next(r for r in rows if (r.arm, r.measure, r.where) == ("feature", "strict", {}))
    assert whole.clusters == 80 and whole.clustered.low <= whole.interval.low  # two renderings share a cluster


def test_costs_per_success():
    verdict = judge(Run.of(made({**RATES, "control.empty": 0.0})), QUESTION)
    cost = {c.arm: c for c in verdict.costs}
    assert cost["control.empty"].successes == 0 and cost["control.empty"].flops_per_success is None
    assert cost["feature"].flops_per_success == pytest.approx(80 * 1e6 / cost["feature"].successes)


def test_off_and_inverse_are_contrasted_too():
    verdict = judge(Run.of(made()), QUESTION)
    off = [c for c in verdict.contrasts if c.where == {"trap": "off"} and (c.arm, c.against) == ("feature", "none")]
    assert len(off) == 1 and off[0].difference.estimate == 0 and not off[0].family


def test_no_records_no_verdict():
    with pytest.raises(RecordError, match="no Records"):
        judge(Run.of([]), QUESTION)
    with pytest.raises(RecordError, match="no plan"):
        judge(Run.of(made(n=2)))


def test_judge_loads_no_model():
    source = "".join(p.read_text() for p in Path(judge.__code__.co_filename).parent.glob("*.py"))
    assert "torch" not in source and "fairlead.lm" not in source
