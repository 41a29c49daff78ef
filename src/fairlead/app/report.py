"""`fairlead judge` and `fairlead report`: what the Records say. Nothing here can run a model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairlead import report
from fairlead.core.errors import RecordError
from fairlead.core.keys import canonical
from fairlead.core.records import Run
from fairlead.judge import Verdict, judge


def verdict(run_dir: Path) -> Verdict:
    """Judge a run by its own plan and leave verdict.json beside its Records."""
    return judged(run_dir)[0]


def judged(run_dir: Path) -> tuple[Verdict, dict[str, Any]]:
    """`verdict`, and the provenance of the run, which is read once."""
    run = Run.open(run_dir)
    found = judge(run)
    told = verdict_json(run, found)
    _whole(run_dir / "verdict.json", lambda path: path.write_text(canonical(told), encoding="utf-8"))
    return found, told["provenance"]


def verdict_json(run: Run, found: Verdict) -> dict[str, Any]:
    """What verdict.json holds: the verdict, and where its Records come from."""
    return {**found.to_json(), "provenance": run.provenance}


def provenance(run_dir: Path) -> dict[str, Any]:
    """Whether a run is exploratory or locked, its deviations and its seal."""
    return Run.open(run_dir).provenance


def page(run_dir: Path, out: Path | None = None, *, limit: int | None = None) -> Path:
    """Write the page of a run that was judged, with at most `limit` instances in its replay; returns where it
    lies. It appears whole or not at all."""
    kept = {} if limit is None else {"max_items": limit}
    return _whole(out or run_dir / "report.html", lambda path: report.render(run_dir, path, **kept))


def comparison_page(first: Path, second: Path, out: Path) -> Path:
    """Write the comparison of two runs as one page."""
    return _whole(out, lambda path: report.compare_html(first, second, path))


def table(run_dir: Path) -> Any:
    """The headline table, for a rich Console."""
    return report.terminal_table(run_dir)


def comparison_table(first: Path, second: Path) -> Any:
    """The comparison of two runs, for a rich Console."""
    return report.compare_table(first, second)


def as_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The headline table as JSON values."""
    return report.rows(run_dir)


def as_csv(run_dir: Path) -> str:
    """The headline table as CSV."""
    return report.to_csv(run_dir)


def comparison(first: Path, second: Path) -> dict[str, Any]:
    """The comparison of two runs as JSON values: second minus first."""
    found = report.compare(first, second)
    return {
        "first": str(first),
        "second": str(second),
        "measure": found.measure,
        "pairs": list(found.pairs),
        "only_first": list(found.left),
        "only_second": list(found.right),
    }


def _whole(path: Path, write: Callable[[Path], Any]) -> Path:
    draft = path.with_name(path.name + ".tmp")
    try:
        write(draft)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise RecordError(
            f"{path} cannot be written", expected="room and permission to write", got=error.strerror or str(error)
        ) from error
    return path
