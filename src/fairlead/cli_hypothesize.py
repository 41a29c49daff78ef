"""The verb `fairlead hypothesize`: parse, call app, print, as in cli.py, which loads this file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fairlead.app import show
from fairlead.cli import as_json, loads_models, main, runs_in, spreads, threads

# As in features.texts (a test compares), which is not loaded to parse a command.
DICTIONARIES = ("levels", "residual", "matryoshka", "kmeans", "pca", "ica")
SELECTORS = ("lasso", "stability", "knockoffs", "correlation", "separation")

table_at = click.argument("data", metavar="TABLE", type=click.Path(path_type=Path))


def _bars(bar: Any) -> Callable[[str, int, int], None]:
    """One bar a phase."""
    tasks: dict[str, Any] = {}

    def say(phase: str, done: int, total: int) -> None:
        if phase not in tasks:
            tasks[phase] = bar.add_task(phase, total=total)
        bar.update(tasks[phase], completed=done, total=total)

    return say


@main.command()
@table_at
@click.option("--text", multiple=True, help="The column of texts; twice, to compare two texts a row.")
@click.option("--label", help="The column to explain.")
@click.option("--pair", default="", help="A column of ids: of the two rows that share one, which label is higher?")
@click.option("--covariate", "covariates", multiple=True, help="Adjust for this column; may be repeated.")
@click.option("--group", default="", help="Rows with one value here stay together, and count as one.")
@click.option("--positive", default="", help="The label that counts as true (of two texts: as the first).")
@click.option("--kind", type=click.Choice(["binary", "numeric", "multiclass", "pairwise"]),
              help="What the label is.  [default: found out]")  # fmt: skip
@click.option("--embedder", default="", metavar="REF", help="tfidf, minilm, a sentence-transformers directory, "
              "org/name, lm:MODEL[@SITE], https://host/v1#MODEL.  [default: minilm where installed, else tfidf]"
              )  # fmt: skip
@click.option("--k", type=click.IntRange(1, 200), default=20, show_default=True, help="At most this many hypotheses.")
@click.option("--dictionary", type=click.Choice(DICTIONARIES), help="How patterns are looked for; residual also "
              "looks at the label, and keeps rows back for it.  [default: levels]")  # fmt: skip
@click.option("--select", "how", type=click.Choice(SELECTORS), help="How patterns are chosen.  [default: lasso]")
@click.option("--rate", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Only choose what keeps this "
              "error rate: the chance of any false one; of stability their expected number, of knockoffs their "
              "expected share. There may be none.")  # fmt: skip
@click.option("--concept", "concepts", multiple=True, help="A phrase that a hypothesis may use; may be repeated.")
@click.option("--ask", metavar="URL", help="Base URL of an OpenAI-compatible endpoint that may word hypotheses.")
@click.option("--ask-model", metavar="NAME", help="Its model; without --ask, a local model instead.")
@click.option("--ask-key", metavar="VARIABLE", help="The environment variable that holds its key.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split and of every fit.")
@click.option("--apply", "saved", type=click.Path(path_type=Path), metavar="SAVED", help="Run the hypotheses of this "
              "hypotheses.json on TABLE instead.")  # fmt: skip
@click.option("--csv", "out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the hypotheses (with "
              "--apply: the rows and what holds of them) here.")  # fmt: skip
@runs_in
@loads_models
@spreads
@threads
@as_json
def hypothesize(
    data: Path, text: tuple[str, ...], label: str | None, pair: str, covariates: tuple[str, ...], group: str,
    positive: str, kind: str | None, embedder: str, k: int, dictionary: str | None, how: str | None,
    rate: float | None, concepts: tuple[str, ...], ask: str | None, ask_model: str | None, ask_key: str | None,
    seed: int, saved: Path | None, out: Path | None, runs: Path, threads: int, where: Any, as_json: bool,
) -> None:  # fmt: skip
    """What in the texts of TABLE explains the label? Ranked hypotheses, each tested on rows that nothing was fitted
    on, beside everything simpler; a page, and a file that runs them again. TABLE is CSV, TSV, JSON lines or Parquet.

    \b
    Example: fairlead hypothesize data.csv --text headline --label clicked
    Example: fairlead hypothesize --apply runs/hypotheses-data-1a2b3c4d/hypotheses.json new.csv
    """
    from fairlead.app import hypothesize as verb
    from fairlead.app import show_hypotheses

    if (ask is not None or ask_key is not None) and ask_model is None:
        raise click.UsageError("--ask needs --ask-model")
    asked = None if ask_model is None else verb.Ask(ask_model, ask, ask_key)
    if saved is not None:
        found = verb.apply(saved, data, embedder=embedder, ask=asked)
        if out is not None:
            verb.export(found["matches"], out)
        show.json_value(found) if as_json else show_hypotheses.applied(found)
        return
    if not text or not label:
        raise click.UsageError("give --text and --label, or --apply")
    options = {"dictionary": dictionary, "how": how, "rate": rate}
    settings = verb.Settings(
        data, text, label, pair=pair, covariates=covariates, group=group, positive=positive, kind=kind or "",
        embedder=embedder or verb.default_embedder(), k=k, seed=seed, concepts=concepts, ask=asked, runs=runs,
        options={name: value for name, value in options.items() if value is not None},
    )  # fmt: skip
    with show.bar(as_json) as bar:
        say = _bars(bar)
        ready = verb.prepare(settings, progress=say, where=where, threads=threads)
        found = verb.execute(ready, progress=say, threads=threads)
    if out is not None:
        verb.export(verb.flat(found), out)
    show.json_value(found) if as_json else show_hypotheses.found(found)
