"""Results of other people's studies as Records, by a map from what Fairlead calls things to their columns.

    arm=policy, item=task_id, cluster=task_id, seed=seed, success=success, strict=strict_success

`arm`, `item`, `cluster`, `seed`, `model`, `decoding`, `error`, `prompt_tokens`, `new_tokens`, `seconds` and
`stratum.NAME` have their meaning; every other name on the left is a measure. A measure is yes or no (true, false, 0, 1)
or a number. What a row does not hold is not measured: never a zero. Without a `seed` the rows of one arm and item are
its repeats, in the order of the file; without a `cluster` an item is its own; without an `arm` a file is one.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fairlead.core.errors import RecordError
from fairlead.core.types import Cost, Record
from fairlead.judge import logs

Row = dict[str, Any]
COORDINATES = ("arm", "item", "cluster", "seed", "model", "decoding", "error", "prompt_tokens", "new_tokens", "seconds")
STRATUM = "stratum."
KINDS = (".jsonl", ".csv", ".parquet", ".eval")
MOST_ROWS = 5_000_000
MOST_BYTES = 4 * 2**30  # of one file
LONGEST = 64 * 2**20  # of one line
YES, NO = {"true", "yes"}, {"false", "no"}


@dataclass(frozen=True)
class Columns:
    """Which column holds what: coordinates by name, strata by name, measures by name."""

    coordinates: Mapping[str, str] = field(default_factory=dict)
    strata: Mapping[str, str] = field(default_factory=dict)
    measures: Mapping[str, str] = field(default_factory=dict)

    def over(self, other: Columns) -> Columns:
        """These columns, and of `other` what is not said here; its measures only where none are said here."""
        return Columns(
            {**other.coordinates, **self.coordinates},
            {**other.strata, **self.strata},
            self.measures or other.measures,
        )


def parse_map(text: str) -> Columns:
    """`arm=policy,item=task_id,success=success` as Columns. Raises RecordError."""
    coordinates: dict[str, str] = {}
    strata: dict[str, str] = {}
    measures: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, found, column = (x.strip() for x in part.partition("="))
        if not found or not name or not column:
            raise RecordError("a map that cannot be read", expected="NAME=COLUMN, joined by commas", got=repr(part))
        place = strata if name.startswith(STRATUM) else coordinates if name in COORDINATES else measures
        name = name.removeprefix(STRATUM)
        if name in place:
            raise RecordError(f"the map names {name!r} twice", got=text)
        place[name] = column
    return Columns(coordinates, strata, measures)


def read(paths: Sequence[Path], columns: Columns | None = None) -> tuple[Record, ...]:
    """Records from files (or folders of them): .jsonl, .csv, .parquet, inspect_ai's .eval logs, and lm-eval's
    sample files. Raises RecordError with the file, the line and the column of what cannot be read."""
    given = columns or Columns()
    files = [file for path in paths for file in _files(path)]
    rows: list[tuple[str, _Cells]] = []
    met: dict[str, None] = {}
    for file in files:
        theirs, iterator = _open(file)
        used = given.over(theirs)
        for where, row in _limited(iterator, file):
            _ask_for_map(where, row, used)
            rows.append((where, _cells(row, used, where)))
            met |= dict.fromkeys(row)
    if not rows:
        raise RecordError("no rows to import", expected="one row a trial", got=", ".join(f.name for f in files))
    _all_there(rows, given, [name for name in met if name != "file"])
    return _records(rows)


def _all_there(rows: Sequence[tuple[str, _Cells]], given: Columns, met: Sequence[str]) -> None:
    """Raise RecordError for a column that the map names and no row has: a typing error, not a missing value."""
    for kind, names in (("coordinates", given.coordinates), ("strata", given.strata), ("measures", given.measures)):
        for name, column in names.items():
            if not any(name in getattr(cells, kind) for _, cells in rows):
                raise RecordError(
                    f"no row has {column!r}, which the map names as {name}",
                    expected="one of " + ", ".join(met)[:300],
                    got=column,
                )


# ---- files


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in KINDS and p.is_file())
        if not found:
            raise RecordError(f"no results in {path}", expected="files ending in " + ", ".join(KINDS), got="none")
        return found
    if not path.is_file():
        raise RecordError(f"no file {path}", expected="results to import", got=str(path))
    if path.suffix not in KINDS:
        raise RecordError(f"{path} is of no known kind", expected=", ".join(KINDS), got=path.suffix or "no suffix")
    return [path]


def _open(file: Path) -> tuple[Columns, Iterator[tuple[str, Row]]]:
    """What a kind of file calls things by itself, and its rows, each with its place."""
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise RecordError(f"{file} is too large", expected=f"at most {MOST_BYTES >> 30} GiB", got=f"{size >> 30} GiB")
    if size == 0:
        raise RecordError(f"{file} is empty", expected="one row a trial", got="0 bytes")
    if file.suffix == ".eval":
        return _own(logs.INSPECT), logs.inspect_rows(file)
    if file.suffix == ".csv":
        return Columns(), _csv(file)
    if file.suffix == ".parquet":
        return Columns(), _parquet(file)
    lines = _jsonl(file)
    first = next(lines, None)
    if first is None:
        raise RecordError(f"{file} holds no rows", expected="one JSON object a line", got="blank lines")
    if logs.is_lm_eval(first[1]):
        return _own(logs.LM_EVAL), logs.lm_eval_rows(file, _chain(first, lines))
    return Columns(), _chain(first, lines)


def _own(columns: Mapping[str, str]) -> Columns:
    return Columns(dict(columns))


def _chain(first: tuple[str, Row], rest: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    yield first
    yield from rest


def _limited(rows: Iterable[tuple[str, Row]], file: Path) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(rows, start=1):
        if number > MOST_ROWS:
            raise RecordError(f"{file} has too many rows", expected=f"at most {MOST_ROWS:,}", do="import it in parts")
        yield row


def _text(file: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file, a byte order mark left out."""
    number = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            while line := stream.readline(LONGEST):
                number += 1
                if len(line) == LONGEST:
                    raise RecordError(f"{file}, line {number} is too long", expected=f"less than {LONGEST >> 20} MiB")
                yield number, line
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{file}, after line {number}: not UTF-8", expected="text in UTF-8", got=error.reason, do="convert the file"
        ) from error


