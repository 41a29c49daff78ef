"""Logs of other evaluation frameworks as rows: inspect_ai's `.eval` and lm-eval's `--log_samples`.

Neither framework has to be installed. A score becomes the column `score.NAME`; `foreign` does the rest. Layouts as
written by inspect_ai 0.3.285 and lm_eval 0.4.13.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairlead.core.errors import RecordError

Row = dict[str, Any]
SCORE = "score."
INSPECT = {"arm": "file", "item": "id", "cluster": "id", "seed": "epoch", "model": "model", "error": "error",
           "prompt_tokens": "input_tokens", "new_tokens": "output_tokens", "seconds": "total_time"}  # fmt: skip
LM_EVAL = {"arm": "file", "item": "doc_id", "cluster": "doc_id", "model": "model"}
MOST_MEMBER = 512 * 2**20  # bytes of one member of a .eval, uncompressed
MOST_RATIO = 1000  # an honest log of JSON shrinks less than this
ZSTANDARD = 93  # zip compression method
_LETTERS: Mapping[str, Any] = {"C": True, "I": False, "P": 0.5, "N": False}  # as inspect_ai's own value_to_float


# ---- inspect_ai


def inspect_rows(file: Path) -> Iterator[tuple[str, Row]]:
    """One row a sample and epoch: id, epoch, task, model, error, tokens, seconds, `score.*` and `metadata.*`."""
    try:
        with zipfile.ZipFile(file) as log:
            names = set(log.namelist())
            head = _json(file, log, "header.json" if "header.json" in names else "_journal/start.json")
            about = head.get("eval", {}) if isinstance(head, dict) else {}
            for where, sample in _samples(file, log, names):
                yield where, {"file": file.stem, **_sample(sample, about, where)}
    except (zipfile.BadZipFile, OSError, KeyError, NotImplementedError, struct.error) as error:
        raise RecordError(
            f"{file} is no inspect_ai log", expected="a whole .eval file", got=str(error), do="log it again"
        ) from error


def _samples(file: Path, log: zipfile.ZipFile, names: set[str]) -> Iterator[tuple[str, Any]]:
    if "summaries.json" in names:
        found = _json(file, log, "summaries.json")
        if not isinstance(found, list):
            raise RecordError(f"{file}: summaries.json is no list", expected="a list", got=type(found).__name__)
        yield from ((f"{file.name}, sample {i}", sample) for i, sample in enumerate(found, start=1))
        return
    for name in sorted(n for n in names if n.startswith("samples/") and n.endswith(".json")):
        yield f"{file.name}, {name}", _json(file, log, name)


def _sample(sample: Any, about: Mapping[str, Any], where: str) -> Row:
    if not isinstance(sample, dict) or "id" not in sample:
        raise RecordError(f"{where} is no sample", expected="a JSON object with an id", got=repr(sample)[:80])
    error = sample.get("error")
    row: Row = {
        "id": sample["id"], "epoch": sample.get("epoch"), "task": about.get("task"), "model": about.get("model"),
        "error": error.get("message") if isinstance(error, dict) else error, "total_time": sample.get("total_time"),
    }  # fmt: skip
    for usage in (sample.get("model_usage") or {}).values():
        for name in ("input_tokens", "output_tokens"):
            if isinstance(usage, dict) and isinstance(usage.get(name), int):
                row[name] = row.get(name, 0) + usage[name]
    for name, score in (sample.get("scores") or {}).items():
        value = score.get("value") if isinstance(score, dict) else score
        parts = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        row |= {f"{SCORE}{k}": _LETTERS.get(v, v) if isinstance(v, str) else v for k, v in parts.items()}
    row |= {f"metadata.{k}": v for k, v in (sample.get("metadata") or {}).items()}
    return {k: v for k, v in row.items() if v is not None}


def _json(file: Path, log: zipfile.ZipFile, name: str) -> Any:
    """A member, parsed. One that says it is huge, or that shrinks like a bomb, is not unpacked."""
    info = log.getinfo(name)
    if info.file_size > MOST_MEMBER or info.file_size > MOST_RATIO * max(1, info.compress_size) + 2**20:
        raise RecordError(
            f"{file}: {name} unpacks to too much",
            expected=f"at most {MOST_MEMBER >> 20} MiB, and {MOST_RATIO} times its size",
            got=f"{info.file_size} bytes out of {info.compress_size}",
        )  # fmt: skip
    try:
        data = _zstandard(file, info) if info.compress_type == ZSTANDARD else log.read(info)
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{file}: {name} is damaged", expected="JSON", got=str(error)) from error


def _zstandard(file: Path, info: zipfile.ZipInfo) -> bytes:
    """A Zstandard member, which Python's zipfile does not unpack; never more than its entry promised."""
    try:
        import zstandard
    except ImportError as error:
        raise RecordError(
            f"{file} is compressed with Zstandard", got="no zstandard package", do="pip install 'fairlead[imports]'"
        ) from error
    with Path(file).open("rb") as stream:
        stream.seek(info.header_offset)
        head = stream.read(30)
        name, extra = struct.unpack("<HH", head[26:30])
        stream.seek(name + extra, 1)
        packed = stream.read(info.compress_size)
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(packed, read_across_frames=True) as reader:
            data: bytes = reader.read(info.file_size + 1)
    except zstandard.ZstdError as error:
        raise RecordError(f"{file}: {info.filename} is damaged", expected="Zstandard", got=str(error)) from error
    if len(data) != info.file_size:
        raise RecordError(f"{file}: {info.filename} is not as long as it says", expected=str(info.file_size))
    return data


