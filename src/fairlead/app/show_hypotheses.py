"""How hypotheses look in a terminal."""

from __future__ import annotations

from typing import Any

import click

from fairlead.app.show import table
from fairlead.report.hypotheses import amount, name_of, sentence, span


def found(told: dict[str, Any]) -> None:
    """What was found, the arms beside it, and where the page lies."""
    for line in told["lead"]["sentences"]:
        click.echo(line)
    for arm in dict.fromkeys((told["lead"]["list"], told["claim"])):
        if arm in told["lists"]:
            _list(told, arm)
    click.echo()
    table(
        ["", told["measure"], "95 %", "hypotheses"],
        [[name_of(a["arm"]), f"{a['value']:.3f}", f"{a['lo']:.2f} to {a['hi']:.2f}", str(a["hypotheses"])]
         for a in sorted(told["arms"], key=lambda a: -a["value"])],
    )  # fmt: skip
    for arm, why in told["failed"].items():
        click.echo(f"{name_of(arm)} could not be tried: {why}")
    for note in told["data"]["notes"]:
        click.echo(f"note: {note}")
    for why, n in told["data"]["dropped"].items():
        click.echo(f"left out: {n} rows, {why}")
    if told["exploratory"]:
        click.echo(f"EXPLORATORY: {told['exploratory']}")
    click.echo(f"page: {told['page']}\nagain: fairlead hypothesize --apply {told['run']}/hypotheses.json NEW.csv")


def _list(told: dict[str, Any], arm: str) -> None:
    rows = told["lists"][arm]["hypotheses"]
    click.echo(f"\n{name_of(arm)}")
    table(
        ["", "effect", "95 %", "the text ...", "on test"],
        [["holds" if r["found"] else "", *_size(told["kind"], r["effect"]), r["text"], sentence(told, r)]
         for r in rows],
    )  # fmt: skip


def _size(kind: str, effect: dict[str, Any] | None) -> list[str]:
    if effect is None:
        return ["", ""]
    return [amount(kind, effect["value"]), span(kind, effect["lo"], effect["hi"])]


def applied(told: dict[str, Any]) -> None:
    """Saved hypotheses on new rows."""
    click.echo(f"{told['rows']} rows" + ("" if told["labelled"] else ", without the label: only where each holds"))
    if "said" in told:
        click.echo(told["said"])
    rows = []
    for r in told["hypotheses"]:
        now = _size(told["kind"], r.get("effect"))
        before = _size(told["kind"], r["before"])
        state = "holds" if r.get("found") else ""
        rows.append([state, f"{100 * r['prevalence']:.0f} %", now[0], now[1], before[0], r["hypothesis"]])
    table(["", "of rows", "effect here", "95 %", "before", "the text ..."], rows)
    for why, n in told["dropped"].items():
        click.echo(f"left out: {n} rows, {why}")
