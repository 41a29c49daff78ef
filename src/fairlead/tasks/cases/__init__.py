"""The user's own cases: a file of prompts with checks, on any model.

`plugin(options)` builds the task. Options: file (JSON lines, see `read`), sha256 (of the file: a plan that holds it
refuses another file), shares (of train, validation and test, for cases whose split is not given), decoding
("constrained": the most probable of a case's choices; "free": what the model writes), max_tokens (where a case does
not say), allow_code (whether Python checks may be imported and run: never because a file asks for it).

A decision is one place where the model answers. With `choices` its legal actions are those. Without, it is a
comparison of texts: the right ones that are known (the expected text of exact and number, `answer`, what the model
said where that passed) against wrong ones (`wrong`, what the model said where that failed, and up to three expected
texts of other cases of that split that fail here). So contrasts and attribution are defined for free text too; a method
that selects by decisions then selects by a stand-in, and `select = "rollouts"` is the honest choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.core.errors import LoadError, PlanError
from fairlead.core.keys import content_key, sha256
from fairlead.core.types import Decision, Generation, Item, Message, Outcome, Score
from fairlead.tasks._compared import LONG, compared
from fairlead.tasks.cases.read import Ask, Case, read_cases
from fairlead.tasks.cases.splits import assign

DEFAULTS: dict[str, Any] = {
    "file": "",
    "sha256": "",
    "shares": [0.3, 0.2, 0.5],
    "decoding": "constrained",
    "max_tokens": 64,
    "allow_code": False,
    "n": 0,  # what a plan asks for; the file decides how many there are
}


class CasesTask:
    """`needs` a subject. An item is a case; its cluster is what the file says, or all cases with its prompt."""

    name = "cases"
    needs = "subject"

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = _options(dict(options or {}))
        if not self.options["file"]:
            raise PlanError("cases needs a file", expected='[task_options] file = "cases.jsonl"')
        path = Path(self.options["file"])
        found = file_hash(path)
        if self.options["sha256"] not in ("", found):
            raise LoadError(
                f"{path} is not the file of this plan",
                expected=f"sha256 {self.options['sha256'][:12]}",
                got=found[:12],
                do="restore the file; cases that were changed are a new study",
            )
        kinds = {"allow_code": self.options["allow_code"], "max_tokens": self.options["max_tokens"]}
        sorted_ = assign(read_cases(path, **kinds), self.options["shares"])
        self.repeats = sorted_.repeats
        self.cases = dict(sorted_.by_split)
        self._by_id = {case.id: case for cases in self.cases.values() for case in cases}
        self._texts = {split: _expected(cases) for split, cases in self.cases.items()}

    @property
    def chosen_only(self) -> bool:
        """Whether every answer is a choice among legal ones, so that decisions are the whole of it."""
        return self.options["decoding"] == "constrained" and all(ask.choices for ask in self._asks)

    @property
    def has_choices(self) -> bool:
        """Whether any answer is a choice; where none is, decoding is free whatever the option says."""
        return any(ask.choices for ask in self._asks)

    @property
    def _asks(self) -> list[Ask]:
        return [ask for case in self._by_id.values() for ask in case.asks]

    def items(self, split: str) -> Sequence[Item]:
        return [Item(c.id, split, c.cluster, c.strata, {"line": c.line}) for c in self.cases.get(split, ())]

    def manifest(self, split: str) -> str:
        """Of what the cases say and of the code that checks them, not of where the file lies."""
        cases = self.cases.get(split, ())
        return content_key([[c.id, c.cluster, c.data, [a.check.source for a in c.asks]] for c in cases])

    async def run(self, item: Item, world: Any) -> Outcome:
        """The case's turns in order; the model answers where one has a check."""
        case = self._by_id[item.id]
        history: list[Message] = []
        decisions, trace = [], []
        passed: list[bool] = []
        loosely: list[bool | None] = []
        for turn in case.turns:
            if isinstance(turn, Message):
                history.append(turn)
                continue
            step, prompt = len(passed), tuple(history)
            said = await self._answer(turn, prompt, step, world)
            passed.append(turn.check.passes(said.text, case.data))
            loosely.append(turn.check.loosely(said.text))
            decision = self._decision(turn, prompt, step, said, passed[-1], case)
            decisions.append(decision)
            trace.append(
                {"i": step, "observation": _shown(prompt), "action": said.text, "error": "" if passed[-1] else "failed"}
            )
            history.append(Message("assistant", turn.reply or said.text))
        data = {"said": [d.chosen for d in decisions], "passed": passed, "loosely": loosely}
        return Outcome(data, tuple(decisions), tuple(trace))

    def score(self, item: Item, outcome: Outcome) -> Score:  # noqa: ARG002
        """strict: every check of the case passed. loose: every one passed loosely (None where a check has no loose
        form). passed: the share that passed."""
        passed, loosely = outcome.data["passed"], outcome.data["loosely"]
        strict = all(passed)
        loose = None if None in loosely else all(loosely)
        assert loose is not False or not strict, "strict must imply loose"
        return Score({"strict": strict, "loose": loose, "passed": sum(passed) / len(passed)})

    async def _answer(self, ask: Ask, prompt: tuple[Message, ...], step: int, world: Any) -> Generation:
        if ask.choices and self.options["decoding"] == "constrained":
            chosen: Generation = await world.generate(prompt, step=step, legal=ask.choices)
            return chosen
        said: Generation = await world.generate(prompt, step=step, max_tokens=ask.max_tokens)
        return said

    def _decision(
        self, ask: Ask, prompt: tuple[Message, ...], step: int, said: Generation, passed: bool, case: Case
    ) -> Decision:
        text = said.text
        if ask.choices:
            right = tuple(c for c in ask.choices if ask.check.passes(c, case.data))
            return Decision(prompt, step, ask.choices, text, right, ask.trap, said.legal_logprobs, said.edits)
        mine = text.strip()
        legal, right = compared(
            case.id, mine, passed, ask.answers, ask.wrong, self._texts[case.split],
            lambda t: ask.check.passes(t, case.data),
        )  # fmt: skip
        # what was said is compared as it stands; a text too long to compare stands for no candidate
        chosen = mine if 0 < len(mine) <= LONG else text
        return Decision(prompt, step, legal, chosen, right, (), None, said.edits)


