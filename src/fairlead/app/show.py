"""How results look in a terminal. Results go to stdout, all else to stderr."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

WIDE = 200
DIFFERENCES = 30  # that `verify` prints in a terminal
REPEATS = 5  # lines of a case file that `fix` names as left out


def json_value(value: Any) -> None:
    """Any result as one JSON value on stdout; NaN is refused."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Plain columns; brackets in a cell are text, not markup."""
    grid = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    rich(grid)


def rich(value: Any) -> None:
    """Anything rich can draw. A file or a pipe has no width, so that nothing is cut there."""
    console = Console(markup=False, highlight=False)
    console.print(value) if console.is_terminal else Console(markup=False, highlight=False, width=WIDE).print(value)


@contextmanager
def bar(quiet: bool) -> Iterator[Progress]:
    """A progress bar on stderr, gone when the work is done."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as drawn:
        yield drawn


class StudyBar:
    """A study's progress as two bars: trials done, and items of the trial at work."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.trials: TaskID = bar.add_task("trials", total=None)
        self.items: TaskID = bar.add_task("", total=None)

    def __call__(self, at: Any) -> None:
        name = f"{at.trial.arm} on {at.trial.model}, {at.trial.decoding}"
        ended = at.phase in ("done", "failed", "over_budget", "not_applicable", "given_up")
        self.bar.update(self.trials, total=at.trials, completed=at.index + ended)
        self.bar.update(self.items, description=f"{at.phase} {name}", total=at.total or None, completed=at.done)
        said = f"{at.phase.replace('_', ' ')}  {name}" + (f": {at.message}" if at.message else "")
        if ended and (at.message or not self.bar.console.is_terminal):  # a log has no bar: one line a trial
            click.echo(f"{at.index + 1}/{at.trials}  {said}", err=True)


def warning(line: str) -> None:
    """Something to look at, on stderr."""
    click.echo(f"warning: {line}", err=True)


def preview(cost: Any) -> None:
    """What a run will cost, before it does."""
    click.echo(cost.question, err=True)
    where = "Chromium" if cost.in_browser else "the text twin"
    flops = "" if cost.flops is None else f", about {cost.flops:.1e} FLOPs"
    left = f", {cost.done} already recorded" if cost.done else ""
    tuning = "" if cost.tuning_trials is None else f"; fitting: at most {cost.tuning_trials} attempts an arm"
    click.echo(
        f"cost: {cost.trials} trials, {cost.episodes} episodes in {where}{left}; about {cost.steps} steps{flops}, "
        f"{cost.minutes:.0f} min{tuning}",
        err=True,
    )
    for note in cost.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"run:  {cost.run_dir}", err=True)


def provenance(found: Any) -> None:
    """Where Records come from; EXPLORATORY stands first wherever it holds."""
    if found["exploratory"]:
        click.echo("EXPLORATORY: not made under a lock; nothing here was registered before the test split was opened")
    else:
        click.echo(f"lock: {found['lock'][:16]}, witness: {found['witness']} (recorded, not verified)"
                   if found["witness"] != "none" else f"lock: {found['lock'][:16]}, witness: none")  # fmt: skip
    for deviation in found["deviations"] if found["lock"] else []:
        click.echo(f"deviation: {deviation}")


def verdict(found: Any) -> None:
    """A verdict with its reasons, checks and warnings."""
    click.echo(f"verdict: {found.status}")
    for reason in found.reasons:
        click.echo(f"  {reason}")
    for check in found.checks:
        click.echo(f"  {check.result:<13} {check.name}: {check.detail}")
    click.echo(found.claim_sentence)
    for row in found.rubric:
        click.echo(f"  {row.result:<13} {row.name.replace('_', ' ')}: {row.reason}")
    for warning in found.warnings:
        click.echo(f"  warning: {warning}")


