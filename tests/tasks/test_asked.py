"""One question on a world: what is found in an answer, what counts, and when a note tells the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from fairlead.core.errors import PlanError
from fairlead.core.fake import FakeSubject
from fairlead.core.keys import canonical
from fairlead.core.types import Generation, Message, Rewrite
from fairlead.tasks._asked import Question, ask, marks, named, tells, written
from fairlead.tasks.cases.numbers import numbers

SUM = Question(
    "sum", (Message("user", "Ann has 3 pears and buys 4. How many?"),), "7", "number",
    pool=("9", "12", "7.0", "11", "30"), own="Ann has 3 pears and buys 4. How many?",
)  # fmt: skip
SPARROW = Question(
    "sparrow", (Message("user", "The girl had the flightiness of a sparrow."),), "The girl was very fickle.", "choice",
    choices=("The girl was very fickle.", "The girl was very stable."),
    own="The girl had the flightiness of a sparrow.",
)  # fmt: skip
SENSE = Question(
    "sense", (Message("user", "He devoured the book."),), "metaphorical", "choice", choices=("literal", "metaphorical"),
    own="He devoured the book.",
)  # fmt: skip
TOWN = Question("town", (Message("user", "The capital of France?"),), "Paris", "exact", pool=("Rome",), own="France")


def noted(note: str, span: str, plain: str = "") -> Rewrite:
    return Rewrite(note, span, 0, "latent 3", plain, 9)


@dataclass(frozen=True)
class Noting:
    """A world that answers `said` to a prompt with a note, and `plain` without."""

    said: str
    note: str
    span: str
    plain: str

    async def generate(self, prompt, *, step=0, legal=None, max_tokens=32):
        return Generation(self.said, 9, 1, None if legal is None else (-0.1,) * len(legal), (), self.rewrite)

    @property
    def rewrite(self):
        return noted(self.note, self.span, self.plain)


async def test_a_number_is_asked_for_and_found():
    outcome = await ask(SUM, FakeSubject(lambda *_: "3 + 4 = 7 pears"))
    assert outcome.data == {
        "said": "3 + 4 = 7 pears", "found": "7", "answer": "7", "plain": None, "rewrite": None, "leaked": False,
    }  # fmt: skip
    expected = {"strict": True, "loose": True, "answered": True, "annotated": False, "leaked": None}
    assert marks(SUM, outcome.data).values == expected
    (decision,) = outcome.decisions
    assert decision.right == ("7", "3 + 4 = 7 pears") and decision.chosen in decision.right
    wrong = set(decision.legal) - set(decision.right)
    assert len(wrong) == 3 and wrong < {"9", "12", "11", "30"}, "a text that is right here is no wrong one"


async def test_a_wrong_answer_is_a_candidate_and_loose_takes_any_number():
    outcome = await ask(SUM, FakeSubject(lambda *_: "7 or so, I say 8"))
    assert marks(SUM, outcome.data).values["strict"] is False and marks(SUM, outcome.data).values["loose"] is True
    assert outcome.decisions[0].chosen not in outcome.decisions[0].right and outcome.decisions[0].right == ("7",)


@pytest.mark.parametrize("said", ["", "I cannot say.", "7 or 8"])
async def test_no_answer_is_wrong_and_no_error(said: str):
    outcome = await ask(SUM, FakeSubject(lambda *_: said))
    values = marks(SUM, outcome.data).values
    assert outcome.data["found"] is None and values["answered"] is False and values["strict"] is False


async def test_choices_are_legal_unless_the_question_is_free():
    outcome = await ask(SPARROW, FakeSubject(lambda _m, legal, _s: legal[0]))
    assert outcome.data["found"] == SPARROW.answer and marks(SPARROW, outcome.data).values["strict"]
    assert outcome.decisions[0].legal == SPARROW.choices and outcome.decisions[0].logprobs is not None
    free = replace(SPARROW, free=True)
    outcome = await ask(free, FakeSubject(lambda *_: "the girl was very STABLE"))
    assert outcome.data["found"] == SPARROW.choices[1] and not marks(free, outcome.data).values["strict"]
    outcome = await ask(free, FakeSubject(lambda *_: "It is hard to say."))
    assert outcome.data["found"] is None and outcome.decisions[0].chosen == "It is hard to say."


async def test_a_note_is_kept_with_its_counterfactual():
    world = Noting("7", 'Note: here "pears" means fruit, not couples.', "pears", "It is 8")
    outcome = await ask(SUM, world)
    assert outcome.data["found"] == "7" and outcome.data["plain"] == "8" and outcome.data["leaked"] is False
    assert outcome.data["rewrite"]["note"] == world.note and canonical(outcome.data)
    values = marks(SUM, outcome.data).values
    assert values["strict"] is True and values["annotated"] is True and values["leaked"] is False


async def test_a_note_that_tells_the_answer_is_discarded():
    outcome = await ask(SUM, Noting("7", 'Note: here "pears" means seven, not 3.', "pears", "I have 8, not 9"))
    assert outcome.data["leaked"] is True and outcome.data["found"] == outcome.data["plain"] == "9"
    values = marks(SUM, outcome.data).values
    assert values["strict"] is False and values["loose"] is False, "nothing of the annotated answer counts"
    assert values["leaked"] is True and values["annotated"] is True
    assert outcome.decisions[0].logprobs is None and outcome.decisions[0].chosen not in outcome.decisions[0].right


@pytest.mark.parametrize(
    ("question", "note", "span", "leak"),
    [
        (SUM, 'Note: here "pears" means fruit, not pairs.', "pears", False),
        (SUM, 'Note: here "7" means a number.', "7", False),  # the quoted span is the question's own word
        (SUM, 'Note: here "buys" means 7 in all.', "buys", True),
        (SUM, 'Note: here "buys" means 7.0.', "buys", True),
        (SUM, 'Note: here "buys" means the sum 3 + 4.', "buys", False),
        (SUM, "Note: read the question carefully.", "", False),
        (SPARROW, 'Note: here "sparrow" means a small bird.', "sparrow", False),
        (SPARROW, 'Note: here "sparrow" means fickle.', "sparrow", True),
        (SPARROW, 'Note: here "flightiness" means fickleness, not flying.', "flightiness", True),
        (SPARROW, 'Note: here "girl" means the girl was very fickle.', "girl", True),
        (SPARROW, 'Note: here "girl" means a girl was very young.', "girl", False),
        (SPARROW, 'Note: here "sparrow" means stable.', "sparrow", False),  # the wrong choice's word
        (SENSE, 'Note: here "devoured" means read eagerly, not ate.', "devoured", False),
        (SENSE, 'Note: here "devoured" is a metaphor.', "devoured", True),
        (SENSE, 'Note: here "devoured" means something, not metaphorically.', "devoured", True),
        (SENSE, 'Note: here "devoured" is literal.', "devoured", False),
        (TOWN, 'Note: here "capital" means seat of government, not money.', "capital", False),
        (TOWN, 'Note: here "capital" means paris.', "capital", True),
        (replace(SENSE, choices=("A", "B"), answer="A"), 'Note: here "book" means a novel.', "book", False),
        (replace(SENSE, choices=("A", "B"), answer="A"), "Note: it is A.", "", True),
    ],
)
def test_when_a_note_tells_the_answer(question: Question, note: str, span: str, leak: bool):
    assert tells(question, noted(note, span)) is leak


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("metaphorical", "metaphorical"), (" Metaphorical. ", "metaphorical"), ("It is literal!", "literal"),
        ("literal, not metaphorical", None), ("literally", None), ("", None), ("neither", None),
    ],
)  # fmt: skip
def test_which_choice_is_named(text: str, found: str | None):
    assert named(text, SENSE.choices) == found


def test_a_choice_within_a_longer_one_is_not_named():
    assert named("It is not literal.", ("literal", "not literal")) == "not literal"
    assert named("b", ("A", "B")) == "B" and named("a B or not", ("A", "B")) == "B"


@pytest.mark.parametrize(
    ("text", "found", "right"),
    [
        ("Paris", "Paris", True), ("The answer is Paris.", "Paris", True), ("So: \\boxed{Paris}, I say", "Paris", True),
        ("#### paris", "paris", True), ("Answer: Rome\nor so", "Rome", False), ("It is Paris", "It is Paris", False),
        ("  ", None, False),
    ],
)  # fmt: skip
def test_exact_texts(text: str, found: str | None, right: bool):
    assert TOWN.found(text) == found and TOWN.right(found) is right


def test_exact_texts_may_be_numbers():
    half = replace(TOWN, answer="1/2")
    assert half.right(half.found("\\boxed{\\frac{1}{2}}")) and half.right("0.50") and not half.right("1/3")


@pytest.mark.parametrize("text", ["12", "-12", "0.75", "-0.05", "1/3", "-7/3", "5%", "1000000", "12.5%", "0"])
def test_a_written_number_reads_the_same(text: str):
    assert written(numbers(text)[0]) == text


@pytest.mark.parametrize("change", [{"match": "fuzzy"}, {"match": "choice"}, {"match": "choice", "choices": ("7",)}])
def test_a_question_that_cannot_be_judged_is_refused(change):
    with pytest.raises(PlanError):
        replace(SUM, **change)
