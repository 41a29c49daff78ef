"""Files of rows: CSV, TSV, JSON, JSON lines or Parquet, to mappings with the place each row stands at.

A place is the line where a row begins (CSV, TSV, JSON lines), else the number of the row, from 1. Cells are data:
nothing in them is a formula, a tag or code here.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.core.errors import LoadError
from fairlead.core.keys import sha256

MOST = 1_000_000  # rows
BYTES = 2**30  # of a file
CELL = 50_000_000  # characters of a cell that is read at all
BY_ROW = (".json", ".parquet", ".pq", ".xml")  # endings of files whose places are rows, not lines

Placed = list[tuple[int, dict[str, Any]]]


def read_rows(path: str | Path) -> Placed:
    """The rows of a file, each with its place. By its name: .csv, .tsv, .jsonl, .json, .parquet; else CSV. Raises
    LoadError: it cannot be read, is too large, no UTF-8, no table."""
    path = Path(path)
    ending = path.suffix.lower()
    if ending in (".parquet", ".pq"):
        return _parquet(path)
    text = read_text(path)
    if ending in (".jsonl", ".ndjson"):
        return _json_lines(path, text)
    if ending == ".json":
        return _json(path, text)
    return _separated(path, text, "\t" if ending in (".tsv", ".tab") else "")


def read_bytes(path: str | Path) -> bytes:
    """A file of at most BYTES bytes, whole."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > BYTES:
            expected = f"at most {BYTES >> 20} MiB"
            raise LoadError(f"{path} is too large", expected=expected, got=f"{size >> 20} MiB", do="take a sample")
        return path.read_bytes()
    except OSError as error:
        expected = "a CSV, TSV, JSON lines or Parquet file"
        raise LoadError(f"{path} cannot be read", expected=expected, got=error.strerror or "") from error


def read_text(path: str | Path) -> str:
    """The text of a file, which must be UTF-8."""
    raw = read_bytes(path)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LoadError(f"{path} is UTF-16", expected="UTF-8", do="save it as UTF-8 (in Excel: CSV UTF-8)")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise LoadError(
            f"{path}, line {line} is not UTF-8",
            expected="UTF-8 text",
            got=f"byte 0x{raw[error.start]:02x}",
            do="save it as UTF-8 (in Excel: CSV UTF-8), or iconv -f windows-1252 -t utf-8",
        ) from error
    if "\0" in text:
        raise LoadError(f"{path} holds NUL bytes", expected="a text file", do="is it a spreadsheet? export it as CSV")
    return text


def file_hash(path: str | Path) -> str:
    """sha256 of a table. LoadError where it cannot be read."""
    return sha256(read_bytes(path))


def has_columns(records: Sequence[Mapping[str, Any]], names: Sequence[str], where: str) -> None:
    """LoadError that names the first column that is not there, and the nearest that is."""
    have = columns_of(records)
    for name in names:
        if name not in have:
            near = difflib.get_close_matches(name, have, n=1, cutoff=0.5)
            raise LoadError(
                f"{where} has no column {name!r}",
                expected="one of " + ", ".join(map(repr, have[:20])),
                got=name,
                do=f"did you mean {near[0]!r}?" if near else "name a column of the header",
            )


def columns_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the columns, in the order in which they first stand in the first thousand rows."""
    return list(dict.fromkeys(name for record in records[:1000] for name in record))


def not_too_many(path: Path, n: int) -> None:
    """LoadError for more than MOST rows."""
    if n > MOST:
        raise LoadError(f"{path} has too many rows", expected=f"at most {MOST:,}", do="take a sample")


def _separated(path: Path, text: str, separator: str) -> Placed:
    if not separator:
        head = text.partition("\n")[0]
        separator = max(",;\t", key=head.count)
    before = csv.field_size_limit(CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        header = [name.strip() for name in next(reader, [])]
        twice = sorted(name for name, n in Counter(header).items() if n > 1 and name)
        if twice:
            raise LoadError(f"{path} has a column twice", expected="each name once", got=", ".join(twice))
        out: Placed = []
        end = reader.line_num
        for cells in reader:
            line, end = end + 1, reader.line_num
            if not any(cells):
                continue
            if len(cells) > len(header):
                raise LoadError(
                    f"{path}, line {reader.line_num} has more cells than the header",
                    expected=f"{len(header)} cells",
                    got=str(len(cells)),
                    do="put texts that hold the separator or a line break in double quotes",
                )
            out.append((line, dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=True))))
            not_too_many(path, len(out))
        return out
    except csv.Error as error:
        raise LoadError(f"{path} cannot be read as a table: {error}", expected="CSV or TSV") from error
    finally:
        csv.field_size_limit(before)


def _json_lines(path: Path, text: str) -> Placed:
    out: Placed = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise LoadError(f"{path}, line {number} is not JSON: {error}", expected="one object a line") from error
            if not isinstance(value, dict):
                raise LoadError(f"{path}, line {number} is no object", expected='like {"text": ..., "label": ...}')
            out.append((number, value))
            not_too_many(path, len(out))
    return out


def _json(path: Path, text: str) -> Placed:
    """A list of objects, or an object of columns: {"text": [...], "label": [...]}."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is not JSON: {error}", expected="a list of objects, or an object of lists") from error
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        lengths = {name: len(v) for name, v in value.items()}
        if len(set(lengths.values())) > 1:
            raise LoadError(f"{path}: columns differ in length", got=", ".join(f"{k} {n}" for k, n in lengths.items()))
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise LoadError(f"{path} is no table", expected="a list of objects, or an object of lists")
    not_too_many(path, len(value))
    return list(enumerate(value, 1))


def _parquet(path: Path) -> Placed:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise LoadError(f"{path} needs pyarrow", do="pip install 'fairlead[imports]', or save it as CSV") from error
    try:
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise LoadError(f"{path} cannot be read", expected="a Parquet file", got=str(error)) from error
    not_too_many(path, len(found))
    return list(enumerate(found, 1))
