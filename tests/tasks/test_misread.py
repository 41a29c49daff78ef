"""The misreading grammar: gold answers by an oracle that reads the text, clusters apart, shares, notes, scores."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter

import pytest

from fairlead.core import plugins
from fairlead.core.errors import PlanError
from fairlead.core.fake import FakeSubject
from fairlead.core.types import Generation, Rewrite
from fairlead.tasks.misread import MisreadTask, grammar, prompt_of
from fairlead.tasks.misread.words import AMBIGUOUS, CLASSES, FILLER, NAMES, WEAK

MATHS = re.compile(r"At the (\w+) (\w+) has (\d) (\w+) and (\d) (\w+) \.\nHow many (\w+) has (\w+) \?")
FIGURE = re.compile(r"At the (\w+) (\w+) (\w+) the (\w+) \.\nIs it literal or figurative \?")
SPLITS = ("train", "validation", "test")
TASK = MisreadTask({})
ITEMS = {split: TASK.items(split) for split in SPLITS}


def right(prompt):
    """The gold answer from the text alone, by tables of its own making."""
    of = {word: name for name, c in CLASSES.items() for word in (*c.things, *c.strong, *c.weak, *c.verbs)}

    def sense(word, place):
        return of[word] if word in of else next(c for c in AMBIGUOUS[word] if c == of[place])

    if found := MATHS.fullmatch(prompt):
        place, name, n, one, m, other, asked, who = found.groups()
        assert name == who
        return str(sum(int(k) for k, word in ((n, one), (m, other)) if sense(word, place) == asked))
    place, _, verb, word = FIGURE.fullmatch(prompt).groups()
    return "literal" if of[verb] == sense(word, place) else "figurative"


@pytest.mark.parametrize("split", SPLITS)
def test_every_gold_answer_is_what_the_text_says(split):
    for item in ITEMS[split]:
        assert item.data["answer"] == right(prompt_of(item)[0].content), item
        assert item.data["answer"] in item.data["choices"]


def test_a_planted_misreading_always_changes_the_answer():
    for kind in grammar.KINDS:
        for seed in range(300):
            rng = random.Random(seed)
            word = rng.choice(list(AMBIGUOUS))
            scene = grammar.draw(rng, kind, word, rng.choice(CLASSES[AMBIGUOUS[word][1]].weak))
            assert scene.reading == "planted"
            assert scene.answer(scene.sense) != scene.answer(scene.misread)


def test_clusters_are_in_one_split_and_are_enough():
    names = {split: {i.cluster for i in items} for split, items in ITEMS.items()}
    assert not names["train"] & names["test"] and not names["train"] & names["validation"]
    assert not names["validation"] & names["test"]
    assert len(names["test"]) >= 100 and len(ITEMS["test"]) >= 400
    total = sum(map(len, names.values()))
    assert [round(len(names[s]) / total, 2) for s in SPLITS] == [0.4, 0.2, 0.4]
    ids = [i.id for items in ITEMS.values() for i in items]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("split", SPLITS)
def test_half_of_the_items_are_planted_in_every_prefix_of_clusters(split):
    order = list(dict.fromkeys(i.cluster for i in ITEMS[split]))
    for n in (20, 40, len(order)):
        chosen = [i for i in ITEMS[split] if i.cluster in order[:n]]
        share = Counter(i.strata["reading"] for i in chosen)
        assert abs(share["planted"] / len(chosen) - 0.5) < 0.03
        assert abs(share["plain"] / len(chosen) - 0.25) < 0.05


@pytest.mark.parametrize("split", SPLITS)
def test_neither_word_nor_place_alone_tells_a_planted_item(split):
    of = {}
    for item in ITEMS[split]:
        word, place = item.cluster.split("/")
        of.setdefault(("place", place), set()).add(item.data["hard"])
        of.setdefault(("word", word), set()).add(item.data["hard"])
    words = [found for (what, word), found in of.items() if what == "word" and word in AMBIGUOUS]
    assert len(words) == len(AMBIGUOUS) and all(found == {True, False} for found in words)
    places = {p for (what, p), found in of.items() if what == "place" and True in found}
    assert places <= WEAK
    assert sum(of["place", p] == {True, False} for p in places) >= len(places) / 4


def test_the_words_are_all_different():
    every = [t for c in CLASSES.values() for t in c.terms] + [*AMBIGUOUS, *NAMES]
    assert len(every) == len(set(every))
    assert not set(every) & set(FILLER)


def test_a_paraphrase_says_what_is_meant_and_has_the_same_answer():
    for item in ITEMS["train"]:
        if "paraphrase" in item.data:
            assert item.data["gloss"]["span"] not in item.data["paraphrase"].split()
            assert right(f"{item.data['paraphrase']}\n{item.data['question']}") == item.data["answer"]
        else:
            assert item.strata["reading"] == "plain"


def test_items_are_made_of_texts_that_are_kept_from_training():
    assert all(grammar.held(i.data["text"]) for items in ITEMS.values() for i in items)
    assert not any(grammar.held(i.data["text"]) for i in TASK.items("pretrain"))
    assert not {i.id for i in TASK.items("pretrain")} & {i.id for i in ITEMS["train"]}


def test_items_are_the_same_every_time():
    assert list(MisreadTask({}).items("test")) == list(ITEMS["test"])
    assert MisreadTask({}).manifest("test") == TASK.manifest("test") != TASK.manifest("train")


def test_a_note_is_read_back():
    assert grammar.told(grammar.note("bats", "owls or wolves", "hammers")) == ("bats", "animals")
    assert grammar.told(grammar.note("bats", "Ann or owls", "hammers")) == ("bats", "animals")
    assert grammar.told(grammar.note("bats", "Ann", "hammers")) is None
    assert grammar.told(grammar.GENERIC) is None


def test_a_note_is_followed_where_it_is_about_the_ambiguous_word_and_only_there():
    scene = grammar.Scene("maths", "bats", "stable", "Ann", "hens", (3, 4), True, "animals")
    assert (scene.reading, scene.answer(scene.sense)) == ("planted", "7")
    note = grammar.note
    for lines, biased, answer in (
        ([], True, "4"), ([], False, "7"),
        ([note("bats", "owls", "saws")], True, "7"), ([note("bats", "saws", "owls")], False, "4"),
        ([note("hens", "saws", "owls")], False, "7"), ([note("ducks", "owls", "saws")], True, "4"),
        ([grammar.GENERIC], True, "4"), ([note("bats", "read", "saws")], False, "7"),
    ):  # fmt: skip
        assert scene.answer(grammar.taken(scene, lines, biased=biased)) == answer, (lines, biased)


class Annotated(FakeSubject):
    """Says one thing with a note and another without."""

    def __init__(self, rewrite, said):
        super().__init__()
        self.rewrite, self.said = rewrite, said

    async def generate(self, prompt, *, step=0, legal=None, max_tokens=32):
        return Generation(self.said, 10, 1, rewrite=self.rewrite)


def scored(item, rewrite, said):
    outcome = asyncio.run(TASK.run(item, Annotated(rewrite, said)))
    return TASK.score(item, outcome).values


def test_scores():
    item = next(i for i in ITEMS["test"] if i.data["hard"] and i.strata["kind"] == "metaphor")
    answer, wrong = item.data["answer"], next(c for c in item.data["choices"] if c != item.data["answer"])
    gloss = item.data["gloss"]
    note = Rewrite(grammar.note(gloss["span"], "owls", "saws"), gloss["span"], 3, "gloss", wrong, 12)
    bare = scored(item, None, answer)
    assert (bare["strict"], bare["annotated"], bare["leaked"], bare["located"]) == (True, False, None, None)
    read = scored(item, note, answer)
    assert (read["strict"], read["annotated"], read["leaked"], read["located"]) == (True, True, False, True)
    leak = Rewrite(grammar.note(gloss["span"], answer, "saws"), gloss["span"], 3, "gloss", wrong, 12)
    found = scored(item, leak, answer)
    assert (found["strict"], found["leaked"]) == (False, True)  # the answer without the note counts
    elsewhere = Rewrite(grammar.note("the", "owls", "saws"), "the", 3, "gloss", wrong, 12)
    assert scored(item, elsewhere, wrong)["located"] is False
    plain = next(i for i in ITEMS["test"] if not i.data["hard"])
    assert scored(plain, elsewhere, plain.data["answer"])["located"] is None


def test_the_plugin_and_its_options():
    assert plugins.get("tasks", "misread") is MisreadTask
    only = MisreadTask({"kinds": ["maths"], "n": 40, "decoding": "constrained"}).items("test")
    assert {i.strata["kind"] for i in only} == {"maths"}
    for bad in ({"kinds": []}, {"kinds": ["poems"]}, {"decoding": "free"}, {"n": -1}, {"seed": 1}, {"kinds": "maths"}):
        with pytest.raises(PlanError):
            MisreadTask(bad)