# ---- lm-eval


def is_lm_eval(row: Mapping[str, Any]) -> bool:
    """Whether a line is one of lm-eval's samples."""
    return {"doc_id", "filtered_resps", "metrics"} <= set(row) or {"doc_id", "doc", "resps"} <= set(row)


def lm_eval_rows(file: Path, lines: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """One row a document: doc_id (with the task's name), task, `score.*`, `doc.*`. A task with several filters writes
    a line for each; their metrics become `METRIC,FILTER` of one row, as lm-eval prints them. The arm is the file, and
    the folder it lies in, which lm-eval names after the model."""
    task = re.sub(r"^samples_(.*?)(_\d{4}-\d\d-\d\dT.*)?$", r"\1", file.stem)
    folder = file.parent.name
    kept: dict[Any, tuple[str, Row]] = {}
    many: set[str] = set()
    read = []
    for where, line in lines:
        metrics = line.get("metrics")
        names = metrics if isinstance(metrics, list) else [k for k in line if isinstance(line[k], int | float)]
        names = [n for n in names if isinstance(n, str) and n in line and n != "doc_id"]
        many.add(str(line.get("filter", "none")))
        read.append((where, line, names))
    for where, line, names in read:
        if "doc_id" not in line:
            raise RecordError(f"{where} is no sample", expected="a doc_id", got=", ".join(sorted(line))[:120])
        used = f",{line.get('filter', 'none')}" if len(many) > 1 else ""
        fresh: Row = {"file": folder if folder and file.stem.startswith("samples_") else file.stem, "task": task,
                      "doc_id": f"{task}/{line['doc_id']}"}  # fmt: skip
        doc = line.get("doc")
        fresh |= {f"doc.{k}": v for k, v in doc.items()} if isinstance(doc, dict) else {}
        scores = {f"{SCORE}{name}{used}": line[name] for name in names}
        before = kept.get(line["doc_id"])
        if before is None:
            kept[line["doc_id"]] = (where, {**fresh, **scores})
        elif set(scores) & set(before[1]):
            raise RecordError(f"{where}: document {line['doc_id']} is there twice", got=f"also at {before[0]}")
        else:
            before[1].update(scores)
    yield from kept.values()