def _jsonl(file: Path) -> Iterator[tuple[str, Row]]:
    for number, line in _text(file):
        if not line.strip():
            continue
        where = f"{file.name}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{where} is not JSON", expected="one JSON object a line", got=str(error)) from error
        if not isinstance(row, dict):
            raise RecordError(f"{where} is no row", expected="a JSON object", got=type(row).__name__)
        yield where, {"file": file.stem, **row}


def _csv(file: Path) -> Iterator[tuple[str, Row]]:
    reader = csv.reader((line for _, line in _text(file)), strict=True)
    try:
        head = next(reader, [])
        if len(set(head)) != len(head) or not any(head):
            raise RecordError(f"{file.name} has no usable head", expected="one name a column", got=", ".join(head))
        for cells in reader:
            where = f"{file.name}:{reader.line_num}"
            if cells and len(cells) != len(head):
                raise RecordError(f"{where} does not fit the head", expected=f"{len(head)} cells", got=str(len(cells)))
            if cells:
                yield where, {"file": file.stem, **{k: v for k, v in zip(head, cells, strict=True) if v != ""}}
    except csv.Error as error:
        raise RecordError(f"{file.name}:{reader.line_num} is not CSV", got=str(error)) from error


def _parquet(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise RecordError(
            f"{file} needs pyarrow to be read", got="no pyarrow",
            do="pip install 'fairlead[imports]', or save the table as CSV or JSON lines",
        ) from error  # fmt: skip
    try:
        table = parquet.ParquetFile(file)
        number = 0
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                here = {k: v for k, v in row.items() if v is not None}
                yield f"{file.name}, row {number}", {"file": file.stem, **here}
    except (pyarrow.ArrowException, OSError) as error:
        raise RecordError(f"{file} is not Parquet", expected="a Parquet file", got=str(error)[:200]) from error


# ---- rows


@dataclass(frozen=True)
class _Cells:
    """One row, by Fairlead's names. A measure that is absent is not in `measures`."""

    coordinates: Mapping[str, Any]
    strata: Mapping[str, str]
    measures: Mapping[str, Any]
    digest: bytes


def _cells(row: Row, columns: Columns, where: str) -> _Cells:
    item = columns.coordinates["item"]
    if row.get(item) is None:
        have = ", ".join(k for k in row if k != "file")[:300]
        raise RecordError(f"{where} has no {item!r}, which the map names as item", expected="a value", got=have)
    measures = columns.measures or {k.removeprefix(logs.SCORE): k for k in row if k.startswith(logs.SCORE)}
    return _Cells(
        {name: row[column] for name, column in columns.coordinates.items() if row.get(column) is not None},
        {name: str(row[column]) for name, column in columns.strata.items() if row.get(column) is not None},
        {name: value for name, column in measures.items()
         if (value := _value(row.get(column), f"{where}, {column}")) is not None},
        blake2b(json.dumps(row, sort_keys=True, default=str).encode(), digest_size=16).digest(),
    )  # fmt: skip


def _value(value: Any, where: str) -> bool | float | None:
    """A measure: yes or no, a number, or None where nothing was measured."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        if word in YES or word in NO:
            return word in YES
        if word in ("", "nan", "null", "none", "na", "n/a"):
            return None
        try:
            value = float(word)
        except ValueError:
            pass
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
        if math.isnan(number):
            return None
        if math.isfinite(number):
            return number
    raise RecordError(f"{where} is no measure", expected="true, false or a number", got=repr(value)[:80])


def _ask_for_map(where: str, row: Row, columns: Columns) -> None:
    """Raise RecordError when a row lacks what a Record needs, or a column that the map names is in no row."""
    lacking = [] if "item" in columns.coordinates else ["item"]
    if not columns.measures and not any(key.startswith(logs.SCORE) for key in row) and "error" not in row:
        lacking.append("a measure")
    if lacking:
        raise RecordError(
            f"{where}: the map does not say which column is {' and '.join(lacking)}",
            expected="--map arm=COLUMN,item=COLUMN,MEASURE=COLUMN",
            got="columns " + ", ".join(k for k in row if k != "file")[:300],
        )


def _records(rows: Sequence[tuple[str, _Cells]]) -> tuple[Record, ...]:
    _no_row_twice(rows)
    yes_no = _yes_no(rows)
    repeats: Counter[tuple[str, ...]] = Counter()
    taken: dict[tuple[Any, ...], str] = {}
    found = []
    for where, cells in rows:
        c = cells.coordinates
        model, arm, item = (str(c.get(k, d)) for k, d in (("model", "imported"), ("arm", "imported"), ("item", "")))
        place = (model, str(c.get("decoding", "free")), arm, item)
        seed = _seed(c["seed"], where) if "seed" in c else repeats[place]
        repeats[place] += 1
        if (*place, seed) in taken:
            raise RecordError(
                f"{where}: arm {arm!r}, item {item!r}, seed {seed} is there twice",
                expected="one row for each",
                got=f"also at {taken[(*place, seed)]}",
                do="drop one, or map the column that tells them apart as seed",
            )
        taken[(*place, seed)] = where
        error = str(c["error"]) if c.get("error") not in (None, "", False) else None
        score = {name: bool(v) if name in yes_no else v for name, v in cells.measures.items()}
        found.append(
            Record(
                trial=f"imported/{model}/{place[1]}/{arm}/{seed}",
                arm=arm, model=model, decoding=place[1], seed=seed, item=item, cluster=str(c.get("cluster", item)),
                split="test", strata=dict(cells.strata), outcome=None if error else {}, score=None if error else score,
                error=error, cost=_cost(c, where),
            )  # fmt: skip
        )
    return tuple(found)


def _no_row_twice(rows: Sequence[tuple[str, _Cells]]) -> None:
    seen: dict[bytes, str] = {}
    for where, cells in rows:
        first = seen.setdefault(cells.digest, where)
        if first is not where:
            raise RecordError(f"{where} is the same row as {first}", expected="one row a trial", do="drop one")


def _yes_no(rows: Sequence[tuple[str, _Cells]]) -> set[str]:
    """Measures whose every value is true, false, 0 or 1."""
    other = {name for _, cells in rows for name, v in cells.measures.items() if v not in (0, 1)}
    return {name for _, cells in rows for name in cells.measures} - other


def _seed(value: Any, where: str) -> int:
    try:
        number = float(value)
        if number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"{where}: a seed that is no whole number", expected="0, 1, 2", got=repr(value)) from error
    return int(number)


def _cost(c: Mapping[str, Any], where: str) -> Cost:
    numbers: dict[str, float] = {}
    for name in ("prompt_tokens", "new_tokens", "seconds"):
        if name in c:
            value = _value(c[name], f"{where}, {name}")
            if value is None or isinstance(value, bool) or value < 0:
                raise RecordError(f"{where}: {name} is no amount", expected="a number, zero or more", got=repr(c[name]))
            numbers[name] = value
    return Cost(
        prompt_tokens=int(numbers.get("prompt_tokens", 0)), new_tokens=int(numbers.get("new_tokens", 0)),
        seconds=numbers.get("seconds", 0.0),
    )  # fmt: skip


def renamed(records: Sequence[Record], names: Mapping[str, str]) -> tuple[Record, ...]:
    """Records with arms under other names: the untreated arm is `none` for the judge. Raises RecordError."""
    arms = {r.arm for r in records}
    for old, new in names.items():
        if old not in arms or (new in arms and new != old):
            why = "is not there" if old not in arms else f"cannot be called {new!r}: there is such an arm"
            raise RecordError(f"arm {old!r} {why}", expected="one of " + ", ".join(sorted(arms)), got=old)
    return tuple(
        replace(r, arm=names[r.arm], trial=r.trial.replace(f"/{r.arm}/", f"/{names[r.arm]}/")) if r.arm in names else r
        for r in records
    )
