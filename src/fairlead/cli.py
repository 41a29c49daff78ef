"""The command line: parse, call app, print. Every verb has --json, and an example in its --help.

A FairleadError is one message on stderr and exit code 2; so is a wrong option.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import click

import fairlead
from fairlead.app import show
from fairlead.app.catalogue import GROUPS
from fairlead.core.errors import FairleadError

INTERRUPTED = 130
_RESUMED = ("run", "demo", "fix", "features")  # verbs that go on where they were stopped


class _Group(click.Group):
    """Shows what went wrong instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FairleadError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except OSError as error:  # a full disk, a read-only folder
            if error.errno is None:
                raise
            where = f" {error.filename}" if error.filename else ""
            click.echo(f"error: the system refused{where}: {error.strerror or error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            goes_on = "; the same command goes on from here" if ctx.invoked_subcommand in _RESUMED else ""
            click.echo(f"stopped{goes_on}", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(fairlead.__version__, prog_name="fairlead")
def main() -> None:
    """Steer a language model with the features inside it, and prove in a fair fight that it helped."""


# ---- shared options

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON value instead of text.")
threads = click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Torch threads.")
limit_n = click.option("--limit", type=click.IntRange(min=1), help="At most this many test instances.")
runs_in = click.option(
    "--runs", type=click.Path(file_okay=False, path_type=Path), default=Path("runs"), show_default=True,
    help="Where run directories are made.",
)  # fmt: skip
run_at = click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))


def _choose(ctx: click.Context, option: click.Parameter, value: Any) -> None:  # noqa: ARG001
    from fairlead.app.models import choose_loading

    choose_loading(**{str(option.name): value})


def loads_models(verb: Any) -> Any:
    """The options of every verb that loads a model; app.models keeps what they say."""
    for name, kind, told in (
        ("--max-batch", click.IntRange(min=1), "Prompts a forward.  [default: 32]"),
        ("--quantize", click.Choice(["4bit", "8bit"]), "With bitsandbytes, on a GPU."),
        ("--dtype", click.Choice(["float32", "bfloat16", "float16"]), "[default: float32 on a CPU, else as stored]"),
        ("--device", str, "cpu, cuda, cuda:1, mps.  [default: cpu]"),
    ):
        verb = click.option(name, type=kind, help=told, expose_value=False, callback=_choose)(verb)
    return verb


def model_at(verb: Any) -> Any:
    """The model of a verb that has one, and how it is loaded."""
    named = click.option("--model", default="pocket/shopper-s", show_default=True,
                         help="pocket/NAME, a directory, or org/name[#revision] on the hub.")  # fmt: skip
    return named(loads_models(verb))


def other_models(verb: Any) -> Any:
    """The options of verbs that take a plan and may run it on other models."""
    dictionary = click.option("--dictionary", "dictionaries", multiple=True,
                              help="NAME@SITE or PATH[@SITE], one for each model.")(loads_models(verb))  # fmt: skip
    return click.option("--model", "models", multiple=True,
                        help="This model instead of the plan's; may be repeated.")(dictionary)  # fmt: skip


def spreads(verb: Any) -> Any:
    """The options of every verb that can work on a cluster; the verb gets `where`."""

    @functools.wraps(verb)
    def placed(*, executor: str, ray_address: str | None, workers: int | None, **given: Any) -> Any:
        from fairlead.app.placement import cluster

        return verb(where=cluster(executor, ray_address, workers), **given)

    for name, kind, told in (
        ("--workers", click.IntRange(min=1), "Of --executor ray.  [default: one a GPU with --device cuda, or a CPU]"),
        ("--ray-address", str, "HOST:PORT of a running cluster.  [default: RAY_ADDRESS, or one on this machine]"),
    ):
        placed = click.option(name, type=kind, help=told)(placed)
    return click.option("--executor", type=click.Choice(["inline", "ray"]), default="inline", show_default=True,
                        help="Where it is run: this process, or workers on Ray.")(placed)  # fmt: skip


