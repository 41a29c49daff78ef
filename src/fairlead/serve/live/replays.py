"""The traces of one item, in the shape that the report's replay draws; pages go out as names to be framed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fairlead.core.errors import RecordError
from fairlead.core.records import Run
from fairlead.report.replay import Texts, ordered, step_of, summary, why
from fairlead.report.source import BASELINE, FUNNEL, MEASURES
from fairlead.serve.live.pages import Pages
from fairlead.serve.live.tail import Tail


def index(tail: Tail) -> dict[str, Any]:
    """What can be replayed: every item with a trace, and how the claim changed it. Episodes come with the item."""
    by_item: dict[str, list[Any]] = {}
    for file in tail.files:
        for record in file.records:
            if record.trace is not None:
                by_item.setdefault(record.item, []).append(record)
    scored = {name for records in by_item.values() for r in records if r.score for name in r.score}
    measures = [n for n in MEASURES if n in scored] + sorted(scored.difference((*MEASURES, *FUNNEL)))
    items = [
        {"id": item, **{k: records[0].strata.get(k) for k in ("category", "trap")},
         "why": why(records, tail.primary, tail.claim), "episodes": []}
        for item, records in by_item.items()
    ]  # fmt: skip
    first = [tail.primary, *(m for m in measures if m != tail.primary)]
    return {"run": tail.path.resolve().name, "primary": tail.primary, "measures": first, "claim": tail.claim,
            "baseline": BASELINE, "items": items}  # fmt: skip


def replay(tail: Tail, item: str, pages: Pages) -> dict[str, Any] | None:
    """The episodes of an item: {about, texts, episodes}. None where none can be read."""
    run = Run(tail.path, None, (), (), {}, {})
    records = [r for f in tail.files for r in f.records if r.item == item and r.trace is not None]
    texts, about, episodes, missing = Texts(), [], [], 0
    for record in ordered(records, tail.plan.arms if tail.plan else ()):
        trace = _trace(run, record.trace or "")
        if trace is None:
            missing += 1
            continue
        steps = [step for step in trace.get("steps", ()) if isinstance(step, Mapping)]
        about.append({**summary(record), "final": trace.get("final")})
        episodes.append([_framed(step, texts, pages) for step in steps])
    return {"about": about, "texts": texts.rows, "episodes": episodes, "missing": missing} if about else None


def _framed(step: Mapping[str, Any], texts: Texts, pages: Pages) -> dict[str, Any]:
    html = step.get("html")
    name = pages.keep(html) if isinstance(html, str) else None
    return step_of({**step, "html": name}, texts)


def _trace(run: Run, digest: str) -> Mapping[str, Any] | None:
    if re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        return None  # an address is a hash, and never a path
    try:
        found = run.read_trace(digest)
    except (RecordError, ValueError, RecursionError):
        return None
    return found if isinstance(found, Mapping) else None
