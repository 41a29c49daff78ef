"""The words of a prompt's last user turn, and the tokens that spell them; and a note put behind one of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fairlead.core.types import Messages
from fairlead.lm.chat import Ids

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


@dataclass(frozen=True)
class Word:
    """A word of the last user turn: its text, and where it begins in that turn's content, in characters."""

    text: str
    start: int


@dataclass(frozen=True, eq=False)
class Words:
    """The tokens of a prompt [P] that spell words of its last user turn: `tokens` [n] are their places in the prompt,
    `owner` [n] says which of `words` each belongs to."""

    tokens: Ids
    owner: Ids
    words: tuple[Word, ...]

    def at(self, token: int) -> Word:
        """The word that the prompt's token `token` spells."""
        return self.words[int(self.owner[int(np.searchsorted(self.tokens, token))])]

    def last_token(self, start: int) -> int | None:
        """The last token of the word that begins at character `start`; None where no token spells it."""
        found = [int(t) for t, o in zip(self.tokens, self.owner, strict=True) if self.words[int(o)].start == start]
        return found[-1] if found else None


def words_of(subject: Any, messages: Messages) -> Words:
    """The words of the last user turn, as `subject` tokenises the prompt. No words where there is no such turn, or
    where the template rewrites it beyond recognition."""
    nothing = Words(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), ())
    place = last_user(messages)
    if place is None:
        return nothing
    prompt = subject.tokens(messages)
    content = messages[place].content
    shown = subject.checkpoint.chat.plain(content).strip()
    at = prompt.text.rfind(shown)
    if not shown or at < 0 or shown != content.strip():
        return nothing
    lead = len(content) - len(content.lstrip())
    words = [Word(found[0], found.start()) for found in _WORD.finditer(content)]
    starts = np.array([w.start for w in words], dtype=np.int64) - lead + at
    ends = starts + np.array([len(w.text) for w in words], dtype=np.int64)
    begin, end = prompt.offsets[:, 0], prompt.offsets[:, 1]
    owner = np.searchsorted(starts, end, side="left") - 1  # the last word that begins before the token ends
    inside = (owner >= 0) & (end > begin)
    owner = np.where(inside, owner, 0)
    inside &= begin < (ends[owner] if len(words) else 0)
    tokens = np.flatnonzero(inside)
    return Words(tokens.astype(np.int64), owner[tokens].astype(np.int64), tuple(words))


def last_user(messages: Messages) -> int | None:
    """The place of the last user turn."""
    return next((i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "user"), None)


def noted(messages: Messages, start: int, note: str) -> Messages:
    """`messages` with `note` as a line of its own, behind the line of the last user turn that holds character
    `start`."""
    place = last_user(messages)
    assert place is not None
    content = messages[place].content
    end = content.find("\n", start)
    end = len(content) if end < 0 else end
    changed = replace(messages[place], content=f"{content[:end]}\n{note}{content[end:]}")
    return (*messages[:place], changed, *messages[place + 1 :])


def swapped(messages: Messages, text: str, other: str) -> Messages | None:
    """`messages` with `text` of the last user turn replaced by `other`; None where it is not there."""
    place = last_user(messages)
    if place is None or text not in messages[place].content:
        return None
    changed = replace(messages[place], content=messages[place].content.replace(text, other, 1))
    return (*messages[:place], changed, *messages[place + 1 :])


def first_difference(one: Sequence[Word], other: Sequence[Word]) -> int | None:
    """The place of the first word that differs between two readings of one sentence."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a.text != b.text:
            return place
    return None
