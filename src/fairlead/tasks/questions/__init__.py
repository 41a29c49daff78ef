"""Questions with known answers from a file of texts, asked with a prompt: a table of your own, or a published layout.

`plugin(options)` builds the task. Options: file, sha256 (of the file: a plan that holds it refuses another file),
layout (see `layouts`; "" finds it by the columns), prompt (a template with {text}, and {question} and {choices} where
there are such; {{ and }} are braces), text, answer, question, choices, paraphrase (columns of a table), cluster, split
(columns of any layout), match (number, exact or choice, see `_asked`; "" by the layout), shares (of train, validation
and test), max_tokens (0: by the layout), decoding ("constrained": the most probable of a question's choices; "free":
what the model writes; questions without choices are always answered freely).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairlead.core.errors import LoadError, PlanError
from fairlead.core.keys import content_key
from fairlead.core.types import Item, Message, Outcome, Score
from fairlead.tasks._asked import MATCHES, Question, ask, marks
from fairlead.tasks._compared import LONG
from fairlead.tasks._tables import file_hash
from fairlead.tasks.questions.layouts import LAYOUTS, Columns
from fairlead.tasks.questions.read import read_questions
from fairlead.tasks.questions.splits import SHARES, assign

DEFAULTS: dict[str, Any] = {
    "file": "", "sha256": "", "layout": "", "prompt": "", "text": "", "answer": "", "question": "", "choices": "",
    "paraphrase": "", "cluster": "", "split": "", "match": "", "shares": list(SHARES), "max_tokens": 0,
    "decoding": "constrained", "n": 0,  # n: what a plan asks for; the file decides how many there are
}  # fmt: skip
TOKENS = 4096  # the most that an answer may have
FEW = 20  # questions, under which no cluster is called large
POOL = 500  # answers of a split that stand in as wrong ones
_PLACE = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}")


class QuestionsTask:
    """`needs` a subject. An item is a row; its cluster is a hash of what it belongs together with."""

    needs = "subject"

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        *,
        name: str = "questions",
        layouts: Sequence[str] = tuple(LAYOUTS),
    ) -> None:
        self.name = name
        self.options = _options(name, dict(options or {}), layouts)
        path = Path(self.options["file"])
        found = file_hash(path)
        if self.options["sha256"] not in ("", found):
            raise LoadError(
                f"{path} is not the file of this plan",
                expected=f"sha256 {self.options['sha256'][:12]}",
                got=found[:12],
                do="restore the file; questions that were changed are a new study",
            )
        columns = Columns(**{key: self.options[key] for key in Columns.__dataclass_fields__})
        self.table = read_questions(path, self.options["layout"], columns, layouts, self.options["match"])
        self.prompt = self.options["prompt"] or self.table.layout.prompt or _plain_prompt(self._asks)
        _check_prompt(self.prompt, self._asks)
        if self.table.match == "choice" and not all(row.choices for row in self.table.rows):
            raise PlanError('match = "choice" without choices', expected="choices in every row", got=str(path))
        self.by_split = assign(self.table, self.options["shares"])
        self._pools = {split: _pool(items) for split, items in self.by_split.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the file was left out, one line a reason, with the lines; and a cluster that is most of it."""
        rows = [item.cluster for items in self.by_split.values() for item in items]
        largest = max(Counter(rows).values())
        found = f"one cluster holds {largest:,} of {len(rows):,} questions: they share texts, or what `cluster` names"
        return (*self.table.notes, *([found] if len(rows) >= FEW and largest > len(rows) / 3 else []))

    @property
    def chosen_only(self) -> bool:
        """Whether every answer is a choice among legal ones, so that decisions are the whole of it."""
        return self.options["decoding"] == "constrained" and all(row.choices for row in self.table.rows)

    @property
    def has_choices(self) -> bool:
        """Whether any answer is a choice; where none is, decoding is free whatever the option says."""
        return any(row.choices for row in self.table.rows)

    @property
    def _asks(self) -> dict[str, bool]:
        """What a prompt can hold: each placeholder, and whether rows have it."""
        rows = self.table.rows
        return {"text": True, "question": any(r.question for r in rows), "choices": any(r.choices for r in rows)}

    def items(self, split: str) -> Sequence[Item]:
        return list(self.by_split.get(split, ()))

    def manifest(self, split: str) -> str:
        """Of what is asked and how, not of where the file lies."""
        return content_key([self.prompt, self.table.match, [asdict(item) for item in self.by_split.get(split, ())]])

    def question(self, item: Item) -> Question:
        """The question of an item, ready to be put."""
        data = item.data
        choices = tuple(data.get("choices", ()))
        said = filled(self.prompt, {"text": data["text"], "question": data.get("question", ""), "choices": choices})
        return Question(
            item.id, (Message("user", said),), data["answer"], self.table.match, choices,  # type: ignore[arg-type]
            pool=() if choices else self._pools.get(item.split, ()), own=f"{data['text']} {data.get('question', '')}",
            max_tokens=self.options["max_tokens"] or self.table.layout.max_tokens,
            free=self.options["decoding"] == "free",
        )  # fmt: skip

    async def run(self, item: Item, world: Any) -> Outcome:
        """One question, one answer; see `_asked.ask` for what the outcome holds."""
        return await ask(self.question(item), world)

    def score(self, item: Item, outcome: Outcome) -> Score:
        """See `_asked.marks`."""
        return marks(self.question(item), outcome.data)


