"""How the results of `fairlead features` look in a terminal."""

from __future__ import annotations

from typing import Any

import click

from fairlead.app.show import table


def harvested(found: Any) -> None:
    """What a store holds."""
    click.echo(
        f"{found.tokens} tokens of {found.sequences} texts; {found.alive} of {found.n_features} latents fire, "
        f"{found.l0:.1f} a token; {found.bytes / 1e6:.1f} MB"
    )
    if found.cut:
        click.echo(f"{found.cut} texts reach the length that is read (--max-tokens); what comes behind it was left out")
    click.echo(f"next: fairlead features show {found.path} LATENT; fairlead features label {found.path}")


def latent(found: dict[str, Any]) -> None:
    """One latent's page."""
    label = found["label"]
    click.echo(f"latent {found['latent']} of {found['dictionary']} at {found['site']}")
    if label is not None:
        click.echo(f"  label: {_said(label)}")
    click.echo(
        f"  fires on {found['tokens']} tokens ({100 * found['density']:.3g} %) in {found['windows']} windows; "
        f"mean {found['mean']:.3g}, largest {found['largest']:.3g}"
    )
    for window in found["top"]:
        words = [f"[[{t}]]" if i == window["highlight"] else t for i, t in enumerate(window["tokens"])]
        click.echo(f"  {window['value']:8.3f}  {' '.join(''.join(words).split())}")
    for name, says in (("partners", "fires with"), ("neighbours", "decoder near")):
        if found[name]:
            click.echo(f"  {says}: " + ", ".join(f"{i} ({v:.2f})" for i, v in found[name]))
    if found["output"] is not None:
        scores = found["output"]
        click.echo(
            f"  output score {scores['score']:.3f} (chance {scores['chance']:.3f}), "
            f"Δ token confidence {scores['confidence']:.3f}"
        )


def labelled(found: Any) -> None:
    """Labels, and how many hold."""
    table(["latent", "held-out AUROC", "windows", "by", "label"], [_row(label) for label in found.labels])
    c = found.coverage
    click.echo(
        f"{c['labelled']} of {c['latents']} latents have a label that holds (AUROC at least {c['threshold']:g} on "
        f"held-out windows), {c['below']} one that does not, {c['none']} too few windows"
    )
    click.echo(f"saved: {found.path}")


def screened(found: Any) -> None:
    """The latents that write most."""
    names = ("score", "chance", "confidence", "rank", "probability")
    rows = [[str(row["latent"]), *(f"{row[n]:.3f}" if n != "rank" else f"{row[n]:.0f}" for n in names)]
            for row in found.best]  # fmt: skip
    table(["latent", "output score", "chance", "Δ confidence", "rank", "probability"], rows)
    mean, chance = f"{found.mean_score:.4f}", f"{found.mean_chance:.4f}"
    click.echo(f"{found.latents} latents; mean output score {mean}, with another latent's tokens {chance}")
    click.echo(f"saved: {found.path}")


def _row(label: dict[str, Any]) -> list[str]:
    held = label["held"]
    if held is None:
        return [str(label["latent"]), "", "", "", "too few windows"]
    score = f"{held['auroc']:.2f} [{held['low']:.2f}, {held['high']:.2f}]"
    windows = f"{held['positives']} + {held['negatives']}"
    return [str(label["latent"]), score, windows, label["kind"], label["text"]]


def _said(label: dict[str, Any]) -> str:
    held = label["held"]
    if held is None:
        return "none: too few windows"
    return f"{label['text']} (held-out AUROC {held['auroc']:.2f} [{held['low']:.2f}, {held['high']:.2f}])"
