"""Which rows learn, which choose, which name, which check, and which judge: five parts, by cluster, hashed.

    train     what a label-aware dictionary sees          validate  the held-out score of a label
    select    which of its latents speak of the label     test      effects and predictions, opened once
    label     which words for them are best

A dictionary that sees no label is fitted, and its latents are selected and weighed, on the first three together.

A cluster is a group together with every row that shares a text with it (case and spacing forgotten): it lies in one
part as a whole, and a row stays where it is when others are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from fairlead.core.errors import LoadError
from fairlead.core.keys import sha256
from fairlead.tasks._clusters import drawn, joined, same_text
from fairlead.tasks.hypotheses.read import Row

Part = Literal["train", "select", "label", "validate", "test"]
PARTS: tuple[Part, ...] = ("train", "select", "label", "validate", "test")
SHARES: tuple[float, ...] = (0.3, 0.2, 0.1, 0.1, 0.3)
SPLIT_OF: Mapping[Part, str] = {
    "train": "train", "select": "train", "label": "train", "validate": "validation", "test": "test",
}  # fmt: skip
LEAST: Mapping[str, int] = {"train": 20, "validation": 5, "test": 15}  # clusters, under which nothing is tried
SIDE = 5  # test rows that each label needs, at least


@dataclass(frozen=True)
class Placed:
    """A row, its part, and its cluster."""

    row: Row
    part: Part
    cluster: str


def assign(rows: Sequence[Row], shares: Sequence[float] = SHARES, seed: int = 0) -> tuple[Placed, ...]:
    """Every row with its part, in the order of the clusters' hashes."""
    clusters = _clusters(rows)
    place = {cluster: sha256(f"hypotheses/{seed}/{cluster}") for cluster in set(clusters)}
    order = sorted(range(len(rows)), key=lambda i: (place[clusters[i]], rows[i].number))
    parts = {cluster: cast(Part, drawn(place[cluster], PARTS, shares)) for cluster in place}
    return tuple(Placed(rows[i], parts[clusters[i]], clusters[i]) for i in order)


def check_sizes(placed: Sequence[Placed], kind: str) -> None:
    """LoadError where a split is too small to say anything, with how many rows would do."""
    clusters = {split: {p.cluster for p in placed if SPLIT_OF[p.part] == split} for split in LEAST}
    for split, least in LEAST.items():
        if len(clusters[split]) < least:
            raise LoadError(
                "too few rows to find anything and know that it holds",
                expected=f"at least {least} rows (those that belong together counted once) for {split}; "
                "100 rows in all will mostly do, and effects of 10 points need about 1,000",
                got=f"{len(placed)} usable rows, {len(clusters[split])} of them for {split}",
            )
    if kind in ("binary", "pairwise"):
        for split in LEAST:
            sides = [p.row.label for p in placed if SPLIT_OF[p.part] == split]
            least, few = (SIDE, min(sides.count(True), sides.count(False)))
            if few < (least if split != "validation" else 1):
                raise LoadError(
                    f"too few rows of one label in {split}",
                    expected=f"at least {least} of each label",
                    got=f"{sides.count(True)} true and {sides.count(False)} false",
                    do="add rows of the rarer label",
                )


def _clusters(rows: Sequence[Row]) -> list[str]:
    """The cluster of every row: rows that share a group or a text, in one or several steps, share a cluster."""
    groups = [[f"group-{row.group}"] if row.group else [] for row in rows]
    return joined([[*map(same_text, row.texts), *group] for row, group in zip(rows, groups, strict=True)])
