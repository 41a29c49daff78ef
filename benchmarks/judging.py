"""How long judging takes: `python -m benchmarks.judging [RECORDS]` writes that many Records (1,000,000), opens them in
a fresh process and judges them, and prints seconds and peak memory. Two cores, nothing else running, for a figure.

The study is made up: 20 arms, 5 seeds, items in three renderings, 8 categories. `--keep DIR` keeps the run.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ARMS = ("none", "feature", "prompt", "few_shot", "prompt_search", "vector", "probe_gated", "lora", "reft", "gcg",
        "best_of_n", "refusal", "control.empty", "control.wrong_sign", "control.random", "control.noise", "control.pca",
        "control.kmeans", "control.random_dictionary", "control.shuffled_decoder")  # fmt: skip
SEEDS, TRAPS, CATEGORIES = 5, ("on", "off", "inverse"), 8
LIMIT_S, LIMIT_MB = 60, 2_000


def write(folder: Path, records: int) -> int:
    """Record files as `fairlead run` leaves them; returns how many Records there are."""
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    clusters = max(1, records // (len(ARMS) * SEEDS * len(TRAPS)))
    rng = random.Random(0)
    for arm in ARMS:
        for seed in range(SEEDS):
            key = f"{arm}-{seed}"
            with (folder / "trials" / f"{key}.jsonl").open("w", encoding="utf-8") as out:
                for cluster in range(clusters):
                    for trap in TRAPS:
                        out.write(_line(key, arm, seed, cluster, trap, rng))
    return clusters * len(TRAPS) * SEEDS * len(ARMS)


def _line(key: str, arm: str, seed: int, cluster: int, trap: str, rng: random.Random) -> str:
    won = rng.random() < (0.7 if arm == "feature" else 0.4)
    steps = rng.randrange(2, 9)
    category = f"category-{cluster % CATEGORIES}"
    funnel = {"effective": steps - 1, "emitted": steps, "executed": steps, "grounded": steps, "valid": steps}
    fell = rng.random() < 0.3 if trap == "on" else None
    row = {
        "arm": arm, "cluster": f"test/{category}/{cluster}",
        "cost": {"flops": 2.4e6 * steps * 300, "forwards": steps, "judge_calls": 0, "new_tokens": 9 * steps,
                 "peak_memory_bytes": None, "prompt_tokens": 300 * steps, "seconds": 0.09 * steps, "tuning_trials": 0},
        "decoding": "constrained", "error": None, "item": f"test/{category}/{cluster}/{trap}", "lock": "0" * 64,
        "model": "pocket/shopper-s",
        "outcome": {"ended": "done", "steps": steps, "funnel": funnel, "sha256": f"{rng.getrandbits(256):064x}"},
        "score": {"strict": won, "loose": won or rng.random() < 0.2, "fell": fell},
        "seed": seed, "split": "test", "strata": {"category": category, "trap": trap}, "trace": None, "trial": key,
    }  # fmt: skip
    return json.dumps(row, sort_keys=True, separators=(",", ":")) + "\n"


def measure(folder: Path) -> dict[str, float]:
    """Open and judge; seconds of each, peak memory of this process in MB (10^6 bytes)."""
    from fairlead.core.records import Run
    from fairlead.judge import Question, judge

    clock = time.perf_counter()
    run = Run.open(folder)
    opened = time.perf_counter()
    controls = tuple(arm for arm in ARMS if arm.startswith("control"))
    verdict = judge(run, Question("feature", "strict", 0.1, {"trap": "on"}, controls=controls))
    done = time.perf_counter()
    assert verdict.contrasts
    return {
        "cpu_s": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
        "records": len(run.records), "open_s": opened - clock, "judge_s": done - opened, "total_s": done - clock,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        sys.stdout.write(json.dumps(measure(given.measure)) + "\n")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        if not (folder / "trials").exists():
            write(folder, given.records)
        words = [sys.executable, "-m", "benchmarks.judging", "--measure", str(folder)]
        got = subprocess.run(words, check=True, capture_output=True, text=True)
    found = json.loads(got.stdout)
    sys.stdout.write(
        f"{found['records']:,} Records: open {found['open_s']:.1f} s, judge {found['judge_s']:.1f} s, together "
        f"{found['total_s']:.1f} s ({found['cpu_s']:.1f} s of CPU, limit {LIMIT_S}); "
        f"peak {found['peak_mb']:.0f} MB (limit {LIMIT_MB})\n"
    )
    if found["records"] >= 999_000 and (found["cpu_s"] > LIMIT_S or found["peak_mb"] > LIMIT_MB):
        raise SystemExit("slower or larger than it should be")


if __name__ == "__main__":
    main()
