"""The checks of a case: what a text must be to pass, strictly and loosely.

    {"exact": "12"} or {"exact": ["12", "twelve"]}    the whole text, spaces at the ends aside
    {"contains": "refund"} or a list                  all of them, as written
    {"regex": "^[A-Z]{3}-[0-9]+$"}                      found anywhere (anchor it to mean the whole text)
    {"number": 12.5, "tolerance": 0.01}               the number that is the answer (see numbers.py)
    {"json-schema": {...}}                            the text is JSON (in a code fence or not) and fits the schema
    {"python": "module:function"}                     function(text, case) is true; only where code is allowed

Loosely, `exact` asks that the text holds one of them as words, `contains` forgets case, `number` takes any number in
the text; the others have no loose form (None). What passes strictly passes loosely.

Time is bounded: a pattern has at most PATTERN characters and a text LONGEST, and the matcher itself gives up after
SECONDS (the `regex` library's own limit), which is an error of that item and never a pass or a fail. Schemas refer to
nothing outside themselves, and their patterns are matched under the same limit.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import regex

from fairlead.core.errors import FairleadError, LoadError
from fairlead.core.keys import sha256
from fairlead.tasks.cases.numbers import exact, final_number, numbers

KINDS = ("exact", "contains", "regex", "number", "json-schema", "python")
PATTERN, LONGEST, SECONDS = 1_000, 100_000, 1.0
_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n\s*```\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Check:
    """One check, ready to use. `wanted` are the texts of exact and contains; `source` is the hash of a Python
    check's module, so that a result belongs to the code that judged it."""

    kind: str
    wanted: tuple[str, ...] = ()
    value: Fraction = Fraction(0)
    tolerance: Fraction = Fraction(0)
    call: Callable[..., Any] | None = field(default=None, compare=False)
    source: str = ""

    def passes(self, text: str, case: Mapping[str, Any]) -> bool:
        """Whether `text` passes, strictly. `case` is what a Python check gets beside it."""
        text = text[:LONGEST]
        if self.kind == "exact":
            return text.strip() in self.wanted
        if self.kind == "contains":
            return all(w in text for w in self.wanted)
        if self.kind == "number":
            found = final_number(text)
            return found is not None and found.equals(self.value, self.tolerance)
        assert self.call is not None
        return bool(self.call(text, case))

    def loosely(self, text: str) -> bool | None:
        """Whether `text` passes loosely; None where the check has no loose form."""
        text = text[:LONGEST]
        if self.kind == "exact":
            said = f" {_words(text)} "
            return text.strip() in self.wanted or any((w := _words(x)) and f" {w} " in said for x in self.wanted)
        if self.kind == "contains":
            return all(w.casefold() in text.casefold() for w in self.wanted)
        if self.kind == "number":
            return any(n.equals(self.value, self.tolerance) for n in numbers(text, words=True))
        return None


def check_from(data: Any, *, allow_code: bool) -> Check:
    """A Check from its JSON. Raises LoadError that says what is wrong; the caller names the line."""
    if not isinstance(data, dict):
        raise _wrong("the check is no object", 'like {"exact": "12"}', repr(data))
    kinds = [key for key in data if key in KINDS]
    if len(kinds) != 1:
        raise _wrong("the check is not one of those known", "exactly one of " + ", ".join(KINDS), _keys(data))
    kind = kinds[0]
    extra = sorted(set(data) - {kind} - ({"tolerance"} if kind == "number" else set()))
    if extra:
        raise _wrong(f"the {kind} check has unknown keys", f'"{kind}" alone', ", ".join(extra))
    value = data[kind]
    if kind in ("exact", "contains"):
        return Check(kind, _texts(kind, value))
    if kind == "regex":
        return _regex(value)
    if kind == "number":
        return _number(value, data.get("tolerance", 0))
    return _schema(value) if kind == "json-schema" else _python(value, allow_code)


def _texts(kind: str, value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(x, str) and x.strip() for x in texts):
        raise _wrong(f"the {kind} check holds no text", "a text, or a list of texts", repr(value))
    return tuple(x.strip() if kind == "exact" else x for x in texts)


