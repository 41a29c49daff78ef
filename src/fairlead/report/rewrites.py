"""What arms that rewrite prompts did, from their Records: which words, by what, on which items, fixed and broken.

An item is fixed where the arm is right and the baseline is wrong, broken the other way round; items that either of them
has not answered count as neither. A note that told the answer was discarded when the item was scored: it is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.core.types import Record
from fairlead.report.numbers import MISSING
from fairlead.report.source import BASELINE, Source, read

SHOWN = 12  # items shown with their prompts before and after
Key = tuple[str, str, int, str]  # model, decoding, seed, item


@dataclass(frozen=True)
class Did:
    """One arm on one model. `tokens` a note adds, on average; `of_wrong` and `of_right` are the shares of the items
    that the baseline answers wrongly and rightly that were annotated, with their numbers."""

    model: str
    arm: str
    n: int
    annotated: int
    fixed: int
    broken: int
    leaked: int
    tokens: float | None
    of_wrong: tuple[int, int]
    of_right: tuple[int, int]


@dataclass(frozen=True)
class Word:
    """One thing that the claim found to be misread on a model: the word as it was annotated, what asked for it, and
    what the note said; `held` is the held-out AUROC of its labels (meant, taken), None where there is none."""

    model: str
    span: str
    by: str
    note: str
    n: int
    fixed: int
    broken: int
    held: tuple[float | None, float | None]


@dataclass(frozen=True)
class Shown:
    """One item before and after: the prompt's lines, each with whether the note added it, and the two answers."""

    item: str
    by: str
    before: str
    after: str
    gold: str
    lines: tuple[tuple[str, bool], ...]
    outcome: str  # fixed, broken, right, wrong, leaked


@dataclass(frozen=True)
class Rewrites:
    """The section of the page; `dropped` and `coverage` are what the claim's search says of itself, by model."""

    arms: tuple[Did, ...]
    words: tuple[Word, ...]
    shown: tuple[Shown, ...]
    searches: tuple[tuple[str, Mapping[str, Any]], ...]


def rewrites(source: Source) -> Rewrites | None:
    """None where no Record of the run has a note."""
    records = [r for r in source.records if r.outcome is not None]
    if not any("rewrite" in (r.outcome or {}) for r in records):
        return None
    bare = {_key(r): r for r in records if r.arm == BASELINE}
    return Rewrites(
        tuple(_did(source, model, arm, records, bare) for model in source.models for arm in source.arms
              if arm != BASELINE and any(_note(r) for r in records if (r.model, r.arm) == (model, arm))),
        tuple(w for model in source.models for w in _words(source, model, records, bare)),
        tuple(_shown(source, records, bare)),
        tuple((model, about) for model in source.models for about in [_about(source, model)] if "misreadings" in about),
    )  # fmt: skip


def told(run_dir: Path) -> dict[str, Any] | None:
    """The section of a run, as plain values."""
    found = rewrites(read(run_dir))
    return None if found is None else as_json(found)


def as_json(found: Rewrites) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "arms": [vars(d) for d in found.arms],
        "words": [vars(w) for w in found.words],
        "items": [vars(s) for s in found.shown],
        "searches": [{"model": model, **_short(about)} for model, about in found.searches],
    }  # fmt: skip


def _short(about: Mapping[str, Any]) -> dict[str, Any]:
    return {k: about[k] for k in ("wrong", "right", "latents", "dropped", "coverage", "kept", "tried") if k in about}


def _key(record: Record) -> Key:
    return record.model, record.decoding, record.seed, record.item


def _note(record: Record) -> Mapping[str, Any] | None:
    found = (record.outcome or {}).get("rewrite")
    return found if isinstance(found, Mapping) else None


def _passed(record: Record | None, measure: str) -> bool | None:
    value = None if record is None or record.score is None else record.score.get(measure)
    return None if value is None else bool(value)


def _change(record: Record, bare: Mapping[Key, Record], measure: str) -> str:
    if (record.outcome or {}).get("leaked"):
        return "leaked"
    was, now = _passed(bare.get(_key(record)), measure), _passed(record, measure)
    if was is None or now is None:
        return "not compared"
    return ("right" if was else "fixed") if now else ("broken" if was else "wrong")


