"""`fairlead fix`, killed with -9 while it tunes, and run again: the verdict, the winner and the Records of an unbroken
run. And the full search on a planted failure: the default arms, the default finder."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.app.planted_cases import DICTIONARY, MODEL, planted, write

from fairlead.core.records import Run

pytestmark = pytest.mark.soak
FAIRLEAD = [sys.executable, "-c", "from fairlead.cli import main; main()"]


def start(place: Path, cases: Path, *more: str) -> subprocess.Popen[str]:
    place.mkdir(exist_ok=True)
    command = [*FAIRLEAD, "fix", str(cases), "--model", MODEL, "--json", *more]
    return subprocess.Popen(command, cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    found: dict[str, Any] = json.loads(out)
    return found


def records(place: Path, found: dict[str, Any]) -> dict[tuple[str, str], Any]:
    return {(r.arm, r.item): (r.score, r.outcome) for r in Run.open(place / found["run"]).records}


def test_killed_on_the_way_it_ends_as_an_unbroken_run(tmp_path: Path):
    cases = write(tmp_path / "broken.jsonl", planted(60, ("on", "inverse")))
    arms = ("--arm", "prompt", "--arm", "vector", "--trials", "6")
    whole = finished(start(tmp_path / "whole", cases, *arms))
    rng, kills = random.Random(3), 0
    for share in sorted(rng.uniform(0.1, 0.9) for _ in range(3)):
        process, before = start(tmp_path / "killed", cases, *arms), time.monotonic()
        goal = share * len(records(tmp_path / "whole", whole))
        while process.poll() is None and time.monotonic() - before < 300:
            lines = sum(f.read_bytes().count(b"\n") for f in (tmp_path / "killed").glob("runs/*/trials/*.jsonl"))
            if lines > goal:
                break
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    again = finished(start(tmp_path / "killed", cases, *arms))
    assert kills >= 2
    assert again["status"] == whole["status"] == "supported" and again["winner"] == whole["winner"]
    assert records(tmp_path / "killed", again) == records(tmp_path / "whole", whole)


def test_the_default_arms_mend_the_planted_failure(tmp_path: Path):
    cases = write(tmp_path / "broken.jsonl", planted(100, ("on", "inverse"), ("promo", "sponsored", "addon")))
    found = finished(start(tmp_path / "place", cases, "--dictionary", DICTIONARY))
    rates = {row["arm"]: row["strict"] for row in found["rows"]}
    assert found["status"] == "supported", found["said"]
    assert {"prompt", "vector", "feature", "prompt+feature"} <= set(rates)
    assert rates["winner"] > 0.85 > 0.6 > rates["none"] and rates["feature"] > rates["none"] + 0.2
    assert all(row["errors"] == 0 for row in found["rows"])
