"""Which items of a split a study uses: the first clusters, in the task's own order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fairlead.core.errors import PlanError
from fairlead.core.types import Item


def choose(items: Sequence[Item], n: int, strata: Mapping[str, Mapping[str, int]], what: str) -> list[Item]:
    """All items of the first `n` clusters, in order. `strata` = {"trap": {"off": 20}} keeps items with
    trap = off only in the first 20. Raises PlanError when the task has fewer clusters."""
    rank: dict[str, int] = {}
    chosen = []
    for item in items:
        place = rank.setdefault(item.cluster, len(rank))
        limits = [counts.get(item.strata.get(key, ""), n) for key, counts in strata.items()]
        if place < min([n, *limits]):
            chosen.append(item)
    if len(rank) < n:
        raise PlanError(f"{what} has too few items", expected=f"{n} clusters", got=str(len(rank)), do="lower n")
    return chosen
