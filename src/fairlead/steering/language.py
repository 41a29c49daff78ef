r"""The edit language: one line, readable aloud, and a caret under what it does not know.

    26737 -= 6; 23803 += 6 on step 0
    812 = 0 at generated when 97 > 0.4
    @layer 19: 34 *= 0.5 at last
    @resid.2: 12 += 3x, $careful += 2 on steps 0..2 when 97 > 0.4 and (12 <= 3 or 8 > #97)
    $refusal -> out

Grammar (`[ ]` optional, `*` repeated)::

    edits     = "nothing" | statement (";" statement)* [";"]
    statement = [ "@" site ":" ] change ("," change)* clause*
    site      = KIND "." L | "layer" L            KIND: resid, resid_pre, attn, mlp; layer L is resid.L
    change    = direction "+=" amount             add
              | direction "-=" amount             add the negative
              | direction "*=" ["-"] NUMBER       scale
              | direction "=" amount              clamp
              | direction "<=" amount             cap: at most
              | direction ">=" amount             cap: at least
              | direction "->" "off"              ablate: clamp a latent at 0
              | direction "->" "out"              project the whole direction out of the activation
    direction = INDEX | "$" NAME                  a latent of the dictionary, or a stored vector
    amount    = ["-"] NUMBER ["x"]                x: times the latent's largest activation in training
    clause    = "at" scope | "on" steps | "when" condition        each at most once
    scope     = "all" | "prompt" | "generated" | "last" | "tokens" A ".." B | "token" A
              | "role" ("system" | "user" | "assistant")
    steps     = "step" N | "steps" N ".." [M]     agent steps, both ends included
    condition = term ("or" term)*     term = test ("and" test)*     test = reading COMPARE operand | "(" condition ")"
    COMPARE   = ">" | ">=" | "<" | "<=" | "==" | "!="
    reading   = (INDEX | "#" INDEX | "$" NAME) ["@" site]
    operand   = amount | ("#" INDEX | "$" NAME) ["@" site]

Three decisions worth knowing:

* A site and clauses belong to their own statement only. In `26737 -= 6; 23803 += 6 on step 0` the first
  edit acts on every step. A comma shares them: `26737 -= 6, 23803 += 6 on step 0` gates both.
* The left of a comparison is a latent and the right a number: `8 > 97` asks whether latent 8 exceeds
  ninety-seven. To compare with latent 97 write `8 > #97`.
* No edit is written `nothing`; an empty line is an error, so that a lost line never passes for a plan.

`format` writes the canonical text: defaults left out, one statement per edit, clauses in the order at, on,
when. `parse(format(e)) == e` for all edits, and `format(parse(t)) == t` for canonical text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from fairlead.core.errors import EditError
from fairlead.steering.edit import (
    COMPARISONS,
    ROLES,
    SITE_KINDS,
    AllOf,
    AnyOf,
    Compare,
    Condition,
    Direction,
    Edit,
    Gate,
    Latent,
    Level,
    Op,
    Reading,
    Scope,
    Steps,
    StoredVector,
    Unit,
    site_order,
)

NOTHING = "nothing"
MAX_DIGITS = 40  # characters of a number or a site; every float and every latent fits
SHOWN = 120  # characters of a long line shown either side of the caret
MAX_DEPTH = 40  # conditions in conditions
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<vector>\$[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<site>[A-Za-z_]+\.[0-9]+)"
    r"|(?P<word>[A-Za-z_]+)"
    r"|(?P<symbol>\+=|-=|\*=|<=|>=|==|!=|->|\.\.|[=<>();,@:#-])"
    r"|(?P<unknown>.)",
    re.DOTALL,
)
_OPS = {"+=": Op.ADD, "-=": Op.ADD, "*=": Op.SCALE, "=": Op.CLAMP, "<=": Op.CAP_MAX, ">=": Op.CAP_MIN}
_SIGNS = {Op.ADD: "+=", Op.SCALE: "*=", Op.CLAMP: "=", Op.CAP_MAX: "<=", Op.CAP_MIN: ">="}
_ARROWS = {"off": Op.ABLATE, "out": Op.PROJECT_OUT}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


def parse(text: str) -> tuple[Edit, ...]:
    """The edits a line says. Raises EditError with a caret under the place it does not understand."""
    return _Parser(text).edits()


def format(edits: Sequence[Edit]) -> str:
    """The canonical line for these edits."""
    return "; ".join(_edit_text(e) for e in edits) if edits else NOTHING


class _Parser:
    """Recursive descent over tokens; one method a grammar rule."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[_Token] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            assert found is not None  # `unknown` takes what nothing else does
            if found.lastgroup != "space":
                self.tokens.append(_Token(str(found.lastgroup), found[0], at))
            at = found.end()
        self.tokens.append(_Token("end", "", len(text)))
        self.i = 0
        self.depth = 0
        for token in self.tokens:
            if token.kind in ("number", "site") and len(token.text) > MAX_DIGITS:
                self.fail(f"at most {MAX_DIGITS} characters", token.at, f"{token.text[:8]}...")

    # reading tokens

    @property
    def now(self) -> _Token:
        return self.tokens[self.i]

    def fail(self, expected: str, at: int | None = None, got: str | None = None, do: str = "") -> NoReturn:
        at = self.now.at if at is None else at
        got = (self.now.text or "the end of the line") if got is None else got
        start = self.text.rfind("\n", 0, at) + 1
        line = self.text[start:].split("\n", 1)[0].replace("\t", " ")
        left = max(0, at - start - SHOWN)
        cut = ("..." if left else "") + line[left : at - start + SHOWN]
        shown = f"{cut}\n    {' ' * (at - start - left + (3 if left else 0))}^"
        raise EditError(f"cannot read the edit\n    {shown}", expected=expected, got=got, do=do)

    def take(self) -> _Token:
        token = self.now
        self.i += 1
        return token

    def skip(self, *texts: str) -> str | None:
        """Takes the next token when it is one of these."""
        if self.now.kind in ("word", "symbol") and self.now.text in texts:
            return self.take().text
        return None

    def need(self, text: str) -> None:
        if self.skip(text) is None:
            self.fail(f"`{text}`")

    def whole(self, what: str) -> int:
        if self.now.kind != "number" or not self.now.text.isdigit():
            self.fail(f"{what}: a whole number")
        return int(self.take().text)

    # rules

    def edits(self) -> tuple[Edit, ...]:
        if self.skip(NOTHING):
            if self.now.kind != "end":
                self.fail("the end: `nothing` stands alone")
            return ()
        found = [*self.statement()]
        while self.skip(";"):
            if self.now.kind == "end":
                break
            found += self.statement()
        if self.now.kind != "end":
            self.fail("`;`, `,`, `at`, `on`, `when` or the end")
        return tuple(found)

    def statement(self) -> list[Edit]:
        site = None
        if self.skip("@"):
            site = self.site()
            self.need(":")
        changes = [self.change()]
        while self.skip(","):
            changes.append(self.change())
        scope, steps, when = self.clauses()
        return [Edit(d, op, value, unit, site, scope, Gate(steps, when)) for d, op, value, unit in changes]

    def site(self) -> str:
        if self.skip("layer"):
            return f"resid.{self.whole('a layer')}"
        token = self.now
        if token.kind != "site":
            self.fail("a site such as resid.2, mlp.0 or layer 2")
        try:
            site_order(token.text)
        except EditError:
            self.fail(f"a site: {', '.join(k + '.L' for k in SITE_KINDS)} or layer L")
        return self.take().text

    def change(self) -> tuple[Direction, Op, float, Unit]:
        direction = self.direction()
        if self.skip("->"):
            word = self.skip(*_ARROWS)
            if word is None:
                self.fail("`off` (ablate) or `out` (project out)")
            return direction, _ARROWS[word], 0.0, "raw"
        symbol = self.skip(*_OPS)
        if symbol is None:
            self.fail("`+=`, `-=`, `*=`, `=`, `<=`, `>=`, `-> off` or `-> out`")
        value, unit = self.amount(plain="" if symbol != "*=" else "a scale")
        if unit == "max" and isinstance(direction, StoredVector):
            self.fail("a strength without x", self.tokens[self.i - 1].at, "x", "a stored vector's unit is itself")
        return direction, _OPS[symbol], -value if symbol == "-=" else value, unit

    def direction(self) -> Direction:
        token = self.now
        if token.kind == "vector":
            return StoredVector(self.take().text[1:])
        if token.kind == "number" and token.text.isdigit():
            return Latent(int(self.take().text))
        self.fail("a latent's index or $vector")

    def amount(self, plain: str = "") -> tuple[float, Unit]:
        sign = self.skip("-")
        if self.now.kind != "number":
            self.fail("a number")
        token = self.take()
        if sign and token.at != self.tokens[self.i - 2].at + 1:  # `12 =- 6` is a slip for `12 -= 6`
            self.fail("a minus right before its number", self.tokens[self.i - 2].at, "-")
        value = float(token.text)
        if value == float("inf"):
            self.fail("a finite number", token.at, token.text)
        glued = self.now.kind == "word" and self.now.at == token.at + len(token.text)
        unit: Unit = "raw"
        if glued:
            if plain:
                self.fail(f"{plain} without a unit")
            if self.now.text != "x":
                self.fail("a number, or a number and x")
            self.take()
            unit = "max"
        return -value if sign == "-" else value, unit

    def clauses(self) -> tuple[Scope, Steps | None, Condition | None]:
        scope: Scope | None = None
        steps: Steps | None = None
        when: Condition | None = None
        while self.now.kind == "word":
            if scope is None and self.skip("at"):
                scope = self.scope()
            elif steps is None and self.skip("on"):
                steps = self.steps()
            elif when is None and self.skip("when"):
                when = self.condition()
            else:
                twice = self.now.text in ("at", "on", "when")
                self.fail("each of at, on and when once" if twice else "`at`, `on`, `when`, `;`, `,` or the end")
        return scope or Scope(), steps, when

    def scope(self) -> Scope:
        word = self.skip("all", "prompt", "generated", "last", "tokens", "token", "role")
        if word is None:
            self.fail("all, prompt, generated, last, tokens A..B, token A or role R")
        if word == "role":
            role = self.skip(*ROLES)
            return Scope("role", role=role) if role is not None else self.fail("system, user or assistant")
        if word == "token":
            start = self.whole("a token position")
            return Scope("tokens", start, start)
        if word == "tokens":
            start = self.whole("the first token")
            self.need("..")
            at, stop = self.now.at, self.whole("the last token")
            if stop < start:
                self.fail(f"a span that ends at {start} or later", at, str(stop))
            return Scope("tokens", start, stop)
        return Scope(word)  # type: ignore[arg-type]  # one of the four just taken

    def steps(self) -> Steps:
        if self.skip("step"):
            first = self.whole("an agent step")
            return Steps(first, first)
        if self.skip("steps") is None:
            self.fail("`step` or `steps`")
        first = self.whole("the first step")
        self.need("..")
        if self.now.kind != "number":
            return Steps(first, None)
        at, last = self.now.at, self.whole("the last step")
        if last < first:
            self.fail(f"a span that ends at {first} or later", at, str(last))
        return Steps(first, last)

    def condition(self) -> Condition:
        parts = [self.term()]
        while self.skip("or"):
            parts.append(self.term())
        return AnyOf(tuple(parts)) if len(parts) > 1 else parts[0]

    def term(self) -> Condition:
        parts = [self.test()]
        while self.skip("and"):
            parts.append(self.test())
        return AllOf(tuple(parts)) if len(parts) > 1 else parts[0]

    def test(self) -> Condition:
        if self.skip("("):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                self.fail(f"at most {MAX_DEPTH} conditions inside each other", self.tokens[self.i - 1].at, "(")
            inside = self.condition()
            self.need(")")
            self.depth -= 1
            return inside
        self.skip("#")
        left = self.reading()
        op = self.skip(*COMPARISONS)
        if op is None:
            self.fail("a comparison: " + " ".join(COMPARISONS))
        if self.skip("#") or self.now.kind == "vector":
            return Compare(left, op, self.reading())
        value, unit = self.amount()
        if unit == "max" and isinstance(left.direction, StoredVector):
            self.fail("a level without x", self.tokens[self.i - 1].at, "x", "a stored vector's unit is itself")
        return Compare(left, op, Level(value, unit))

    def reading(self) -> Reading:
        direction = self.direction()
        return Reading(direction, self.site() if self.skip("@") else None)


