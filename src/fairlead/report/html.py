"""One self-contained HTML page per run: no request leaves it, no script but its own runs in it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fairlead import __version__
from fairlead.report import describe, numbers, svg
from fairlead.report.fight import counted, fights
from fairlead.report.headline import Table, heat, organism, tables
from fairlead.report.replay import MAX_ITEMS, Replay, pack
from fairlead.report.rewrites import rewrites
from fairlead.report.source import BASELINE, Source, read

# What a document may do. Scripts are named by hash, so a page text that escaped its quotes would still not run.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "script-src {hashes}"
)
SCRIPTS = ("heat.js", "step.js", "replay.js", "page.js")


def render(run_dir: Path, out: Path | None = None, *, max_items: int = MAX_ITEMS) -> Path:
    """Write `run_dir/report.html` (or `out`) and return its path. Raises RecordError when there is nothing to read."""
    path = Path(out) if out is not None else Path(run_dir) / "report.html"
    path.write_text(page(read(Path(run_dir)), max_items=max_items), encoding="utf-8", errors="replace")
    return path


def page(source: Source, *, max_items: int = MAX_ITEMS) -> str:
    """The page as text."""
    replay = pack(source, max_items=max_items)
    found = tables(source)
    return environment().get_template("page.html.j2").render(
        source=source, plan=source.plan, verdict=source.verdict if source.plan else None,
        verdict_where=source.verdict.question.where, deciding=source.verdict.question.decoding,
        tables=found, measures=source.measures, models=source.models,
        lead=lead(found, source), facts=describe.facts(source), heat=embed(heat(source)),
        described=describe.sections(source), replay=replay, replay_index=embed(replay.index),
        ledger=describe.ledger(source), budget=describe.budget(source), definitions=describe.DEFINITIONS,
        commands=describe.commands(source), hashes=describe.hashes(source), plan_text=describe.plan_text(source),
        origin=source.run.provenance, made_of=f"{max_items} {source.run_id}",
        fights=fights(source), rubric=source.verdict.rubric, rubric_counts=counted(source.verdict),
        coverage=source.verdict.coverage, sequential=source.verdict.sequential, rewrites=rewrites(source),
        **assets(),
    )  # fmt: skip


def rendered_as(text: str) -> tuple[str, int] | None:
    """What a page was made with: the run's name and the instances in its replay; None when it does not say."""
    found = re.search(r'<meta name="fairlead-page" content="(\d{1,9}) ([^"]*)">', text)
    return (html.unescape(found[2]), int(found[1])) if found else None


def lead(found: tuple[Table, ...], source: Source) -> list[dict[str, Any]]:
    """The sentence that a reader came for, one per model in the first decoding mode."""
    out = []
    for table in found:
        base, row = table.row(BASELINE), table.row(source.claim)
        if table.decoding != source.decodings[0] or base is None or row is None:
            continue
        if row.delta.value is not None:
            out.append({"table": table, "base": base, "row": row})
    return out


def embed(value: Any) -> Markup:
    """JSON that is safe inside a script element: ASCII only (so no U+2028), and no character that HTML reads."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704 - escaped on the lines above


def assets(scripts: tuple[str, ...] = SCRIPTS) -> dict[str, Any]:
    """Style, scripts and the policy that admits exactly these scripts."""
    folder = resources.files("fairlead.report") / "templates"
    texts = [(folder / name).read_text(encoding="utf-8") for name in scripts]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return {
        "style": Markup((folder / "style.css").read_text(encoding="utf-8")),
        "scripts": [Markup(text) for text in texts],
        "policy": POLICY.format(hashes=" ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"),
        "version": __version__,
    }


def environment() -> Environment:
    """Templates with escaping on for everything that is not marked safe here."""
    env = Environment(
        loader=PackageLoader("fairlead.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    for name in ("percent", "points", "span", "points_span", "p_value", "signed", "quantity", "seconds"):
        env.filters[name] = getattr(numbers, name)
    env.globals.update(svg=svg, organism=organism, baseline=BASELINE, missing=numbers.MISSING)
    return env


__all__ = ["Replay", "assets", "embed", "lead", "page", "render"]
