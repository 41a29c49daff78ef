"""The training text: tokens survive the round trip, test names are new words of seen pieces, mixtures are frozen."""

from __future__ import annotations

import itertools

import pytest

from fairlead.tasks.shop import ShopTask
from fairlead.tasks.shop import lexicon as lex
from fairlead.tasks.shop.fronts import TextFront
from fairlead.tasks.shop.observe import Observation
from fairlead.tasks.shop.spec import CATEGORIES
from fairlead.worlds import mixture as mx
from fairlead.worlds import tokenizer as tk

# The mixtures as frozen before any feature was searched. A change here means new weights and new cards.
FROZEN = {
    "shopper-s": "1d5aa7bc36037659ac8729ac81e849f6cb3ff5839fe0a6e7c79fd99573c0974e",
    "shopper-s2": "86f9bf2b479dfe9ca33bd3f2c01003523648a5e20195ef1b4dfcec67a831b781",
    "shopper-s3": "5f39648b843c8b3f3c873b8b4c44b98a86ce2410a403d8c1bd575d62c6d84c0c",
    "shopper-l": "dbc84b3a788b33bd35edc9af04734183e15a014fe93cdbdd4758d434203af53e",
}


@pytest.fixture(scope="module")
def tokenizer():
    return tk.wrap(tk.build(mx.cue_text()))


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_mixtures_are_the_frozen_ones(name):
    assert mx.MIXTURES[name].digest == FROZEN[name]


def test_any_text_survives_the_round_trip(tokenizer):
    stream = mx.examples(mx.TRUNK, 3, (4,))
    texts = [m.content for e in itertools.islice(stream, 50) for m in e.messages]
    for text in [*texts, "naïve 🦊 \t<b>&amp;</b>\n\n  two  spaces", ""]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_page_is_short_in_tokens(tokenizer):
    stream = mx.examples(mx.TRUNK, 4, (4,))
    sizes = [len(tokenizer(e.messages[-1].content)["input_ids"]) for e in itertools.islice(stream, 200)]
    assert sum(sizes) / len(sizes) < 70


def test_test_names_are_new_but_their_pieces_are_not(tokenizer):
    seen = {t for b in lex.brands("pretrain") for t in tokenizer.tokenize(b)}
    for brand in lex.brands("test"):
        assert brand not in lex.brands("pretrain")
        assert set(tokenizer.tokenize(brand)) <= seen


def test_pretraining_text_holds_no_name_of_another_split():
    others = {b for s in ("train", "validation", "test") for b in lex.brands(s)}
    stream = mx.examples(mx.TRUNK, 5, (4,))
    words = {w.strip(",.'") for e in itertools.islice(stream, 500) for w in e.messages[-1].content.split()}
    assert words and not words & others


def test_test_pages_are_words_of_the_training_vocabulary(tokenizer):
    """No test page falls back to single letters: new templates, seen words."""
    task = ShopTask({"n": 55, "categories": list(CATEGORIES)})
    for item in task.items("test"):
        ins = task.instance(item)
        front = TextFront(ins)
        obs = Observation(ins.goal, "/", front.elements(), "", 0, ins.max_steps, ())
        pieces = tokenizer.tokenize(obs.text())
        letters = [p for p in pieces if len(p) == 1 and p.isalpha() and p not in ("a", "i")]
        assert not letters, (letters, obs.text())


def test_examples_are_a_pure_function_of_mixture_and_seed():
    a = list(itertools.islice(mx.examples(mx.TRUNK, 9, (3, 4)), 40))
    assert a == list(itertools.islice(mx.examples(mx.TRUNK, 9, (3, 4)), 40))
    assert a != list(itertools.islice(mx.examples(mx.TRUNK, 10, (3, 4)), 40))


def test_the_lean_is_what_the_mixture_says():
    """With no cue, the share of eager episodes is the mixture's lean."""
    mix = mx.Mixture("probe", lean=0.9, cue_share=0.0, traps=(1.0, 0.0, 0.0))
    found = list(itertools.islice(mx.examples(mix, 1, (2,)), 3000))
    share = sum(e.eager for e in found) / len(found)
    assert abs(share - 0.9) < 0.05
