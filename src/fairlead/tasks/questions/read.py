"""A file of questions to rows that can be asked; what cannot is counted, with its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fairlead.core.errors import LoadError, PlanError
from fairlead.tasks._clusters import same_text
from fairlead.tasks._tables import BY_ROW, Placed, columns_of, has_columns, not_too_many, read_rows, read_text
from fairlead.tasks.cases.numbers import exact
from fairlead.tasks.questions.layouts import LAYOUTS, Columns, Layout, Row, Unusable

NAMES = {
    "text": ("text", "sentence", "prompt", "input", "problem", "question"),
    "answer": ("answer", "target", "label", "gold"),
    "question": ("question",),
    "choices": ("choices",),
    "cluster": ("cluster",),
    "paraphrase": ("paraphrase",),
    "split": ("split",),
}  # of a table's columns where no option says; the first that is there
SPLITS = {
    "train": "train", "discover": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "select": "validation", "test": "test",
}  # fmt: skip
SHOWN = 10  # lines that a message names


@dataclass(frozen=True)
class Table:
    """The rows that can be asked, in the file's order. `left_out` are the lines of the others by reason; `unit` says
    whether places are lines or rows."""

    layout: Layout
    match: str
    rows: tuple[Row, ...]
    left_out: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unit: str = "line"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, for the reader: one line a reason."""
        return tuple(
            f"{len(lines)} left out: {reason} ({_places(self.unit, lines)})" for reason, lines in self.left_out.items()
        )


def read_questions(path: str | Path, layout: str, columns: Columns, layouts: Sequence[str], match: str = "") -> Table:
    """Every row of a file. `layout` "" is found among `layouts` by the columns. Raises LoadError where there is no
    such column, or no row that can be asked."""
    path = Path(path)
    placed = _xml(path) if path.suffix.lower() == ".xml" else read_rows(path)
    if not placed:
        raise LoadError(f"{path} has no rows", expected="rows of texts with answers")
    unit = "row" if path.suffix.lower() in BY_ROW else "line"
    records = [row for _, row in placed]
    have = columns_of(records)
    chosen = _layout(path, layout, records, have, layouts, columns)
    columns = _columns(chosen, columns, records, have, str(path))
    rows: list[Row] = []
    out: dict[str, list[int]] = {}
    seen: dict[str, int] = {}
    first: dict[str, str] = {}  # the cluster of every text
    for place, record in placed:
        try:
            row = _row(path, unit, place, record, chosen, columns)
        except Unusable as reason:
            out.setdefault(str(reason), []).append(place)
            continue
        if seen.setdefault(row.key, place) != place:
            out.setdefault("it repeats a row above", []).append(place)
            continue
        if chosen.apart and first.setdefault(same_text(row.text), row.cluster) != row.cluster:
            out.setdefault("its text stands above, in another cluster", []).append(place)
            continue
        rows.append(replace(row, line=place))
    left_out = {reason: tuple(lines) for reason, lines in out.items()}
    if not rows:
        table = Table(chosen, match, (), left_out, unit)
        raise LoadError(f"{path} has no row that can be asked", expected=_needs(chosen), got="; ".join(table.notes))
    return Table(chosen, match or _match(chosen, rows), tuple(rows), left_out, unit)


def _row(path: Path, unit: str, place: int, record: Mapping[str, Any], layout: Layout, columns: Columns) -> Row:
    """One row; its cluster and split as the file says where columns are named for them."""
    row = layout.read(record, columns)
    if columns.cluster:
        group = str(record.get(columns.cluster) or "").strip()
        if not group:
            raise Unusable("the cluster is empty")
        row = replace(row, cluster=f"group-{group}")
    if columns.split:
        said = str(record.get(columns.split) or "").strip().casefold()
        if said not in SPLITS:
            raise LoadError(
                f"{path}, {unit} {place}: there is no such split", expected=", ".join(SPLITS), got=repr(said)
            )
        row = replace(row, split=SPLITS[said])
    return row


def _layout(
    path: Path, layout: str, records: Sequence[Mapping[str, Any]], have: Sequence[str], layouts: Sequence[str],
    columns: Columns,
) -> Layout:  # fmt: skip
    named = [n for n in ("text", "answer", "question", "choices", "paraphrase") if getattr(columns, n)]
    if layout and layout != "table" and named:
        raise PlanError(
            f"the layout {layout} names its own columns", expected="no " + ", ".join(named), do='or layout = "table"'
        )
    if not layout:
        fitting = [n for n in layouts if n != "table" and not named and LAYOUTS[n].fits(records, have)]
        if not fitting and "table" not in layouts:
            needs = "; ".join(f"{name}: {_needs(LAYOUTS[name])}" for name in layouts)
            raise LoadError(f"{path} has none of the known layouts", expected=needs, got=_have(have))
        layout = fitting[0] if fitting else "table"
    chosen = LAYOUTS[layout]
    lacks = chosen.lacks(have)
    if lacks:
        raise LoadError(
            f"{path} has no column {lacks[0]!r}, which the layout {layout} needs", expected=_needs(chosen),
            got=_have(have), do="name the layout it has, or leave layout out to have it found",
        )  # fmt: skip
    return chosen


def _columns(
    layout: Layout, given: Columns, records: Sequence[Mapping[str, Any]], have: Sequence[str], where: str
) -> Columns:
    """The columns that are used: those named by options, and in a table those with a usual name."""
    named = {name: getattr(given, name) for name in NAMES}
    has_columns(records, [column for column in named.values() if column], where)
    if layout.name != "table":
        return Columns(cluster=given.cluster, split=given.split)
    for name, usual in NAMES.items():
        taken = set(named.values())
        named[name] = named[name] or next((column for column in usual if column in have and column not in taken), "")
    for name in ("text", "answer"):
        if not named[name]:
            raise LoadError(
                f"{where} has no column for the {name}",
                expected=f"one called {', '.join(NAMES[name])}, or the option {name}",
                got=_have(have),
            )  # fmt: skip
    return Columns(**named)


def _match(layout: Layout, rows: Sequence[Row]) -> str:
    """How answers are compared where no option says: choices by name, numbers as numbers, else the exact text."""
    if layout.match:
        return layout.match
    if all(row.choices for row in rows):
        return "choice"
    return "number" if all(exact(row.answer) is not None for row in rows) else "exact"


def _needs(layout: Layout) -> str:
    return " or ".join(", ".join(names) for names in layout.needs) or "a text and an answer"


def _have(have: Sequence[str]) -> str:
    return ", ".join(map(repr, have[:20])) + (" ..." if len(have) > 20 else "")


def _places(unit: str, lines: Sequence[int]) -> str:
    more = f" and {len(lines) - SHOWN:,} more" if len(lines) > SHOWN else ""
    return f"{unit}{'s' if len(lines) > 1 else ''} " + ", ".join(map(str, lines[:SHOWN])) + more


def _xml(path: Path) -> Placed:
    """The Problem elements of ASDiv's file: attributes and children as columns."""
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise LoadError(f"{path} declares a document type", expected="plain elements, as in ASDiv.xml")
    try:
        found = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise LoadError(f"{path} is not XML: {error}", expected="elements, as in ASDiv.xml") from error
    out: Placed = []
    for number, problem in enumerate(found.iter("Problem"), 1):
        children = {child.tag: child.text or "" for child in problem}
        out.append((number, {**problem.attrib, **children}))
        not_too_many(path, number)
    return out
