"""A table of texts with a label: CSV, TSV, JSON, JSON lines or Parquet, to rows that say what was left out and why.

    label kinds   binary      two values; `positive` is the one that counts as true
                  numeric     more than two numbers
                  multiclass  more than two names
                  pairwise    two texts a row, the label says which is higher; or one text a row, and two rows with one
                              pair id, of which the one with the larger label is higher

Cells are data: nothing in them is a formula, a tag or code here. Whoever writes them into a file for a spreadsheet
neutralises them (`report.hypotheses.plain_cell`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.core.errors import LoadError
from fairlead.core.keys import sha256
from fairlead.tasks._tables import has_columns, read_rows

KINDS = ("binary", "numeric", "multiclass", "pairwise")
LONGEST = 20_000  # characters of a text; the rest is cut, and counted
CLASSES, LEVELS = 30, 20  # names of a multiclass label; values of a covariate that is not a number
MISSING = frozenset({"", "nan", "na", "n/a", "null", "none", "nat", "<na>", "inf", "-inf", "infinity", "-infinity"})
TRUE = frozenset({"1", "1.0", "true", "yes", "y", "t", "positive", "pos"})
FALSE = frozenset({"0", "0.0", "-1", "-1.0", "false", "no", "n", "f", "negative", "neg"})
FIRST = frozenset({"1", "1.0", "first", "a", "left", "true"})
SECOND = frozenset({"2", "2.0", "0", "0.0", "-1", "-1.0", "second", "b", "right", "false"})

Label = bool | float | str


@dataclass(frozen=True)
class Columns:
    """Which column is what. Two `text` columns, or a `pair` id, make the label pairwise; `kind` "" finds out."""

    text: tuple[str, ...]
    label: str
    pair: str = ""
    covariates: tuple[str, ...] = ()
    group: str = ""
    positive: str = ""
    kind: str = ""

    @property
    def all(self) -> tuple[str, ...]:
        named = (*self.text, self.label, self.pair, *self.covariates, self.group)
        return tuple(dict.fromkeys(name for name in named if name))


@dataclass(frozen=True)
class Row:
    """One labelled text (or pair). `number` counts rows of the file from 1; `covariates` are numbers by name."""

    number: int
    texts: tuple[str, ...]
    label: Label
    covariates: Mapping[str, float] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Table:
    """The rows that can be used. `dropped` says how many were left out and why; `notes` are for the reader.
    `positive` is what a true label means, in words."""

    kind: str
    rows: tuple[Row, ...]
    positive: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_table(source: str | Path | Sequence[Mapping[str, Any]], columns: Columns, *, labelled: bool = True) -> Table:
    """A file or rows as mappings, to a Table. With `labelled` False a missing label column is fine: every label is
    then "". Raises LoadError: a column or file that is not there, an encoding, one label only, all texts the same."""
    records = [row for _, row in read_rows(source)] if isinstance(source, (str, Path)) else list(source)
    where = str(source) if isinstance(source, (str, Path)) else "the table"
    if not records:
        raise LoadError(f"{where} has no rows", expected="a header and rows of texts with labels")
    if len(columns.text) not in (1, 2):
        raise LoadError("a row has one text, or two to compare", got=f"{len(columns.text)} text columns")
    if len(columns.text) == 2 and columns.pair:
        raise LoadError("two text columns and a pair id", expected="one of them", do="leave --pair out")
    have_label = labelled or columns.label in records[0]
    has_columns(records, [name for name in columns.all if have_label or name != columns.label], where)
    count: Counter[str] = Counter()
    notes: list[str] = []
    cells = [_cells(i, record, columns, count, have_label) for i, record in enumerate(records, 1)]
    found = [cell for cell in cells if cell is not None]
    if columns.pair:
        found = _paired(found, count, have_label)
    pairwise = bool(columns.pair) or len(columns.text) == 2
    kind, positive, labels = ("", "", [""] * len(found))
    if have_label:
        kind, positive, labels = _labels([c.label for c in found], columns, pairwise, where, notes)
    elif pairwise:
        kind = "pairwise"
    names, values = _covariates(found, columns.covariates, differ=bool(columns.pair))
    rows = tuple(
        Row(c.number, c.texts, label, dict(zip(names, row, strict=True)), c.group)
        for c, label, row in zip(found, labels, values, strict=True)
    )
    if labelled:
        _worth_asking(rows, where)
    cut = count.pop("cut", 0)
    if cut:
        notes.append(f"{cut} texts are longer than {LONGEST:,} characters and were cut there")
    return Table(kind, rows, positive, dict(count), tuple(notes))


# ---- cells


@dataclass(frozen=True)
class _Cells:
    number: int
    texts: tuple[str, ...]
    label: Any
    covariates: tuple[Any, ...]
    group: str
    pair: str


def _cells(
    number: int, record: Mapping[str, Any], columns: Columns, count: Counter[str], labelled: bool
) -> _Cells | None:
    """One row's cells; None, and counted, when it lacks something."""
    texts = []
    for name in columns.text:
        value = record.get(name)
        text = "" if _missing_text(value) else str(value).strip()
        if not text:
            count["text is empty"] += 1
            return None
        count["cut"] += len(text) > LONGEST
        texts.append(text[:LONGEST].encode("utf-8", "replace").decode("utf-8"))
    label = record.get(columns.label)
    if labelled and _missing(label):
        count["label is missing or not a finite number"] += 1
        return None
    covariates = tuple(record.get(name) for name in columns.covariates)
    if any(_missing(value) for value in covariates):
        count["a covariate is missing"] += 1
        return None
    group, pair = (
        "" if not name or _missing(record.get(name)) else str(record[name]) for name in (columns.group, columns.pair)
    )
    if columns.pair and not pair:
        count["pair id is missing"] += 1
        return None
    return _Cells(number, tuple(texts), label, covariates, group, pair)


