"""kill -9 at any moment, run again: the same Records but for seconds, none twice, none lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairlead.core.records import Run

TOYS = Path(__file__).parent / "toys"
MEASURED = ("seconds", "peak_memory_bytes", "evaluations", "bytes", "records_sha256", "fitted_sha256", "ledger_sha256")


def start(run_dir, delay):
    return subprocess.Popen(
        [sys.executable, str(TOYS / "run_toy.py"), str(run_dir), str(delay)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TOYS)]))},
        stderr=subprocess.PIPE,
    )


def finish(run_dir):
    process = start(run_dir, 0.0)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def without_seconds(run_dir):
    """Everything a run holds, with what a clock, the kernel or a count gave struck out, and hashes over that."""

    def strike(value):
        if isinstance(value, dict):
            return {k: None if k in MEASURED else strike(v) for k, v in value.items()}
        return [strike(v) for v in value] if isinstance(value, list) else value

    found = {}
    for path in sorted(Path(run_dir).rglob("*")):
        name = str(path.relative_to(run_dir))
        assert not name.endswith(".tmp") or name.startswith("fitted"), name
        if name == "sessions.jsonl":  # a line each time it was started
            continue
        if path.suffix == ".jsonl":
            found[name] = [strike(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".done":
            found[name] = strike(json.loads(path.read_text()))
        elif path.suffix == ".json":
            found[name] = strike(json.loads(path.read_text()))
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def hammer(tmp_path, kills, seed):
    finish(tmp_path / "whole")
    want = without_seconds(tmp_path / "whole")
    rng, killed = random.Random(seed), tmp_path / "killed"
    deaths = 0
    for _ in range(kills):
        process = start(killed, 0.01)
        deadline = time.monotonic() + 60
        before = size(killed)
        while process.poll() is None and size(killed) == before and time.monotonic() < deadline:
            time.sleep(0.002)  # wait until this attempt has recorded something of its own
        time.sleep(rng.random() * 0.25)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            deaths += 1
        process.communicate()
    finish(killed)
    assert without_seconds(killed) == want
    records = Run.open(killed).records
    assert len({(r.trial, r.item) for r in records}) == len(records)
    return deaths


def size(run_dir):
    """Bytes recorded so far; a `.tmp` may be renamed between its listing and its stat, so none is counted."""
    return sum(f.stat().st_size for f in Path(run_dir).glob("*/*") if f.is_file() and f.suffix != ".tmp")


def test_killed_again_and_again(tmp_path):
    assert hammer(tmp_path, kills=8, seed=0) >= 4


@pytest.mark.soak
def test_killed_many_times(tmp_path):
    for seed in range(1, 9):
        hammer(tmp_path / str(seed), kills=15, seed=seed)


def test_torn_lines_and_lost_tails(tmp_path):
    """What a kill between any two bytes of an append leaves is repaired, at every length that differs in kind."""
    finish(tmp_path / "whole")
    want = without_seconds(tmp_path / "whole")
    run = Run.open(tmp_path / "whole")
    key = next(s.trial.key for s in run.trials if s.trial.decoding == "constrained" and s.records)
    path = tmp_path / "whole" / "trials" / f"{key}.jsonl"  # constrained: its numbers depend on the batch
    content, marker = path.read_bytes(), path.with_suffix(".done")
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    for cut in (0, 1, ends[0] - 1, ends[0], ends[0] + 1, ends[6], ends[-1] - 2):
        path.write_bytes(content[:cut])
        marker.unlink()
        finish(tmp_path / "whole")
        assert without_seconds(tmp_path / "whole") == want, cut
