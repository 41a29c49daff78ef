"""How a search for misreadings looks in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fairlead.app import report
from fairlead.app.show import rich, table


def preview(told: dict[str, Any]) -> None:
    """What a run would do."""
    table(["", "items", "clusters"], [[name, str(n), str(told["clusters"][name])] for name, n in told["items"].items()])
    for line in told["notes"]:
        click.echo(f"note: {line}")
    click.echo(f"arms: {', '.join(told['arms'])}\nrun:  {told['run']}")


def found(told: dict[str, Any]) -> None:
    """What was misread, what the notes did, and where the page lies."""
    rich(report.table(Path(told["run"])))
    for line in (*told["said"], *(f"note: {line}" for line in told["notes"])):
        click.echo(line)
    section = told["rewrites"]
    if section and section["words"]:
        click.echo()
        table(
            ["word", "asked for by", "note", "items", "fixed", "broken"],
            [[w["span"], w["by"], w["note"], str(w["n"]), str(w["fixed"]), str(w["broken"])] for w in section["words"]],
        )
    for arm, why in told["not_run"].items():
        click.echo(f"{arm} was not run: {why}")
    if told["exploratory"]:
        click.echo(f"EXPLORATORY: {told['exploratory']}")
    click.echo(f"page: {told['page']}")
