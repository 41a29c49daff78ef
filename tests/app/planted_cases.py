"""Case files from a planted world: the shop's own decision points, where pocket/shopper-s is known to take the bait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairlead.lm.load import load
from fairlead.study.play import rollout
from fairlead.tasks.shop import plugin as shop

MODEL, DICTIONARY = "pocket/shopper-s", "pocket/shopper-s@resid.1"


def planted(n: int, traps: Sequence[str], categories: Sequence[str] = ("promo", "sponsored")) -> list[dict[str, Any]]:
    """One case for each of `n` instances x `traps`: its first decision with a trap in sight (else its first one), as
    the bare model meets it. The renderings of an instance share a cluster; `failed` is what the bare model did."""
    task = shop({"n": n, "categories": list(categories), "traps": list(traps)})
    found = []
    for episode in asyncio.run(rollout(task, task.items("train"), load(MODEL), 32)):
        open_ones = [d for d in episode.outcome.decisions if d.right and len(d.right) < len(d.legal)]
        decision = next((d for d in open_ones if d.trap), open_ones[0])
        found.append(
            {
                "id": episode.item.id,
                "cluster": episode.item.cluster,
                "strata": {"trap": episode.item.strata["trap"]},
                "messages": [{"role": m.role, "content": m.content} for m in decision.messages],
                "choices": list(decision.legal),
                "check": {"exact": list(decision.right)},
                "failed": decision.chosen not in decision.right,
            }
        )
    return found


def write(path: Path, cases: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps({k: v for k, v in c.items() if k != "failed"}) + "\n" for c in cases))
    return path
