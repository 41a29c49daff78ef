"""`fairlead demo` end to end in real Chromium, on tiny random weights under the shipped names."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from tests.app.conftest import WIDTH, make_model

from fairlead import dictionaries
from fairlead.app import catalogue
from fairlead.core.plan import parse_plan
from fairlead.core.records import Run
from fairlead.dictionaries import random as random_dictionary

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small_demo(tmp_path, monkeypatch) -> dict:
    """The demo's own plan, with fewer items to fit on; the models it names are tiny and random."""
    text = (ROOT / "studies" / "demo.toml").read_text()
    plan = tomllib.loads(text)
    folder = tmp_path / "studies"
    folder.mkdir()
    for key in ("n_train", "n_validation"):
        text = text.replace(f"{key} = {plan[key]}", f"{key} = 2")
    if "[options.feature]" not in text:
        text += "\n[options.feature]\nk = 1\nshortlist = 2\nkept = 1\nfinalists = 1\nn_decisions = 8\nn_screen = 4\n"
    (folder / "demo.toml").write_text(text)
    monkeypatch.setattr(catalogue, "studies", lambda: folder)

    site = plan["dictionary"].partition("@")[2]
    model = make_model(tmp_path / "pocket" / "shopper-s", layers=4)
    rows = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(1))
    dictionaries.save(random_dictionary.fit(rows, 24, name="tiny", site=site), model / "dictionaries" / site)
    if "reference" in plan:
        shutil.copytree(model, tmp_path / "pocket" / plan["reference"].partition("/")[2])
    monkeypatch.setenv("FAIRLEAD_POCKET", str(tmp_path / "pocket"))
    return plan


@pytest.mark.browser
def test_the_demo_leaves_records_a_verdict_and_a_page(cli, small_demo):
    got = cli("demo", "--limit", 1)
    assert got.exit_code == 0, got.output
    assert "episodes in Chromium" in got.stderr and "inconclusive" in got.stdout and "page: runs/demo-" in got.stdout
    (run,) = Path("runs").iterdir()
    found = Run.open(run)
    assert {r.arm for r in found.records if r.error is None} >= set(small_demo["arms"])
    assert {t.status for t in found.trials} == {"complete"}
    assert (run / "verdict.json").is_file()
    page = (run / "report.html").read_text()
    assert all(arm in page for arm in small_demo["arms"]) and "model organism" in page

    again = cli("demo", "--limit", 1, "--json")
    assert json.loads(again.stdout)["run"] == str(run)
    assert len(Run.open(run).records) == len(found.records)


def test_the_plans_that_ship_can_be_read_and_ask_for_what_the_headline_needs():
    plans = {path.stem: parse_plan(path.read_text()) for path in sorted((ROOT / "studies").glob("*.toml"))}
    shop, demo = plans["shop"], plans["demo"]
    assert shop.n >= 200 and not shop.n_strata and len(shop.models) == 3 and shop.reference == "pocket/shopper-l"
    assert set(shop.decoding) == {"constrained", "free"}
    assert demo.n >= 60 and demo.task_options["front"] == "chromium" and len(demo.arms) >= 4
    for plan in (shop, demo):
        assert {"none", "prompt", "feature", "prompt+feature"} <= set(plan.arms)
        assert plan.primary == "strict" and plan.where == {"trap": "on"} and "feature" == plan.claim
