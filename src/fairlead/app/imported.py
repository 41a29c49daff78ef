"""`fairlead judge --import`: what others published, in Records, judged by the same code as our own studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairlead.core.errors import RecordError
from fairlead.core.records import Run, to_line
from fairlead.core.types import Record
from fairlead.judge import Question, Verdict, foreign, judge
from fairlead.judge.question import is_control, rivals
from fairlead.judge.tables import Cells, Row, rows


@dataclass(frozen=True)
class Rejudged:
    """Foreign results: Records, the table of every arm, and the verdict where a claim was named."""

    records: tuple[Record, ...]
    table: tuple[Row, ...]
    verdict: Verdict | None

    def to_json(self) -> dict[str, Any]:
        run = Run.of(self.records)
        told = self.verdict.to_json() if self.verdict else {"rows": [asdict(row) for row in self.table]}
        return {"records": len(self.records), **told, "provenance": run.provenance}


def rejudge(
    paths: Sequence[Path],
    mapping: str = "",
    *,
    claim: str | None = None,
    none: str | None = None,
    rename: Sequence[str] = (),
    beat: Sequence[str] = (),
    controls: Sequence[str] = (),
    primary: str | None = None,
    smallest_effect: float = 0.0,
) -> Rejudged:
    """Import, and judge `claim` against `beat` (the arm `none`, where nothing is named), every control, and every
    other arm. `none` is the untreated arm's own name; `rename` holds OLD=NEW, for arms that have a name here
    (`noise=control.noise`). Arms can be named by either. Raises RecordError."""
    records = foreign.read(paths, foreign.parse_map(mapping))
    names = _names(none, rename)
    records = foreign.renamed(records, names)
    arms = list(dict.fromkeys(r.arm for r in records))
    measures = list(dict.fromkeys(name for r in records for name in r.score or {}))
    if not measures:
        raise RecordError("no measure in these results", expected="one value at least", got="errors only")
    primary = primary or measures[0]
    named = [names.get(arm, arm) for arm in (*([claim] if claim else []), *beat, *controls)]
    for arm in named:
        if arm not in arms:
            raise RecordError(f"no arm {arm!r} in these results", expected=", ".join(arms), got=arm)
    if primary not in measures:
        raise RecordError(f"no measure {primary!r} in these results", expected=", ".join(measures), got=primary)
    cells = Cells(records)
    if claim is None:
        return Rejudged(records, tuple(rows(cells, primary)), None)
    against = tuple(names.get(arm, arm) for arm in beat) or (("none",) if "none" in arms else ())
    if not against:
        raise RecordError("nothing to judge the claim against", do="name the untreated arm: --none ARM, or --beat ARM")
    claim = names.get(claim, claim)
    needed = (*(names.get(arm, arm) for arm in controls), *(arm for arm in arms if is_control(arm) and arm != claim))
    kept = tuple(dict.fromkeys(needed))
    question = Question(
        claim=claim, primary=primary, smallest_effect=smallest_effect, beat=against, controls=kept,
        decoding=sorted({r.decoding for r in records})[0],
        rivals=tuple(arm for arm in rivals(arms, claim) if arm not in kept),
    )  # fmt: skip
    verdict = judge(Run.of(records), question)
    return Rejudged(records, verdict.rows, verdict)


def _names(none: str | None, rename: Sequence[str]) -> dict[str, str]:
    names = {none: "none"} if none is not None else {}
    for text in rename:
        old, found, new = text.partition("=")
        if not found or not old.strip() or not new.strip():
            raise RecordError("a new name that cannot be read", expected="OLD=NEW", got=repr(text))
        names[old.strip()] = new.strip()
    if len(set(names.values())) != len(names):
        raise RecordError("two arms would have one name", got=", ".join(f"{a}={b}" for a, b in names.items()))
    return names


def save(found: Rejudged, out: Path) -> None:
    """The Records as JSON lines, one a trial: `fairlead.core.records.Run` reads them back."""
    try:
        out.write_text("".join(to_line(record) for record in found.records), encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{out} cannot be written", got=error.strerror or str(error)) from error


def arms_table(found: Rejudged) -> list[list[str]]:
    """One line an arm and measure, all items: rate, n, Wilson's interval, the clustered one, clusters."""
    lines = []
    for row in found.table:
        if row.where:
            continue
        missing = row.not_measured
        if row.value is None:
            cells = ["NOT MEASURED", "", "", ""]
        else:
            rate = f"{100 * row.value:.1f} %" if row.successes is not None else f"{row.value:.4g}"
            spans = [f"{100 * i.low:.1f}–{100 * i.high:.1f}" if i else "" for i in (row.interval, row.clustered)]
            if row.successes is None and row.clustered:
                spans = ["", f"{row.clustered.low:.4g}–{row.clustered.high:.4g}"]
            cells = [rate, str(row.n), *spans]
        counted = f"{row.clusters}" if row.value is not None else ""
        more = "; ".join(
            text for text, there in ((f"{missing} not measured", missing and row.value is not None),
                                     (f"{row.errors} errors", row.errors)) if there
        )  # fmt: skip
        lines.append([row.arm, row.model, row.measure, *cells, counted, more])
    return lines
