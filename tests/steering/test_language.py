"""The edit language: round trips, what each line means, and where the caret stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.steering.strategies import edits, quick

from fairlead.core.errors import EditError
from fairlead.steering import (
    AllOf,
    AnyOf,
    Compare,
    Edit,
    Gate,
    Latent,
    Level,
    Op,
    Reading,
    Scope,
    Steps,
    StoredVector,
    parse,
)
from fairlead.steering import format as format_edits


@quick
@given(st.lists(edits(), max_size=3))
def test_what_is_formatted_parses_back(many: list[Edit]) -> None:
    text = format_edits(many)
    assert parse(text) == tuple(many)
    assert format_edits(parse(text)) == text
    assert "\n" not in text


@quick
@given(st.text(alphabet="0123456789 +-*=<>.;,:@#$()xabcdeilnoprstvw", max_size=40))
def test_any_text_parses_or_is_refused_with_a_caret(text: str) -> None:
    try:
        found = parse(text)
    except EditError as error:
        assert "^" in str(error) and error.expected and error.got
    else:
        assert parse(format_edits(found)) == found


ON0, LAST = Gate(Steps(0, 0)), Scope("last")
READ97 = Reading(Latent(97))
WHEN97 = Gate(None, Compare(READ97, ">", Level(0.4)))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("26737 -= 6", [Edit(Latent(26737), Op.ADD, -6)]),
        ("812 = 0", [Edit(Latent(812), Op.CLAMP, 0)]),
        ("812 -> off", [Edit(Latent(812), Op.ABLATE)]),
        ("$refusal -> out", [Edit(StoredVector("refusal"), Op.PROJECT_OUT)]),
        ("$careful += 2", [Edit(StoredVector("careful"), Op.ADD, 2)]),
        ("12 <= 3; 12 >= 1", [Edit(Latent(12), Op.CAP_MAX, 3), Edit(Latent(12), Op.CAP_MIN, 1)]),
        ("12 = -6", [Edit(Latent(12), Op.CLAMP, -6)]),
        ("12 *= -0.5", [Edit(Latent(12), Op.SCALE, -0.5)]),
        ("@layer 19: 34 *= 0.5 at last", [Edit(Latent(34), Op.SCALE, 0.5, "raw", "resid.19", LAST)]),
        ("@resid.2: 12 += 3x", [Edit(Latent(12), Op.ADD, 3, "max", "resid.2")]),
        ("1 = 0 at tokens 3..9", [Edit(Latent(1), Op.CLAMP, scope=Scope("tokens", 3, 9))]),
        ("1 = 0 at token 3", [Edit(Latent(1), Op.CLAMP, scope=Scope("tokens", 3, 3))]),
        ("1 = 0 at role user", [Edit(Latent(1), Op.CLAMP, scope=Scope("role", role="user"))]),
        ("1 = 0 on steps 0..2", [Edit(Latent(1), Op.CLAMP, gate=Gate(Steps(0, 2)))]),
        ("1 = 0 on steps 2..", [Edit(Latent(1), Op.CLAMP, gate=Gate(Steps(2, None)))]),
        ("1 = 0 when 97 > 0.4 at last", [Edit(Latent(1), Op.CLAMP, scope=LAST, gate=WHEN97)]),
        ("nothing", []),
    ],
)  # fmt: skip
def test_what_a_line_means(text: str, meant: list[Edit]) -> None:
    assert list(parse(text)) == meant


def test_a_clause_belongs_to_its_own_statement_and_a_comma_shares_it() -> None:
    first, second = parse("26737 -= 6; 23803 += 6 on step 0")
    assert (first.gate, second.gate) == (Gate(), ON0)
    first, second = parse("@resid.3: 26737 -= 6, 23803 += 6 on step 0")
    assert (first.gate, second.gate) == (ON0, ON0)
    assert (first.site, second.site) == ("resid.3", "resid.3")
    first, second = parse("@resid.3: 1 = 0; 2 = 0")
    assert (first.site, second.site) == ("resid.3", None)


def test_and_binds_tighter_than_or_and_a_bare_right_side_is_a_number() -> None:
    (edit,) = parse("1 = 0 when 97 > 0.4 and (12 <= 3 or 8 > 97)")
    right = AnyOf((Compare(Reading(Latent(12)), "<=", Level(3)), Compare(Reading(Latent(8)), ">", Level(97))))
    assert edit.gate.when == AllOf((Compare(READ97, ">", Level(0.4)), right))
    (edit,) = parse("1 = 0 when 1 > 0 or 2 > 0 and 3 > #97@layer 1")
    one, two, three = (Reading(Latent(i)) for i in (1, 2, 3))
    last = Compare(three, ">", Reading(Latent(97), "resid.1"))
    assert edit.gate.when == AnyOf((Compare(one, ">", Level(0)), AllOf((Compare(two, ">", Level(0)), last))))


@pytest.mark.parametrize("text", ["26737 -= 6; 23803 += 6 on step 0", "812 = 0 at generated when 97 > 0.4",
                                  "@resid.2: 12 += 3x", "$refusal -> out", "12 <= 3; 12 >= 1e-05"])  # fmt: skip
def test_canonical_text_formats_back_to_itself(text: str) -> None:
    assert format_edits(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "caret", "expected"),
    [
        ("", 0, "index"),
        ("   ", 3, "index"),
        ("12", 2, "`+=`"),
        ("12 =+ 3", 4, "a number"),
        ("12 =- 3", 4, "right before its number"),
        ("12 += 3; 13 =* 2", 13, "a number"),
        ("12 += é", 6, "a number"),
        ("é", 0, "index"),
        ("12 *= 2x", 7, "without a unit"),
        ("12 += 3 x", 8, "`at`"),
        ("12 += 3y", 7, "a number and x"),
        ("$v += 2x", 7, "without x"),
        ("1 = 0 when $v > 2x", 17, "without x"),
        ("@foo.2: 1 = 0", 1, "resid.L"),
        ("@resid.02: 1 = 0", 1, "resid.L"),
        ("@resid.2 1 = 0", 9, "`:`"),
        ("1 = 0 at night", 9, "all, prompt"),
        ("1 = 0 at last at last", 14, "once"),
        ("1 = 0 at tokens 9..3", 19, "9 or later"),
        ("1 = 0 at role robot", 14, "system"),
        ("1 = 0 on stp 1", 9, "`step`"),
        ("1 = 0 on steps 3..1", 18, "3 or later"),
        ("1 = 0 on step 1.5", 14, "whole number"),
        ("1 = 0 when (2 > 3", 17, "`)`"),
        ("1 = 0 when 2 = 3", 13, "comparison"),
        ("1 = 0 when 2.5 > 3", 11, "index"),
        ("1 = 1e999", 4, "finite"),
        ("1 -> away", 5, "`off`"),
        ("1.5 += 2", 0, "index"),
        ("nothing; 1 = 0", 7, "alone"),
        ("1 = 0;; 2 = 0", 6, "index"),
        ("1 = 0,", 6, "index"),
    ],
)
def test_the_caret_stands_under_the_place(text: str, caret: int, expected: str) -> None:
    with pytest.raises(EditError) as caught:
        parse(text)
    lines = str(caught.value).split("\n")
    assert lines[1] == "    " + text
    assert lines[2] == "    " + " " * caret + "^"
    assert expected in caught.value.expected


@pytest.mark.parametrize(
    "text", ["9" * 5000 + " = 0", "1 = 0 at tokens 0.." + "9" * 5000, "@mlp." + "9" * 5000 + ": 1 = 0",
             "1 = 0 when " + "(" * 5000, "1 = 0; " * 3000 + "!"]
)  # fmt: skip
def test_an_endless_line_is_refused_in_few_words(text: str) -> None:
    with pytest.raises(EditError) as caught:
        parse(text)
    assert "^" in str(caught.value) and len(str(caught.value)) < 1000