def _number(value: Any, tolerance: Any) -> Check:
    found, slack = (exact(x) if _is_number(x) else None for x in (value, tolerance))
    if found is None or slack is None or slack < 0:
        what = value if found is None else tolerance
        raise _wrong("the number check holds no number", 'like 12.5 or "1/3", and a tolerance from 0', repr(what))
    return Check("number", (str(value),), found, slack)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def _regex(value: Any) -> Check:
    pattern = _pattern(value)
    return Check("regex", (value,), call=lambda text, _case: _search(pattern, text))


def _pattern(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        raise _wrong("the regex check holds no pattern", "a text", repr(value))
    if len(value) > PATTERN:
        raise _wrong("the pattern is too long", f"at most {PATTERN} characters", str(len(value)))
    try:
        return regex.compile(value)
    except (regex.error, OverflowError, RecursionError) as error:
        raise _wrong(f"the pattern {value!r} is not a regular expression", "Python's syntax", str(error)) from error


def _search(pattern: Any, text: str) -> bool:
    try:
        return pattern.search(text, timeout=SECONDS) is not None
    except TimeoutError as error:
        raise FairleadError(
            f"the pattern {pattern.pattern!r} took too long",
            expected=f"a match within {SECONDS:g} s",
            got=f"none on a text of {len(text)} characters",
            do="write it without nested repetition, such as (a+)+",
        ) from error


def _schema(value: Any) -> Check:
    from jsonschema import Draft202012Validator, ValidationError, validators
    from jsonschema.exceptions import SchemaError
    from referencing import Registry

    if not isinstance(value, (dict, bool)):
        raise _wrong("the json-schema check holds no schema", "an object", repr(value))
    for key, inside in _walk(value):
        if key == "patternProperties":
            raise _wrong("the schema uses patternProperties", "properties, whose names are known", "")
        if key in ("$ref", "$dynamicRef") and not (isinstance(inside, str) and inside.startswith("#")):
            raise _wrong("the schema refers to something outside itself", 'references like "#/$defs/x"', repr(inside))
        if key == "pattern" and isinstance(inside, str):
            _pattern(inside)

    def pattern(_validator: Any, wanted: str, instance: Any, _schema: Any) -> Any:
        if isinstance(instance, str) and not _search(regex.compile(wanted), instance):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    try:
        Draft202012Validator.check_schema(value)
    except SchemaError as error:
        raise _wrong("the schema is not a JSON schema", "draft 2020-12", error.message) from error
    judge = validators.extend(Draft202012Validator, {"pattern": pattern})(value, registry=Registry())

    def fits(text: str, _case: Mapping[str, Any]) -> bool:
        fenced = _FENCE.match(text)
        try:
            found = json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
        return bool(judge.is_valid(found))

    return Check("json-schema", (json.dumps(value, sort_keys=True),), call=fits)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _walk(value: Any) -> list[tuple[str, Any]]:
    """Every key of every object inside, with what it holds."""
    found, queue = [], [value]
    while queue:
        inside = queue.pop()
        if isinstance(inside, dict):
            found += list(inside.items())
            queue += list(inside.values())
        elif isinstance(inside, list):
            queue += inside
    return found


def _python(value: Any, allow_code: bool) -> Check:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise _wrong("the python check names no function", '"module:function"', repr(value))
    if not allow_code:
        raise LoadError(
            "this case wants to run Python code",
            expected="cases that hold data only",
            got=value,
            do="read that code, and if you trust it pass --allow-code (task option allow_code = true)",
        )
    module, _, name = value.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # a command's own folder is not on the path of an installed script
    try:
        call = getattr(importlib.import_module(module), name)
        source = sha256(Path(inspect.getsourcefile(call) or "").read_bytes())
    except Exception as error:  # a user's module may raise anything
        raise _wrong(f"the check {value!r} cannot be imported", f"{module}.py here or installed", str(error)) from error
    finally:
        sys.path.remove(here)
    if not callable(call):
        raise _wrong(f"the check {value!r} cannot be called", "a function of (text, case)", type(call).__name__)
    return Check("python", (value,), call=call, source=source)


def _words(text: str) -> str:
    """Lower-case words and numbers with one space between them."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _keys(data: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, data))) or "nothing"


def _wrong(message: str, expected: str, got: str) -> LoadError:
    return LoadError(message, expected=expected, got=got if len(got) <= 200 else got[:200] + " ...")
