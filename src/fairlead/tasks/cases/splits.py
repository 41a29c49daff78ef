"""Which case is tuned on, and which is judged on: by cluster, hashed, the same wherever and whenever it is asked.

A cluster is what the file says, or all cases with one prompt. It lies in one split as a whole: in the one the file
names for any of its cases, else where its hash falls. A case keeps its split when others are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fairlead.core.errors import LoadError
from fairlead.core.keys import sha256
from fairlead.tasks._clusters import drawn
from fairlead.tasks.cases.read import SPLITS, Case


@dataclass(frozen=True)
class Sorted:
    """Cases with cluster and split filled in, by split and in the order of their clusters' hashes; `repeats` are
    pairs of lines (kept, left out) that say the same."""

    by_split: Mapping[str, tuple[Case, ...]]
    repeats: tuple[tuple[int, int], ...]


def assign(cases: Sequence[Case], shares: Sequence[float]) -> Sorted:
    """Sorts cases into splits; `shares` are those of train, validation and test. LoadError where one prompt or one
    cluster would lie in two splits."""
    kept, repeats = _without_repeats(cases)
    clusters = _clusters(kept)
    groups: dict[str, list[Case]] = {}
    for case in kept:
        groups.setdefault(clusters[case.id], []).append(case)
    by_split: dict[str, list[Case]] = {name: [] for name in SPLITS}
    for cluster in sorted(groups, key=_place):
        split = _stated(groups[cluster]) or drawn(_place(cluster), SPLITS, shares)
        by_split[split] += [replace(case, cluster=cluster, split=split) for case in groups[cluster]]
    return Sorted({name: tuple(found) for name, found in by_split.items()}, repeats)


def _without_repeats(cases: Sequence[Case]) -> tuple[list[Case], tuple[tuple[int, int], ...]]:
    seen: dict[tuple[object, ...], Case] = {}
    repeats = []
    for case in cases:
        first = seen.setdefault((case.turns, case.cluster, case.split), case)
        if first is not case:
            repeats.append((first.line, case.line))
    return list(seen.values()), tuple(repeats)


def _clusters(cases: Sequence[Case]) -> dict[str, str]:
    """The cluster of every case id. A case without one joins the case that has the same prompt."""
    named: dict[str, str] = {}
    for case in cases:
        named[case.said] = named.get(case.said) or case.cluster
    found = {case.id: case.cluster or named[case.said] or f"prompt-{sha256(case.said)[:12]}" for case in cases}
    return _joined(cases, found)


def _joined(cases: Sequence[Case], cluster: dict[str, str]) -> dict[str, str]:
    """Clusters that share a prompt are one, under the name that comes first; else a prompt could be tuned on and
    judged on."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    holder: dict[str, str] = {}
    for case in cases:
        one, other = root(holder.setdefault(case.said, cluster[case.id])), root(cluster[case.id])
        if one != other:
            parent[max(one, other)] = min(one, other)
    return {key: root(name) for key, name in cluster.items()}


def _stated(group: Sequence[Case]) -> str:
    stated = [case for case in group if case.split]
    for case in stated[1:]:
        if case.split != stated[0].split:
            what = "the same prompt" if case.said == stated[0].said else f"cluster {case.cluster!r}"
            raise _leak(stated[0], case, what)
    return stated[0].split if stated else ""


def _leak(first: Case, second: Case, what: str) -> LoadError:
    return LoadError(
        f"lines {first.line} and {second.line} share {what}, but not the split",
        expected="what belongs together on one side of the line between tuning and judging",
        got=f"{first.split or 'no split'} and {second.split or 'no split'}",
        do="give both the same split, or leave `split` out",
    )


def _place(cluster: str) -> str:
    return sha256(f"cases/{cluster}")
