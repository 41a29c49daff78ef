"""Rows that belong together, and where the hash of what they share falls: so that nothing is tuned on and judged on."""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.core.keys import sha256


def same_text(text: str) -> str:
    """A name for a text, case and spacing forgotten."""
    return f"text-{sha256(' '.join(text.casefold().split()))[:16]}"


def joined(names: Sequence[Sequence[str]]) -> list[str]:
    """The cluster of every row: rows that share one of their names, in one or several steps, share a cluster, under
    the name that sorts first."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for first, *others in names:
        for name in others:
            one, other = root(first), root(name)
            if one != other:
                parent[max(one, other)] = min(one, other)
    return [root(first) for first, *_ in names]


def drawn(place: str, names: Sequence[str], shares: Sequence[float]) -> str:
    """Which of `names` a hash (hex digits) falls to, each with its share."""
    at, total, reached = int(place[:13], 16) / 16**13, sum(shares), 0.0
    for name, share in zip(names, shares, strict=True):
        reached += share / total
        if at < reached:
            return name
    return names[-1]
