"""`fairlead judge --import` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tests.judge.test_foreign import jsonl, rows

from fairlead.core.records import from_row

MAP = "arm=policy,item=task,cluster=family,seed=seed,success=ok,strict=strict"


def test_foreign_results_are_judged(cli, tmp_path):
    file = jsonl(tmp_path / "r.jsonl", rows())
    table = cli("judge", "--import", file, "--map", MAP)
    assert table.exit_code == 0 and "NOT MEASURED" in table.stdout and "verdict" not in table.stdout
    words = ("judge", "--import", file, "--map", MAP, "--claim", "mine", "--smallest-effect", 0.1)
    told = cli(*words)
    assert "verdict: inconclusive" in told.stdout and "mine − none on success: +83.3 points" in told.stdout
    value = json.loads(cli(*words, "--json", "--records", "kept.jsonl").stdout)
    assert value["provenance"]["exploratory"] is True and value["records"] == 24
    kept = [from_row(json.loads(line)) for line in Path("kept.jsonl").read_text().splitlines()]
    assert len(kept) == 24 and kept[0].score == {"success": True}


def test_the_untreated_arm_has_their_name(cli, tmp_path):
    file = jsonl(tmp_path / "r.jsonl", rows(arms=("baseline", "mine", "noise")))
    got = cli("judge", "--import", file, "--map", MAP, "--none", "baseline", "--claim", "mine", "--control", "noise")
    assert got.exit_code == 0 and "mine − noise" in got.stdout and "mine − none" in got.stdout
    named = cli("judge", "--import", file, "--map", MAP, "--rename", "baseline=none", "--rename", "noise=control.noise",
                "--claim", "mine")  # fmt: skip
    assert "mine − control.noise" in named.stdout
    only = cli("judge", "--import", file, "--map", MAP, "--claim", "mine", "--beat", "baseline", "--primary", "strict")
    assert "mine − baseline on strict: not measured" in only.stdout


def test_what_it_refuses(cli, tmp_path):
    file = jsonl(tmp_path / "r.jsonl", rows())

    def refused(*words: object) -> str:
        got = cli("judge", *words)
        assert got.exit_code == 2
        return got.stderr

    assert "one of the two" in refused() and "one of the two" in refused("runs/x", "--import", file)
    assert "no arm 'them'" in refused("--import", file, "--map", MAP, "--claim", "them")
    assert "no measure 'speed'" in refused("--import", file, "--map", MAP, "--primary", "speed")
    alone = jsonl(tmp_path / "q.jsonl", rows(arms=("mine", "b")))
    assert "name the untreated arm" in refused("--import", alone, "--map", MAP, "--claim", "b")
    assert "OLD=NEW" in refused("--import", file, "--map", MAP, "--rename", "mine")
    assert "one name" in refused("--import", file, "--map", MAP, "--rename", "mine=x", "--rename", "none=x")
    assert "which column is item" in refused("--import", file)
    assert "no file" in refused("--import", "nowhere.csv")