def filled(prompt: str, parts: Mapping[str, Any]) -> str:
    """A template with its placeholders filled; choices are lines."""

    def put(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        value = parts[match[1]]
        return value if isinstance(value, str) else "\n".join(f"- {choice}" for choice in value)

    return _PLACE.sub(put, prompt)


def _plain_prompt(asks: Mapping[str, bool]) -> str:
    """What a table asks with where nobody says: all that there is."""
    question, choices = asks["question"], asks["choices"]
    return "{text}" + "\n{question}" * question + "\n\nAnswer with one of these:\n{choices}" * choices


def _check_prompt(prompt: str, asks: Mapping[str, bool]) -> None:
    """PlanError for a placeholder that there is not, and for a prompt that does not hold the text."""
    there = ", ".join("{%s}" % name for name, have in asks.items() if have)  # noqa: UP031
    for match in _PLACE.finditer(prompt):
        if match[1] is not None and not asks.get(match[1], False):
            raise PlanError(
                "the prompt has a placeholder that these questions do not fill",
                expected=there, got=match[0], do="write {{ and }} for braces",
            )  # fmt: skip
    if not any(match[1] == "text" for match in _PLACE.finditer(prompt)):
        raise PlanError("the prompt does not hold the text", expected=f"a template with {there}", got=repr(prompt))


def _pool(items: Sequence[Item]) -> tuple[str, ...]:
    """Answers of a split: wrong for other questions, if they fail there."""
    answers = (item.data["answer"] for item in items)
    return tuple(dict.fromkeys(a for a in answers if len(a) <= LONG))[:POOL]


def _options(name: str, given: dict[str, Any], layouts: Sequence[str]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise PlanError(f"unknown {name} option", expected=", ".join(DEFAULTS), got=", ".join(unknown))
    options = {**DEFAULTS, **given}
    for key, value in options.items():
        if type(value) is not type(DEFAULTS[key]):
            raise PlanError(f"{name} option {key}", expected=f"a value like {DEFAULTS[key]!r}", got=repr(value))
    if not options["file"]:
        raise PlanError(f"{name} needs a file", expected='[task_options] file = "questions.csv"')
    shares = options["shares"]
    if len(shares) != 3 or not all(isinstance(s, (int, float)) and s >= 0 for s in shares) or sum(shares) <= 0:
        raise PlanError(
            f"{name} option shares", expected="three numbers from 0: train, validation, test", got=repr(shares)
        )
    for key, known in (("layout", ("", *layouts)), ("match", ("", *MATCHES)), ("decoding", ("constrained", "free"))):
        if options[key] not in known:
            raise PlanError(f"{name} option {key}", expected=", ".join(filter(None, known)), got=repr(options[key]))
    if not 0 <= options["max_tokens"] <= TOKENS:
        raise PlanError(f"{name} option max_tokens", expected=f"1 to {TOKENS}", got=repr(options["max_tokens"]))
    return options


plugin = QuestionsTask
