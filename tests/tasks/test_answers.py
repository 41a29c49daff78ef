"""The answer in what a model writes: hundreds of forms, each with the number it gives, and hostile texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction

import pytest
from tests.tasks.answers import IN_WORDS, ODD, PLAIN, STORY, VALUES, WORDS

from fairlead.tasks.cases.numbers import boxed, final_number, numbers
from fairlead.tasks.cases.words import worded


def wrong(pairs: Iterator[tuple[str, str | None]]) -> list[tuple[str, str | None, str | None]]:
    found = []
    for text, value in pairs:
        number = final_number(text)
        if (None if number is None else number.value) != (None if value is None else Fraction(value)):
            found.append((text, value, None if number is None else str(number.value)))
    return found


def test_every_form_around_every_number():
    forms = [*PLAIN, *STORY]
    pairs = [(form.format(written), value) for form in forms for written, value in VALUES]
    assert len(pairs) > 5_000 and wrong(iter(pairs)) == []


def test_numbers_in_words():
    pairs = [(form.format(said), value) for form in IN_WORDS for said, value in WORDS]
    assert len(pairs) > 300 and wrong(iter(pairs)) == []


def test_odd_answers():
    assert len(ODD) > 100 and wrong(iter(ODD)) == []


def test_units_behind_and_words_before_change_nothing():
    units = "apples dollars kg hours % percent cents eggs people °C m² km/h points".split()
    leads = ["", "So ", "We find ", "Ann, who is old, has ", "Then: ", "Answer: ", "The answer is ", "=> "]
    pairs = [
        (f"{lead}{value} {unit}{end}", str(value))
        for value in (0, 7, 12, 105, 4000) for unit in units for lead in leads for end in ("", ".", " left.", "\n")
    ]  # fmt: skip
    assert len(pairs) > 1_500 and wrong(iter(pairs)) == []


@pytest.mark.parametrize("first", ["12", "$12", "12 apples", "-12", "1/2"])
@pytest.mark.parametrize("second", ["13", "$13", "13 apples"])
@pytest.mark.parametrize("around", ["{} or {}", "It is {} or {}.", "The answer is either {} or {}.", "{}, or {}"])
def test_two_answers_are_none(first: str, second: str, around: str):
    assert final_number(around.format(first, second)) is None
    assert final_number(around.format(first, first)) is not None, "the same twice is one answer"


def test_every_whole_number_in_words_reads_as_its_digits():
    for value in [*range(1_000), *range(1_000, 1_000_000, 997), 10**6, 10**6 + 1, 987_654_321, 10**12]:
        for said in {spelled(value), spelled(value).replace("-", " "), spelled(value, join=" and ")}:
            assert [w.value for w in worded(said)] == [value], said


def spelled(value: int, join: str = " ") -> str:
    units = (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen"
    ).split()
    tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
    if value < 20:
        return units[value]
    if value < 100:
        return tens[value // 10 - 2] + (f"-{units[value % 10]}" if value % 10 else "")
    if value < 1_000:
        return f"{units[value // 100]} hundred" + (join + spelled(value % 100) if value % 100 else "")
    for size, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1_000, "thousand")):
        if value >= size:
            rest = value % size
            between = join if rest < 100 else " "
            return f"{spelled(value // size, join)} {name}" + (between + spelled(rest, join) if rest else "")
    raise AssertionError(value)


def test_what_a_pronoun_counts():
    said = ["one of them", "the last one", "no one", "this one", "one who left", "one another", "any one"]
    assert [text for text in said if worded(text)] == []
    assert [str(w.value) for w in worded("one apple, one pear and five")] == ["1", "1", "5"]


def test_words_are_given_when_asked_for():
    assert [n.value for n in numbers("3 pears and four plums, 5 in all", words=True)] == [3, 4, 5]
    assert [n.value for n in numbers("3 pears and four plums")] == [3]
    assert numbers("five percent", words=True)[0].equals(Fraction(1, 20))


def test_boxes():
    assert boxed("a \\boxed{b{c}d} e") == "b{c}d" and boxed("\\boxed{open") == "open" and boxed("none") is None


HOSTILE = [
    "1", "1,", "1 ", "1.", "1/", "-", "1-", "1 1", "1,234", "$ ", "\\frac{", "\\frac{1}{", "\\boxed{", "\\boxed{1}",
    "{", "}", "answer ", "answer is ", "answer is 1 ", "total = ", "####", "one ", "one hundred ", "a dozen ",
    "twenty-", "1 or ",
    "between ", "between 1 and ", "negative ", "minus ", "1×10^", "1e", "½", "٣", "=", "= - ", "–", "1 x ", "not ",
    "(1",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_work_grows_with_the_length_of_the_text(piece: str):
    """Counted, not timed: calls into the readers and characters that are sliced or searched by them, on texts of n
    and 4n characters; regular expressions are covered by their form, below."""
    counts = []
    for n in (400, 1_600):
        events = [0]

        def count(_frame, event, _arg, events=events):
            events[0] += event in ("call", "c_call")

        text = piece * (n // len(piece))
        sys.setprofile(count)
        try:
            final_number(text)
        finally:
            sys.setprofile(None)
        counts.append(events[0])
    assert counts[1] <= 5 * counts[0] + 200, counts


@pytest.mark.parametrize("piece", HOSTILE)
def test_long_hostile_texts_come_to_an_end(piece: str):
    """A pattern that cuts one text in exponentially or cubically many ways would not return from this."""
    for other in (" ", "1"):
        text = (piece + other) * (2_000 // len(piece + other))
        for found in numbers(text, words=True):
            assert 0 <= found.start < found.end
        final_number("1" + text + "x")
