"""The headline in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table as Grid
from rich.text import Text

from fairlead.report.fight import counted
from fairlead.report.headline import Delta, Rate, Row, Table, organism, tables
from fairlead.report.numbers import MISSING, p_value, percent, points, points_span, quantity, span
from fairlead.report.source import Source, read

HIDDEN = ("fell_final",)  # on the page, not in the terminal


def terminal_table(run: Path | str | Source) -> Group:
    """One rich table per model and decoding mode, and the verdict; print it with any rich Console."""
    source = run if isinstance(run, Source) else read(run)
    found = tables(source)
    verdict = Text.assemble((source.verdict.status, "bold"), "".join(f"\n  {text}" for text in source.verdict.reasons))
    closing = [verdict] if source.plan else []
    closing.append(Text(f"{source.verdict.claim_sentence} Rubric: {counted(source.verdict)}."))
    if source.run.exploratory:
        closing.insert(0, Text("EXPLORATORY: not made under a lock", "bold"))
    return Group(*closing, *(grid(table, source.measures, source.claim) for table in found))


def grid(table: Table, measures: tuple[str, ...], claim: str) -> Grid:
    """One model and decoding mode as a rich table."""
    kind = " (model organism)" if organism(table.model) else ""
    title = Text(f"{table.model}{kind}, {table.decoding} decoding, percent")
    out = Grid(title=title, title_justify="left", box=None, pad_edge=False)
    out.add_column("arm", no_wrap=True)
    shown = [name for name in measures[1:] if name not in HIDDEN]
    names = (measures[0], "Δ vs none", "p/q", f"{claim} −", *shown, *table.sides, "tok/win", "n", "err")
    for name in names:
        out.add_column(Text(name.replace("_", " ")), justify="right", no_wrap=True)
    kinds = [row.kind for row in table.rows]
    for i, row in enumerate(table.rows):
        last = i + 1 == len(kinds) or kinds[i + 1] != kinds[i]
        cells = _cells(row, [measures[0], *shown], table.sides)
        out.add_row(*cells, end_section=last, style="dim" if row.kind == "control" else "")
    if table.warnings:
        whole = len(table.rows)
        lines = [f"† {text}: {'all arms' if len(a) == whole else ', '.join(a)}" for text, a in table.warnings]
        out.caption, out.caption_justify = Text("\n".join(lines)), "left"
    return out


def _cells(row: Row, measures: Sequence[str], sides: Sequence[str]) -> list[Text]:
    main, p = row.rates[measures[0]], row.delta.corrected
    cells = [Text(row.arm + ("†" if row.warnings else "")), _rate(main), _delta(row.delta)]
    cells += [Text(p_value(p).removeprefix("p ").removeprefix("= ")), Text(points(row.lead.value))]
    cells += [Text(percent(row.rates[name].value)) for name in measures[1:]]
    cells += [_side(row.sides[side], row.side_deltas[side]) for side in sides]
    cells.append(Text(quantity(row.tokens_per_success)))
    return [*cells, Text(str(row.n)), Text(str(row.errors), style="red" if row.errors else "")]


def _rate(rate: Rate) -> Text:
    if rate.value is None:
        return Text(MISSING)
    return Text.assemble((percent(rate.value), "bold"), (f" {span(rate.lo, rate.hi)}", "dim"))


def _delta(delta: Delta) -> Text:
    if delta.value is None:
        return Text(MISSING)
    sure = delta.lo is not None and delta.hi is not None and (delta.lo > 0 or delta.hi < 0)
    detail = f" {points_span(delta.lo, delta.hi)}"
    return Text.assemble((points(delta.value), "bold" if sure else ""), (detail, "dim"))


def _side(rate: Rate, delta: Delta) -> Text:
    if rate.value is None:
        return Text(MISSING)
    return Text.assemble(percent(rate.value), ("" if delta.value is None else f" ({points(delta.value)})", "dim"))