def locked(found: Any) -> None:
    """A lock: its hash, what it covers, and what it says about itself."""
    current = found.locks.current
    covers = current.content
    click.echo(f"lock: {current.hash}{'' if found.new else ' (as it was)'}\nfile: {found.file}")
    facts = covers["facts"]
    words = [f"{len(facts[name])} {name}" for name in ("manifests", "weights", "dictionaries", "sources")]
    commit = covers["code"]["commit"]
    click.echo(f"  covers the plan, {', '.join(words)}, the judge's source, "
               f"{'commit ' + commit[:12] if commit else 'the installed source (no git here)'}")  # fmt: skip
    click.echo(f"  witness: {found.locks.witness}" + (" (recorded, not verified)" if found.locks.witnesses else ""))
    for sentence in found.locks.amendments():
        click.echo(f"  {sentence}")


def verified(found: Any) -> None:
    """What was checked, what could not be, and what differs."""
    for name, count in found.checked.items():
        click.echo(f"ok        {name}: {count}")
    for note in found.notes:
        click.echo(f"note      {note}")
    for one in found.differences[:DIFFERENCES]:
        click.echo(f"DIFFERS   {one.where}: expected {one.expected}, found {one.found}")
    if len(found.differences) > DIFFERENCES:
        click.echo(f"DIFFERS   {len(found.differences) - DIFFERENCES} more places; --json lists them all")
    click.echo(f"seal: {found.seal}")
    many = f"{len(found.differences)} difference{'s' if len(found.differences) != 1 else ''}"
    click.echo(many if found.differences else "verified: nothing differs")


def power(found: Any) -> None:
    """What a plan can find."""
    effect, wanted = 100 * found.effect, 100 * found.wanted
    click.echo(found.question)
    click.echo(
        f"{found.clusters} clusters of {found.pairs_per_cluster} pairs; {100 * found.discordance:.0f} % of pairs "
        f"differ, ICC {found.icc:.2f} ({found.source})"
    )
    click.echo(
        f"an effect of {effect:g} points is found in {100 * found.simulated:.1f} % of {found.worlds} simulated studies "
        f"(formula {100 * found.power:.1f} %), corrected for {found.comparisons} comparisons"
    )
    least = "no effect at all" if found.detectable is None else f"{100 * found.detectable:.1f} points"
    click.echo(f"detectable at {wanted:g} % power: {least}")
    if found.clusters_needed is None:
        click.echo("no number of clusters up to a million would do")
    else:
        said = "enough" if found.enough else "too few"
        click.echo(f"clusters needed: {found.clusters_needed}; the plan has {found.clusters}: {said}")


def rejudged(found: Any, lines: list[list[str]]) -> None:
    """Foreign results: every arm, and the verdict where a claim was named."""
    click.echo(f"{len(found.records)} Records, imported: nothing was locked here")
    columns = ["arm", "model", "measure", "rate", "n", "Wilson 95 %", "clustered 95 %", "clusters", ""]
    table(columns, lines)
    if found.verdict is not None:
        verdict(found.verdict)


def card(card: dict[str, Any]) -> None:
    """A feature card in a few lines."""

    def number(name: str) -> str:
        return "not measured" if card.get(name) is None else f"{card[name]:.3g}"

    click.echo(f"latent {card['index']} at {card['site']}: {card.get('label') or 'no label'}")
    click.echo(f"  density {number('density')}, largest {number('max_activation')}, effect {number('effect')}")
    for context in card.get("top_contexts", [])[:3]:
        words = [f"[[{t}]]" if i == context["highlight"] else t for i, t in enumerate(context["tokens"])]
        click.echo(f"  {context['value']:8.3f}  {' '.join(''.join(words).split())}")


def comparison(found: Any) -> None:
    """`steer`: each decision point, default beside steered, and whether each edit fired."""
    click.echo(f"{found.model}   {found.edits}   {found.fingerprint[:12]}")
    for step in found.steps:
        same = "  (the same)" if step.default == step.steered else ""
        click.echo(f"\nstep {step.step}  {step.where}\n  default  {step.default}\n  steered  {step.steered}{same}")
        if step.options:
            rows = [[f"  {o.action}", f"{o.default:.3f}", f"{o.steered:.3f}", o.label] for o in step.options]
            table(["  action", "default", "steered", ""], rows)
        for edit in step.edits:
            before, after = (("not measured" if x is None else f"{x:.3f}") for x in (edit.before, edit.after))
            did = f"fired on {edit.fired} of {edit.seen} tokens" if edit.fired else f"DID NOT FIRE ({edit.seen} tokens)"
            click.echo(f"  {edit.edit}: {did}; activation {before} -> {after}")


