"""`fairlead plan`: what a plan asks, and what it can find."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from tests.judge.fair import fair_plan, fair_run

from fairlead.app import power
from fairlead.cli import main
from fairlead.core.errors import FairleadError, RecordError
from fairlead.core.records import Store


def call(*words: str):
    return CliRunner().invoke(main, [str(w) for w in words], catch_exceptions=False)


def test_a_plan_is_shown_without_being_run():
    got = call("plan", "studies/demo.toml", "--json")
    told = json.loads(got.stdout)
    assert told["claim"] == "feature" and told["baselines"] == ["prompt"] and told["clusters"] == 60
    assert "prompt+feature" in call("plan", "studies/demo.toml").stdout


def test_assumptions_are_stated_and_too_few_clusters_are_said():
    got = call("plan", "studies/demo.toml", "--power", "--worlds", 200)
    assert "assumed; give --records" in got.stdout and "the plan has 60: too few" in got.stdout
    found = json.loads(call("plan", "studies/demo.toml", "--power", "--worlds", 400, "--json").stdout)
    assert found["clusters"] == 60 and found["pairs_per_cluster"] == 1 and not found["enough"]
    assert abs(found["power"] - found["simulated"]) < 0.08 and found["clusters_needed"] > 60


def test_more_agreement_needs_fewer_clusters():
    plan = power.read("studies/demo.toml")
    needed = [power.execute(plan, discordance=d, worlds=100).clusters_needed for d in (0.15, 0.3, 0.6)]
    assert needed == sorted(needed) and needed[0] < needed[2]
    seeds = [power.execute(fair_plan(smallest_effect=0.1), icc=icc, worlds=100).clusters_needed for icc in (0.0, 1.0)]
    assert seeds[0] < seeds[1], "seeds buy something only where they differ"


def stored(path, run):
    with Store(path) as store:
        store.begin(run.plan, [s.trial for s in run.trials])
        for state in run.trials:
            store.append([r for r in run.records if r.trial == state.trial.key])
    return path


def test_a_pilot_says_what_the_spread_is(tmp_path):
    found = power.execute(fair_plan(), records=stored(tmp_path / "pilot", fair_run(locked=False)), worlds=200)
    assert found.source.startswith("pilot: 180 pairs in 60 clusters") and found.icc > 0.5
    assert 0.4 < found.discordance < 0.8 and found.pairs_per_cluster == 3


def test_a_pilot_without_the_claim_is_an_error_with_a_way_out(tmp_path):
    run = fair_run(fair_plan(arms=("none",), baselines=(), claim="none", reference=None), locked=False)
    with pytest.raises(RecordError, match="leave --records out"):
        power.execute(fair_plan(), records=stored(tmp_path / "pilot", run), worlds=100)


def test_a_plan_without_a_smallest_effect_cannot_be_sized():
    with pytest.raises(FairleadError, match="smallest effect"):
        power.execute(fair_plan(smallest_effect=0.0))