# ---- verbs


@main.command()
@click.argument("plan")
@other_models
@limit_n
@runs_in
@click.option("--run", "run_dir", type=click.Path(file_okay=False, path_type=Path), help="This run directory.")
@click.option("--dry", is_flag=True, help="Check the plan and preview the cost; run nothing.")
@click.option("--exploratory", is_flag=True, help="Run without a lock; every output then says EXPLORATORY.")
@click.option("--live", is_flag=True, help="Show it on a page of this machine meanwhile.")
@spreads
@threads
@as_json
def run(
    plan: str, models: tuple[str, ...], dictionaries: tuple[str, ...], limit: int | None, runs: Path,
    run_dir: Path | None, dry: bool, exploratory: bool, live: bool, threads: int, where: Any, as_json: bool,
) -> None:  # fmt: skip
    """Run a study: PLAN is a TOML file, or the name of one that ships. Interrupted, it goes on when run again.

    It opens the test split, so it asks for a lock (`fairlead lock PLAN`) and for committed code, or --exploratory.
    With --model and --dictionary it is another study, with a hash of its own.

    \b
    Example: fairlead run studies/shop.toml --limit 5 --exploratory
    Example: fairlead run studies/shop.toml --model MODEL --dictionary SAE@resid.19 --limit 5 --exploratory
    Example: fairlead run studies/shop.toml --executor ray --ray-address 10.0.0.1:6379 --device cuda
    """
    from fairlead.app import lock as locking
    from fairlead.app import report as judged
    from fairlead.app import run as verb
    from fairlead.app import show_live

    job = verb.prepare(plan, limit=limit, runs=runs, run_dir=run_dir, models=models, dictionaries=dictionaries)
    cost = verb.preview(job)
    if dry:
        show.json_value(cost) if as_json else show.preview(cost)
        return
    lock = None if exploratory else locking.required(job)
    show.preview(cost)
    with show_live.beside(job.run_dir, live), show.bar(as_json) as bar:
        found = verb.execute(job, progress=show.StudyBar(bar), threads=threads, lock=lock, warn=show.warning,
                             where=where)  # fmt: skip
    states = [{**dataclasses.asdict(t.trial), "status": t.status, "reason": t.reason, "records": t.records}
              for t in found.trials]  # fmt: skip
    if as_json:
        origin = judged.provenance(job.run_dir)
        show.json_value({"run": str(job.run_dir), "plan": job.plan.hash, **origin, "trials": states})
    else:
        show.table(
            ["arm", "model", "decoding", "status", "records", ""],
            [[s["arm"], s["model"], s["decoding"], s["status"], str(s["records"]), s["reason"]] for s in states],
        )
        show.provenance(judged.provenance(job.run_dir))
        click.echo(f"next: fairlead judge {job.run_dir}; fairlead report {job.run_dir}")
    if any(s["status"] == "failed" for s in states):
        raise FairleadError("a trial failed", got="see the reasons above", do="mend it and run the same command again")


@main.command()
@click.argument("plan")
@other_models
@limit_n
@runs_in
@click.option("--run", "run_dir", type=click.Path(file_okay=False, path_type=Path), help="This run directory.")
@click.option("--amend", metavar="REASON", help="The study changed since it was locked, and why.")
@click.option("--of", type=click.Path(exists=True, path_type=Path), help="The run (or lock file) that is amended, "
              "where the plan changed.")  # fmt: skip
@click.option("--witness", metavar="KIND=REFERENCE", help="Note where the lock's hash was left: git-remote, "
              "opentimestamps or rekor.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A copy of the lock, to publish.")