def size(found: Any) -> None:
    """The doctor's word on one model."""
    about = found.about
    used = f"{about.active_parameters / 1e9:.3g} billion of them multiplied with each token"
    fits = {True: "yes", False: "no: fewer rows, another dtype, --quantize or another device", None: "unknown"}
    said = {
        "model": f"{found.model}: {about.architecture}, {about.n_layers} layers, width {about.d_model}",
        "parameters": f"{about.parameters / 1e9:.3g} billion, {used}",
        "weights": f"{about.weights / 1e9:.3g} GB in {about.quantize or about.dtype}",
        "cache": f"{about.cache / 1e9:.3g} GB for {about.rows} prompts of {about.tokens} tokens",
        "activations": f"up to {about.activations / 1e9:.3g} GB in one scoring forward of those (estimated)",
        "free": "unknown" if about.free is None else f"{about.free / 1e9:.3g} GB on {about.device}",
        "FLOPs a token": f"{about.flops_per_token:.3g}, attention left out",
        "fits": fits[found.fits],
    }
    for name, text in said.items():
        click.echo(f"{name:<16} {text}")


def checks(found: Sequence[Any]) -> None:
    """The doctor's report."""
    for check in found:
        click.echo(f"{'ok     ' if check.ok else 'MISSING'}  {check.name:<22} {check.found}")
        if check.do:
            click.echo(f"{'':9}do: {check.do}")


def cases(found: Any) -> None:
    """`fix`: what the file holds."""
    sizes = ", ".join(f"{found.items[name]} {name}" for name in found.items)
    click.echo(f"cases: {sizes} (in {', '.join(str(n) for n in found.clusters.values())} clusters)", err=True)
    for kept, left in found.task.repeats[:REPEATS]:
        click.echo(f"  line {left} repeats line {kept}: left out", err=True)
    if len(found.task.repeats) > REPEATS:
        click.echo(f"  and {len(found.task.repeats) - REPEATS} more; --json names each", err=True)
    if not found.short and found.needed is not None and found.clusters["test"] < found.needed:
        effect = f"{100 * found.settings.effect:g} points"
        click.echo(f"  {found.clusters['test']} test clusters may miss a gain of {effect}; {found.needed} find it "
                   "with 80 % power", err=True)  # fmt: skip


def fix_cost(cost: Any, bare: Any) -> None:
    """`fix`: the bare model, and what tuning will cost, before it does."""
    fails = f"{bare.failed} of {bare.n} cases fail, 95 % [{100 * bare.low:.0f}, {100 * bare.high:.0f}] %"
    click.echo(f"the model as it is: {fails} (train and validation)", err=True)
    click.echo(
        f"cost: {len(cost.arms)} arms, each at most {cost.tuning_trials} attempts and {cost.flops:.1e} FLOPs, then "
        f"{cost.test} test cases: at most {cost.minutes:.0f} min\n"
        f"run:  {cost.run_dir}\narms: {', '.join(cost.arms)}",
        err=True,
    )


def fixed(found: Any) -> None:
    """`fix`: the table, the verdict, and the command that serves the winner."""
    if found.run is not None:
        from fairlead.app import report

        rich(report.table(Path(found.run)))
    for line in found.said:
        click.echo(line)
    if found.exploratory:
        click.echo(f"EXPLORATORY: {found.exploratory}")
    if found.serve:
        click.echo(f"serve: {found.serve}")
    if found.run is not None:
        click.echo(f"more:  fairlead report {found.run}")


def serving(up: Any) -> None:
    """`serve`: where, what, and for how long."""
    until = "until Ctrl-C" if up.stops_after is None else f"for {up.stops_after:g} s"
    click.echo(f"serving {up.url}/v1 {until}")
    for name in up.models:
        click.echo(f"  {name}")
