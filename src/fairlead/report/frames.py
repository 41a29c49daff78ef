"""A run as pandas tables. None is not measured, and stays a missing value; nothing is computed here that a report
does not show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.core.extras import need
from fairlead.report.export import rows
from fairlead.report.source import Source, read

if TYPE_CHECKING:
    from pandas import DataFrame

TABLES = ("records", "arms", "contrasts", "checks", "rubric", "costs")


def frames(run: Path | str | Source) -> dict[str, DataFrame]:
    """The tables of a run, by name:

    records    one Record a row: coordinates, strata_*, score_*, cost_*, the error, the outcome as JSON text
    arms       the headline table, as `export.rows` has it
    contrasts  every paired contrast of the judge, with interval and corrected p
    checks, rubric, costs   what else the verdict says
    """
    need("pandas", "pandas")
    import pandas

    source = run if isinstance(run, Source) else read(run)
    verdict = source.verdict
    tables: dict[str, Sequence[dict[str, Any]]] = {
        "records": [_record(record) for record in source.records],
        "arms": rows(source),
        "contrasts": [_flat(asdict(c)) for c in verdict.contrasts],
        "checks": [_flat(asdict(c)) for c in verdict.checks],
        "rubric": [_flat(asdict(r)) for r in verdict.rubric],
        "costs": [_flat(asdict(c)) for c in verdict.costs],
    }
    return {name: pandas.DataFrame.from_records(list(found)) for name, found in tables.items()}


def _record(record: Any) -> dict[str, Any]:
    said = asdict(record)
    outcome = said.pop("outcome")
    return _flat({**said, "outcome": None if outcome is None else json.dumps(outcome, sort_keys=True)})


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as `outer_inner`; lists as JSON text."""
    out: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, dict):
            out |= _flat(inner, f"{name}_")
        else:
            out[name] = json.dumps(inner, default=str) if isinstance(inner, list | tuple) else inner
    return out
