"""`fairlead live`: parse, call app, print, as in cli.py, which loads this file."""

from __future__ import annotations

from pathlib import Path

import click

from fairlead.app import show, show_live
from fairlead.cli import as_json, loads_models, main, threads


@main.command()
@click.argument("run_dir", metavar="[RUN]", type=click.Path(path_type=Path), required=False)
@click.option("--model", help="The model that episodes are played on.  [default: the run's, or pocket/shopper-s]")
@loads_models
@click.option("--dictionary", multiple=True, help="NAME@SITE or a directory; may be repeated.  [default: the model's]")
@click.option("--vectors", type=click.Path(path_type=Path), help="A safetensors file of stored vectors ($name).")
@click.option("--task", default="shop", show_default=True, help="The task, where no run names one.")
@click.option("--item", default="", help="The episode to begin with, such as validation/promo/3/on.")
@click.option("--edit", default="", help="The edit to begin with.  [default: what the run's claim chose]")
@click.option("--browser", is_flag=True, help="Play in a real Chromium, and show its pictures.")
@click.option("--store", type=click.Path(path_type=Path), help="A feature store, for the feature browser.")
@click.option("--only-run", is_flag=True, help="Show the run alone; load no model.")
@click.option("--host", default="127.0.0.1", show_default=True, help="On others, reading needs the token too.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0: any free one.")
@click.option("--stop-after", type=click.FloatRange(min=0), metavar="SECONDS", help="Stop by itself.")
@click.option("--idle", type=click.FloatRange(min=1), metavar="SECONDS", default=3600, show_default=True,
              help="Stop when nobody has looked for so long.")  # fmt: skip
@threads
@as_json
def live(
    run_dir: Path | None, model: str | None, dictionary: tuple[str, ...], vectors: Path | None, task: str, item: str,
    edit: str, browser: bool, store: Path | None, only_run: bool, host: str, port: int, stop_after: float | None,
    idle: float, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Open a page on this machine: RUN as it grows and its replays, an episode to step through with and without an
    edit, and the features. Reading is open to this machine; stepping and editing need the token in the address.

    \b
    Example: fairlead live runs/demo-1a2b3c4d
    Example: fairlead live --item validation/promo/3/on --edit "12 -= 2x at prompt" --browser
    """
    from fairlead.app import live as verb

    if only_run and run_dir is None:
        raise click.UsageError("--only-run needs a RUN")
    settings = verb.Settings(run_dir, model, dictionary, vectors, task, item, edit, browser, not only_run, store)
    page = verb.prepare(settings)
    verb.execute(page, settings, host=host, port=port, stop_after=stop_after, idle=idle, threads=threads,
                 ready=show.json_value if as_json else show_live.up)  # fmt: skip
