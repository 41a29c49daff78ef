"""Two runs side by side: the same arms, the difference of each, and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table as Grid
from rich.text import Text

from fairlead.core.types import Record
from fairlead.report import measured
from fairlead.report.headline import TRAPS, Delta, Rate, kind_of
from fairlead.report.html import assets, environment
from fairlead.report.numbers import MISSING, percent, points, points_span, span
from fairlead.report.source import Source, read


@dataclass(frozen=True)
class Pair:
    """One arm in both runs, on one slice. `paired` says whether the difference is taken item by item."""

    model: str
    decoding: str
    arm: str
    trap: str
    first: Rate
    second: Rate
    difference: Delta
    paired: bool

    @property
    def kind(self) -> str:
        return kind_of(self.arm)


@dataclass(frozen=True)
class Comparison:
    """`left` and `right` name arms (as model, decoding, arm) that only one of the runs has."""

    first: Source
    second: Source
    measure: str
    pairs: tuple[Pair, ...]
    left: tuple[str, ...]
    right: tuple[str, ...]

    @property
    def same_plan(self) -> bool:
        a, b = self.first.plan, self.second.plan
        return a is not None and b is not None and a.hash == b.hash


def compare(first: Path | str, second: Path | str) -> Comparison:
    """Pair the arms of two runs on the first run's primary measure. Where the runs share items the difference
    (second minus first) is paired and clustered; otherwise the samples are treated as independent (Newcombe)."""
    a, b = read(first), read(second)
    measure = a.measures[0]
    mine, theirs = _arms(a), _arms(b)
    shared = [key for key in mine if key in theirs]
    pairs = [pair for key in shared for pair in _pairs(key, mine[key], theirs[key], measure)]

    left = tuple(" · ".join(reversed(key)) for key in mine if key not in theirs)
    right = tuple(" · ".join(reversed(key)) for key in theirs if key not in mine)
    return Comparison(a, b, measure, tuple(pairs), left, right)


def _arms(source: Source) -> dict[tuple[str, str, str], list[Record]]:
    out: dict[tuple[str, str, str], list[Record]] = {}
    for record in source.records:
        out.setdefault((record.model, record.decoding, record.arm), []).append(record)
    return out


def _pairs(key: tuple[str, str, str], mine: Sequence[Record], theirs: Sequence[Record], measure: str) -> list[Pair]:
    found = {r.strata.get("trap") for r in mine} | {r.strata.get("trap") for r in theirs}
    out = []
    traps: list[str | None] = [t for t in TRAPS if t in found]
    for trap in traps or [None]:
        a, b = _with_trap(mine, trap), _with_trap(theirs, trap)
        first, second = measured.rate(a, measure), measured.rate(b, measure)
        paired = {r.item for r in a} == {r.item for r in b}
        difference = measured.contrast(b, a, measure) if paired else newcombe(second, first)
        out.append(Pair(*key, trap or "all", first, second, difference, paired))
    return out


def _with_trap(records: Sequence[Record], trap: str | None) -> list[Record]:
    return [r for r in records if trap is None or r.strata.get("trap") == trap]


def newcombe(a: Rate, b: Rate) -> Delta:
    """a − b for independent samples, from their own intervals (Newcombe 1998, method 10)."""
    if a.value is None or b.value is None or a.lo is None or a.hi is None or b.lo is None or b.hi is None:
        return Delta()
    gap = a.value - b.value
    low = gap - math.hypot(a.value - a.lo, b.hi - b.value)
    high = gap + math.hypot(a.hi - a.value, b.value - b.lo)
    return Delta(gap, low, high)


def compare_html(first: Path | str, second: Path | str, out: Path | str) -> Path:
    """Write the comparison as one self-contained page."""
    path = Path(out)
    text = environment().get_template("compare.html.j2").render(c=compare(first, second), **assets(scripts=()))
    path.write_text(text, encoding="utf-8", errors="replace")
    return path


def compare_table(first: Path | str, second: Path | str) -> Grid:
    """The comparison as a rich table."""
    c = compare(first, second)
    names = [s.run_id + (" (EXPLORATORY)" if s.run.exploratory else "") for s in (c.first, c.second)]
    title = f"{c.measure}, percent: {names[0]} against {names[1]}"
    grid = Grid(title=Text(title), title_justify="left", box=None, pad_edge=False)
    grid.add_column("arm", no_wrap=True)
    for name in ("model", "decoding", "trap"):
        grid.add_column(name)
    for name in ("first", "second", "difference", "paired"):
        grid.add_column(name, justify="right", no_wrap=True)
    for p in c.pairs:
        words = (p.arm, p.model, p.decoding, p.trap, _cell(p.first), _cell(p.second), _difference(p.difference))
        grid.add_row(*(Text(word) for word in (*words, "yes" if p.paired else "no")))
    alone = ((c.first.run_id, c.left), (c.second.run_id, c.right))
    lines = [f"only in {run}: {', '.join(names)}" for run, names in alone if names]
    if lines:
        grid.caption, grid.caption_justify = Text("\n".join(lines)), "left"
    return grid


def _cell(rate: Rate) -> str:
    return MISSING if rate.value is None else f"{percent(rate.value)} {span(rate.lo, rate.hi)}"


def _difference(delta: Delta) -> str:
    return MISSING if delta.value is None else f"{points(delta.value)} {points_span(delta.lo, delta.hi)}"
