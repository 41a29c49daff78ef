"""The verb `fairlead export`: parse, call app, print, as in cli.py, which loads this file."""

from __future__ import annotations

from pathlib import Path

import click

from fairlead.app import show
from fairlead.app.export import FORMATS
from fairlead.cli import as_json, main


@main.command()
@click.argument("source", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(FORMATS), required=True, help="neuronpedia takes a feature store, not a run.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--model", help="Neuronpedia's name of the model.  [default: the store's]")
@click.option("--id", "id_", help="Neuronpedia's name of the source.  [default: LAYER-KIND-fairlead]")
@as_json
def export(source: Path, to: str, out: Path, model: str | None, id_: str | None, as_json: bool) -> None:
    """Write a RUN in the files of other tools: tables (json, csv, pandas-csv), SAEBench's result JSON; or a feature
    store in Neuronpedia's layout.

    \b
    Example: fairlead export runs/demo-1a2b3c4d --to saebench --out results
    Example: fairlead export my-store --to neuronpedia --out upload
    """
    from fairlead.app import export as verb

    found = verb.export(source, to, out, model=model, id=id_)
    if as_json:
        show.json_value(found)
        return
    for file in found.files:
        click.echo(file)
    click.echo(found.about)
