"""The lock from the command line: what it refuses, what it says, and what it cannot be talked into."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.app.conftest import PLAN

from fairlead.core import lock as locks
from fairlead.core.records import Run

pytestmark = pytest.mark.usefixtures("pocket", "clean")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a fresh clone, whatever is being edited; and a count of evaluations of one's own."""
    monkeypatch.setattr(locks, "uncommitted", list)
    monkeypatch.setenv("FAIRLEAD_STATE", str(tmp_path / "state"))


def value(got) -> dict:
    assert got.exit_code == 0, got.output
    return json.loads(got.stdout)


def refused(got, *words: str) -> None:
    assert got.exit_code == 2, got.output
    for word in words:
        assert word in got.stderr, got.stderr


def test_without_a_lock_the_test_split_stays_shut(cli, plan):
    refused(cli("run", plan), "not locked", "fairlead lock", "--exploratory")
    assert not list(Path.cwd().iterdir())


def test_exploratory_is_said_everywhere(cli, plan):
    told = cli("run", plan, "--exploratory")
    run = next(Path("runs").iterdir())
    assert "EXPLORATORY" in told.stdout and Run.open(run).exploratory
    assert {r.lock for r in Run.open(run).records} == {None}
    assert "EXPLORATORY" in cli("judge", run).stdout and "EXPLORATORY" in cli("report", run).stdout
    assert "EXPLORATORY" in (run / "report.html").read_text()
    assert json.loads((run / "verdict.json").read_text())["provenance"]["exploratory"] is True
    assert value(cli("judge", run, "--json"))["provenance"]["exploratory"] is True
    assert value(cli("report", run, "--json"))["exploratory"] is True
    assert "exploratory" in cli("report", run, "--csv").stdout and ",True," in cli("report", run, "--csv").stdout
    assert "EXPLORATORY" in cli("report", run, run).stdout
    assert cli("report", run, run, "--out", "c.html").exit_code == 0 and "EXPLORATORY" in Path("c.html").read_text()


def test_a_locked_run_carries_its_lock_and_says_so(cli, plan):
    made = value(cli("lock", plan, "--json"))
    assert made["new"] is True and made["witness"] == "none" and len(made["locks"]) == 1
    assert value(cli("lock", plan, "--json"))["new"] is False  # no clock in it: the same study, the same lock
    done = value(cli("run", plan, "--json"))
    run = Path(done["run"])
    assert Path(made["file"]).parent == run and done["lock"] == made["hash"] and not done["exploratory"]
    assert {r.lock for r in Run.open(run).records} == {made["hash"]} and done["deviations"] == []
    said = cli("judge", run).stdout
    assert made["hash"][:16] in said and "EXPLORATORY" not in said
    cli("report", run)
    page = (run / "report.html").read_text()
    assert made["hash"][:16] in page and "EXPLORATORY" not in page and "witness none" in page


def test_the_lock_holds_what_decides(cli, plan):
    covers = value(cli("lock", plan, "--json"))["covers"]
    assert set(covers) == {"format", "plan", "facts", "rooms", "judging", "code", "packages"}
    assert covers["plan"]["arms"] == ["none", "prompt"]
    assert covers["plan"]["budget"] == {"flops": None, "tuning_trials": 1}
    assert set(covers["facts"]["manifests"]) == {"train", "validation", "test"}
    assert covers["facts"]["weights"]["pocket/tiny"] and set(covers["facts"]["sources"]) == {"none", "prompt"}
    assert covers["judging"]["primary"] == "strict" and covers["judging"]["family"] == ["none"]
    assert set(covers["rooms"]) == {"study", "judge"} and len(covers["code"]["sources"]) == 64


