"""Which questions are tuned on, which choose, and which judge: by cluster, by hash, whatever else is in the file.

train is where misreadings are discovered, validation where they are selected, test is opened once. A cluster lies in
one split as a whole: rows with one text, and what the layout or a column says belongs together. Its name is a hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fairlead.core.errors import LoadError
from fairlead.core.keys import sha256
from fairlead.core.types import Item
from fairlead.tasks._clusters import drawn, joined, same_text
from fairlead.tasks.questions.layouts import Row
from fairlead.tasks.questions.read import Table

SPLITS = ("train", "validation", "test")
SHARES = (0.4, 0.2, 0.4)


def assign(table: Table, shares: Sequence[float]) -> Mapping[str, tuple[Item, ...]]:
    """The items of each split, in the order of their clusters' hashes. LoadError where a file's own splits part rows
    that belong together."""
    rows = table.rows
    names = joined([[same_text(row.text), *([row.cluster] if row.cluster else [])] for row in rows])
    clusters = [sha256(f"questions/{name}") for name in names]
    stated = _stated(table, clusters)
    others = _others(rows)
    by_split: dict[str, list[Item]] = {name: [] for name in SPLITS}
    for i in sorted(range(len(rows)), key=lambda i: (clusters[i], rows[i].line)):
        split = stated.get(clusters[i]) or drawn(clusters[i], SPLITS, shares)
        by_split[split].append(_item(rows[i], split, clusters[i][:16], table.layout.name, others.get(i, "")))
    return {name: tuple(items) for name, items in by_split.items()}


def _stated(table: Table, clusters: Sequence[str]) -> dict[str, str]:
    """The split of every cluster whose rows name one."""
    first: dict[str, Row] = {}
    for row, cluster in zip(table.rows, clusters, strict=True):
        if not row.split:
            continue
        other = first.setdefault(cluster, row)
        if other.split != row.split:
            raise LoadError(
                f"{table.unit}s {other.line} and {row.line} belong together, but not to one split",
                expected="rows with one text, or of one cluster, on one side of the line between tuning and judging",
                got=f"{other.split} and {row.split}",
                do="give both the same split, or name no split column",
            )
    return {cluster: row.split for cluster, row in first.items()}


def _others(rows: Sequence[Row]) -> dict[int, str]:
    """The other text of every row whose pair holds exactly two."""
    members: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row.pair:
            members.setdefault(row.pair, []).append(i)
    pairs = [m for m in members.values() if len(m) == 2]
    return {i: rows[j].text for one, two in pairs for i, j in ((one, two), (two, one))}


def _item(row: Row, split: str, cluster: str, layout: str, other: str) -> Item:
    data: dict[str, object] = {"text": row.text, "answer": row.answer, "line": row.line}
    extra = {"question": row.question, "choices": list(row.choices), "paraphrase": row.paraphrase, "pair": other}
    data |= {name: value for name, value in extra.items() if value}
    if row.difficulty is not None:
        data["difficulty"] = row.difficulty
    return Item(f"q-{row.key[:16]}", split, cluster, {"kind": layout, **row.strata}, data)
