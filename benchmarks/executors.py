"""What placing trials on Ray costs: the same small study inline and on workers of this machine, in one run.

    python -m benchmarks.executors [--rounds 3] [--workers 2] [--n 8]

Prints one JSON object. `work` runs from the first step to the last Record, `whole` also starts and ends what is needed
(models are loaded in both; a cluster only under Ray). Ratios are seconds on Ray over seconds inline of the same round.
Both leave the same Records; a machine with as many free cores as workers should come out below 1 for `work`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from fairlead.app import run
from fairlead.core.crew import Cluster

PLAN = """
question = "What does placement cost?"
task = "shop"
model = "pocket/shopper-s"
arms = ["none", "prompt", "few_shot", "best_of_n"]
claim = "prompt"
primary = "strict"
where = {{ trap = "on" }}
smallest_effect = 0.1
n = {n}
n_train = 4
n_validation = 4
chunk = 8
decoding = ["constrained", "free"]
budget = {{ tuning_trials = 2 }}
"""


def seconds(folder: Path, n: int, where: Cluster | None) -> tuple[float, float, list[tuple[str, str, str]]]:
    """(work, whole, what was recorded) of one study."""
    folder.mkdir()
    (folder / "plan.toml").write_text(PLAN.format(n=n), encoding="utf-8")
    job, steps = run.prepare(str(folder / "plan.toml"), run_dir=folder / "run"), list[float]()
    start = time.perf_counter()
    found = run.execute(job, progress=lambda _: steps.append(time.perf_counter()), where=where)
    whole = time.perf_counter() - start
    told = sorted((r.trial, r.item, json.dumps(r.score, sort_keys=True)) for r in found.records)
    return steps[-1] - steps[0], whole, told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--n", type=int, default=8)
    given = parser.parse_args()
    work, whole, inline, episodes = [], [], [], 0
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(given.rounds):
            here = seconds(Path(scratch) / f"inline{i}", given.n, None)
            there = seconds(Path(scratch) / f"ray{i}", given.n, Cluster(workers=given.workers))
            assert here[2] == there[2], "Records differ"
            episodes = len(here[2])
            inline.append(here[0])
            work.append(there[0] / here[0])
            whole.append(there[1] / here[1])
    told = {
        "rounds": given.rounds,
        "workers": given.workers,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "episodes": episodes,
        "inline_seconds": round(statistics.median(inline), 2),
        "work_ratio": {"median": round(statistics.median(work), 2), "all": [round(x, 2) for x in work]},
        "whole_ratio": {"median": round(statistics.median(whole), 2), "all": [round(x, 2) for x in whole]},
    }
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main()
