"""A subject that annotates its prompts: what fires decides which word, and a note behind its line says what it means.

A prompt on which nothing fires is passed on byte for byte. An annotated one is also answered as it was, so that every
note carries its own counterfactual. Both forwards, and the one that reads the latents, are charged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fairlead import steering
from fairlead.core.keys import content_key
from fairlead.core.types import Generation, Messages, Rewrite
from fairlead.features.harvest import read_at
from fairlead.features.misread.naming import Gloss
from fairlead.features.misread.spans import Word, noted, words_of
from fairlead.features.misread.triggers import Condition, Trigger
from fairlead.methods._saved import read_json, write_json
from fairlead.methods._steered import load_rows, read_tensors, rows_json, save_rows, write_tensors
from fairlead.methods._world import Answer, Ask, World, together
from fairlead.methods.probe_gated import Watch
from fairlead.steering import Edit

GENERIC = "Note: read this with care, word by word, and then answer only the question that is asked here."
PATCHED = "(nothing is said: the senses are patched in at the word)"  # no number stands here: it could be an answer
ANSWER_ROOM = 32  # tokens of the context that are kept for the answer


@dataclass(frozen=True)
class Entry:
    """One misreading: when it is annotated (`word` in lower case, or "" for any), what the note says, and what is
    patched in instead in the style "edit"."""

    trigger: Trigger
    gloss: Gloss
    edits: tuple[Edit, ...] = ()
    word: str = ""

    @property
    def by(self) -> str:
        first, second = self.trigger.at, self.trigger.beside
        on = f" on {self.word}" if self.word else ""
        return f"latent {first.latent}" + ("" if second is None else f" beside {second.latent}") + on


    def is_at(self, word: Mapping[int, Word]) -> bool:
        """Whether the trigger's first latent sits on the entry's word."""
        return not self.word or word[self.trigger.at.latent].text.lower() == self.word


@dataclass(frozen=True)
class Hit:
    """An entry that fires on a prompt, and at which word."""

    entry: Entry
    word: Word


@dataclass(frozen=True, eq=False)
class Noted:
    """The first entry that fires annotates a prompt. With `watch`, a linear probe decides whether, and of the entries
    whose first latent fires the strongest says where and what. `rows` holds the latents; `cap` bounds a note's
    tokens."""

    entries: tuple[Entry, ...]
    rows: Any = None
    style: str = "gloss"
    cap: int = 48
    watch: Watch | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        rows = None if self.rows is None else self.rows.fingerprint
        watch = None if self.watch is None else self.watch.fingerprint
        return content_key(["reformulate", [_entry_json(e) for e in self.entries], rows, self.style, self.cap, watch])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        return nullcontext(annotating(subject, self.fingerprint, self.find, self) if self.entries else subject)

    def find(self, subject: Any, asks: Sequence[Ask]) -> list[Hit | None]:
        """What is annotated in each prompt: one forward over all of them, up to the dictionary's site."""
        prompts = [ask.prompt for ask in asks]
        latents = list(dict.fromkeys(i for e in self.entries for i in e.trigger.latents))
        steps = [ask.step for ask in asks]
        read = subject.activations(prompts, [read_at(self.rows)], "all", steps)[read_at(self.rows)]
        open_ = None if self.watch is None else self.watch.readings(subject, prompts, steps) > self.watch.threshold
        found: list[Hit | None] = []
        for i, (prompt, x) in enumerate(zip(prompts, read, strict=True)):
            words = words_of(subject, prompt)
            if not len(words.tokens):
                found.append(None)
                continue
            with torch.inference_mode():
                z = self.rows.encode_rows(x[torch.from_numpy(words.tokens).to(x.device)].float(), latents)
            values, places = (t.cpu().numpy() for t in z.max(0))
            peak = dict(zip(latents, values.tolist(), strict=True))
            at = dict(zip(latents, words.tokens[places].tolist(), strict=True))
            word = {j: words.at(token) for j, token in at.items()}
            if open_ is None:
                entry = self._fires(peak, word)
            else:
                entry = self._strongest(peak, word) if bool(open_[i]) else None
            found.append(None if entry is None else Hit(entry, word[entry.trigger.at.latent]))
        return found

    def _fires(self, peak: Mapping[int, float], word: Mapping[int, Word]) -> Entry | None:
        for entry in self.entries:
            conditions = [entry.trigger.at, *([entry.trigger.beside] if entry.trigger.beside else [])]
            if all(peak[c.latent] > c.above for c in conditions) and entry.is_at(word):
                return entry
        return None

    def _strongest(self, peak: Mapping[int, float], word: Mapping[int, Word]) -> Entry | None:
        fires = [e for e in self.entries if peak[e.trigger.at.latent] > e.trigger.at.above and e.is_at(word)]
        return max(fires, key=lambda e: peak[e.trigger.at.latent] / (1e-9 + e.trigger.at.above), default=None)

    def describe(self) -> dict[str, Any]:
        told = [{"by": e.by, "note": e.gloss.note("..."), **asdict(e.gloss)} for e in self.entries]
        return {"annotates": told, "style": self.style, **self.about}

    def save(self, path: Path) -> None:
        watch = self.watch
        held = save_rows(self.rows, path) | ({} if watch is None else {"watch": watch.weight})
        told = None if watch is None else {k: getattr(watch, k) for k in ("site", "bias", "threshold", "fpr", "kind")}
        write_tensors(held, path)
        write_json(path, "reformulate", {
            "kind": "noted", "entries": [_entry_json(e) for e in self.entries], "rows": rows_json(self.rows),
            "style": self.style, "cap": self.cap, "watch": told, "about": dict(self.about),
        })  # fmt: skip


