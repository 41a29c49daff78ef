"""A file of cases, one JSON object a line, to Case values. What is wrong is said with the number of its line.

    {"prompt": "What is 7 times 8?", "check": {"number": 56}}
    {"messages": [{"role": "user", "content": "Red or blue?"}], "choices": ["red", "blue"], "check": {"exact": "red"}}
    {"turns": [{"role": "user", "content": "Hi"}, {"role": "assistant", "check": {"contains": "Hello"}},
               {"role": "user", "content": "3 + 4?"}, {"role": "assistant", "check": {"number": 7}}]}

In `turns`, an assistant turn with a `check` is answered by the model. What it says stands in the prompts after it,
unless the turn has a `content` too: then that stands there. A turn without a check is history.

Keys of a case: prompt (or text), messages or turns; check; and where useful id, cluster, split (train, validation or
test), strata {"name": "value"}, system (a system line), and for prompt and messages the keys of an answer:
choices      the legal answers; under constrained decoding the most probable is taken
trap         those of the choices that are the known mistake
answer       a text that is right, or several: the candidates where there are no choices (exact and number have one)
wrong        texts that are not
max_tokens   of the answer, where there are no choices
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.core.errors import FairleadError, LoadError
from fairlead.core.types import Message
from fairlead.tasks.cases.checks import Check, check_from

LINE = 1_000_000  # bytes of one case
MOST = 100_000  # cases of one file
TURNS, CHOICES, TOKENS = 200, 500, 4096
ROLES = ("system", "user", "assistant")
SPLITS = ("train", "validation", "test")
_ANSWER = ("check", "choices", "trap", "answer", "wrong", "max_tokens")
_KEYS = ("prompt", "text", "messages", "turns", "system", "id", "cluster", "split", "strata", *_ANSWER)


@dataclass(frozen=True)
class Ask:
    """One place where the model answers. `reply` stands in later prompts instead of what it says, if given."""

    check: Check
    choices: tuple[str, ...] = ()
    trap: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    max_tokens: int = 64
    reply: str | None = None


@dataclass(frozen=True)
class Case:
    """One case. `cluster` and `split` are "" where the file does not say; `data` is the line as parsed."""

    id: str
    line: int
    turns: tuple[Message | Ask, ...]
    cluster: str = ""
    split: str = ""
    strata: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asks(self) -> tuple[Ask, ...]:
        return tuple(t for t in self.turns if isinstance(t, Ask))

    @property
    def said(self) -> str:
        """All that is not the model's to say, case and spacing forgotten: equal for prompts that repeat."""
        texts = (f"{t.role}:{t.content}" for t in self.turns if isinstance(t, Message))
        return " ".join("\n".join(texts).casefold().split())


