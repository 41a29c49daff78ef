"""How the verb `live`, and `run --live`, look in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


def up(found: Any) -> None:
    """Where the page is, before it is looked at."""
    click.echo(f"open: {found.url}")
    click.echo("who has the part behind the # may step and edit; without it the page is read only")
    stops = "Ctrl-C" if found.stops_after is None else f"{found.stops_after:g} seconds, or Ctrl-C"
    click.echo(f"serving until {stops}", err=True)


@contextmanager
def beside(run: Path, wanted: bool) -> Iterator[None]:
    """The page of a run that begins now, where it is wanted, and where it is."""
    if not wanted:
        yield
        return
    from fairlead.app import live as verb

    with verb.beside(run) as url:
        click.echo(f"watch: {url.partition('#')[0]}", err=True)
        yield
        click.echo("done; the page stays while a tab is open (Ctrl-C ends it)", err=True)
