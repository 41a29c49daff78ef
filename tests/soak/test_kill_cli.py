"""The command line, killed with -9 at random moments while a shipped pocket model shops, and run again."""

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

from fairlead.cli import INTERRUPTED
from fairlead.core.records import Run

pytestmark = pytest.mark.soak
# a shell's background job ignores Ctrl-C, and so would what it starts
HEEDS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
FAIRLEAD = [sys.executable, "-c", f"{HEEDS}; from fairlead.cli import main; main()"]
ENDS = [signal.SIGINT, *[signal.SIGKILL] * 4]  # Ctrl-C is one more way to stop
TIMED = ("seconds", "peak_memory_bytes", "evaluations", "bytes", "records_sha256", "fitted_sha256", "ledger_sha256")
PLAN = """
question = "Does a run that was killed end as an unbroken one does?"
task = "shop"
model = "pocket/shopper-s"
dictionary = "pocket/shopper-s@resid.1"
arms = ["none", "prompt", "feature", "control.random"]
claim = "feature"
primary = "strict"
where = { trap = "on" }
smallest_effect = 0.1
n = 6
n_train = 6
n_validation = 6
chunk = 4
decoding = ["constrained", "free"]
budget = { tuning_trials = 4 }
[task_options]
n = 6
categories = ["promo", "urgency"]
[options.feature]
n_decisions = 12
n_screen = 6
n_validation = 12
shortlist = 6
kept = 2
finalists = 2
places = 0
strengths = [1.0, 2.0]
seconds = 0.0
"""


def start(run_dir: Path) -> subprocess.Popen[bytes]:
    command = [*FAIRLEAD, "run", str(run_dir.parent / "small.toml"), "--run", str(run_dir), "--exploratory", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(run_dir: Path) -> None:
    process = start(run_dir)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors.decode()


def strike(value: Any) -> Any:
    """`value` without what a clock, the kernel or a count gave, and without hashes over that."""
    if isinstance(value, dict):
        return {k: None if k in TIMED else strike(v) for k, v in value.items()}
    return [strike(v) for v in value] if isinstance(value, list) else value


def left(run_dir: Path) -> dict[str, Any]:
    """Every Record line, marker, fit, ledger and trace of a run but for seconds."""
    found: dict[str, Any] = {}
    for path in sorted(run_dir.rglob("*")):
        name = str(path.relative_to(run_dir))
        if name == "sessions.jsonl":  # a line each time it was started
            continue
        if path.suffix == ".jsonl":
            found[name] = [strike(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".done":
            found[name] = strike(json.loads(path.read_text()))
        elif path.suffix == ".json":
            found[name] = strike(json.loads(path.read_text()))
        elif path.is_file() and not name.endswith(".tmp"):
            found[name] = path.read_bytes()
    return found


def size(run_dir: Path) -> int:
    """Bytes recorded so far; a `.tmp` may be renamed between its listing and its stat, so none is counted."""
    files = (file for file in run_dir.glob("*/*") if file.suffix != ".tmp")
    return sum(file.stat().st_size for file in files if file.is_file())


def test_killed_at_random_moments_it_ends_as_an_unbroken_run(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(PLAN)
    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", random.Random(5)
    finish(whole)
    want, total = left(whole), size(whole)
    deaths = []
    for end, share in zip(ENDS, [0.0, *sorted(rng.uniform(0.0, 0.6) for _ in ENDS[1:])], strict=True):
        # a moment told by what is on disk, so that it is met on a fast machine and on a slow one
        process, deadline = start(killed), time.monotonic() + 120
        while process.poll() is None and size(killed) <= share * total and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.02))
        if process.poll() is None:
            process.send_signal(end)
        _, said = process.communicate()
        if process.returncode == INTERRUPTED:
            assert "the same command goes on from here" in said.decode() and "Traceback" not in said.decode()
        deaths.append((process.returncode, sum(s.status == "complete" for s in Run.open(killed).trials)))
    assert [code for code, _ in deaths].count(-signal.SIGKILL) >= 2, deaths
    assert deaths[0][0] == INTERRUPTED, deaths
    finish(killed)
    got = left(killed)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name] == value, name
    records = Run.open(killed).records
    assert len(records) == 8 * 6 * 3
    assert len({(r.trial, r.item) for r in records}) == len(records)
