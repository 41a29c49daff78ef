"""`fairlead verify`: an untouched run verifies clean; every kind of tampering is found and named."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from fairlead.cli import main
from fairlead.core import lock as locks
from fairlead.core.keys import canonical, sha256
from fairlead.core.records import Run


def run_cli(*words) -> tuple[int, dict, str]:
    got = CliRunner().invoke(main, [str(w) for w in words], catch_exceptions=False)
    return got.exit_code, json.loads(got.stdout) if got.stdout.startswith("{") else {}, got.output


PLAN = """
question = "Does the plan run?"
task = "shop"
model = "pocket/tiny"
dictionary = "pocket/tiny@resid.0"
arms = ["none", "prompt", "control.noise"]
claim = "prompt"
primary = "strict"
where = { trap = "on" }
smallest_effect = 0.1
n = 2
n_train = 1
n_validation = 2
budget = { tuning_trials = 1 }
not_applicable = { lora = "too small to train" }
[task_options]
n = 2
"""


@pytest.fixture(scope="module")
def made(_pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pocket models and a locked, judged, reported run."""
    place = tmp_path_factory.mktemp("verified")
    shutil.copytree(_pocket, place / "pocket")
    (place / "small.toml").write_text(PLAN.replace(', "control.noise"', ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAIRLEAD_POCKET", str(place / "pocket"))
        patch.setenv("FAIRLEAD_STATE", str(place / "state"))
        patch.setattr(locks, "uncommitted", list)
        for verb in ("lock", "run"):
            assert run_cli(verb, place / "small.toml", "--run", place / "run", "--json")[0] == 0
        for verb in ("judge", "report"):
            assert run_cli(verb, place / "run", "--json")[0] == 0
    return place


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "mine")
    monkeypatch.setenv("FAIRLEAD_POCKET", str(tmp_path / "mine" / "pocket"))
    return tmp_path / "mine" / "run"


def found(run: Path, *words: str) -> str:
    """What verify names; it must exit with 1."""
    code, value, output = run_cli("verify", run, "--json")
    assert code == 1, output
    text = "\n".join(f"{d['where']}: {d['expected']} / {d['found']}" for d in value["differences"])
    for word in words:
        assert word in text, text
    return text


def key_of(run: Path, arm: str) -> str:
    return next(s.trial.key for s in Run.open(run).trials if s.trial.arm == arm)


def lines(run: Path, arm: str) -> tuple[Path, list[str]]:
    path = run / "trials" / f"{key_of(run, arm)}.jsonl"
    return path, path.read_text().splitlines()


def test_an_untouched_run_verifies_clean(run: Path) -> None:
    code, value, output = run_cli("verify", run, "--json")
    assert code == 0 and value["differences"] == [], output
    assert value["checked"]["Records"] == 12 and value["checked"]["weights"] == 1
    assert value["checked"]["splits"] == 3 and value["checked"]["ledgers"] == 2 and value["checked"]["traces"] == 12
    assert value["checked"]["numbers of report.html"] > 100 and value["checked"]["numbers of verdict.json"] > 100
    assert run_cli("verify", run, "--seal", value["seal"])[0] == 0
    assert "verified: nothing differs" in run_cli("verify", run)[2]
    code, _, output = run_cli("verify", run, "--seal", "0" * 64)
    assert code == 1 and "the seal" in output
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    shutil.move(run, run.with_name("renamed"))  # a copy under another name is still the same run
    assert run_cli("verify", run.with_name("renamed"))[0] == 0


def test_weights_that_are_elsewhere_are_not_checked_and_that_is_said(run: Path, monkeypatch) -> None:
    monkeypatch.setenv("FAIRLEAD_POCKET", str(run.parent / "nowhere"))
    code, value, _ = run_cli("verify", run, "--json")
    assert code == 0 and any("not on this machine" in note for note in value["notes"])


def edit_record(run: Path, change) -> None:
    path, rows = lines(run, "prompt")
    row = json.loads(rows[0])
    change(row)
    path.write_text("\n".join([canonical(row), *rows[1:]]) + "\n")


def flip(row) -> None:
    row["score"]["strict"] = not row["score"]["strict"]


def cheaper(row) -> None:
    row["cost"]["flops"] = 1.0


def locked_otherwise(row) -> None:
    row["lock"] = "f" * 64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flip, ["trials/", "verdict.json: rows"]),
        (cheaper, ["trials/", "ledger of prompt", "run.flops"]),
        (locked_otherwise, ["trials/", "name lock ffffffffffff"]),
    ],
    ids=["score", "cost", "lock"],
)
def test_a_tampered_record(run: Path, change, words) -> None:
    edit_record(run, change)
    found(run, *words)


def test_a_record_removed_or_there_twice(run: Path) -> None:
    path, rows = lines(run, "none")
    path.write_text("\n".join(rows[1:]) + "\n")
    found(run, "none on pocket/tiny", "Records: 6 / 5", "items planned: 6 / 5")
    path.write_text("\n".join([*rows, rows[0]]) + "\n")
    found(run, "one Record / 2")


