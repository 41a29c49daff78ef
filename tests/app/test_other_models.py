"""A plan on a model and a dictionary of one's own: `run`, `find` and `steer` with paths, on every architecture."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tests.lm.tiny import ARCHITECTURES, LAYERS, WIDTH, write

from fairlead import dictionaries
from fairlead.app import find
from fairlead.app.run import prepare, with_models
from fairlead.cli import main
from fairlead.core.errors import PlanError
from fairlead.core.plan import parse_plan
from fairlead.dictionaries import random as random_dictionary

ROOT = Path(__file__).parents[2]
PLAN = """
question = "Does it run?"
task = "shop"
model = ["pocket/shopper-s", "pocket/shopper-s2"]  # these
dictionary = [
    "pocket/shopper-s@resid.1",
    "pocket/shopper-s2@resid.1",
]
arms = ["none", "feature"]
primary = "strict"
where = {trap = "on"}
smallest_effect = 0.1
n = 1
n_train = 1
n_validation = 1
traces = 0
budget = {tuning_trials = 2}

[task_options]
categories = ["promo"]
traps = ["on"]
n_products = 4
"""


def brought(folder: Path, architecture: str) -> tuple[Path, str]:
    """A checkpoint with room for a shop page, and PATH@SITE of a dictionary for it."""
    model = write(folder / architecture, architecture, max_position_embeddings=4096)
    site = f"resid.{LAYERS - 2}"
    rows = 3 * torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(1))
    dictionaries.save(random_dictionary.fit(rows, 48, name=f"own@{site}", site=site), folder / "sae" / site)
    return model, f"{folder / 'sae'}@{site}"


def run(*words: object) -> dict:
    got = CliRunner().invoke(main, [str(w) for w in words], catch_exceptions=False)
    assert got.exit_code == 0, got.output
    return json.loads(got.stdout)


def test_a_plan_with_other_models_is_another_plan():
    text = with_models(PLAN, ["a/b", "c"], ["d@resid.1", "e@resid.2"])
    plan, old = parse_plan(text), parse_plan(PLAN)
    assert plan.models == ("a/b", "c") and plan.dictionaries == ("d@resid.1", "e@resid.2")
    assert plan.hash != old.hash and plan.arms == old.arms and plan.task_options == old.task_options
    assert parse_plan(with_models(PLAN, ["a"], [])).dictionaries == (None,)
    assert parse_plan(with_models(PLAN, [], ["x@resid.0", "y@resid.0"])).models == old.models
    assert with_models(PLAN, [], []) == PLAN
    with pytest.raises(PlanError, match="one --dictionary for each"):
        with_models(PLAN, ["a"], ["x", "y"])


@pytest.mark.parametrize("name", ["shop", "demo"])
def test_the_studies_that_ship_take_other_models(name):
    text = (ROOT / "studies" / f"{name}.toml").read_text()
    changed = tomllib.loads(with_models(text, ["org/own"], ["sae@resid.19"]))
    before = tomllib.loads(text)
    assert (changed.pop("model"), changed.pop("dictionary")) == (["org/own"], ["sae@resid.19"])
    assert changed == {k: v for k, v in before.items() if k not in ("model", "dictionary")}


@pytest.mark.parametrize(
    "architecture", ["mistral", *(pytest.param(a, marks=pytest.mark.soak) for a in ARCHITECTURES if a != "mistral")]
)
def test_a_study_runs_to_its_end_on_a_model_that_was_brought(tmp_path, monkeypatch, architecture):
    monkeypatch.chdir(tmp_path)
    Path("plan.toml").write_text(PLAN)
    model, dictionary = brought(tmp_path, architecture)
    found = run("run", "plan.toml", "--model", model, "--dictionary", dictionary, "--exploratory", "--json")
    assert [t["status"] for t in found["trials"]] == ["complete"] * 2
    assert {t["model"] for t in found["trials"]} == {str(model)} and all(t["records"] == 1 for t in found["trials"])
    kept = Path(found["run"], "plan.toml")
    assert parse_plan(kept.read_text()).hash == found["plan"] == prepare(str(kept)).plan.hash
    said = run("steer", "3 += 40 at last", "--model", model, "--dictionary", dictionary, "--prompt", "buy", "--action",
               'click("1")', "--action", "done()", "--json")  # fmt: skip
    (step,) = said["steps"]
    assert step["edits"][0]["fired"] == 1 and step["edits"][0]["after"] != step["edits"][0]["before"]


def test_find_takes_a_model_and_a_dictionary_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plan.toml").write_text(PLAN)
    model, dictionary = brought(tmp_path, "gpt2")
    chosen = run("find", "plan.toml", "--model", model, "--dictionary", dictionary, "--limit", "1", "--json")
    assert chosen["model"] == str(model) and chosen["dictionary"] == dictionary
    with pytest.raises(PlanError, match="name its --dictionary too"):
        find.prepare("plan.toml", model=str(model))