def load(path: Path) -> Noted:
    """The inverse of `Noted.save`."""
    data, tensors = read_json(path, "reformulate"), read_tensors(path)
    told = data["watch"]
    watch = None if told is None else Watch(weight=tensors["watch"], **told)
    entries = tuple(map(_entry, data["entries"]))
    return Noted(
        entries, load_rows(data["rows"], tensors, path), data["style"], data["cap"], watch, data["about"]
    )


# ---- the world

Find = Callable[[Any, Sequence[Ask]], Sequence[Hit | None]]


def annotating(subject: Any, fingerprint: str, find: Find, noted: Noted) -> World:
    """`subject`, with a note wherever `find` has a hit; `noted` says in what style, and how long at most."""

    def make(inner: Any) -> Answer:
        async def answer(asks: Sequence[Ask]) -> list[Generation | Exception]:
            return await answered(inner, asks, find(inner, asks), noted)

        return answer

    return World(subject, make, fingerprint)


async def answered(
    inner: Any, asks: Sequence[Ask], hits: Sequence[Hit | None], noted: Noted
) -> list[Generation | Exception]:
    """Answers to all, and to those with a hit once more with the note, or under the edit. In the order of `asks`."""
    plain = await together(inner, asks)
    notes = {i: note for i, hit in enumerate(hits) if hit and (note := _note(inner, asks[i], hit, noted)) is not None}
    again = await _again(inner, asks, {i: hits[i] for i in notes}, notes, noted)
    return [_joined(plain[i], again[i], hits[i], notes[i][1:]) if i in notes else said for i, said in enumerate(plain)]


async def _again(
    inner: Any, asks: Sequence[Ask], hits: Mapping[int, Hit | None], notes: Mapping[int, tuple[Messages, str, int]],
    style: Noted,
) -> dict[int, Generation | Exception]:  # fmt: skip
    if style.style != "edit":
        order = list(notes)
        said = await together(inner, [replace(asks[i], prompt=notes[i][0]) for i in order])
        return dict(zip(order, said, strict=True))
    groups: dict[tuple[Edit, ...], list[int]] = {}
    for i, hit in hits.items():
        assert hit is not None
        groups.setdefault(hit.entry.edits, []).append(i)
    found: dict[int, Generation | Exception] = {}
    for edits, places in groups.items():
        said = await together(steering.apply(inner, edits, style.rows), [asks[i] for i in places])
        found |= dict(zip(places, said, strict=True))
    return found


def _note(inner: Any, ask: Ask, hit: Hit, style: Noted) -> tuple[Messages, str, int] | None:
    """(the annotated prompt, the note, the tokens it adds); None where it is too long for the cap or the context. An
    edit adds none."""
    if style.style == "edit":
        return (ask.prompt, PATCHED, 0) if hit.entry.edits else None
    before = len(inner.tokens(ask.prompt).ids)

    def with_note(text: str) -> tuple[Messages, str, int]:
        changed = noted(ask.prompt, hit.word.start, text)
        return changed, text, len(inner.tokens(changed).ids) - before

    made = with_note(hit.entry.gloss.note(hit.word.text))
    if style.style == "generic":
        words = GENERIC.split(" ")
        tried = [with_note(" ".join(words[:n]).rstrip(",.") + ".") for n in range(2, len(words) + 1)]
        wanted = made[2]
        made = min(tried, key=lambda t: abs(t[2] - wanted))
    room = inner.checkpoint.shape.context - ANSWER_ROOM
    return made if made[2] <= style.cap and before + made[2] <= room else None


def _joined(
    plain: Generation | Exception, again: Generation | Exception, hit: Hit | None, note: tuple[str, int]
) -> Generation | Exception:
    if isinstance(plain, Exception) or isinstance(again, Exception):
        return again if isinstance(again, Exception) else plain
    assert hit is not None
    text, tokens = note
    rewrite = Rewrite(text, hit.word.text, hit.word.start, hit.entry.by, plain.text, tokens)
    return replace(
        again, rewrite=rewrite, prompt_tokens=plain.prompt_tokens + again.prompt_tokens,
        new_tokens=plain.new_tokens + again.new_tokens,
    )  # fmt: skip


# ---- entries as JSON


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry.trigger), "gloss": asdict(entry.gloss), "edits": steering.to_json(entry.edits),
            "word": entry.word}  # fmt: skip


def _entry(data: Mapping[str, Any]) -> Entry:
    beside = data["beside"]
    trigger = Trigger(Condition(**data["at"]), None if beside is None else Condition(**beside))
    return Entry(trigger, Gloss(**data["gloss"]), steering.from_json(data["edits"]), data["word"])

