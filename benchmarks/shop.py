"""How fast the shop is: steps per second of the text twin, CPU time per step of real Chromium.

    python benchmarks/shop.py [--json] [--seconds 10] [--episodes 12] [--no-browser]

One step is one observation, one legal menu, one decision by the oracle, its labels, one action and one
trace entry: what `ShopTask.run` does without a model. CPU time counts this process and everything it
started (the Playwright driver and all Chromium processes), read from /proc; wall time depends on what
else the machine does, CPU time hardly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from fairlead.core.types import Generation
from fairlead.tasks.shop.episode import play
from fairlead.tasks.shop.fronts import Front, TextFront
from fairlead.tasks.shop.observe import Observation
from fairlead.tasks.shop.policies import oracle
from fairlead.tasks.shop.spec import CATEGORIES, TRAPS, Instance, instance

TARGETS = {"twin_steps_per_s": 2000.0, "chromium_cpu_ms_per_step": 120.0}


async def episode(ins: Instance, front: Front) -> int:
    async def ask(obs: Observation, legal: tuple[str, ...]) -> Generation:  # noqa: ARG001
        return Generation(oracle(ins, front.state, obs), 0, 0)

    return int((await play(ins, front, ask)).data["steps"])


def instances(n: int) -> list[Instance]:
    every = [(c, t) for c in CATEGORIES for t in TRAPS]
    return [instance(every[i % len(every)][0], "test", i // len(every), every[i % len(every)][1]) for i in range(n)]


async def twin(seconds: float) -> dict[str, float]:
    """Steps per second of one process on one core, by CPU and by wall time, instances made beforehand."""
    todo, steps = instances(330), 0
    cpu, wall = time.process_time(), time.perf_counter()
    while time.process_time() - cpu < seconds:
        for ins in todo:
            steps += await episode(ins, TextFront(ins))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"twin_steps": steps, "twin_steps_per_s": steps / cpu, "twin_steps_per_wall_s": steps / wall}


def tree_cpu_seconds() -> float:
    """User and system time of this process and all its living descendants."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        pid = int(stat.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))  # own and of children that ended
    ours = {os.getpid()}
    while more := {p for p, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(ticks.get(p, 0) for p in ours) / os.sysconf("SC_CLK_TCK")


async def chromium(episodes: int) -> dict[str, float]:
    """CPU milliseconds per step on one context, the start of each episode's first page included."""
    from fairlead.tasks.shop.browser import Browser

    todo = instances(episodes + 2)
    browser = await Browser.start(contexts=1, seconds=120)

    async def one(ins: Instance) -> int:
        async with browser.front(ins) as front:
            return await episode(ins, front)

    try:
        for ins in todo[:2]:  # the first pages of a fresh browser are slower
            await one(ins)
        cpu, wall, steps = tree_cpu_seconds(), time.perf_counter(), 0
        for ins in todo[2:]:
            steps += await one(ins)
        cpu, wall = tree_cpu_seconds() - cpu, time.perf_counter() - wall
    finally:
        await browser.stop()
    return {
        "chromium_steps": steps,
        "chromium_cpu_ms_per_step": 1000 * cpu / steps,
        "chromium_wall_ms_per_step": 1000 * wall / steps,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--seconds", type=float, default=10, help="CPU seconds for the twin")
    parser.add_argument("--episodes", type=int, default=33, help="episodes in Chromium")
    parser.add_argument("--no-browser", action="store_true", help="the twin only")
    args = parser.parse_args()
    got: dict[str, Any] = asyncio.run(twin(args.seconds))
    if not args.no_browser:
        got |= asyncio.run(chromium(args.episodes))
    got["load_average"] = os.getloadavg()[0]
    missed = [k for k, target in TARGETS.items() if k in got and (got[k] < target) == k.startswith("twin")]
    if args.json:
        sys.stdout.write(json.dumps({**got, "targets": TARGETS, "missed": missed}, indent=2) + "\n")
    else:
        rows = (f"{k:28} {v:12.1f}  {'target ' + str(TARGETS[k]) if k in TARGETS else ''}" for k, v in got.items())
        sys.stdout.write("\n".join(rows) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
