"""Traces packed for the page: a capped sample of items, all of their episodes, gzip in base64 inside the HTML."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.core.types import Record
from fairlead.report.headline import kind_of
from fairlead.report.source import BASELINE, Source

MAX_ITEMS = 36
MAX_BYTES = 6_000_000
TRAPS = ("on", "inverse", "off")


@dataclass(frozen=True)
class Replay:
    """`index` is small JSON that the page reads at once; `blobs[i]` holds the steps of index["items"][i]."""

    index: Mapping[str, Any]
    blobs: tuple[str, ...]
    available: int
    missing: int

    @property
    def shown(self) -> int:
        return len(self.blobs)


def pack(source: Source, *, max_items: int = MAX_ITEMS, max_bytes: int = MAX_BYTES) -> Replay:
    """Choose items, load their traces, and pack them until a cap is met."""
    by_item: dict[str, list[Record]] = defaultdict(list)
    for record in source.records:
        if record.trace is not None:
            by_item[record.item].append(record)
    primary = source.measures[0]
    items: list[dict[str, Any]] = []
    blobs, used, missing = [], 0, 0
    for item in choose(by_item, primary, source.claim):
        if len(items) >= max_items or used >= max_bytes:
            break
        episodes, steps = [], []
        pages = Texts()
        for record in ordered(by_item[item], source.arms):
            trace = source.trace(record.trace or "")
            if trace is None:
                missing += 1
                continue
            episodes.append(summary(record))
            steps.append([step_of(step, pages) for step in trace.get("steps", ())])
            episodes[-1]["final"] = trace.get("final")
        if not episodes:
            continue
        blob = _squeeze({"texts": pages.rows, "episodes": steps})
        used += len(blob)
        first = by_item[item][0]
        items.append({"id": item, **{k: first.strata.get(k) for k in ("category", "trap")}, "episodes": episodes,
                      "why": why(by_item[item], primary, source.claim)})  # fmt: skip
        blobs.append(blob)
    about = {"run": source.run_id, "primary": primary, "measures": list(source.measures), "claim": source.claim}
    return Replay({**about, "items": items}, tuple(blobs), len(by_item), missing)


def choose(by_item: Mapping[str, Sequence[Record]], primary: str, claim: str) -> list[str]:
    """Items in the order in which they deserve a place: where `none` and the claim part first, then the rest;
    inside each, categories and trap kinds take turns, so that no one of them fills the page."""
    bins: dict[tuple[int, int, str], list[str]] = defaultdict(list)
    for item, records in by_item.items():
        rank = {"fixed": 0, "broke": 0}.get(why(records, primary, claim), 1)
        strata = records[0].strata
        trap = strata.get("trap", "on")
        bins[(rank, TRAPS.index(trap) if trap in TRAPS else len(TRAPS), strata.get("category", ""))].append(item)
    out: list[str] = []
    for rank in (0, 1):
        queues = [sorted(bins[key], key=_natural) for key in sorted(bins) if key[0] == rank]
        while any(queues):
            out += [queue.pop(0) for queue in queues if queue]
    return out


def why(records: Sequence[Record], primary: str, claim: str) -> str:
    """How the claimed arm changed the primary measure on this item: fixed, broke or same."""
    marks: dict[str, Any] = {}
    for record in sorted(records, key=lambda r: (r.decoding, r.model)):
        if record.score is not None and record.arm in (BASELINE, claim):
            marks.setdefault(record.arm, record.score.get(primary))
    before, after = marks.get(BASELINE), marks.get(claim)
    if before is None or after is None or before == after:
        return "same"
    return "fixed" if after else "broke"


def _natural(item: str) -> tuple[object, ...]:
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in item.split("/"))


def ordered(records: Sequence[Record], arms: Sequence[str]) -> list[Record]:
    order = list(arms)
    kinds = ("headline", "control", "reference")
    return sorted(records, key=lambda r: (r.decoding, kinds.index(kind_of(r.arm)), r.model,
                                          order.index(r.arm) if r.arm in order else len(order), r.seed))  # fmt: skip


class Texts:
    """Distinct long texts of one item; most pages repeat between arms until they part."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self._where: dict[str, int] = {}

    def add(self, text: str | None) -> int | None:
        if text is None:
            return None
        if text not in self._where:
            self._where[text] = len(self.rows)
            self.rows.append(text)
        return self._where[text]


def summary(record: Record) -> dict[str, Any]:
    where = {"arm": record.arm, "model": record.model, "decoding": record.decoding}
    return {"id": "|".join((*where.values(), str(record.seed))), **where, "score": record.score, "error": record.error}


def step_of(step: Mapping[str, Any], texts: Texts) -> dict[str, Any]:
    kept = {k: step.get(k) for k in ("i", "url", "action", "error", "funnel", "edits", "right", "trap", "cart")}
    legal, logprobs = step.get("legal"), step.get("logprobs")
    shares = softmax(logprobs) if legal and logprobs and len(legal) == len(logprobs) else None
    return {**kept, "html": texts.add(step.get("html")), "text": texts.add(step.get("observation")),
            "system": texts.add(step.get("system")), "legal": legal if shares else None,
            "p": [round(x, 5) for x in shares] if shares else None}  # fmt: skip


def softmax(logprobs: Sequence[float]) -> list[float]:
    """The distribution over the legal actions: their log-probabilities, normalised over them alone."""
    top = max(logprobs)
    weights = [math.exp(x - top) for x in logprobs]
    total = sum(weights)
    return [w / total for w in weights]


def _squeeze(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "surrogatepass"), 9, mtime=0)).decode()
