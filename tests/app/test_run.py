from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from tests.app.conftest import PLAN

from fairlead.core.records import Run

pytestmark = pytest.mark.usefixtures("pocket")


def run_of(got) -> Path:
    assert got.exit_code == 0, got.output
    return Path(json.loads(got.stdout)["run"])


def test_a_plan_is_previewed_and_nothing_is_run(cli, plan):
    got = cli("run", plan, "--exploratory", "--dry", "--json")
    cost = json.loads(got.stdout)
    assert (cost["trials"], cost["episodes"], cost["done"], cost["tuning_trials"]) == (2, 12, 0, 1)
    assert cost["flops"] > 0 and list(Path.cwd().iterdir()) == []


def test_the_preview_goes_to_stderr_before_the_work(cli, plan):
    got = cli("run", plan, "--exploratory")
    assert got.exit_code == 0 and "Does the plan run?" in got.stderr and "2 trials, 12 episodes" in got.stderr
    assert "complete" in got.stdout and "next: fairlead judge runs/small-" in got.stdout


def test_a_run_is_judged_and_reported(cli, plan):
    run = run_of(cli("run", plan, "--exploratory", "--json"))
    assert len(Run.open(run).records) == 12

    judged = cli("judge", run, "--json")
    assert json.loads(judged.stdout)["status"] in ("supported", "refuted", "inconclusive")
    assert json.loads((run / "verdict.json").read_text())["status"] == json.loads(judged.stdout)["status"]
    assert cli("judge", run).stdout.splitlines()[1].startswith("verdict: ")

    reported = cli("report", run, "--json")
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert [row["arm"] for row in json.loads(reported.stdout)["rows"]] == ["none", "prompt"]
    assert "prompt" in cli("report", run).stdout
    whole = (run / "report.html").stat().st_size
    assert cli("report", run, "--limit", 1, "--out", "short.html").exit_code == 0
    assert Path("short.html").stat().st_size <= whole
    rows = list(csv.DictReader(io.StringIO(cli("report", run, "--csv").stdout)))
    assert [row["arm"] for row in rows] == ["none", "prompt"]
    assert not list(run.glob("*.tmp"))


def test_two_runs_are_compared(cli, plan):
    first = run_of(cli("run", plan, "--exploratory", "--json"))
    second = run_of(cli("run", plan, "--exploratory", "--limit", 1, "--json"))
    assert first != second
    got = json.loads(cli("report", first, second, "--json").stdout)
    assert got["measure"] == "strict" and {p["arm"] for p in got["pairs"]} == {"none", "prompt"}
    page = cli("report", first, second, "--out", "compared.html")
    assert page.exit_code == 0 and Path("compared.html").is_file() and "compared.html" in page.stdout


def test_a_limited_run_keeps_the_plan_that_was_run_and_goes_on_from_it(cli, plan):
    run = run_of(cli("run", plan, "--exploratory", "--limit", 1, "--json"))
    assert "n = 1" in (run / "plan.toml").read_text()
    again = cli("run", run / "plan.toml", "--exploratory", "--json")
    assert run_of(again) == run and len(Run.open(run).records) == 6


def test_a_second_run_adds_nothing(cli, plan):
    run = run_of(cli("run", plan, "--exploratory", "--json"))
    before = {p: p.read_bytes() for p in run.rglob("*.jsonl")}
    assert json.loads(cli("run", plan, "--exploratory", "--dry", "--json").stdout)["done"] == 12
    assert run_of(cli("run", plan, "--exploratory", "--json")) == run
    assert {p: p.read_bytes() for p in run.rglob("*.jsonl")} == before


@pytest.mark.browser
def test_a_plan_in_the_browser_gives_the_prompts_of_the_text_twin(cli, plan):
    twin = run_of(cli("run", plan, "--exploratory", "--limit", 1, "--json"))
    plan.write_text(PLAN + 'front = "chromium"\n')
    real = run_of(cli("run", plan, "--exploratory", "--limit", 1, "--json"))

    def prompts(run: Path) -> dict[tuple[str, str], str]:
        return {(r.arm, r.item): (r.outcome or {})["prompts_sha256"] for r in Run.open(run).records}

    assert prompts(twin) == prompts(real)
