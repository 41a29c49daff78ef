"""Numbers in English words: twelve, twenty-one, a hundred and five, minus three, two and a half, three quarters.

Read: cardinals below a quadrillion (spaces or hyphens between their words, "and" inside), "minus" or "negative" before
them, "point" digits, halves to tenths of a count ("two thirds"), "half", "a dozen" and "half a dozen".
Not read: ordinals, "a couple", "twice", "a third" (it may be an ordinal), a dozen with a count before it (whoever asks
for dozens means the count), and "one" where it is a pronoun ("one of them", "the last one").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

_UNITS = {
    w: i
    for i, w in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
_TENS = {w: 10 * i for i, w in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_TENS["fourty"] = 40  # written often enough
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fourths": 4, "fifths": 5,
    "sixths": 6, "sevenths": 7, "eighths": 8, "ninths": 9, "tenths": 10,
}  # fmt: skip
_WORD = re.compile(r"[A-Za-z]+")
_JOINS = frozenset((" ", "  ", "-", "\u2010", "\u2011", "\u00a0"))
_NO_PRONOUN = frozenset("of another who that which more less way can must should could may might day by to".split())
_BEFORE_ONE = frozenset("the this that each every any no which another last first next other only right".split())


@dataclass(frozen=True)
class Worded:
    """A number in words: its value and where it lies."""

    value: Fraction
    start: int
    end: int


@dataclass(frozen=True)
class _Word:
    text: str
    start: int
    end: int
    joined: bool  # to the word before it, by one space or hyphen


def worded(text: str) -> list[Worded]:
    """Every number in words, in order. Linear in the length of the text."""
    words, last = [], -1
    for match in _WORD.finditer(text):
        between = text[last : match.start()] if last >= 0 else "."
        words.append(_Word(match[0].lower(), match.start(), match.end(), between in _JOINS))
        last = match.end()
    found, at = [], 0
    while at < len(words):
        value, after = _read(words, at)
        if value is None:
            at += 1
            continue
        if not _pronoun(words, at, after):
            start = at
            if at and words[at].joined and words[at - 1].text in ("minus", "negative"):
                value, start = -value, at - 1
            found.append(Worded(value, words[start].start, words[after - 1].end))
        at = after
    return found


def _pronoun(words: Sequence[_Word], at: int, after: int) -> bool:
    """Whether this is a "one" that counts nothing."""
    if after != at + 1 or words[at].text != "one":
        return False
    follows = words[after].text if after < len(words) and words[after].joined else ""
    before = words[at - 1].text if at and words[at].joined else ""
    return follows in _NO_PRONOUN or before in _BEFORE_ONE


def _read(words: Sequence[_Word], at: int) -> tuple[Fraction | None, int]:
    """(value, the place behind it) of the number that begins at word `at`."""
    first = words[at].text
    article = first in ("a", "an") and at + 1 < len(words) and words[at + 1].joined
    if article and words[at + 1].text in ("dozen", "hundred", *SCALES):
        at += 1
        first = words[at].text
    elif first in ("dozen", "hundred", *SCALES):
        return None, at
    if first == "dozen":
        return Fraction(12), at + 1
    if first == "half":
        six = [word.text for word in words[at + 1 : at + 3] if word.joined] == ["a", "dozen"]
        return (Fraction(6), at + 3) if six else (Fraction(1, 2), at + 1)
    whole, after = _whole(words, at)
    if whole is None:
        return None, at
    return _with_parts(words, whole, after)


def _whole(words: Sequence[_Word], at: int) -> tuple[int | None, int]:
    """A cardinal. `total` holds what is behind a scale, `current` the three digits that are being said."""
    total, current, least, place = 0, None, 10**15, at
    while place < len(words) and (place == at or words[place].joined):
        word = words[place].text
        if word == "and" and place > at and words[place - 1].text in ("hundred", *SCALES) and _goes_on(words, place):
            place += 1
            continue
        if word in _UNITS or word in _TENS:
            said = _UNITS.get(word, _TENS.get(word, 0))
            ten = current is not None and 20 <= current % 100 and current % 10 == 0 and 0 < said < 10
            if not (current is None or (said and current % 100 == 0 and current) or ten):
                break
            current = (current or 0) + said
        elif word == "hundred":
            if current is not None and not 0 < current < 100:
                break
            current = 100 * (current or 1)
        elif word in SCALES and SCALES[word] < least and (current or place == at):
            total, least, current = total + (current or 1) * SCALES[word], SCALES[word], None
        else:
            break
        place += 1
    if place == at:
        return None, at
    return total + (current or 0), place


def _goes_on(words: Sequence[_Word], at: int) -> bool:
    """Whether a smaller number follows this "and"."""
    follows = at + 1 < len(words) and words[at + 1].joined
    return follows and (words[at + 1].text in _UNITS or words[at + 1].text in _TENS)


def _with_parts(words: Sequence[_Word], whole: int, after: int) -> tuple[Fraction, int]:
    """What may follow a cardinal: point digits, "and a half", or a part that it counts."""
    rest = []
    for word in words[after : after + 12]:
        if not word.joined:
            break
        rest.append(word.text)
    if rest[:1] == ["point"]:
        digits = 0
        while digits + 1 < len(rest) and _UNITS.get(rest[digits + 1], 10) < 10:
            digits += 1
        if digits:
            said = "".join(str(_UNITS[word]) for word in rest[1 : digits + 1])
            return whole + Fraction(int(said), 10**digits), after + 1 + digits
    if rest[:2] == ["and", "a"] and rest[2:3] in (["half"], ["third"], ["quarter"]):
        return whole + Fraction(1, _PARTS[rest[2]]), after + 3
    if rest and rest[0] in _PARTS:
        return Fraction(whole, _PARTS[rest[0]]), after + 1
    if rest[:1] == ["dozen"]:
        return Fraction(whole), after + 1
    return Fraction(whole), after