def _number(value: float) -> str:
    text = repr(value)
    return text.removesuffix(".0")


def _direction_text(direction: Direction) -> str:
    return str(direction.index) if isinstance(direction, Latent) else f"${direction.name}"


def _amount_text(value: float, unit: Unit) -> str:
    return _number(value) + ("x" if unit == "max" else "")


def _edit_text(edit: Edit) -> str:
    parts = [f"@{edit.site}:"] if edit.site is not None else []
    parts.append(_direction_text(edit.direction))
    if edit.op is Op.ABLATE or edit.op is Op.PROJECT_OUT:
        parts += ["->", "off" if edit.op is Op.ABLATE else "out"]
    elif edit.op is Op.ADD and edit.value < 0:
        parts += ["-=", _amount_text(-edit.value, edit.unit)]
    else:
        parts += [_SIGNS[edit.op], _amount_text(edit.value, edit.unit)]
    scope, steps = edit.scope, edit.gate.steps
    if scope.kind == "tokens":
        parts.append(f"at tokens {scope.start}..{scope.stop}")
    elif scope.kind == "role":
        parts.append(f"at role {scope.role}")
    elif scope.kind != "all":
        parts.append(f"at {scope.kind}")
    if steps is not None:
        span = f"{steps.first}..{'' if steps.last is None else steps.last}"
        parts.append(f"on step {steps.first}" if steps.first == steps.last else f"on steps {span}")
    if edit.gate.when is not None:
        parts.append(f"when {_condition_text(edit.gate.when)}")
    return " ".join(parts)


def _reading_text(reading: Reading, mark: str = "") -> str:
    text = _direction_text(reading.direction)
    text = mark + text if isinstance(reading.direction, Latent) else text
    return text if reading.site is None else f"{text}@{reading.site}"


def _condition_text(condition: Condition) -> str:
    if isinstance(condition, Compare):
        right = condition.right
        tail = _amount_text(right.value, right.unit) if isinstance(right, Level) else _reading_text(right, "#")
        return f"{_reading_text(condition.left)} {condition.op} {tail}"
    if isinstance(condition, AnyOf):
        return " or ".join(_condition_text(p) for p in condition.parts)
    inner = (f"({_condition_text(p)})" if isinstance(p, AnyOf) else _condition_text(p) for p in condition.parts)
    return " and ".join(inner)