@as_json
def lock(
    plan: str, models: tuple[str, ...], dictionaries: tuple[str, ...], limit: int | None, runs: Path,
    run_dir: Path | None, amend: str | None, of: Path | None, witness: str | None, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Lock a study before its test split is opened, where `fairlead run` with the same PLAN and options will look.

    \b
    Example: fairlead lock studies/shop.toml
    Example: fairlead lock studies/shop.toml --amend "the prompt pool had a typing error"
    """
    from fairlead.app import lock as verb
    from fairlead.app import run as running

    job = running.prepare(plan, limit=limit, runs=runs, run_dir=run_dir, models=models, dictionaries=dictionaries)
    found = verb.make(job, amend=amend, of=of, witness=witness, out=out)
    if as_json:
        show.json_value({"file": found.file, "new": found.new, **verb.described(found)})
    else:
        show.locked(found)


@main.command()
@run_at
@click.option("--seal", metavar="HASH", help="The seal as you know it from elsewhere.")
@as_json
@click.pass_context
def verify(ctx: click.Context, run_dir: Path, seal: str | None, as_json: bool) -> None:
    """Recompute every number of a run's verdict and page from its Records, and check every file against its hash.
    Exit code 1 when anything differs, with each difference named.

    \b
    Example: fairlead verify runs/demo-1a2b3c4d
    """
    from fairlead.app import verify as verb

    with show.bar(as_json) as bar:
        task = bar.add_task("verify", total=None)
        found = verb.verify(
            run_dir, seal=seal, progress=lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total)
        )  # fmt: skip
    show.json_value(found) if as_json else show.verified(found)
    ctx.exit(1 if found.differences else 0)


@main.command("plan")
@click.argument("plan")
@click.option("--power", "with_power", is_flag=True, help="Simulate what it finds, and how many clusters would do.")
@click.option("--records", type=click.Path(file_okay=False, path_type=Path), help="A pilot run that shows the spread.")
@click.option("--discordance", type=click.FloatRange(0, 1),
              help="Share of pairs that differ.  [default: pilot, or 0.3]")  # fmt: skip
@click.option("--icc", type=click.FloatRange(0, 1), help="Correlation within a cluster.  [default: pilot, or 1]")
@click.option("--worlds", type=click.IntRange(100), default=2000, show_default=True, help="Studies to simulate.")
@limit_n
@as_json
def plan_(
    plan: str, with_power: bool, records: Path | None, discordance: float | None, icc: float | None, worlds: int,
    limit: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Check a PLAN and show what it asks; with --power, what it can find. Runs no model.

    \b
    Example: fairlead plan studies/shop.toml --power
    """
    from fairlead.app import power as verb

    found = verb.read(plan, limit=limit)
    if not with_power:
        told = {"question": found.question, "claim": found.claim, "baselines": list(found.baseline_arms),
                "arms": list(found.run_arms), "clusters": found.n, "seeds": list(found.seeds),
                "plan": found.hash}  # fmt: skip
        if as_json:
            show.json_value(told)
            return
        rows = [[k, ", ".join(map(str, v)) if isinstance(v, list) else str(v)] for k, v in told.items()]
        show.table(["", ""], rows)
        return
    with show.bar(as_json) as bar:
        task = bar.add_task("studies", total=worlds)
        power = verb.execute(found, records=records, discordance=discordance, icc=icc, worlds=worlds,
                             progress=lambda done, _: bar.update(task, completed=done))  # fmt: skip
    show.json_value({**dataclasses.asdict(power), "enough": power.enough}) if as_json else show.power(power)


@main.command()
@click.argument("plan")
@click.option("--model", help="One of the plan's models, or any with --dictionary.  [default: the first]")
@loads_models
@click.option("--dictionary", help="NAME@SITE or PATH[@SITE] instead of the plan's.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many instances of train and of validation.")
@threads
@as_json
def find(
    plan: str, model: str | None, dictionary: str | None, limit: int | None, threads: int, as_json: bool
) -> None:  # fmt: skip
    """Find the features behind a plan's failures: found on train, chosen on validation, shown on cards.

    \b
    Example: fairlead find studies/demo.toml --limit 20
    """
    from fairlead.app import find as verb

    job = verb.prepare(plan, model=model, dictionary=dictionary, limit=limit)
    click.echo(
        f"cost: {len(job.train)} train and {len(job.validation)} validation episodes of {job.model} on the text twin, "
        f"then a search over {job.dictionary}: minutes",
        err=True,
    )
    with show.bar(as_json) as bar:
        task = bar.add_task("episodes", total=len(job.train) + len(job.validation))
        found = verb.execute(
            job, progress=lambda done, _: bar.update(task, completed=done), threads=threads, warn=show.warning
        )
    if as_json:
        show.json_value(found)
        return
    for card in found.about.get("cards", []):
        show.card(card)
    if found.edit:
        click.echo(f'edit: {found.edit}\nnext: fairlead steer "{found.edit}" --model {found.model} '
                   f'--dictionary "{found.dictionary}" --shop validation/promo/0/on')  # fmt: skip
    else:
        click.echo("edit: none; doing nothing was best on validation")


@main.command()
@click.argument("run_dir", metavar="[RUN]", type=click.Path(path_type=Path), required=False)
@click.option("--import", "imported", type=click.Path(path_type=Path), multiple=True, help="Results of others instead: "
              "JSONL, CSV, Parquet, inspect_ai's .eval, lm-eval's samples, or a folder of them.")  # fmt: skip
@click.option("--map", "mapping", default="", help="Their columns: arm=policy,item=task_id,success=success.")
@click.option("--claim", help="The arm that is claimed to be better.  [default: none; the table alone]")
@click.option("--none", help="Their name for the untreated arm.")
@click.option("--rename", multiple=True, metavar="OLD=NEW", help="Give an arm the name it has here, such as "
              "noise=control.noise.")  # fmt: skip
@click.option("--beat", multiple=True, help="An arm that the claim must beat.  [default: the untreated one]")
@click.option("--control", "controls", multiple=True, help="An arm that shows whether the claim's own part is needed.")
@click.option("--primary", help="The deciding measure.  [default: the first of --map]")
@click.option("--smallest-effect", type=click.FloatRange(0, 1), default=0.0, show_default=True,
              help="Below this a difference does not matter.")  # fmt: skip
@click.option("--records", type=click.Path(dir_okay=False, path_type=Path), help="Keep the imported Records here.")
@as_json
def judge(
    run_dir: Path | None, imported: tuple[Path, ...], mapping: str, claim: str | None, none: str | None,
    rename: tuple[str, ...], beat: tuple[str, ...], controls: tuple[str, ...], primary: str | None,
    smallest_effect: float, records: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Judge a run by its own plan: supported, refuted or inconclusive, with every reason. Writes verdict.json.

    With --import, judge what somebody else published by the same code; nothing is written but --records.

    \b
    Example: fairlead judge runs/demo-1a2b3c4d
    Example: fairlead judge --import results.jsonl --map arm=policy,item=task_id,success=success
    """
    from fairlead.app import imported as foreign
    from fairlead.app import report as verb

    if (run_dir is None) == (not imported):
        raise click.UsageError("give a RUN or --import, one of the two")
    if run_dir is None:
        told = foreign.rejudge(imported, mapping, claim=claim, none=none, rename=rename, beat=beat, controls=controls,
                               primary=primary, smallest_effect=smallest_effect)  # fmt: skip
        if records is not None:
            foreign.save(told, records)
        show.json_value(told.to_json()) if as_json else show.rejudged(told, foreign.arms_table(told))
        return
    found, origin = verb.judged(run_dir)
    if as_json:
        show.json_value({**found.to_json(), "provenance": origin})
        return
    show.provenance(origin)
    show.verdict(found)


@main.command()
@run_at
@click.argument("other", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The page.  [default: RUN/report.html]")
@click.option("--csv", is_flag=True, help="Print the headline table as CSV instead.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many instances in the page's replay.")
@as_json
def report(run_dir: Path, other: Path | None, out: Path | None, csv: bool, limit: int | None, as_json: bool) -> None:
    """Write a run's page and print its table; with OTHER, compare two runs.

    \b
    Example: fairlead report runs/demo-1a2b3c4d
    Example: fairlead report runs/demo-1a2b3c4d runs/demo-5e6f7a8b --out compared.html
    """
    from fairlead.app import report as verb

    if other is not None:
        page = verb.comparison_page(run_dir, other, out) if out else None
        if as_json:
            show.json_value(verb.comparison(run_dir, other))
        else:
            show.rich(verb.comparison_table(run_dir, other))
    elif csv:
        click.echo(verb.as_csv(run_dir), nl=False)
        return
    else:
        found, origin = verb.judged(run_dir)
        page = verb.page(run_dir, out, limit=limit)
        if as_json:
            show.json_value({"page": page, "verdict": found.status, **origin, "rows": verb.as_rows(run_dir)})
            return
        show.provenance(origin)
        show.rich(verb.table(run_dir))
    if page is not None:
        click.echo(f"page: {page}", err=as_json)


@main.command()
@limit_n
@runs_in
@as_json
def demo(limit: int | None, runs: Path, as_json: bool) -> None:
    """Run the demo study in a real Chromium, print its table and write its page. Minutes on two cores.

    \b
    Example: fairlead demo --limit 5
    """
    from fairlead.app import demo as verb
    from fairlead.app import report as shown
    from fairlead.app.run import preview

    job = verb.prepare(limit=limit, runs=runs)
    show.preview(preview(job))
    with show.bar(as_json) as bar:
        found = verb.execute(job, progress=show.StudyBar(bar))
    origin = shown.provenance(found.run_dir)
    if as_json:
        show.json_value({"run": found.run_dir, "page": found.page, **origin, "verdict": found.verdict.to_json()})
        return
    show.provenance(origin)
    show.rich(shown.table(found.run_dir))
    click.echo(f"page: {found.page}")


@main.command()
@click.argument("edits")
@click.option("--prompt", help="A user message.")
@click.option("--system", default="", help="A system line for --prompt.")
@click.option("--action", "actions", multiple=True, help="A possible answer to --prompt; may be repeated.")
@click.option("--shop", "item", help="A shop instance instead, such as validation/promo/3/on.")
@model_at
@click.option("--dictionary", multiple=True, help="NAME@SITE or a directory; may be repeated.  [default: the model's]")
@click.option("--vectors", type=click.Path(path_type=Path), help="A safetensors file of stored vectors ($name).")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most this many steps.")
@as_json
def steer(
    edits: str, prompt: str | None, system: str, actions: tuple[str, ...], item: str | None, model: str,
    dictionary: tuple[str, ...], vectors: Path | None, limit: int, as_json: bool,
) -> None:  # fmt: skip
    """Show what EDITS, a line of the edit language, change: default beside steered, and how often each fired.

    \b
    Example: fairlead steer "12 = 0 at last" --shop validation/promo/3/on
    """
    from fairlead.app import steer as verb

    if (prompt is None) == (item is None):
        raise click.UsageError("give --prompt or --shop, one of the two")
    if item is not None:
        found = verb.on_shop(edits, item, model=model, dictionary=dictionary, vectors=vectors, limit=limit)
    else:
        found = verb.on_prompt(
            edits, prompt or "", model=model, dictionary=dictionary, vectors=vectors, system=system, actions=actions
        )
    show.json_value(found) if as_json else show.comparison(found)


@main.command()
@click.argument("cases", type=click.Path(dir_okay=False, path_type=Path))
@model_at
@click.option("--dictionary", help="NAME@SITE or a directory: features are searched in it.  [default: none are]")
@click.option("--effect", type=click.FloatRange(min=0, max=1, min_open=True), default=0.2, show_default=True,
              help="The smallest gain of interest, as a share of cases.")  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="Attempts an arm may make.")
@click.option("--flops", type=click.FloatRange(min=0, min_open=True), help="FLOPs an arm may spend on its fit.")
@click.option("--shares", nargs=3, type=click.FloatRange(min=0), default=(0.3, 0.2, 0.5), show_default=True,
              help="Of train, validation and test, for cases that name no split.")  # fmt: skip
@click.option("--arm", "arms", multiple=True, help="An arm to try; may be repeated.  [default: every cheap one]")
@click.option("--wording", "wordings", multiple=True, help="A system line to try; may be repeated.")
@click.option("--free", is_flag=True, help="Answers are written freely, even where a case has choices.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Of a free answer.")
@click.option("--allow-code", is_flag=True, help="Import and run the Python checks that the cases name.")
@click.option("--seed", type=int, default=0, show_default=True)
@runs_in
@click.option("--dry", is_flag=True, help="Read the cases, measure the bare model, preview the cost; tune nothing.")
@threads
@as_json
def fix(
    cases: Path, model: str, dictionary: str | None, effect: float, trials: int, flops: float | None,
    shares: tuple[float, float, float], arms: tuple[str, ...], wordings: tuple[str, ...], free: bool, max_tokens: int,
    allow_code: bool, seed: int, runs: Path, dry: bool, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Mend a model on your own failures: CASES is a file of prompts with checks, one JSON object a line.

    Measures the model, tunes every cheap way of mending under one budget, judges the best one on cases that nothing
    was tuned on, and says how to serve it. Interrupted, it goes on when run again.

    \b
    Example: fairlead fix cases.jsonl --model pocket/shopper-s --dictionary pocket/shopper-s@resid.1
    """
    from fairlead.app import fix as verb

    settings = verb.Settings(
        file=cases, model=model, dictionary=dictionary, effect=effect, shares=shares, seed=seed, trials=trials,
        flops=flops, max_tokens=max_tokens, free=free, allow_code=allow_code, wordings=wordings, arms=arms, runs=runs,
    )  # fmt: skip
    read = verb.read(settings)
    show.cases(read)
    found = verb.too_few(read)
    if found is None:
        with show.bar(as_json) as bar:
            task = bar.add_task("the model as it is", total=None)
            bare = verb.measure(read, progress=lambda done, of: bar.update(task, completed=done, total=of),
                                threads=threads)  # fmt: skip
        found = verb.nothing(read, bare)
    if found is None:
        job = verb.prepare(read)
        cost = verb.cost(read, job, bare)
        show.fix_cost(cost, bare)
        if dry:
            show.json_value({"bare": bare, "cost": cost} if as_json else "nothing was tuned")
            return
        with show.bar(as_json) as bar:
            found = verb.execute(read, bare, job, progress=show.StudyBar(bar), threads=threads)
    show.json_value(found.to_json()) if as_json else show.fixed(found)


@main.command()
@click.argument("model")
@loads_models
@click.option("--fitted", "arms", multiple=True, type=click.Path(path_type=Path),
              help="RUN/ARM, RUN for its claim, or a folder in RUN/fitted; may be repeated.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than the loopback need FAIRLEAD_API_KEY.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option("--dictionary", "dictionaries", multiple=True,
              help="Whose latents requests may edit; may be repeated, one a site.")  # fmt: skip
@click.option("--rows", type=click.IntRange(1, 1024), default=32, show_default=True, help="Requests in one batch.")
@click.option("--waiting", type=click.IntRange(min=1), default=256, show_default=True,
              help="Requests that may wait; more get 429.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(min=1), default=1024, show_default=True,
              help="New tokens of one answer, at most.")  # fmt: skip
@click.option("--max-strength", type=click.FloatRange(min=0, min_open=True), default=100.0, show_default=True,
              help="Of a request's edit, in multiples of the latent's largest activation.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=300.0, show_default=True,
              metavar="SECONDS", help="For one answer.")  # fmt: skip
@click.option("--log-prompts", is_flag=True, help="Write what is asked to the log; nothing of it otherwise.")
@click.option("--compile", "compiled", is_flag=True,
              help="Decode with one compiled function that holds the edits.")  # fmt: skip
@click.option("--stop-after", type=click.FloatRange(min=0), metavar="SECONDS", help="Stop by itself.")
@threads
@as_json
def serve(
    model: str, arms: tuple[Path, ...], host: str, port: int, dictionaries: tuple[str, ...], stop_after: float | None,
    threads: int, as_json: bool, **limits: Any,
) -> None:  # fmt: skip
    """Serve MODEL, and what a run fitted on it, behind an OpenAI-compatible endpoint until Ctrl-C.

    A fitted arm is a model name that holds its fingerprint, so what was judged is what answers. With --dictionary a
    request may bring edits of its own, in its body: "edits": "812 = 0 at generated". All share one batch.

    \b
    Example: fairlead serve pocket/shopper-s --fitted runs/fix-cases-1a2b3c4d/winner
    Example: fairlead serve pocket/shopper-s --dictionary pocket/shopper-s@resid.1
    """
    from fairlead.app import serve as verb

    models = verb.prepare(model, arms, threads=threads)
    verb.execute(models, host=host, port=port, stop_after=stop_after, settings=verb.settings(**limits),
                 dictionaries=verb.open_dictionaries(dictionaries, models),
                 ready=show.json_value if as_json else show.serving)  # fmt: skip


@main.command("train-dictionary")
@model_at
@click.option("--site", required=True, help="Where to read, such as resid.1.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new directory for the result.")
@click.option("--features", type=click.IntRange(min=2), default=1024, show_default=True, help="Number of latents.")
@click.option("--kind", type=click.Choice(["topk", "batchtopk", "matryoshka", "relu"]), default="batchtopk",
              show_default=True, help="Family.")  # fmt: skip
@click.option("--k", type=click.IntRange(min=1), default=32, show_default=True, help="Latents on, per token.")
@click.option("--steps", type=click.IntRange(min=1), default=2000, show_default=True, help="Training steps.")
@click.option("--batch", type=click.IntRange(min=1), default=1024, show_default=True, help="Activations a step.")
@click.option("--limit", "rows", type=click.IntRange(min=100), default=200_000, show_default=True,
              help="At most this many activations.")  # fmt: skip
@click.option("--texts", type=click.Path(path_type=Path),
              help="Prompts, one a line.  [default: a pocket model's own, else the shop's]")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@threads
@as_json
def train_dictionary(
    model: str, site: str, out: Path, features: int, kind: Any, k: int, steps: int, batch: int, rows: int,
    texts: Path | None, seed: int, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Train a sparse dictionary on a model's activations and save it in the SAELens layout.

    \b
    Example: fairlead train-dictionary --site resid.1 --features 256 --steps 200 --out my-dictionary
    """
    from fairlead.app import train as verb
    from fairlead.app.models import use_threads
    from fairlead.app.train import TrainConfig

    use_threads(threads)
    config = TrainConfig(n_features=features, kind=kind, k=k, steps=steps, batch=batch, seed=seed)
    job = verb.prepare(model, site, config, rows=rows, out=out, texts=texts)
    click.echo(
        f"cost: up to {rows} activations to read, {steps} steps of {batch}: about {job.flops:.1e} FLOPs of training",
        err=True,
    )
    with show.bar(as_json) as bar:
        tasks: dict[str, Any] = {}

        def say(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done)

        found = verb.execute(job, progress=say)
    if as_json:
        show.json_value(found)
        return
    for name, value in found.statistics.items():
        click.echo(f"{name:<24} {value}")
    click.echo(f"saved: {found.path}")


@main.command("check-dictionary")
@click.argument("model")
@click.argument("ref", metavar="DICTIONARY")
@loads_models
@click.option("--texts", type=click.Path(path_type=Path), help="Texts, one a line.  [default: the shop's prompts]")
@click.option("--limit", "tokens", type=click.IntRange(min=2), default=2048, show_default=True,
              help="At most this many tokens.")  # fmt: skip
@threads
@as_json
def check_dictionary(model: str, ref: str, texts: Path | None, tokens: int, threads: int, as_json: bool) -> None:
    """Check that DICTIONARY (PATH@SITE, or a name) fits MODEL: L0 and explained variance on its own tokens
    against published figures, and what a difference may mean.

    \b
    Example: fairlead check-dictionary pocket/shopper-s pocket/shopper-s@resid.1 --limit 500
    """
    from fairlead.app import check as verb
    from fairlead.app.models import use_threads

    use_threads(threads)
    with show.bar(as_json) as bar:
        task = bar.add_task("activations", total=tokens)
        found = verb.execute(model, ref, texts=texts, tokens=tokens,
                             progress=lambda done, total: bar.update(task, completed=done, total=total))  # fmt: skip
    if as_json:
        show.json_value(found)
        return
    click.echo(f"{ref}: {found.n_features} latents at {found.site}, on {found.rows} tokens of {model}")
    for name, label in (("l0", "L0"), ("explained_variance", "explained variance"), ("dead", "silent here")):
        said = found.published.get(name)
        click.echo(f"{label:<20} {getattr(found, name):.3g}" + (f"  (published: {said:g})" if said else ""))
    for warning in found.warnings:
        click.echo(f"warning: {warning}")
    if found.ok:
        click.echo("ok: nothing looks wrong")


@main.command("list")
@click.argument("group", type=click.Choice(GROUPS), required=False)
@click.option("--limit", type=click.IntRange(min=1), help="At most this many of each group.")
@as_json
def list_(group: str | None, limit: int | None, as_json: bool) -> None:
    """List what can be named: tasks, methods, dictionary families, models, dictionaries, studies.

    \b
    Example: fairlead list methods
    """
    from fairlead.app.catalogue import entries

    found = [entry for g in ([group] if group else GROUPS) for entry in entries(g)[:limit]]
    if as_json:
        show.json_value(found)
        return
    show.table(["group", "name", ""], [[e.group, e.name, e.about] for e in found])


@main.command()
@click.option("--model", help="What this model would take, before it is loaded, instead.")
@loads_models
@click.option("--rows", type=click.IntRange(min=1), default=32, show_default=True, help="Prompts a forward.")
@click.option("--tokens", type=click.IntRange(min=1), default=1024, show_default=True, help="Of the longest prompt.")
@as_json
@click.pass_context
def doctor(ctx: click.Context, model: str | None, rows: int, tokens: int, as_json: bool) -> None:
    """Say what this machine has and what it lacks, or with --model whether that model fits into it. Exit code 1 when
    something is missing, or when the model does not fit.

    \b
    Example: fairlead doctor
    Example: fairlead doctor --model pocket/shopper-s --dtype bfloat16
    """
    from fairlead.app.doctor import checks, size

    if model is not None:
        about = size(model, rows=rows, tokens=tokens)
        show.json_value(about) if as_json else show.size(about)
        ctx.exit(1 if about.fits is False else 0)
    found = checks()
    show.json_value(found) if as_json else show.checks(found)
    ctx.exit(0 if all(check.ok for check in found) else 1)


import fairlead.cli_export  # noqa: E402, F401
import fairlead.cli_features  # noqa: E402, F401  (a group of verbs in a file of its own; it uses the options above)
import fairlead.cli_hypothesize  # noqa: E402, F401
import fairlead.cli_live  # noqa: E402, F401
import fairlead.cli_reformulate  # noqa: E402, F401
