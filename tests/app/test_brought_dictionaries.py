"""A study on the user's own model with a dictionary in every public format, to its end.

Random weights hold no features, so nothing is claimed about the result: every arm ends with Records, or says why
it does not apply. The full product of architectures and formats is a soak test.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tests.dictionaries.layouts import CASES, NINE, write
from tests.lm.tiny import ARCHITECTURES, WIDTH
from tests.lm.tiny import write as checkpoint

from fairlead.cli import main

ROOT = Path(__file__).parents[2]
PLAN = """
question = "Does it run?"
task = "shop"
model = "pocket/shopper-s"
dictionary = "pocket/shopper-s@resid.1"
arms = ["none", "feature", "control.random"]
primary = "strict"
where = {trap = "on"}
smallest_effect = 0.1
n = 1
n_train = 1
n_validation = 1
traces = 0
budget = {tuning_trials = 1}

[task_options]
categories = ["promo"]
traps = ["on"]

[options.feature]
n_decisions = 4
n_screen = 2
shortlist = 3
strengths = [1.0]
places = 1
per_place = 1
hints = []
kept = 1
finalists = 1
"""
ENDED = {"complete", "not_applicable"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Architecture -> a tiny checkpoint with room for a shop page, written once."""
    torch.set_num_threads(1)
    root, made = tmp_path_factory.mktemp("models"), {}

    def model(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = checkpoint(root / architecture, architecture, max_position_embeddings=4096)
        return made[architecture]

    return model


def ran(plan: str, model: Path, ref: str) -> dict:
    words = ["run", plan, "--model", str(model), "--dictionary", ref, "--exploratory", "--json"]
    got = CliRunner().invoke(main, words, catch_exceptions=False)
    assert got.exit_code == 0, got.output
    assert "warning: " in got.stderr and "on the train prompts of" in got.stderr  # random weights never fit
    return json.loads(got.stdout)


def study(model: Path, name: str, folder: Path) -> None:
    """Run the small plan; each trial has ended with Records or a reason, and the run reports."""
    Path("plan.toml").write_text(PLAN)
    written = write(name, folder / "dictionary", d=WIDTH, m=2 * WIDTH, layer=1)
    more = "" if "#" in written.ref else f"@{written.site}"
    found = ran("plan.toml", model, f"{written.ref}{more}")
    assert {t["status"] for t in found["trials"]} <= ENDED and len(found["trials"]) == 3, found["trials"]
    by_arm = {t["arm"]: t for t in found["trials"]}
    assert by_arm["none"]["status"] == "complete" and by_arm["none"]["records"] == 1
    if written.transcoder:
        assert by_arm["feature"]["status"] == "not_applicable" and "transcoder" in by_arm["feature"]["reason"]
    else:
        assert by_arm["feature"]["status"] == "complete", by_arm["feature"]
    for trial in found["trials"]:
        assert trial["status"] == "complete" or trial["reason"], trial
    got = CliRunner().invoke(main, ["judge", found["run"], "--json"], catch_exceptions=False)
    assert got.exit_code == 0 and json.loads(got.stdout)["status"], got.output


@pytest.mark.parametrize("name", NINE)
def test_every_format_on_one_architecture(name, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study(models("llama"), NINE[name], tmp_path)


def test_a_transcoder_leaves_the_feature_arm_without_a_claim(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study(models("gemma2"), "gemma-scope-2/affine transcoder", tmp_path)


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "llama"])
def test_every_architecture_with_one_format(architecture, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study(models(architecture), "gemma-scope", tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CASES)
def test_every_format_on_every_architecture(name, architecture, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study(models(architecture), name, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["saelens", "goodfire", "sparsify"])
def test_the_headline_study_runs_on_a_model_and_dictionary_that_were_brought(name, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = write(NINE[name], tmp_path / "dictionary", d=WIDTH, m=2 * WIDTH, layer=1)
    words = ["run", str(ROOT / "studies" / "shop.toml"), "--model", str(models("llama")), "--dictionary",
             f"{written.ref}@resid.1", "--limit", "1", "--exploratory", "--json"]  # fmt: skip
    got = CliRunner().invoke(main, words, catch_exceptions=False)
    assert got.exit_code == 0, got.output
    assert {t["status"] for t in json.loads(got.stdout)["trials"]} <= ENDED
