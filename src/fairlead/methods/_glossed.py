"""Notes that need no dictionary: the gold gloss of an item, the same the wrong way round, or what the model itself
says.

What the model itself says (`self`) takes two questions, each about the text as it stands: which of its words may be
misread (one of them, or "none", by probability), and what the word means there and what it may be mistaken for, in a
few words each, greedily. Nothing is known of the answer; the questions are charged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairlead.core.errors import FairleadError
from fairlead.core.keys import content_key
from fairlead.core.types import Generation, Item, Message, Messages
from fairlead.features.misread.naming import WORDS, Gloss
from fairlead.features.misread.spans import Word, last_user, words_of
from fairlead.features.misread.triggers import Condition, Trigger
from fairlead.methods._noted import Entry, Hit, Noted, annotating, answered
from fairlead.methods._saved import read_json, write_json
from fairlead.methods._world import Answer, Ask, World, together

NONE = "none"
WHICH = "Which word above may be misread? Answer with one word of the text, or with none."
MEANT = 'What does "{word}" mean above? Answer in at most three words.'
TAKEN = 'What may "{word}" be mistaken for above? Answer in at most three words.'
NEW = 8  # tokens of such an answer
NOBODY = Trigger(Condition(0, 0.0))


@dataclass(frozen=True)
class Glossed:
    """`kind` is self, oracle or wrong_gloss."""

    kind: str
    cap: int

    @property
    def fingerprint(self) -> str:
        return content_key(["reformulate", self.kind, self.cap])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        made = _asking(subject, self) if self.kind == "self" else ByItem(subject, self)
        return nullcontext(made)

    def describe(self) -> dict[str, Any]:
        told: dict[str, Any] = {"self": [WHICH, MEANT, TAKEN], "oracle": "gold", "wrong_gloss": "gold, turned"}
        return {"annotates": self.kind, "gloss": told[self.kind]}

    def save(self, path: Path) -> None:
        write_json(path, "reformulate", {"kind": "glossed", "which": self.kind, "cap": self.cap})


def load(path: Path) -> Glossed:
    """The inverse of `Glossed.save`."""
    data = read_json(path, "reformulate")
    return Glossed(data["which"], data["cap"])


class ByItem:
    """A world that knows each item's gloss; `for_items` gives the one of a chunk."""

    def __init__(self, subject: Any, glossed: Glossed) -> None:
        self.subject, self.glossed = subject, glossed
        self.name, self.meter = subject.name, subject.meter
        self.fingerprint = content_key([subject.fingerprint, glossed.fingerprint])

    def for_items(self, items: Sequence[Item]) -> World:
        texts = {str(i.data["text"]): i.data["gloss"] for i in items if i.data.get("gloss")}

        def find(_subject: Any, asks: Sequence[Ask]) -> list[Hit | None]:
            return [_gold(ask.prompt, texts, self.glossed.kind == "wrong_gloss") for ask in asks]

        return annotating(self.subject, self.glossed.fingerprint, find, Noted((), cap=self.glossed.cap))

    def prompted(self, system: str) -> ByItem:
        return ByItem(self.subject.prompted(system), self.glossed)

    def seat(self, order: int) -> Any:
        raise FairleadError(f"seat {order} of a world that differs by item", do="call for_items(items) first")


def _gold(prompt: Messages, texts: Mapping[str, Mapping[str, str]], turned: bool) -> Hit | None:
    place = last_user(prompt)
    content = "" if place is None else prompt[place].content
    text = max((t for t in texts if t in content), key=len, default=None)
    if text is None:
        return None
    gloss = texts[text]
    at = re.search(rf"\b{re.escape(gloss['span'])}\b", content[content.index(text) :])
    if at is None:
        return None
    meant, taken = (gloss["not"], gloss["this"]) if turned else (gloss["this"], gloss["not"])
    return Hit(_Named(NOBODY, Gloss(meant, taken)), Word(gloss["span"], content.index(text) + at.start()))


class _Named(Entry):
    """An entry that no latent asked for."""

    @property
    def by(self) -> str:
        return "gloss"


def _asking(subject: Any, glossed: Glossed) -> World:
    def make(inner: Any) -> Answer:
        async def answer(asks: Sequence[Ask]) -> list[Generation | Exception]:
            hits = await _asked(inner, asks)
            return await answered(inner, asks, hits, Noted((), cap=glossed.cap))

        return answer

    return World(subject, make, glossed.fingerprint)


async def _asked(inner: Any, asks: Sequence[Ask]) -> list[Hit | None]:
    """The word that the model itself thinks may be misread, and what it says of it."""
    words = [words_of(inner, ask.prompt).words for ask in asks]
    legal = [(*dict.fromkeys(w.text for w in found), NONE) for found in words]
    which = [Ask(_with(ask.prompt, WHICH), ask.step, options) for ask, options in zip(asks, legal, strict=True)]
    chosen = [said.text if isinstance(said, Generation) else NONE for said in await together(inner, which)]
    open_ = [i for i, word in enumerate(chosen) if any(w.text == word for w in words[i])]
    hits: list[Hit | None] = [None] * len(asks)
    if not open_:
        return hits
    told = []
    for question in (MEANT, TAKEN):
        put = [Ask(_with(asks[i].prompt, question.format(word=chosen[i])), asks[i].step, None, NEW) for i in open_]
        told.append([_few(s.text) if isinstance(s, Generation) else "" for s in await together(inner, put)])
    for i, meant, taken in zip(open_, *told, strict=True):
        if meant and taken and meant != taken:
            word = next(w for w in words[i] if w.text == chosen[i])
            hits[i] = Hit(_Named(NOBODY, Gloss(meant, taken)), word)
    return hits


def _with(prompt: Messages, question: str) -> Messages:
    place = last_user(prompt)
    if place is None:
        return (*prompt, Message("user", question))
    return (*prompt[:place], replace(prompt[place], content=f"{prompt[place].content}\n{question}"), *prompt[place + 1
    :])


def _few(text: str) -> str:
    """At most three words of one line."""
    return " ".join(re.findall(r"[\w'’-]+", text.strip().partition("\n")[0])[:WORDS])
