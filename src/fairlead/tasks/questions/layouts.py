"""The layouts of files of questions: which columns each has, and what a row of it asks.

    table        a text and an answer, in columns that options name
    gsm8k        question, answer ("... #### 12")
    svamp        Body, Question, Answer, Type, Equation
    asdiv        the XML file, or rows with its elements as columns
    gsm_hard     input, code, target
    multiarith   input, target
    math500      problem, answer, level, subject
    figqa        startphrase, ending1, ending2, labels, valid, qid
    moh_x        arg1, arg2, verb, sentence, verb_idx, label
    trofi        verb, sentence, and verb_idx, label or human_label
    vua          text_idx, sentence_idx, verb, sentence, verb_idx, label

Read as published, whole files: gsm8k (test), svamp, figqa (train, train_xl, dev), gsm_hard and multiarith
(reasoning-machines/pal; its asdiv.jsonl and svamp.jsonl have multiarith's columns), moh_x, vua (verbs, test) and trofi
with human_label (RuiMao1988/Sequential-Metaphor-Identification). From descriptions only, no whole file seen: asdiv's
XML, math500, trofi with verb_idx and label (TroFi_formatted_all3737.csv).

What is one cluster: in mathematics, texts that differ in their numbers only; in figqa the pair; in moh_x and trofi the
verb; in vua the sentence, of which several verbs are asked (so a verb may be tuned on and judged on: `cluster` names
another column). Everywhere, rows with one text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.core.keys import content_key
from fairlead.tasks._asked import Match, written
from fairlead.tasks._clusters import same_text
from fairlead.tasks.cases.numbers import Number, exact

LONGEST = 20_000  # characters of a text
CHOICES = 100
ORDINALS = ("first", "second", "third", "fourth", "fifth")
SENSES = ("literal", "metaphorical")
_LITERAL = frozenset({"0", "0.0", "literal", "l"})
_FIGURATIVE = frozenset({"1", "1.0", "nonliteral", "non-literal", "metaphorical", "metaphor", "figurative", "n"})
_STEP = "Work it out step by step, and end with: The answer is <number>."
_VERB = "Answer with one word, literal or metaphorical."


class Unusable(Exception):
    """A row that cannot be asked; the message says why."""


@dataclass(frozen=True)
class Columns:
    """Which column of a table is what; "" where there is none."""

    text: str = ""
    answer: str = ""
    question: str = ""
    choices: str = ""
    cluster: str = ""
    paraphrase: str = ""
    split: str = ""


@dataclass(frozen=True)
class Row:
    """What a row asks. `answer` is the gold text; `paraphrase` says the text in the intended sense, `pair` is the key
    of the rows that share one text in two senses; `line` is the place in the file."""

    text: str
    answer: str
    question: str = ""
    choices: tuple[str, ...] = ()
    paraphrase: str = ""
    pair: str = ""
    difficulty: float | None = None
    cluster: str = ""
    split: str = ""
    strata: Mapping[str, str] = field(default_factory=dict)
    line: int = 0

    @property
    def key(self) -> str:
        """A hash of what is asked; rows with one key repeat each other."""
        asked = [self.text, self.question, self.answer, list(self.choices)]
        return content_key([*asked, self.paraphrase, self.cluster, self.split])


@dataclass(frozen=True)
class Layout:
    """One layout. `needs` are columns that it has: the first alternative that is there whole. A `common` layout has
    columns that a table of anything might have. Where clusters are kept `apart`, a text that stands under two of them
    is asked under the first only: joined, they would leave few clusters."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Mapping[str, Any], Columns], Row]
    prompt: str
    match: Match | str = "number"
    max_tokens: int = 400
    common: bool = False
    apart: bool = False

    def lacks(self, have: Sequence[str]) -> tuple[str, ...]:
        """The columns that are missing, of the alternative that is nearest; none where it fits."""
        return min((tuple(n for n in names if n not in have) for names in self.needs), key=len)

    def fits(self, rows: Sequence[Mapping[str, Any]], have: Sequence[str]) -> bool:
        """Whether rows have this layout: its columns and, where many tables have such columns, its kind of answer."""
        return not self.lacks(have) and (not self.common or any(self._reads(row) for row in rows[:20]))

    def _reads(self, row: Mapping[str, Any]) -> bool:
        try:
            self.read(row, Columns())
        except Unusable:
            return False
        return True


