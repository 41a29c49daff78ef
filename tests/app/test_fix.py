"""`fairlead fix` on files whose truth is known: mended, nothing to mend, and too few to tell."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.app.planted_cases import DICTIONARY, MODEL, planted, write

from fairlead.app import fix
from fairlead.core import lock as locks
from fairlead.core.errors import LoadError, PlanError
from fairlead.core.plan import parse_plan
from fairlead.core.records import Run

SMALL = {  # a search of seconds; what it finds is worse than what the default finds
    "feature": {"n_decisions": 24, "n_screen": 12, "shortlist": 6, "places": 2, "per_place": 4, "kept": 3, "hints": [],
                "strengths": [0.5, 1.0, 4.0], "finalists": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    cases = planted(80, ("on", "inverse"))
    return write(tmp_path_factory.mktemp("fix") / "broken.jsonl", cases), cases


@pytest.fixture(scope="module")
def mended(broken: tuple[Path, list[dict[str, Any]]]) -> tuple[fix.Fixed, fix.Cases]:
    path, _ = broken
    settings = fix.Settings(file=path, model=MODEL, dictionary=DICTIONARY, arms=("prompt", "feature"), trials=8,
                            options=SMALL, runs=path.parent / "runs")  # fmt: skip
    cases = fix.read(settings)
    assert fix.too_few(cases) is None
    bare = fix.measure(cases)
    assert fix.nothing(cases, bare) is None and bare.failed > bare.n / 4
    return fix.execute(cases, bare, fix.prepare(cases)), cases


class TestAPlantedFailure:
    """The bare model takes the bait in nearly every `on` case and in no `inverse` one."""

    def test_it_ends_with_a_correct_verdict_and_a_winner(self, mended: tuple[fix.Fixed, fix.Cases]):
        found, _ = mended
        assert found.status == "supported", found.said
        assert found.winner is not None and found.winner["arm"] in ("prompt", "feature")
        rates = {row["arm"]: row["strict"] for row in found.rows}
        assert rates["winner"] == rates[found.winner["arm"]] > rates["none"] + 0.2
        scores = {t["arm"]: t["score"] for t in found.winner["arms_tried"]}
        assert scores[found.winner["arm"]] == max(scores.values())
        assert found.verdict is not None and {c.name: c.result for c in found.verdict.checks}["controls"] == "pass"

    def test_every_split_and_the_file_are_pinned_in_the_plan(self, mended: tuple[fix.Fixed, fix.Cases]):
        found, cases = mended
        plan = parse_plan((Path(str(found.run)) / "plan.toml").read_text())
        assert plan.hash == parse_plan((Path(str(found.run)) / "plan.toml").read_text()).hash
        assert plan.task_options["sha256"] and plan.claim == "winner" and plan.n == cases.clusters["test"]

    def test_run_again_it_adds_nothing(self, mended: tuple[fix.Fixed, fix.Cases]):
        found, cases = mended
        home = Path(str(found.run))
        before = {p: p.read_bytes() for p in home.glob("trials/*.jsonl")}
        again = fix.execute(cases, found.bare, fix.prepare(cases))  # type: ignore[arg-type]
        assert {p: p.read_bytes() for p in home.glob("trials/*.jsonl")} == before
        assert again.winner == found.winner and again.status == found.status

    def test_killed_on_the_way_it_goes_on(self, mended: tuple[fix.Fixed, fix.Cases]):
        found, cases = mended
        run = Run.open(str(found.run))
        key = next(s.trial.key for s in run.trials if s.trial.arm == "winner")
        file = run.path / "trials" / f"{key}.jsonl"
        whole = [json.loads(line) for line in file.read_text().splitlines()]
        (run.path / "trials" / f"{key}.done").unlink()
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        again = fix.execute(cases, found.bare, fix.prepare(cases))  # type: ignore[arg-type]
        back = [json.loads(line) for line in file.read_text().splitlines()]
        assert [(r["item"], r["score"]) for r in back] == [(r["item"], r["score"]) for r in whole]
        assert again.status == found.status

    def test_the_command_serves_the_winner_and_a_failing_case_is_now_right(
        self, mended: tuple[fix.Fixed, fix.Cases], broken: tuple[Path, list[dict[str, Any]]]
    ):
        found, _ = mended
        run = Run.open(str(found.run))
        score = {(r.arm, r.item): bool((r.score or {})["strict"]) for r in run.records}
        cases = [c for c in broken[1] if not score.get(("none", c["id"]), True) and score[("winner", c["id"])]][:3]
        assert cases and found.serve is not None
        words = [*shlex.split(found.serve)[1:], "--port", "0", "--stop-after", "120", "--json"]
        heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job does not
        command = [sys.executable, "-c", f"{heeds}; from fairlead.cli import main; main()", *words]
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert server.stdout is not None
        try:
            up = json.loads("".join(iter(server.stdout.readline, "}\n")) + "}")
            base, winner = up["models"]
            for case in cases:
                right = case["check"]["exact"]
                assert ask(up["url"], base, case)["text"] not in right
                said = ask(up["url"], winner, case)
                assert said["text"] in right and winner.endswith(said["fingerprint"][:12])
                if found.winner is not None and found.winner.get("edit"):
                    assert sum(edit["fired"] for edit in said["edits"]) > 0
        finally:
            server.send_signal(signal.SIGINT)
            try:
                assert server.wait(60) == 130
            finally:
                server.kill()
                server.wait()
                server.stdout.close()


def ask(url: str, model: str, case: dict[str, Any]) -> dict[str, Any]:
    body = {"model": model, "messages": case["messages"], "fairlead": {"choices": case["choices"]}}
    head = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=60) as got:
        answer = json.load(got)
    return {"text": answer["choices"][0]["message"]["content"], **answer["fairlead"]}


def test_where_nothing_is_wrong_it_says_so(cli, tmp_path: Path):
    fine = write(tmp_path / "fine.jsonl", [c for c in planted(60, ("off", "inverse")) if not c["failed"]])
    got = cli("fix", fine, "--model", MODEL, "--json")
    found = json.loads(got.stdout)
    assert found["status"] == "nothing needs fixing" and found["run"] is None and found["bare"]["failed"] == 0
    assert 0.02 < found["bare"]["high"] < 0.2
    assert "nothing needs fixing: 0 of" in cli("fix", fine, "--model", MODEL).stdout
    assert list(Path.cwd().iterdir()) == []


def test_so_few_failures_that_no_such_gain_is_left(broken: tuple[Path, list[dict[str, Any]]]):
    cases = fix.read(fix.Settings(file=broken[0], model=MODEL, effect=0.5))
    assert fix.nothing(cases, fix.Bare(100, 10, 100, 0.05, 0.17, 1.0, 1.0)).status == "nothing needs fixing"  # type: ignore[union-attr]
    assert fix.nothing(cases, fix.Bare(100, 60, 100, 0.5, 0.7, 1.0, 1.0)) is None


@pytest.mark.usefixtures("pocket")
class TestOnATinyModel:
    def test_eight_cases_are_too_few_and_it_says_how_many_would_do(self, cli, tmp_path: Path):
        path = tmp_path / "eight.jsonl"
        path.write_text(
            "".join(json.dumps({"prompt": f"{i} + 1?", "check": {"number": i + 1}}) + "\n" for i in range(8))
        )
        got = cli("fix", path, "--model", "pocket/tiny", "--json")
        found = json.loads(got.stdout)
        assert found["status"] == "too few cases" and found["bare"] is None
        assert found["cases"]["clusters_that_would_do"] == 114 and found["cases"]["test_clusters_needed"] == 57
        text = cli("fix", path, "--model", "pocket/tiny").stdout
        assert text.startswith("8 cases ") and "114 would do" in text

    def test_free_text_is_tuned_on_whole_cases(self, cli, tmp_path: Path):
        path = tmp_path / "free.jsonl"
        path.write_text(
            "".join(json.dumps({"prompt": f"{i} + 1?", "check": {"number": i + 1}}) + "\n" for i in range(60))
        )
        got = cli("fix", path, "--model", "pocket/tiny", "--arm", "prompt", "--trials", 3, "--max-tokens", 4,
                  "--wording", "Count.", "--json")  # fmt: skip
        assert got.exit_code == 0, got.output
        found = json.loads(got.stdout)
        plan = parse_plan((Path(found["run"]) / "plan.toml").read_text())
        assert plan.decoding == ("free",) and plan.options["prompt"]["select"] == "rollouts"
        assert plan.options["prompt"]["pool"][0] == "Count."
        assert found["status"] in ("refuted", "inconclusive") and found["winner"]["arm"] == "none"
        assert found["serve"] is None and "nothing that was tried" in found["said"][0]

    def test_committed_code_is_locked_and_the_run_verifies(self, cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(locks, "uncommitted", list)
        path = tmp_path / "locked.jsonl"
        cases = ({"prompt": f"{i} + 1?", "choices": ["a", "b"], "check": {"exact": "ab"[i % 2]}} for i in range(60))
        path.write_text("".join(json.dumps(case) + "\n" for case in cases))
        got = cli("fix", path, "--model", "pocket/tiny", "--arm", "prompt", "--trials", 3, "--json")
        found = json.loads(got.stdout)
        run = Run.open(found["run"])
        assert found["exploratory"] == "" and run.lock is not None and not run.exploratory
        assert cli("verify", found["run"]).exit_code == 0

    def test_a_preview_tunes_nothing_and_bad_input_is_one_message(self, cli, tmp_path: Path):
        path = tmp_path / "x.jsonl"
        path.write_text(
            "".join(json.dumps({"prompt": f"{i} + 1?", "check": {"number": i + 1}}) + "\n" for i in range(60))
        )
        got = cli("fix", path, "--model", "pocket/tiny", "--dry", "--json")
        assert json.loads(got.stdout)["cost"]["arms"][0] == "none" and list(Path.cwd().iterdir()) == []
        for args, words in (
            (["--arm", "nothing"], "no method named"),
            (["--shares", 0, 0, 0], "shares"),
            (["--dictionary", "pocket/tiny@resid.7"], "resid.7"),
        ):
            refused = cli("fix", path, "--model", "pocket/tiny", *args)
            assert refused.exit_code == 2 and words in refused.stderr, refused.stderr
        path.write_text('{"prompt": 1}\n')
        assert "line 1" in cli("fix", path).stderr


def test_settings_that_cannot_be(tmp_path: Path):
    with pytest.raises(PlanError, match="smallest effect"):
        fix.read(fix.Settings(file=tmp_path / "x", model=MODEL, effect=0.0))
    with pytest.raises(LoadError, match="cannot be read"):
        fix.read(fix.Settings(file=tmp_path / "x", model=MODEL))


@pytest.mark.usefixtures("pocket")
def test_serve_says_where_and_stops_by_itself(cli):
    got = cli("serve", "pocket/tiny", "--port", 0, "--stop-after", 0.2)
    assert got.exit_code == 0 and got.stdout.startswith("serving http://127.0.0.1:") and "pocket/tiny" in got.stdout
    assert "FAIRLEAD_API_KEY" in cli("serve", "pocket/tiny", "--host", "0.0.0.0", "--port", 0).stderr
    assert "no fitted arm" in cli("serve", "pocket/tiny", "--fitted", "nowhere/feature", "--port", 0).stderr
