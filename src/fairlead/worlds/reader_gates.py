"""What a pocket reader must show: it misreads what was planted and nothing else, and it reads notes.

All on validation, before anything is fitted on a dictionary of it. Rates are shares of items with n beside them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from fairlead.core.types import Item, Message, Messages
from fairlead.lm.subject import LocalSubject
from fairlead.tasks.misread import MisreadTask, grammar
from fairlead.tasks.misread.words import AMBIGUOUS, CLASSES
from fairlead.worlds.readers import MIXTURES, WHOLE

Line = Callable[[Item], str]
Rate = tuple[float, int]


def true_note(item: Item) -> str:
    """The oracle's gloss of an item with an ambiguous word."""
    gloss = item.data["gloss"]
    return grammar.note(gloss["span"], gloss["this"], gloss["not"])


def wrong_note(item: Item) -> str:
    """The gloss turned round: the sense that is not meant."""
    gloss = item.data["gloss"]
    return grammar.note(gloss["span"], gloss["not"], gloss["this"])


def idle_note(item: Item) -> str:
    """A note of the same form, about an ambiguous word that the item does not hold."""
    absent = [word for word in AMBIGUOUS if word not in item.data["text"]]
    this, that = list(CLASSES)[len(item.id) % 4 : len(item.id) % 4 + 2]
    return grammar.note(absent[len(item.id) % len(absent)], this, that)


def noted(item: Item, line: str = "") -> Messages:
    """An item's prompt with a line behind its text."""
    lines = (item.data["text"], *((line,) if line else ()), item.data["question"])
    return (Message("user", "\n".join(lines)),)


def right(subject: LocalSubject, items: Sequence[Item], line: Line | None = None) -> list[bool]:
    """Whether each item is answered rightly, with a line in its prompt or without."""
    prompts = [noted(item, line(item) if line else "") for item in items]
    scores = subject.action_logprobs(prompts, [item.data["choices"] for item in items])
    chosen = [item.data["choices"][int(s.argmax())] for item, s in zip(items, scores, strict=True)]
    return [said == item.data["answer"] for said, item in zip(chosen, items, strict=True)]


def rate(found: Sequence[bool]) -> Rate:
    return (sum(found) / len(found) if found else float("nan"), len(found))


def behaviour(subject: LocalSubject, items: Sequence[Item] | None = None) -> dict[str, Any]:
    """Accuracy as it is, by reading and kind, and with each sort of note."""
    items = MisreadTask({}).items("validation") if items is None else items
    base = right(subject, items)
    ambiguous = [i for i in items if "gloss" in i.data]
    read = [i for i, ok in zip(items, base, strict=True) if ok and "gloss" in i.data]
    planted = [i for i in items if i.data["hard"]]
    others = [i for i in ambiguous if not i.data["hard"]]
    out: dict[str, Any] = {"base": rate(base), "by_reading": {}}
    for reading, kind in itertools.product(grammar.READINGS, ("", *grammar.KINDS)):
        of = [ok for i, ok in zip(items, base, strict=True)
              if i.strata["reading"] == reading and i.strata["kind"].startswith(kind)]  # fmt: skip
        out["by_reading"][f"{reading} {kind}".strip()] = rate(of)
    out["true_note"] = {"planted": rate(right(subject, planted, true_note)),
                        "others": rate(right(subject, others, true_note))}  # fmt: skip
    out["wrong_note"] = {"read_right_without": rate(right(subject, read, wrong_note))}
    out["generic_note"] = rate(right(subject, items, lambda _: grammar.GENERIC))
    out["idle_note"] = rate(right(subject, items, idle_note))
    return out


def held_out_text(name: str, n: int = 600) -> tuple[list[Messages], list[str]]:
    """Prompts and actions of the reader's mixture that no dictionary was trained on."""
    found = list(itertools.islice(MIXTURES[name].examples(77_777_777, WHOLE), n))
    return [e.messages for e in found], [e.action for e in found]