# ---- mathematics


def _gsm8k(row: Mapping[str, Any], _columns: Columns) -> Row:
    worked, mark, gold = _text(row, "answer").rpartition("####")
    if not mark:
        raise Unusable("the answer has no ####")
    steps = worked.count("<<") or len([line for line in worked.splitlines() if line.strip()])
    text = _text(row, "question")
    return Row(text, _number(gold), difficulty=float(steps), cluster=_template(text))


def _svamp(row: Mapping[str, Any], _columns: Columns) -> Row:
    kind = str(row.get("Type") or "").replace("Divison", "Division")  # one row of the published file
    steps = len(re.findall(r"(?<= )[-+*/](?= )", str(row.get("Equation") or "")))
    body, question = _text(row, "Body"), _text(row, "Question")
    strata = {"type": kind} if kind else {}
    return Row(
        body, _number(row.get("Answer")), question, difficulty=float(steps) if steps else None,
        cluster=_template(body), strata=strata,
    )  # fmt: skip


def _asdiv(row: Mapping[str, Any], _columns: Columns) -> Row:
    gold = str(row.get("Answer") or "").partition("(")[0]
    kind, grade = str(row.get("Solution-Type") or ""), str(row.get("Grade") or "")
    body = _text(row, "Body")
    return Row(
        body, _number(gold), _text(row, "Question"), difficulty=float(grade) if grade.isdecimal() else None,
        cluster=_template(body), strata={"type": kind} if kind else {},
    )  # fmt: skip


def _input_target(row: Mapping[str, Any], _columns: Columns) -> Row:
    text = _text(row, "input")
    return Row(text, _number(row.get("target")), cluster=_template(text))


def _math500(row: Mapping[str, Any], _columns: Columns) -> Row:
    text, level = _text(row, "problem"), str(row.get("level") or "").removeprefix("Level ")
    kind = str(row.get("subject") or row.get("type") or "")
    return Row(
        text, _text(row, "answer"), difficulty=float(level) if level.isdecimal() else None,
        cluster=_template(text), strata={"type": kind} if kind else {},
    )  # fmt: skip


def _template(text: str) -> str:
    return "numbers-" + same_text(re.sub(r"\d+(?:[.,]\d+)*", "0", text))


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise Unusable("the answer is no number")
    found = exact(value)
    if found is None:
        raise Unusable("the answer is no single number" if str(value).strip() else "the answer is empty")
    return written(Number(found, "%" in str(value), 0, 0))


# ---- metaphor


def _figqa(row: Mapping[str, Any], _columns: Columns) -> Row:
    label = str(row.get("labels", "")).strip()
    if label == "-1":
        raise Unusable("the label is hidden (-1)")
    if label not in ("0", "1"):
        raise Unusable("the label is neither 0 nor 1")
    if str(row.get("valid", "1")).strip() not in ("1", "1.0", "True", "true"):
        raise Unusable("marked as not valid")
    endings = (_text(row, "ending1"), _text(row, "ending2"))
    if endings[0] == endings[1]:
        raise Unusable("both endings are the same")
    gold, pair = endings[int(label)], _plain(row.get("qid"))
    return Row(
        _text(row, "startphrase"), gold, choices=endings, paraphrase=gold, pair=pair, cluster=pair and f"qid-{pair}",
        strata={"label": ("first", "second")[int(label)]},
    )  # fmt: skip


def _verb(row: Mapping[str, Any], _columns: Columns) -> Row:
    given = row.get("label") if "label" in row else row.get("human_label")
    label = _plain(given).casefold()
    if label not in _LITERAL | _FIGURATIVE:
        raise Unusable("the label is neither literal nor figurative")
    text, verb = " ".join(_text(row, "sentence").split()), _text(row, "verb")
    sense = SENSES[label in _FIGURATIVE]
    question = f"Is {_word(text, _plain(row.get('verb_idx'))) or _quoted(verb)} used literally or metaphorically?"
    cluster = "" if "sentence_idx" in row else f"verb-{verb.casefold()}"
    return Row(text, sense, question, SENSES, cluster=cluster, strata={"label": sense})