def file_hash(path: str | Path) -> str:
    """sha256 of a file of cases. LoadError where it cannot be read."""
    try:
        return sha256(Path(path).read_bytes())
    except OSError as error:
        raise LoadError(f"{path} cannot be read", expected="a file of cases", got=error.strerror or "") from error


def _options(given: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise PlanError("unknown cases option", expected=", ".join(DEFAULTS), got=", ".join(unknown))
    options = {**DEFAULTS, **given}
    for key, value in options.items():
        if type(value) is not type(DEFAULTS[key]):
            raise PlanError(f"cases option {key}", expected=f"a value like {DEFAULTS[key]!r}", got=repr(value))
    shares = options["shares"]
    if len(shares) != 3 or not all(isinstance(s, (int, float)) and 0 <= s for s in shares) or sum(shares) <= 0:
        raise PlanError(
            "cases option shares", expected="three numbers from 0: train, validation, test", got=repr(shares)
        )
    if options["decoding"] not in ("constrained", "free"):
        raise PlanError("cases option decoding", expected="constrained or free", got=repr(options["decoding"]))
    if options["max_tokens"] < 1:
        raise PlanError("cases option max_tokens", expected="1 or more", got=repr(options["max_tokens"]))
    return options


def _expected(cases: Sequence[Case]) -> tuple[str, ...]:
    """The texts known to be right somewhere in a split: wrong elsewhere, if they fail there."""
    texts = (a for case in cases for ask in case.asks if not ask.choices for a in ask.answers)
    return tuple(dict.fromkeys(a for a in texts if len(a) <= LONG))[:500]


def _shown(prompt: Sequence[Message]) -> str:
    return "\n".join(f"{m.role}: {m.content}" for m in prompt)


plugin = CasesTask
