"""One question put to a world, and its answer judged: what every task of questions with known answers shares.

What a model says is parsed by the question's `match`:
number    the number that is the answer (cases.numbers); right where it equals the gold one exactly (5% is 5 and 0.05)
choice    the choice that is the whole text, else the only one that is named in it; right where it is the gold choice
exact     what stands in the last \\boxed{}, else behind the last "answer is", "answer:" or "####" of a line, else the
          whole text; right where it is the gold text, ends and case aside, or the same number

A method may have put a note into the prompt (core.types.Rewrite). A note that tells the answer is no repair of a
misreading: it is discarded, and the answer to the prompt as it was counts. It tells the answer (`tells`) when its words
outside the quoted span
number    hold a number equal to the gold one, in digits or words; sums that come to it are not worked out
choice    say the whole gold choice; or at least half of the words that tell it from the others: its words without those
          of the question's own text, of any other choice, and function words
exact     say the whole gold text
where a word is the same as another when the shorter has four letters or more and the longer begins with it ("literal"
and "literally"). A single letter is the same only as written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fairlead.core.errors import PlanError
from fairlead.core.types import Decision, Generation, Messages, Outcome, Rewrite, Score
from fairlead.tasks._compared import LONG, compared
from fairlead.tasks.cases.numbers import Number, boxed, exact, final_number, numbers

Match = Literal["number", "exact", "choice"]
MATCHES: tuple[Match, ...] = ("number", "exact", "choice")
LONGEST = 100_000  # characters of an answer that are read
SHARE = 0.5  # of the words that tell the gold choice from the others
_SAYS = re.compile(r"(?:\banswer\b[ *_]{0,4}(?:is\b|:)|####)[ *_:]*", re.IGNORECASE)
_WORDS = re.compile(r"\w+(?:['’]\w+)?")
_EDGES = " \t\r\n\"'“”‘’`*_$.,;:!"
_TEMPLATE = frozenset("note here means not".split())
_FUNCTION = frozenset(
    "a an the and or but if of in on at to for from by with as is are was were be been being am it its it's he she "
    "they them his her their hers theirs you your i my me we our us this that these those there do does did done have "
    "has had will would can could should very so too than then not no all any some what which who whom how when".split()
)


@dataclass(frozen=True)
class Question:
    """One question. `messages` is the prompt, `own` what it asks about in its own words (for `tells`). With `choices`
    the model answers with the most probable of them, unless `free`; `trap` are those that are the known mistake.
    Without, `pool` are texts that are right for other questions of the split: three of them stand in as wrong."""

    id: str
    messages: Messages
    answer: str
    match: Match = "number"
    choices: tuple[str, ...] = ()
    trap: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    own: str = ""
    max_tokens: int = 256
    free: bool = False

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise PlanError("no such match", expected=" or ".join(MATCHES), got=repr(self.match))
        if self.match == "choice" and (self.answer not in self.choices or len(set(self.choices)) < 2):
            raise PlanError("the answer is no choice", expected=", ".join(self.choices), got=self.answer)

    def found(self, text: str) -> str | None:
        """The answer in what a model said, as text; None where there is none."""
        text = text[:LONGEST]
        if self.match == "number":
            number = final_number(text)
            return None if number is None else written(number)
        if self.match == "choice":
            return named(text, self.choices)
        inside = boxed(text)
        said = list(_SAYS.finditer(text))
        if inside is None and said:
            inside = text[said[-1].end() :].partition("\n")[0]
        return (text if inside is None else inside).strip(_EDGES) or None

    def right(self, found: str | None) -> bool:
        """Whether a parsed answer is the gold one."""
        if found is None:
            return False
        if self.match == "choice":
            return found == self.answer
        gold = exact(self.answer)
        if self.match == "number":
            number = final_number(found)
            return gold is not None and number is not None and number.equals(gold)
        if _flat(found) == _flat(self.answer):
            return True
        return gold is not None and exact(found) == gold

    def holds(self, text: str) -> bool:
        """Whether the gold answer stands anywhere in a text."""
        text = text[:LONGEST]
        if self.match == "number":
            gold = exact(self.answer)
            return gold is not None and any(n.equals(gold) for n in numbers(text, words=True))
        return _says(_words(text), _words(self.answer)) or _flat(self.answer) == _flat(text)


async def ask(question: Question, world: Any) -> Outcome:
    """Puts the question once. Outcome.data: `said` (the text), `found` (the parsed answer that counts, None where there
    is none), `answer` (gold), `plain` (the parsed answer without the note, None where nothing was noted or found),
    `rewrite` (the note, None without) and `leaked` (the note told the answer, so that `found` is `plain`)."""
    legal = question.choices if question.choices and not question.free else None
    said: Generation = await world.generate(question.messages, step=0, legal=legal, max_tokens=question.max_tokens)
    note = said.rewrite
    leaked = note is not None and tells(question, note)
    text = note.plain if note is not None and leaked else said.text
    found = question.found(text)
    plain = None if note is None else question.found(note.plain)
    data = {
        "said": said.text, "found": found, "answer": question.answer, "plain": plain,
        "rewrite": None if note is None else asdict(note), "leaked": leaked,
    }  # fmt: skip
    passed = question.right(found)
    decision = _decision(question, text, found, passed, said, leaked)
    shown = "\n".join(f"{m.role}: {m.content}" for m in question.messages)
    step = {"i": 0, "observation": shown, "action": said.text, "error": "" if passed else "wrong"}
    return Outcome(data, (decision,), (step,))


def marks(question: Question, data: Mapping[str, Any]) -> Score:
    """strict: the answer that counts is the gold one. loose: the gold answer stands anywhere in the text that counts.
    answered: an answer was found (none is wrong, not an error). annotated: a note was put into the prompt. leaked: the
    note told the answer (None where there was no note)."""
    rewrite, found = data["rewrite"], data["found"]
    text = rewrite["plain"] if data["leaked"] else data["said"]
    strict = question.right(found)
    return Score({
        "strict": strict,
        "loose": strict or question.holds(text),
        "answered": found is not None,
        "annotated": rewrite is not None,
        "leaked": None if rewrite is None else bool(data["leaked"]),
    })  # fmt: skip


def tells(question: Question, note: Rewrite) -> bool:
    """Whether a note carries the gold answer in its own words; the rule stands at the head of this module."""
    text = note.note
    for quoted in (f'"{note.span}"', f"“{note.span}”"):
        text = text.replace(quoted, " ")
    if question.match == "number":
        return question.holds(text)
    said, gold = _words(text), _words(question.answer)
    if _says(said, gold):
        return True
    if question.match != "choice":
        return False
    common = [*_words(question.own), *(w for c in question.choices if c != question.answer for w in _words(c))]
    only = [w for w in dict.fromkeys(gold) if w.casefold() not in _FUNCTION and not any(_same(w, c) for c in common)]
    told = [w for w in said if w.casefold() not in _TEMPLATE]
    return bool(only) and sum(any(_same(w, t) for t in told) for w in only) >= SHARE * len(only)


def written(number: Number) -> str:
    """A number as text: 12, -0.75, 1/3, 5%. Reading it again gives the same number."""
    value, below = number.value, number.value.denominator
    text = str(value)
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    if value.denominator > 1 and below == 1:
        places = 0
        while (value * 10**places).denominator > 1:
            places += 1
        digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
        text = f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return text + ("%" if number.percent else "")


def named(text: str, choices: Sequence[str]) -> str | None:
    """The choice that a text names: the one that it is, or the only one whose words stand in it (a choice within a
    longer one that is named does not count). None where none is, or several are."""
    for same in (str.strip, _flat):
        whole = [c for c in choices if same(c) == same(text)]
        if len(whole) == 1:
            return whole[0]
    said = _words(text)
    hits = [c for c in choices if _within(said, _words(c))]
    alone = [c for c in hits if not any(c != o and _within(_words(o), _words(c)) for o in hits)]
    return alone[0] if len(alone) == 1 else None


def _decision(
    question: Question, text: str, found: str | None, passed: bool, said: Generation, leaked: bool
) -> Decision:
    """What was decided, for contrasts and attribution. Of a discarded note neither scores nor edits are kept."""
    logprobs, edits = (None, ()) if leaked else (said.legal_logprobs, said.edits)
    if question.choices:
        chosen = text if found is None else found
        return Decision(
            question.messages, 0, question.choices, chosen, (question.answer,), question.trap, logprobs, edits
        )
    mine = text.strip()
    legal, right = compared(
        question.id, mine, passed, (question.answer,), (), question.pool,
        lambda t: question.right(question.found(t)),
    )  # fmt: skip
    return Decision(question.messages, 0, legal, mine if 0 < len(mine) <= LONG else text, right, (), None, edits)


def _flat(text: str) -> str:
    return " ".join(text.strip(_EDGES).casefold().split())


def _words(text: str) -> list[str]:
    """Words as written; a single letter keeps its case, all others lose it."""
    return [w if len(w) == 1 else w.casefold() for w in _WORDS.findall(text)]


def _same(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) >= 4 and long.startswith(short))


def _says(said: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether `wanted` stands in `said` word by word, endings aside."""
    n = len(wanted)
    return n > 0 and any(all(map(_same, said[i : i + n], wanted)) for i in range(len(said) - n + 1))


def _within(said: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether `wanted` stands in `said` word by word, as it is."""
    return bool(wanted) and f" {' '.join(wanted)} " in f" {' '.join(said)} "