def _word(text: str, place: str) -> str:
    """The word at a place that counts words from 0, in quotes, and which of its kind it is where it stands more than
    once; "" where there is none."""
    words = text.split()
    if not (place.isdecimal() and int(place) < len(words)):
        return ""
    at = int(place)
    nth = words[: at + 1].count(words[at])
    if words.count(words[at]) == 1:
        return _quoted(words[at])
    return f"the {ORDINALS[nth - 1] if nth <= len(ORDINALS) else f'{nth}th'} {_quoted(words[at])}"


def _quoted(word: str) -> str:
    return f'"{word}"'


# ---- tables


def _table(row: Mapping[str, Any], columns: Columns) -> Row:
    answer = _plain(row.get(columns.answer))
    if not answer:
        raise Unusable("the answer is empty")
    choices = _choices(row.get(columns.choices)) if columns.choices else ()
    if choices and answer not in choices:
        place = "ABCDEFGHIJKLMNOPQRSTUVWXYZ".find(answer) if len(answer) == 1 else -1
        if not 0 <= place < len(choices):
            raise Unusable("the answer is none of the choices")
        answer = choices[place]
    return Row(
        _text(row, columns.text), answer, _text(row, columns.question) if columns.question else "", choices,
        _plain(row.get(columns.paraphrase)) if columns.paraphrase else "",
    )  # fmt: skip


def _choices(value: Any) -> tuple[str, ...]:
    """A list, a list in JSON, or texts between bars: red | blue."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else value.split("|")
        except (ValueError, RecursionError):
            raise Unusable("the choices are no list") from None
    if not isinstance(value, (list, tuple)):
        raise Unusable("the choices are no list")
    found = tuple(_plain(x) for x in value)
    if not 2 <= len(found) <= CHOICES or len(set(found)) < len(found) or not all(found):
        raise Unusable(f"the choices are not 2 to {CHOICES} different texts")
    return found


def _text(row: Mapping[str, Any], name: str) -> str:
    text = _plain(row.get(name))
    if not text:
        raise Unusable(f"{name} is empty")
    if len(text) > LONGEST:
        raise Unusable(f"{name} is longer than {LONGEST:,} characters")
    return text


def _plain(value: Any) -> str:
    """A cell as text: no ends, no half characters, true and false as JSON writes them, 1.0 as 1."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().encode("utf-8", "replace").decode("utf-8")


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("figqa", (("startphrase", "ending1", "ending2", "labels"),), _figqa,
               "{text}\n\nWhat does this mean? Answer with one of these sentences:\n{choices}", "choice", 32),
        Layout("vua", (("text_idx", "sentence_idx", "verb", "sentence", "verb_idx", "label"),), _verb,
               "{text}\n\n{question} " + _VERB, "choice", 8),
        Layout("moh_x", (("arg1", "arg2", "verb", "sentence", "verb_idx", "label"),), _verb,
               "{text}\n\n{question} " + _VERB, "choice", 8, apart=True),
        Layout("trofi", (("verb", "sentence", "verb_idx", "label"), ("verb", "sentence", "human_label")), _verb,
               "{text}\n\n{question} " + _VERB, "choice", 8, apart=True),
        Layout("asdiv", (("Body", "Question", "Answer", "Solution-Type"),), _asdiv,
               "{text}\n{question}\n\n" + _STEP),
        Layout("svamp", (("Body", "Question", "Answer"),), _svamp,
               "{text}\n{question}\n\n" + _STEP),
        Layout("math500", (("problem", "answer", "level"), ("problem", "answer", "subject")), _math500,
               "{text}\n\nWork it out step by step, and put the answer in \\boxed{{}}.", "exact", 1000),
        Layout("gsm_hard", (("input", "code", "target"),), _input_target, "{text}\n\n" + _STEP),
        Layout("multiarith", (("input", "target"),), _input_target, "{text}\n\n" + _STEP, common=True),
        Layout("gsm8k", (("question", "answer"),), _gsm8k, "{text}\n\n" + _STEP, common=True),
        Layout("table", ((),), _table, "", "", 64),
    )
}  # fmt: skip
