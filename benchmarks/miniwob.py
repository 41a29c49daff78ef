"""What our agent scores on MiniWoB++: a pocket model, and beside it a policy that draws among the legal actions.

    python -m benchmarks.miniwob [--seeds 3] [--model pocket/shopper-s] [--steps 8] [--kinds click-test,enter-text]

31 kinds of task that a scripted policy solves (tests/adapters/test_miniwob.py), each with the first seeds, in the
system's Chromium; both play the same pages. Success is a reward above 0. Intervals are 95 %: of a rate, Wilson at the
effective n with kinds as clusters; of the paired difference, over kinds. Prints one JSON object; to stderr, each kind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from tests.adapters.test_miniwob import POLICIES

from fairlead.adapters.miniwob import Act, Episode, MiniWoB, acting
from fairlead.judge.stats import clustering, paired, wilson
from fairlead.lm.load import load


def drawing(seed: int) -> Act:
    """A policy that draws one of the legal actions."""
    rng = random.Random(seed)

    async def act(_seen: Any, legal: tuple[str, ...]) -> str:
        return rng.choice(legal)

    return act


async def played(given: argparse.Namespace) -> dict[str, list[Episode]]:
    agent, found = acting(load(given.model)), {"model": list[Episode](), "drawn": list[Episode]()}
    async with MiniWoB.start() as wob:
        for kind in given.kinds:
            for seed in range(given.seeds):
                found["model"].append(await wob.play(kind, seed, agent, steps=given.steps))
                found["drawn"].append(await wob.play(kind, seed, drawing(seed), steps=given.steps))
            last = {name: [e.reward for e in episodes[-given.seeds :]] for name, episodes in found.items()}
            print(kind, json.dumps(last), found["model"][-1].actions[:3], file=sys.stderr, flush=True)  # noqa: T201
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--model", default="pocket/shopper-s")
    parser.add_argument("--kinds", type=lambda text: tuple(text.split(",")), default=tuple(POLICIES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    found = asyncio.run(played(given))
    kinds = [e.task for e in found["model"]]
    scores = {name: [float(e.success) for e in episodes] for name, episodes in found.items()}
    told: dict[str, Any] = {"model": given.model, "kinds": len(given.kinds), "seeds": given.seeds, "steps": given.steps}
    for name, episodes in found.items():
        n = clustering(scores[name], kinds).effective_n
        interval = wilson(n * sum(scores[name]) / len(episodes), n)
        told[name] = {
            "successes": int(sum(scores[name])), "n": len(episodes), "interval": interval and asdict(interval),
            "reward": sum(e.reward for e in episodes) / len(episodes),
            "ended": {how: sum(e.ended == how for e in episodes) for how in ("page", "done", "limit")},
            "of_kinds": {e.task: sum(x.success for x in episodes if x.task == e.task) for e in episodes if e.success},
        }  # fmt: skip
    told["difference"] = asdict(paired([a - b for a, b in zip(*scores.values(), strict=True)], kinds))
    print(json.dumps({**told, "cpu_seconds": round(time.process_time() - start, 1)}))  # noqa: T201


if __name__ == "__main__":
    main()