def _missing_text(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _missing(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or (isinstance(value, str) and value.strip().casefold() in MISSING)


def _paired(cells: Sequence[_Cells], count: Counter[str], labelled: bool) -> list[_Cells]:
    """Rows with one pair id, joined; which of the two comes first is drawn from the id, so that it says nothing."""
    by_pair: dict[str, list[_Cells]] = {}
    for cell in cells:
        by_pair.setdefault(cell.pair, []).append(cell)
    out = []
    for pair, members in by_pair.items():
        if len(members) != 2:
            count["its pair id does not stand on two usable rows"] += len(members)
            continue
        first, second = members if int(sha256(f"pair/{pair}")[:8], 16) % 2 else members[::-1]
        label: Any = ""
        if labelled:
            high = [_number(m.label, f"row {m.number}: the label of a pair") for m in (first, second)]
            if high[0] == high[1]:
                count["both of the pair have the same label"] += 2
                continue
            label = "first" if high[0] > high[1] else "second"
        cov = tuple(zip(first.covariates, second.covariates, strict=True))
        out.append(_Cells(first.number, first.texts + second.texts, label, cov, first.group or second.group, pair))
    return out


def _number(value: Any, what: str) -> float:
    text = str(value).strip().casefold()
    if text in ("true", "yes", "false", "no"):
        return float(text in ("true", "yes"))
    try:
        return float(text)
    except ValueError as error:
        raise LoadError(f"{what} is no number", expected="a number", got=repr(value)[:80]) from error


# ---- labels and covariates


def _labels(
    values: Sequence[Any], columns: Columns, pairwise: bool, where: str, notes: list[str]
) -> tuple[str, str, list[Any]]:
    """(kind, what true means, the labels)."""
    kind = columns.kind
    if kind and kind not in KINDS:
        raise LoadError("no such kind of label", expected=", ".join(KINDS), got=kind)
    if (kind == "pairwise") != pairwise and kind:
        raise LoadError(f"the label cannot be {kind}", expected="two text columns or a pair id for pairwise, else none")
    texts = [_plain(value) for value in values]
    distinct = Counter(texts)
    if len(distinct) < 2:
        got = f"{len(values)} rows, all {next(iter(distinct))!r}" if distinct else "no usable row"
        raise LoadError(f"{where} has one label only", expected="two labels at least, to compare", got=got)
    if pairwise:
        true = _true_of(distinct, columns, FIRST, SECOND, "that the first text is higher")
        return "pairwise", "the first text is higher", [text == true for text in texts]
    numbers = _numbers(texts)
    if not kind:
        kind = "binary" if len(distinct) == 2 else "numeric" if numbers is not None else "multiclass"
    if kind == "binary":
        if len(distinct) != 2:
            raise LoadError("a binary label has two values", got=", ".join(map(repr, list(distinct)[:8])))
        true = _true_of(distinct, columns, TRUE, FALSE, "")
        if not columns.positive and true.casefold() not in TRUE:
            notes.append(f"{columns.label} = {true!r} counts as true; --positive says otherwise")
        return "binary", f"{columns.label} = {true}", [text == true for text in texts]
    if kind == "numeric":
        if numbers is None:
            odd = next(t for t in texts if _numbers([t]) is None)
            raise LoadError("a numeric label is no number", expected="finite numbers", got=repr(odd[:80]))
        return "numeric", columns.label, numbers
    if len(distinct) > CLASSES:
        raise LoadError(
            f"the label {columns.label!r} has {len(distinct)} different values",
            expected=f"numbers, or at most {CLASSES} names",
            do="is it a column of texts or of ids? name another --label",
        )
    return "multiclass", columns.label, texts


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip()


def _numbers(texts: Iterable[str]) -> list[float] | None:
    try:
        found = [float(text) for text in texts]
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


def _true_of(distinct: Mapping[str, int], columns: Columns, true: Any, false: Any, needed: str) -> str:
    names = sorted(distinct)
    if columns.positive:
        hit = [name for name in names if name.casefold() == columns.positive.strip().casefold()]
        if not hit:
            some = ", ".join(map(repr, names[:8]))
            raise LoadError("no row has the positive label", expected=f"one of {some}", got=columns.positive)
        return hit[0]
    own = {text.casefold() for text in columns.text[:1]}
    known = [n for n in names if n.casefold() in true or (needed and n.casefold() in own)]
    rest = [n for n in names if n.casefold() in false]
    if len(names) == 2 and known:
        other = [n for n in names if n not in known]
        if len(known) == 1 and (rest or not needed or other):
            return known[0]
    if needed:
        raise LoadError(
            f"which label says {needed}?",
            expected="1 and 2, first and second, a and b, or --positive VALUE",
            got=", ".join(map(repr, names[:8])),
        )
    negative = [n for n in names if n.casefold() in FALSE]
    return next(n for n in reversed(names) if n not in negative)


def _covariates(cells: Sequence[_Cells], names: Sequence[str], *, differ: bool) -> tuple[list[str], list[list[float]]]:
    """Columns of numbers; names become one column a level but the most frequent. Of a pair id: first minus second."""
    columns: list[tuple[str, list[float]]] = []
    for i, name in enumerate(names):
        flat = [_plain(v) for c in cells for v in (c.covariates[i] if differ else (c.covariates[i],))]
        numbers = _numbers([{"true": "1", "false": "0"}.get(t.lower(), t) for t in flat])
        if numbers is not None:
            columns.append((name, numbers))
            continue
        levels = [level for level, _ in Counter(flat).most_common()]
        if len(levels) > LEVELS:
            raise LoadError(
                f"the covariate {name!r} has {len(levels)} different values",
                expected=f"numbers, or at most {LEVELS} names",
                do="as an identity of rows that belong together it is a --group",
            )
        columns += [(f"{name} = {level}", [float(t == level) for t in flat]) for level in levels[1:]]
    if differ:
        columns = [(n, [a - b for a, b in zip(v[::2], v[1::2], strict=True)]) for n, v in columns]
    rows = [[values[k] for _, values in columns] for k in range(len(cells))]
    return [name for name, _ in columns], rows


def _worth_asking(rows: Sequence[Row], where: str) -> None:
    texts = {text.casefold() for row in rows for text in row.texts}
    if len(texts) < 2:
        got = repr(next(iter(texts), ""))[:80]
        raise LoadError(f"all texts of {where} are the same", expected="texts that differ", got=got)
