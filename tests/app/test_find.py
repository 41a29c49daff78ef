from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.app.conftest import PLAN

pytestmark = pytest.mark.usefixtures("pocket")


def test_features_are_found_on_train_and_chosen_on_validation(cli, plan):
    got = cli("find", plan, "--json")
    assert got.exit_code == 0, got.output
    found = json.loads(got.stdout)
    assert found["dictionary"] == "pocket/tiny@resid.0" and found["flops"] > 0
    cards = found["about"]["cards"]
    assert cards and all(0 <= card["index"] < 24 and card["site"] == "resid.0" for card in cards)
    assert list(Path.cwd().iterdir()) == []


def test_what_is_printed_names_the_latents_and_the_edit(cli, plan):
    got = cli("find", plan, "--limit", 1)
    assert got.exit_code == 0, got.output
    assert "latent " in got.stdout and "edit: " in got.stdout
    assert "on the train prompts of pocket/tiny: it explains" in got.stderr
    assert "1 train" not in got.stderr and "3 train and 3 validation episodes" in got.stderr


def test_a_plan_without_a_dictionary_and_a_model_it_lacks(cli, plan):
    assert "no model" in cli("find", plan, "--model", "pocket/other").stderr
    plan.write_text(PLAN.replace('dictionary = "pocket/tiny@resid.0"', ""))
    got = cli("find", plan)
    assert got.exit_code == 2 and "names no dictionary" in got.stderr
