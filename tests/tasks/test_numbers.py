"""The number extractor, on the forms that answers come in."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.tasks.cases.numbers import exact, final_number, numbers

FORMS = [
    ("12", "12"),
    ("12.", "12"),
    ("The answer is 12.", "12"),
    ("**12**", "12"),
    ("(3)", "3"),
    ("$12$", "12"),
    ("1,234.5", "1234.5"),
    ("12,345,678", "12345678"),
    ("1,234.", "1234"),
    ("1\u202f234.5", "1234.5"),
    ("1\u00a0234", "1234"),
    ("-3", "-3"),
    ("−3", "-3"),
    ("－3", "-3"),
    ("+2", "2"),
    ("= -3", "-3"),
    ("(-3)", "-3"),
    (".5", "1/2"),
    ("-.5", "-1/2"),
    ("0.1", "1/10"),
    ("1/2", "1/2"),
    ("1 / 2", "1/2"),
    ("1 1/2", "3/2"),
    ("½", "1/2"),
    ("1½", "3/2"),
    ("-½", "-1/2"),
    ("3⁄4", "3/4"),
    ("\\frac{1}{2}", "1/2"),
    ("-\\dfrac{3}{4}", "-3/4"),
    ("5%", "5"),
    ("5 ％", "5"),
    ("1.5e3", "1500"),
    ("1.5×10^3", "1500"),
    ("2 x 10^{-3}", "1/500"),
    ("3\\times10^{2}", "300"),
    ("$3.50", "7/2"),
    ("-$3.50", "-7/2"),
    ("$-3", "-3"),
    ("€1,200 in all", "1200"),
    ("１２", "12"),
    ("٣٤", "34"),
    ("#### 42", "42"),
    ("#### 42 of the 50", "42"),
    ("So \\boxed{-7}, since 3 of 9", "-7"),
    ("\\boxed{\\frac{1}{2}} it is, not 7", "1/2"),
    ("Answer: 12, not 13", "12"),
    ("5 + 7 = 12", "12"),
    ("The total is therefore = $1,200 for 3 people", "1200"),
    ("3 apples and 4 pears make 7", "7"),
]


@pytest.mark.parametrize(("text", "value"), FORMS)
def test_the_answer_is_read(text: str, value: str):
    found = final_number(text)
    assert found is not None and found.value == Fraction(value), numbers(text)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2,3", [1, 2, 3]),
        ("1,234,5", [1, 234, 5]),
        ("12,34", [12, 34]),
        ("3-5", [3, 5]),
        ("x-1", [1]),
        ("10²", [10]),
        ("5^2", [5, 2]),
        ("between 3 and −4", [3, -4]),
        ("2026-05-01", []),
        ("v1.2.3", []),
        ("1/2/26", []),
        ("1/0", []),
        ("1e999", []),
        ("9" * 200, []),
        ("none at all", []),
        ("", []),
        ("--", []),
    ],
)
def test_what_is_a_number_and_what_is_not(text: str, values: list[int]):
    assert [n.value for n in numbers(text)] == values


def test_a_percentage_is_both_its_number_and_its_share():
    found = numbers("about 5%")[0]
    assert found.equals(Fraction(5)) and found.equals(Fraction(1, 20)) and not found.equals(Fraction(50))
    assert numbers("3.14")[0].equals(Fraction(22, 7), Fraction(1, 100))


def test_numbers_of_a_case_file_are_exact():
    assert exact(0.1) == Fraction(1, 10) and exact("1/3") == Fraction(1, 3) and exact(1e-7) == Fraction(1, 10**7)
    assert exact("1 2") is None and exact("about 3") is None and exact("") is None


@given(st.fractions(), st.sampled_from(["{}", "The answer is {}.", "x = 7; so \\boxed{{{}}}", "#### {}"]))
def test_what_is_written_is_read(value: Fraction, around: str):
    found = final_number(around.format(value))
    if len(str(value)) < 60:
        assert found is not None and found.value == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9))
def test_grouped_decimals_are_read(value):
    found = final_number(f"It costs {value:,} in all")
    assert found is not None and found.value == Fraction(value)


@given(st.text(max_size=400))
@settings(max_examples=300)
def test_no_text_breaks_it(text: str):
    assert all(0 <= n.start < n.end for n in numbers(text))
    final_number(text)


@pytest.mark.parametrize(
    "piece", ["1,", "1 ", "1.1", "1/", "-", "1", "1,234", "$ ", "1 1", "\\frac{", "\\boxed{", "answer "]
)
def test_long_texts_take_linear_time(piece: str):
    started = time.process_time()
    final_number(piece * (100_000 // len(piece)))
    assert time.process_time() - started < 5
