"""The verbs of `fairlead features`: parse, call app, print, as in cli.py, which loads this file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fairlead.app import show, show_features
from fairlead.cli import as_json, loads_models, main, spreads, threads

store_at = click.argument("store", metavar="DIR", type=click.Path(path_type=Path))


def _bars(bar: Any) -> Callable[[str, int, int], None]:
    """One bar a phase."""
    tasks: dict[str, Any] = {}

    def say(phase: str, done: int, total: int) -> None:
        if phase not in tasks:
            tasks[phase] = bar.add_task(phase, total=total)
        bar.update(tasks[phase], completed=done)

    return say


@main.group()
def features() -> None:
    """Harvest what every latent of a dictionary does on your texts; show, label and screen latents."""


@features.command()
@click.argument("model")
@click.argument("dictionary", metavar="DICTIONARY")
@click.option("--texts", type=click.Path(path_type=Path), help="Texts, one a line, or .jsonl with \"text\".  "
              "[default: the shop's prompts]")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The store: a new directory, or one to go "
              "on with.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="At most this many texts.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="A text is cut to this.")
@click.option("--window", type=click.IntRange(1, 255), default=32, show_default=True, help="Tokens of an example.")
@click.option("--neighbours/--no-neighbours", default=True, show_default=True, help="Compare all decoder rows.")
@loads_models
@spreads
@threads
@as_json
def harvest(
    model: str, dictionary: str, texts: Path | None, out: Path, limit: int | None, max_tokens: int, window: int,
    neighbours: bool, threads: int, where: Any, as_json: bool,
) -> None:  # fmt: skip
    """One pass of MODEL over texts: every latent of DICTIONARY (NAME@SITE) on every token, on disk, with the
    strongest windows, densities, quantiles, partners and neighbours of all latents. Interrupted, it goes on.

    \b
    Example: fairlead features harvest pocket/shopper-s pocket/shopper-s@resid.1 --out my-store --limit 50
    """
    from fairlead.app import features as verb

    with show.bar(as_json) as bar:
        found = verb.harvest(
            model, dictionary, texts=texts, out=out, limit=limit, max_tokens=max_tokens, window=window,
            with_neighbours=neighbours, threads=threads, progress=_bars(bar), where=where,
        )  # fmt: skip
    show.json_value(found) if as_json else show_features.harvested(found)


@features.command("show")
@store_at
@click.argument("latent", type=int)
@click.option("--limit", type=click.IntRange(1, 20), default=5, show_default=True, help="At most this many windows.")
@as_json
def show_(store: Path, latent: int, limit: int, as_json: bool) -> None:
    """One latent of a store: figures, strongest windows, what fires with it, its label and scores where made.

    \b
    Example: fairlead features show my-store 12
    """
    from fairlead.app import features as verb

    found = verb.show(store, latent, examples=limit)
    show.json_value(found) if as_json else show_features.latent(found)


@features.command()
@store_at
@click.option("--latent", "latents", type=int, multiple=True, help="This latent; may be repeated.  [default: all]")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many latents.")
@click.option("--model", help="With --dictionary: ask the logit lens too.")
@click.option("--dictionary", help="The dictionary of the store, NAME@SITE.")
@click.option("--embed", default="tfidf", show_default=True, help="tfidf, minilm, a sentence-transformers directory, "
              "or none.")  # fmt: skip
@click.option("--ask", metavar="URL", help="Base URL of an OpenAI-compatible endpoint that makes and judges labels.")
@click.option("--ask-model", metavar="NAME", help="Its model; without --ask, a local model instead.")
@click.option("--ask-key", metavar="VARIABLE", help="The environment variable that holds its key.")
@click.option("--threshold", type=click.FloatRange(0.5, 1.0), default=0.7, show_default=True,
              help="Held-out AUROC below which a label counts as none.")  # fmt: skip
@click.option("--easy", is_flag=True, help="Any silent windows for negatives instead of near misses.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The file.  [default: DIR/labels.jsonl]")
@loads_models
@threads
@as_json
def label(
    store: Path, latents: tuple[int, ...], limit: int | None, model: str | None, dictionary: str | None, embed: str,
    ask: str | None, ask_model: str | None, ask_key: str | None, threshold: float, easy: bool, seed: int,
    out: Path | None, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Label the latents of a store, each with the score it earns on windows that nobody used before, and count those
    whose label does not hold. Interrupted, it goes on.

    \b
    Example: fairlead features label my-store --limit 20
    """
    from fairlead.app import features as verb

    if (ask is not None or ask_key is not None) and ask_model is None:
        raise click.UsageError("--ask needs --ask-model")
    asked = None if ask_model is None else verb.Ask(ask_model, ask, ask_key)
    with show.bar(as_json) as bar:
        found = verb.label(
            store, latents=latents, limit=limit, model=model, ref=dictionary, embed=embed, ask=asked, out=out,
            threshold=threshold, hard=not easy, seed=seed, threads=threads, progress=_bars(bar),
        )  # fmt: skip
    show.json_value(found) if as_json else show_features.labelled(found)


@features.command()
@click.argument("model")
@click.argument("dictionary", metavar="DICTIONARY")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A directory; a store, best of all.")
@click.option("--prompt", help="The neutral prompt.  [default: From my experience,]")
@click.option("--strength", type=click.FloatRange(min=0, min_open=True), help="Times a latent's largest activation.  "
              "[default: 10]")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=2), default=256, show_default=True, help="Latents at once.")
@click.option("--by", type=click.Choice(["score", "confidence"]), default="score", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Show this many.")
@loads_models
@threads
@as_json
def screen(
    model: str, dictionary: str, out: Path, prompt: str | None, strength: float | None, batch: int, by: str,
    limit: int, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Screen all latents by what they write: amplified at the end of a neutral prompt, does the model say the tokens
    they promote (output score), and is it surer (Δ token confidence)? Interrupted, it goes on.

    \b
    Example: fairlead features screen pocket/shopper-s pocket/shopper-s@resid.1 --out my-store
    """
    from fairlead.app import features as verb

    with show.bar(as_json) as bar:
        found = verb.screen(
            model, dictionary, out=out, prompt=prompt, strength=strength, batch=batch, by=by, limit=limit,
            threads=threads, progress=_bars(bar),
        )  # fmt: skip
    show.json_value(found) if as_json else show_features.screened(found)