def _did(source: Source, model: str, arm: str, records: Sequence[Record], bare: Mapping[Key, Record]) -> Did:
    measure = source.measures[0]
    mine = [r for r in records if (r.model, r.arm) == (model, arm)]
    noted = [r for r in mine if _note(r)]
    changes = Counter(_change(r, bare, measure) for r in noted)
    tokens = [float((_note(r) or {})["tokens"]) for r in noted]
    was = {k: _passed(r, measure) for k, r in bare.items()}
    sides = []
    for right in (False, True):
        here = [r for r in mine if was.get(_key(r)) is right]
        sides.append((sum(_note(r) is not None for r in here), len(here)))
    return Did(
        model, arm, len(mine), len(noted), changes["fixed"], changes["broken"], changes["leaked"],
        sum(tokens) / len(tokens) if tokens else None, sides[0], sides[1],
    )  # fmt: skip


def _about(source: Source, model: str) -> Mapping[str, Any]:
    return next((d for (m, _, arm), d in source.described.items() if (m, arm) == (model, source.claim)), {})


def _words(source: Source, model: str, records: Sequence[Record], bare: Mapping[Key, Record]) -> list[Word]:
    """The claim's words, most annotated first."""
    labels = {_by(m): m.get("labels", {}) for m in _about(source, model).get("misreadings", ())}
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        note = _note(record)
        if note and (record.model, record.arm) == (model, source.claim):
            groups.setdefault((str(note["span"]), str(note["by"]), str(note["note"])), []).append(record)
    found = []
    for (span, by, note_text), group in sorted(groups.items(), key=lambda g: -len(g[1])):
        changes = Counter(_change(r, bare, source.measures[0]) for r in group)
        held = tuple(_auroc(labels.get(by, {}).get(side)) for side in ("meant", "taken"))
        found.append(
            Word(model, span, by, note_text, len(group), changes["fixed"], changes["broken"], (held[0], held[1]))
        )
    return found


def _by(misreading: Mapping[str, Any]) -> str:
    """How a note names what asked for it."""
    trigger = misreading["trigger"]
    beside, on = trigger.get("beside"), misreading.get("word")
    return (f"latent {trigger['at']['latent']}" + ("" if beside is None else f" beside {beside['latent']}")
            + (f" on {on}" if on else ""))  # fmt: skip


def _auroc(label: Any) -> float | None:
    held = label.get("held") if isinstance(label, Mapping) else None
    return None if not isinstance(held, Mapping) else float(held["auroc"])


def _shown(source: Source, records: Sequence[Record], bare: Mapping[Key, Record]) -> list[Shown]:
    """Annotated items of the claim whose prompt was kept as a trace: fixed, broken and unchanged by turns, one word
    after another."""
    kinds: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        note = _note(record)
        if note and record.arm == source.claim and record.trace:
            kind = _change(record, bare, source.measures[0])
            kinds.setdefault(kind, {}).setdefault(str(note["span"]), []).append(record)
    queues = [_by_turns(list(kinds[k].values())) for k in ("fixed", "broken", "wrong", "leaked", "right") if k in kinds]
    found = []
    for record in _by_turns(queues):
        shown = _one(source, record, _change(record, bare, source.measures[0]))
        if shown is not None:
            found.append(shown)
        if len(found) == SHOWN:
            break
    return found


def _by_turns(groups: Sequence[Sequence[Record]]) -> list[Record]:
    longest = max((len(g) for g in groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]


def _one(source: Source, record: Record, outcome: str) -> Shown | None:
    assert record.trace is not None
    note, trace, data = _note(record) or {}, source.trace(record.trace), record.outcome or {}
    steps = (trace or {}).get("steps") or ()
    text = next((str(s["observation"]) for s in steps if isinstance(s, Mapping) and s.get("observation")), None)
    if text is None:
        return None
    lines, done = [], False
    for line in text.split("\n"):
        lines.append((line, False))
        if not done and _has_word(line, str(note["span"])):
            lines.append((str(note["note"]), True))
            done = True
    before, after = data.get("plain"), data.get("found")
    return Shown(
        record.item, str(note["by"]), _said(before), _said(after), _said(data.get("answer")), tuple(lines), outcome
    )


def _said(value: Any) -> str:
    return MISSING if value is None else str(value)


def _has_word(line: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", line) is not None
