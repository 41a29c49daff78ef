"""Predicates read text alone, survive JSON to the last bit, and refuse what nobody saved."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tests.features.texts.planted import Embedder

from fairlead.core.errors import LoadError
from fairlead.features.texts.ngrams import common, grams, vocabulary, words
from fairlead.features.texts.predicates import (
    MEASURES,
    NAMES,
    AnyOf,
    Asked,
    Near,
    Predicate,
    Read,
    Surface,
    Terms,
    Tools,
    Weighted,
    describe,
    fires,
    from_json,
    scores,
    to_json,
)

TEXTS = ["Ten dogs won the big match!", "Is soup BREAD?", "", "the big big match match", "“No,” she said: 3 (of 9) ..."]


class Annotator:
    name = "fake"

    async def say(self, messages: Any) -> str:
        return "has a question"

    async def yes(self, messages: Any) -> float:
        return 1.0 if "Text: Is" in messages[0].content else -1.0


CASES: list[tuple[Predicate, list[bool], str]] = [
    (Terms(("big match", "soup")), [True, True, False, True, False], "mentions “big match” or “soup”"),
    (Terms(("big", "match", "ten"), 2), [True, False, False, True, False],
     "mentions at least 2 of “big”, “match” or “ten”"),
    (Weighted(("big", "ten"), (0.5, 1.0), 1.2), [True, False, False, False, False],
     "uses words such as “ten”, “big”"),
    (Surface("questions", 1.0), [False, True, False, False, False], "has question marks"),
    (Surface("words", 4.0, below=True), [False, True, True, False, False], "has fewer than 4 words"),
    (AnyOf((Terms(("soup",)), Surface("numbers", 2.0))), [False, True, False, False, True],
     "mentions “soup” or has at least 2 numbers in digits"),
    (Near(("soup", "bread"), 0.5, "planted"), [False, True, False, False, False],
     "is close in meaning to “soup”, “bread”"),
    (Asked("has a question", 0.0, "fake"), [False, True, False, False, False], "has a question"),
]  # fmt: skip


@pytest.mark.parametrize(("predicate", "holds", "said"), CASES)
async def test_it_holds_where_it_says_and_survives_json(predicate: Predicate, holds: list[bool], said: str) -> None:
    tools = Tools(Embedder(), Annotator())
    assert list(await fires(predicate, TEXTS, tools)) == holds
    assert describe(predicate) == said
    again = from_json(json.loads(json.dumps(to_json(predicate))))
    assert again == predicate and hash(again) == hash(predicate)
    read = Read(TEXTS, tools)
    assert np.array_equal(await scores(again, read), await scores(predicate, read))
    assert list(await fires(predicate, read.part([3, 1]))) == [holds[3], holds[1]]


@pytest.mark.parametrize(
    "data",
    [
        {}, {"kind": "python", "code": "1"}, {"kind": "terms", "terms": []}, {"kind": "terms", "terms": [1]},
        {"kind": "terms", "terms": ["a"], "least": float("nan")}, {"kind": "surface", "measure": "eval", "least": 1},
        {"kind": "weighted", "terms": ["a"], "weights": [], "least": 1}, {"kind": "terms", "terms": "abc"},
        {"kind": "weighted", "terms": ["a"], "weights": ["x"], "least": 1}, {"kind": "any", "of": []},
        {"kind": "any", "of": [{"kind": "any", "of": []}]}, {"kind": "terms", "terms": ["a"], "more": 1},
        {"kind": "near", "phrases": ["a"], "least": 0.1, "embedder": 3}, {"kind": "asked", "concept": ["x"]},
        {"kind": "any", "of": [{"kind": "asked", "concept": "x"}]}, {"kind": "terms", "terms": ["a"] * 6000},
    ],
)  # fmt: skip
def test_what_nobody_saved_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(LoadError):
        from_json(data)


async def test_a_missing_tool_is_said() -> None:
    with pytest.raises(LoadError, match="embedder"):
        await fires(CASES[6][0], TEXTS)
    with pytest.raises(LoadError, match="another embedder"):
        await fires(Near(("a",), 0.1, "other"), TEXTS, Tools(Embedder()))
    with pytest.raises(LoadError, match="language model"):
        await fires(CASES[7][0], TEXTS)


async def test_a_long_text_and_a_hostile_term_cost_nothing() -> None:
    text = "a" * 3_000_000 + " (((((((((((((("
    assert not (await fires(Terms(("(a+)+$", ".*")), [text])).any()
    assert set(MEASURES) == set(NAMES)
    assert all(np.isfinite(measure(text)) for measure in MEASURES.values())


def test_words_phrases_and_vocabularies() -> None:
    assert words("Don’t stop—it's 3-D, isn't it? -x-") == ["don't", "stop", "it's", "3-d", "isn't", "it", "x"]
    assert grams("the cat of the house".split()) == {"the", "cat", "of", "house"}
    assert {"big match", "big match won"} <= grams("the big match won".split())
    sets = [grams(words(t)) for t in ("red cat", "red dog", "blue red")]
    assert common(sets, least=2, most=1.0).terms == ("red",)
    assert vocabulary(("cat", "red cat")).matrix(["a red cat", "cat"]).toarray().tolist() == [[1, 1], [1, 0]]