def read_cases(path: str | Path, *, allow_code: bool = False, max_tokens: int = 64) -> tuple[Case, ...]:
    """Every case of a file. LoadError names the first line that cannot be used, and why."""
    path = Path(path)
    cases: list[Case] = []
    lines: dict[str, int] = {}
    for number, text in _lines(path):
        try:
            case = _case(_parsed(text), number, allow_code, max_tokens)
        except FairleadError as error:
            raise LoadError(
                f"{path}, line {number}: {error.message}", expected=error.expected, got=error.got, do=error.do
            ) from error
        if case.id in lines:
            raise LoadError(
                f"{path}, line {number}: the id {case.id!r} stands on line {lines[case.id]} too",
                expected="one id a case",
                do="give each case its own id, or leave ids out",
            )
        lines[case.id] = number
        cases.append(case)
        if len(cases) > MOST:
            raise LoadError(f"{path} holds too many cases", expected=f"at most {MOST}")
    if not cases:
        raise LoadError(f"{path} holds no case", expected="one JSON object a line", got="nothing but blank lines")
    return tuple(cases)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of every line that is not blank."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE + 1):
                number += 1
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise LoadError(f"{path} is UTF-16", expected="UTF-8", do="save the file as UTF-8")
                if len(line) > LINE:
                    raise LoadError(f"{path}, line {number} is too long", expected=f"at most {LINE} bytes a case")
                text = _text(path, number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
                if text.strip():
                    yield number, text
    except OSError as error:
        raise LoadError(f"{path} cannot be read", expected="a file of cases", got=error.strerror or "") from error


def _text(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LoadError(
            f"{path}, line {number} is not UTF-8",
            expected="UTF-8 text",
            got=f"byte 0x{line[error.start]:02x} at place {error.start}",
            do="save the file as UTF-8",
        ) from error


def _parsed(text: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise LoadError("a key stands twice", expected="each key once", got=twice)
        return found

    try:
        found = json.loads(text, object_pairs_hook=once, parse_constant=_no_constant)
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise LoadError(
            "a text that is no Unicode", expected="whole characters", got="half a surrogate pair"
        ) from error
    except RecursionError as error:
        raise LoadError("the JSON is nested too deeply", expected="a case") from error
    except ValueError as error:
        do = "write one object a line, without the list around them" if text.lstrip().startswith("[") else ""
        raise LoadError("this is not JSON", expected="one JSON object", got=str(error), do=do) from error
    if not isinstance(found, dict):
        do = "write one object a line, without the list around them" if isinstance(found, list) else ""
        raise LoadError(
            "this is no JSON object", expected='like {"prompt": ..., "check": ...}', got=_kind(found), do=do
        )
    return found


def _no_constant(name: str) -> Any:
    raise LoadError(f"{name} is not JSON", expected="finite numbers")


def _case(data: dict[str, Any], number: int, allow_code: bool, max_tokens: int) -> Case:
    unknown = sorted(set(data) - set(_KEYS))
    if unknown:
        raise LoadError("unknown keys", expected=", ".join(_KEYS), got=", ".join(unknown))
    forms = [key for key in ("prompt", "text", "messages", "turns") if key in data]
    if len(forms) != 1:
        raise LoadError(
            "a case needs one of prompt, text, messages and turns",
            expected="exactly one",
            got=", ".join(forms) or "none",
        )
    if forms[0] == "turns":
        misplaced = [key for key in _ANSWER if key in data]
        if misplaced:
            raise LoadError(
                "these keys belong to an assistant turn", expected="them in `turns`", got=", ".join(misplaced)
            )
        turns = _turns(data["turns"], data, allow_code, max_tokens)
    else:
        turns = (*_messages(data, forms[0]), _ask(data, data, allow_code, max_tokens))
    if "system" in data:
        if isinstance(turns[0], Message) and turns[0].role == "system":
            raise LoadError("two system lines", expected="`system`, or a first message with that role", got="both")
        turns = (Message("system", _string(data, "system")), *turns)
    split = _string(data, "split") if "split" in data else ""
    if split and split not in SPLITS:
        raise LoadError("there is no such split", expected=" or ".join(SPLITS), got=repr(split))
    return Case(
        id=_string(data, "id") if "id" in data else f"line-{number}",
        line=number,
        turns=turns,
        cluster=_string(data, "cluster") if "cluster" in data else "",
        split=split,
        strata=_strata(data.get("strata", {})),
        data=data,
    )


def _messages(data: Mapping[str, Any], form: str) -> tuple[Message, ...]:
    if form != "messages":
        return (Message("user", _string(data, form)),)
    found = tuple(_message(m) for m in _list(data, "messages", TURNS))
    if found[-1].role == "assistant":
        raise LoadError("the last message is the assistant's", expected="the user's, for the model to answer")
    return found


def _message(data: Any) -> Message:
    if not isinstance(data, dict) or set(data) != {"role", "content"}:
        got = ", ".join(sorted(data)) if isinstance(data, dict) else _kind(data)
        raise LoadError("a message is not one", expected='{"role": ..., "content": ...}', got=got)
    if data["role"] not in ROLES:
        raise LoadError("there is no such role", expected=" or ".join(ROLES), got=repr(data["role"]))
    return Message(data["role"], _string(data, "content", empty=data["role"] != "user"))


def _turns(value: Any, case: dict[str, Any], allow_code: bool, max_tokens: int) -> tuple[Message | Ask, ...]:
    found: list[Message | Ask] = []
    for turn in _list({"turns": value}, "turns", TURNS):
        if not isinstance(turn, dict) or "check" not in turn:
            found.append(_message(turn))
            continue
        if turn.get("role") != "assistant":
            raise LoadError(
                "only an assistant turn has a check", expected='"role": "assistant"', got=repr(turn.get("role"))
            )
        unknown = sorted(set(turn) - {"role", "content", *_ANSWER})
        if unknown:
            raise LoadError(
                "unknown keys in a turn", expected=", ".join(("role", "content", *_ANSWER)), got=", ".join(unknown)
            )
        if not found or (isinstance(found[-1], Ask) or found[-1].role == "assistant"):
            raise LoadError("an assistant turn that answers nothing", expected="a user turn before it")
        found.append(_ask(turn, case, allow_code, max_tokens))
    if not any(isinstance(turn, Ask) for turn in found):
        raise LoadError("no turn has a check", expected="at least one assistant turn with a check")
    return tuple(found)


def _ask(data: Mapping[str, Any], case: Mapping[str, Any], allow_code: bool, max_tokens: int) -> Ask:
    if "check" not in data:
        raise LoadError("the case has no check", expected='like "check": {"exact": "12"}', got=", ".join(sorted(data)))
    check = check_from(data["check"], allow_code=allow_code)
    choices, trap, answers, wrong = (_strings(data, key) for key in ("choices", "trap", "answer", "wrong"))
    limit = data.get("max_tokens", max_tokens)
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= TOKENS:
        raise LoadError("max_tokens is no such number", expected=f"1 to {TOKENS}", got=repr(limit))
    if choices:
        good = [c for c in choices if check.passes(c, case)]
        if not good or len(good) == len(choices) or len(choices) > CHOICES:
            how = f"{len(good)} of {len(choices)}"
            raise LoadError(
                "the choices decide nothing", expected="some that pass the check, and some that do not", got=how
            )
        lost = [t for t in trap if t not in choices or t in good]
        if lost:
            raise LoadError("a trap is a choice that does not pass", expected="one of the choices", got=", ".join(lost))
    elif trap:
        raise LoadError("a trap without choices", expected="choices, or `wrong` instead of `trap`")
    if not answers and check.kind in ("exact", "number"):
        answers = check.wanted
    for text, should in (*((a, True) for a in answers), *((w, False) for w in wrong)):
        if check.passes(text, case) != should:
            what = "an answer does not pass the check" if should else "a text in `wrong` passes the check"
            raise LoadError(what, got=repr(text))
    reply = _string(data, "content") if data.get("role") == "assistant" and "content" in data else None
    return Ask(check, choices, trap, answers, wrong, limit, reply)


def _strings(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    if key not in data:
        return ()
    value = data[key]
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(x, str) and x for x in texts):
        raise LoadError(
            f"{key} holds something else than texts", expected="texts that are not empty", got=repr(value)[:200]
        )
    if len(set(texts)) != len(texts):
        raise LoadError(f"{key} holds one text twice", expected="each once", got=repr(value)[:200])
    return tuple(texts)


def _string(data: Mapping[str, Any], key: str, *, empty: bool = False) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise LoadError(f"{key} is no text", expected="a text", got=_kind(value))
    if not empty and not value.strip():
        raise LoadError(f"{key} is empty", expected="a text that says something")
    return value


def _list(data: Mapping[str, Any], key: str, most: int) -> list[Any]:
    value = data[key]
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        got = f"{len(value)} of them" if isinstance(value, list) else _kind(value)
        raise LoadError(f"{key} is no list of turns", expected=f"1 to {most} of them", got=got)
    return value


def _strata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) and v for v in value.values()):
        raise LoadError("strata is no table of texts", expected='{"kind": "refund"}', got=repr(value)[:200])
    return dict(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