def test_uncommitted_code_is_neither_locked_nor_run(cli, plan, monkeypatch):
    value(cli("lock", plan, "--json"))
    monkeypatch.setattr(locks, "uncommitted", lambda: ["src/fairlead/judge/stats.py"])
    refused(cli("lock", plan), "uncommitted changes", "stats.py", "commit them")
    refused(cli("run", plan), "uncommitted changes", "--exploratory")
    assert value(cli("run", plan, "--exploratory", "--json"))["exploratory"] is True


def test_a_study_that_differs_from_its_lock_is_refused_until_it_is_amended(cli, plan, monkeypatch):
    first = value(cli("lock", plan, "--json"))
    monkeypatch.setattr(locks, "source_hash", lambda modules: "0" * 64)  # the judge was changed
    refused(cli("run", plan), "differs from its lock", "rooms.judge", "--amend")
    refused(cli("lock", plan), "differs from its lock", "--amend")
    amended = value(cli("lock", plan, "--amend", "a sign was wrong", "--json"))
    assert amended["locks"][0] == first["hash"] and amended["hash"] != first["hash"]
    done = value(cli("run", plan, "--json"))
    assert done["lock"] == amended["hash"] and "a sign was wrong" in done["deviations"][0]
    assert "rooms.judge" in done["deviations"][0]
    run = Path(done["run"])
    assert "deviation: the lock was amended: a sign was wrong" in cli("report", run).stdout
    assert "a sign was wrong" in (run / "report.html").read_text()


def test_an_amended_plan_takes_the_old_lock_along(cli, plan):
    old = Path(value(cli("lock", plan, "--json"))["file"]).parent
    plan.write_text(PLAN.replace("n = 2\nn_train", "n = 1\nn_train"))
    refused(cli("lock", plan, "--of", old), "differs from its lock", "plan.n: 2 -> 1")
    new = value(cli("lock", plan, "--of", old, "--amend", "two were too many", "--out", "kept/copy.jsonl", "--json"))
    assert len(new["locks"]) == 2 and "plan.n: 2 -> 1" in new["amendments"][0]
    assert Path("kept/copy.jsonl").read_bytes() == Path(new["file"]).read_bytes()
    done = value(cli("run", plan, "--json"))
    assert not done["exploratory"] and "two were too many" in done["deviations"][0]
    refused(cli("lock", plan, "--of", plan, "--run", "elsewhere"), "damaged")


def test_locking_after_an_exploratory_run_does_not_wash_it(cli, plan):
    run = Path(value(cli("run", plan, "--exploratory", "--json"))["run"])
    value(cli("lock", plan, "--json"))
    again = value(cli("run", plan, "--json"))
    assert again["exploratory"] is True and "outside the lock (run with --exploratory)" in again["deviations"][0]
    assert Run.open(run).exploratory


def test_evaluations_are_counted(cli, plan):
    cli("lock", plan)
    first = value(cli("run", plan, "--json"))
    assert first["deviations"] == []
    assert value(cli("run", plan, "--json"))["deviations"] == []  # nothing was left to run
    cli("lock", plan, "--run", "again")
    second = value(cli("run", plan, "--run", "again", "--json"))
    assert second["lock"] == first["lock"] and "evaluated 2 times" in second["deviations"][0]
    shutil.rmtree("again")
    cli("lock", plan, "--run", "again")
    assert "evaluated 3 times" in value(cli("run", plan, "--run", "again", "--json"))["deviations"][0]


def test_a_witness_is_recorded_and_not_believed(cli, plan):
    refused(cli("lock", plan, "--witness", "notary=me"), "witness", "git-remote=REFERENCE")
    made = value(cli("lock", plan, "--witness", "git-remote=https://example.org/x", "--json"))
    assert made["witnesses"] == [{"kind": "git-remote", "reference": "https://example.org/x", "of": made["hash"]}]
    assert "recorded, not verified" in cli("lock", plan).stdout
    run = Path(value(cli("run", plan, "--json"))["run"])
    cli("report", run)
    assert "https://example.org/x" in (run / "report.html").read_text()
    assert "recorded, not verified" in cli("judge", run).stdout