def test_a_record_and_its_marker_changed_together_still_change_the_verdict_and_the_seal(run: Path) -> None:
    seal = run_cli("verify", run, "--json")[1]["seal"]
    edit_record(run, flip)
    marker = run / "trials" / f"{key_of(run, 'prompt')}.done"
    row = json.loads(marker.read_text())
    marker.write_text(canonical({**row, "records_sha256": sha256(marker.with_suffix(".jsonl").read_bytes())}))
    found(run, "verdict.json: rows", "provenance.seal", "report.html")
    assert run_cli("verify", run, "--json", "--seal", seal)[1]["seal"] != seal


def test_a_tampered_number_of_the_report_or_the_verdict(run: Path) -> None:
    page = run / "report.html"
    text = page.read_text()
    at = text.index("</span>", text.index('id="headline"'))
    page.write_text(text[:at] + "1" + text[at:])
    assert "report.html" in found(run) and "verdict.json" not in found(run)
    page.write_text(text)
    file = run / "verdict.json"
    verdict = json.loads(file.read_text())
    verdict["rows"][0]["n"] += 1
    file.write_text(canonical(verdict))
    found(run, "verdict.json: rows[0].n: ")


def test_a_tampered_lock(run: Path) -> None:
    file = run / "lock.jsonl"
    row = json.loads(file.read_text())
    row["lock"]["plan"]["smallest_effect"] = 0.01
    file.write_text(canonical(row) + "\n")
    found(run, "12 Records name lock", "plan.smallest_effect: 0.01 -> 0.1")
    file.write_text(file.read_text().replace('"amends":null', '"amends": null'))
    found(run, "cannot be read")
    file.unlink()
    code, value, _ = run_cli("verify", run, "--json")
    assert code == 1 and any("exploratory" in note for note in value["notes"])  # the verdict had said otherwise


def test_a_tampered_plan(run: Path) -> None:
    plan = (run / "plan.json").read_text()
    (run / "plan.json").write_text(plan.replace('"smallest_effect":0.1', '"smallest_effect":0.0'))
    found(run, "plan.toml against plan.json", "plan.smallest_effect")


def test_other_data(run: Path) -> None:
    from fairlead.tasks.shop import plugin as shop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shop, "manifest", lambda self, split: "0" * 64)
        found(run, "items of split test")


def test_tampered_weights_and_a_tampered_dictionary(run: Path) -> None:
    model = run.parent / "pocket" / "tiny"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    found(run, "weights of pocket/tiny")


def test_a_tampered_or_lost_trace(run: Path) -> None:
    one, two, *_ = sorted((run / "traces").iterdir())
    trace = json.loads(gzip.decompress(one.read_bytes()))
    trace["final"] = {"lie": 1}
    one.write_bytes(gzip.compress(canonical(trace).encode()))
    two.unlink()
    text = found(run, "was altered", "cannot be read")
    assert text.count("trace of") >= 2


def test_a_tampered_fit_and_a_tampered_ledger(run: Path) -> None:
    fitted = run / "fitted" / key_of(run, "prompt")
    saved = next(p for p in fitted.iterdir() if p.name not in ("describe.json", "cost.json"))
    kept = saved.read_bytes()
    saved.write_bytes(kept + b" ")
    found(run, "fitted/")
    saved.write_bytes(kept)
    ledger = run / "ledger" / f"{key_of(run, 'prompt')}.json"
    row = json.loads(ledger.read_text())
    row["fit"]["tuning_trials"] = 0
    ledger.write_text(canonical(row))
    found(run, "ledger/", "fit.tuning_trials: 1 -> 0")


@pytest.mark.parametrize(("file", "text"), [
    ("trials/{}.done", '{"status":"complete","records_sha256":""}'), ("fitted/{}/cost.json", "{"),
    ("fitted/{}/cost.json", "[]"), ("ledger/{}.json", "{}"),
])  # fmt: skip
def test_json_of_another_shape_is_a_difference_and_never_a_traceback(run: Path, file: str, text: str) -> None:
    (run / file.format(key_of(run, "prompt"))).write_text(text)
    found(run)


def test_a_run_that_was_interrupted_and_resumed_verifies(run: Path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "uncommitted", list)
    path, rows = lines(run, "prompt")
    path.write_text("\n".join(rows[:3]) + "\n" + rows[3][:40])  # cut in the middle of a line
    path.with_suffix(".done").unlink()
    (run / "ledger" / f"{path.stem}.json").unlink()
    assert run_cli("run", run.parent / "small.toml", "--run", run, "--json")[0] == 0
    for verb in ("judge", "report", "verify"):
        code, _, output = run_cli(verb, run, "--json")
        assert code == 0, output


def test_there_must_be_a_run(tmp_path: Path) -> None:
    code, _, output = run_cli("verify", tmp_path)
    assert code == 2 and "no run in" in output
