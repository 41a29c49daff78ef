"""`fairlead export`: a run, or a feature store, in the files of other tools. Adapters are found by name."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.core.errors import FairleadError

FORMATS = ("json", "csv", "pandas-csv", "saebench", "neuronpedia")


@dataclass(frozen=True)
class Written:
    """What was written, and where."""

    to: str
    files: tuple[str, ...]
    about: str


def export(
    source: Path, to: str, out: Path, *, model: str | None = None, id: str | None = None, millis: int | None = None
) -> Written:
    """Write `source` under the new folder `out`. `model` and `id` are Neuronpedia's names for a store; `millis` is the
    time that SAEBench's files state (default: now)."""
    if to not in FORMATS:
        raise FairleadError("no such format", expected=", ".join(FORMATS), got=to)
    if (model or id) and to != "neuronpedia":
        raise FairleadError("only Neuronpedia's files have a model and an id of theirs", got=to)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FairleadError(f"{out} is there already", expected="a new folder", do="choose another, or remove it")
    if to == "neuronpedia":
        found = _adapter("neuronpedia").export(source, out, model=model, source=id)
        files = sorted(str(f) for f in Path(found.path).rglob("*.jsonl*"))
        about = f"{found.features} latents, {found.windows} windows, {found.labels} labels that hold"
        return Written(to, tuple(files), f"{about}; as {found.model}/{found.source}")
    if to == "saebench":
        files = _adapter("saebench").export(source, out, millis=int(time.time() * 1000) if millis is None else millis)
        return Written(to, tuple(map(str, files)), "one result a model and decoding mode")
    return _tables(source, to, out)


def _tables(run: Path, to: str, out: Path) -> Written:
    from fairlead import report
    from fairlead.report.frames import frames
    from fairlead.report.hypotheses import plain_cell
    from fairlead.report.source import read

    if to == "pandas-csv":
        found = frames(run)
        texts = {f"{name}.csv": table.map(plain_cell).to_csv(index=False) for name, table in found.items()}
        about = ", ".join(f"{len(table)} {name}" for name, table in found.items())
    else:
        source = read(run)
        texts = {f"arms.{to}": report.to_json(source) if to == "json" else report.to_csv(source)}
        about = "the headline table"
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return Written(to, tuple(str(out / name) for name in texts), about)


def _adapter(name: str) -> Any:
    return importlib.import_module(f"fairlead.adapters.{name}")
