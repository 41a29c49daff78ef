"""The verb `fairlead reformulate`: parse, call app, print, as in cli.py, which loads this file."""

from __future__ import annotations

from pathlib import Path

import click

from fairlead.app import show
from fairlead.cli import as_json, loads_models, main, runs_in, threads

COLUMNS = ("text", "question", "answer", "choices", "cluster", "paraphrase")


@main.command()
@click.argument("data", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", default="pocket/reader-s", show_default=True,
              help="pocket/NAME, a directory, or org/name[#revision] on the hub.")  # fmt: skip
@loads_models
@click.option("--dictionary", required=True, help="NAME@SITE or a directory: what is read at the words.")
@click.option("--prompt", default="", help="What the model is asked, with {text} and maybe {question} and {choices}.")
@click.option("--answer", default="", help="The column that holds the right answer.")
@click.option("--text", default="", help="The column that holds the text.")
@click.option("--question", default="", help="A column of questions, if each text has its own.")
@click.option("--choices", default="", help="A column of possible answers, separated by |.")
@click.option("--cluster", default="", help="Rows with one value here stay together, and count as one.")
@click.option("--paraphrase", default="", help="A column with the text in its intended sense, where there is one.")
@click.option("--layout", default="", help="A published layout instead of columns: gsm8k, svamp, figqa, moh_x, ...")
@click.option("--effect", type=click.FloatRange(min=0, max=1, min_open=True), default=0.05, show_default=True,
              help="The smallest gain of interest, as a share of items.")  # fmt: skip
@click.option("--control", "controls", multiple=True, help="A control to run; may be repeated.  [default: all]")
@click.option("--quick", is_flag=True, help="The decisive controls only, and no other method.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Of a free answer.  [default: the layout's]")
@click.option("--n", type=click.IntRange(min=1), help="At most this many clusters of test items.")
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="Attempts an arm may make.")
@click.option("--flops", type=click.FloatRange(min=0, min_open=True), help="FLOPs an arm may spend on its fit.")
@click.option("--labels", type=click.Path(path_type=Path), help="Labels that `fairlead features label` made.")
@click.option("--seed", type=int, default=0, show_default=True)
@runs_in
@click.option("--dry", is_flag=True, help="Read and split the questions, preview the study; run nothing.")
@threads
@as_json
def reformulate(
    data: Path, model: str, dictionary: str, prompt: str, answer: str, text: str, question: str, choices: str,
    cluster: str, paraphrase: str, layout: str, effect: float, controls: tuple[str, ...], quick: bool,
    max_tokens: int | None, n: int | None, trials: int, flops: float | None, labels: Path | None, seed: int, runs: Path,
    dry: bool, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Find what MODEL misreads in the questions of DATA, and rewrite those prompts: a note says what the word means.

    DATA is CSV, TSV, JSON lines or Parquet. Most of it is used to find and to confirm; what the notes are worth is
    measured on the rest, beside controls that would explain the gain away.

    \b
    Example: fairlead reformulate SVAMP.json --layout svamp --model MODEL --dictionary SAE@resid.19
    """
    from fairlead.app import reformulate as verb
    from fairlead.app import show_reformulate

    given = dict(zip(COLUMNS, (text, question, answer, choices, cluster, paraphrase), strict=True))
    settings = verb.Settings(
        data, model, dictionary, prompt=prompt, columns={k: v for k, v in given.items() if v}, layout=layout,
        effect=effect, controls=controls or (verb.DECISIVE if quick else verb.CONTROLS),
        others=() if quick else verb.OTHERS, max_tokens=max_tokens or 0, n=n or 0, trials=trials, flops=flops,
        seed=seed, options={} if labels is None else {"labels": str(labels)}, runs=runs,
    )  # fmt: skip
    ready = verb.prepare(settings)
    if dry:
        preview = {"items": ready.items, "clusters": ready.clusters, "notes": ready.notes,
                   "arms": verb.arms(settings), "run": str(ready.job.run_dir), "plan": ready.job.text}  # fmt: skip
        show.json_value(preview) if as_json else show_reformulate.preview(preview)
        return
    with show.bar(as_json) as bar:
        found = verb.execute(ready, progress=show.StudyBar(bar), threads=threads)
    show.json_value(found) if as_json else show_reformulate.found(found)

