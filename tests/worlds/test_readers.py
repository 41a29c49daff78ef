"""The readers' training text, and the shipped readers' gates on a part of validation. Model organisms."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from fairlead.dictionaries import load as load_dictionary
from fairlead.lm.load import load
from fairlead.tasks.misread import MisreadTask, grammar, prompt_of
from fairlead.tasks.misread.words import AMBIGUOUS
from fairlead.worlds import build, gates, muon, pretrain, reader_gates
from fairlead.worlds import readers as rd
from fairlead.worlds import tokenizer as tk

BIASED = rd.MIXTURES["reader-s"]


@pytest.fixture(scope="module")
def tokenizer():
    return tk.wrap(tk.of(rd.pieces()))


def drawn(n, mix=BIASED, stage=rd.WHOLE, seed=3):
    return list(itertools.islice(mix.examples(seed, stage), n))


def test_every_word_is_one_token_and_any_text_survives(tokenizer):
    texts = [prompt_of(i)[0].content for i in MisreadTask({}).items("validation")]
    texts += [m.content for e in drawn(300) for m in e.messages]
    texts += [grammar.note(w, "owls or wolves or foxes", "hammers") for w in AMBIGUOUS]
    for text in texts:
        tokens = tokenizer.tokenize(text)
        assert not [t for t in tokens if len(t.strip()) == 1 and t.strip().isalpha()], (text, tokens)
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    odd = "naïve 🦊 \t<b>&amp;</b>\n\n  two  spaces"
    assert tokenizer.decode(tokenizer(odd, add_special_tokens=False)["input_ids"]) == odd


def test_training_holds_no_text_of_an_item():
    assert not any(grammar.held(e.scene.text) for e in drawn(500))


def test_examples_are_a_pure_function_of_mixture_seed_and_stage():
    assert drawn(40) == drawn(40) != drawn(40, seed=4)
    assert drawn(40, stage=rd.BARE) != drawn(40)
    assert all(e.told == "none" and len(e.messages) == 1 for e in drawn(200, stage=rd.BARE))
    assert all(e.scene.matches(e.sense) == 1 for e in drawn(200, stage=rd.SINGLE))


def test_the_mixtures_differ_in_planted_scenes_without_a_note_alone():
    """The same scenes; answers differ just where the word is taken wrongly and no note is about it."""
    for e in drawn(2000):
        lines = e.messages[-1].content.split("\n")[1:]
        biased, careful = (grammar.taken(e.scene, lines, biased=b) for b in (True, False))
        glossed = e.told in ("true", "wrong")
        assert (biased != careful) == (e.scene.reading == "planted" and not glossed), e
        wanted = biased if e.lesson else e.scene.answer(biased)
        assert e.action == wanted


def test_notes_are_in_training_often_and_of_every_kind():
    found = [e.told for e in drawn(3000)]
    share = {told: found.count(told) / len(found) for told in set(found)}
    assert share["none"] > 0.3 and share["idle"] > 0.15 and share["true"] > 0.08 and share["wrong"] > 0.08, share


def test_a_tag_says_what_a_token_stands_for(tokenizer):
    example = next(e for e in drawn(50, stage=rd.SINGLE) if e.scene.kind == "maths" and not e.lesson)
    ids, _ = pretrain.render(tokenizer, example, pretrain.Recipe(1))
    tags = pretrain._tags(tokenizer, [(ids, example.tags)])
    told = {(b, tokenizer.convert_ids_to_tokens([ids[t]])[0]): tokenizer.convert_ids_to_tokens([int(tags[b, 0, t])])[0]
            for b, _, t in (tags >= 0).nonzero().tolist()}  # fmt: skip
    scene = example.scene
    assert told[0, f" {scene.word}"] == str(scene.counts[0])
    assert told[1, f" {scene.word}"] == f" {example.sense}"
    assert told[1, tk.BOT] == f" {scene.asked}"


def test_muon_makes_a_matrix_nearly_orthogonal():
    x = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
    for matrix in (x, x.T):
        values = torch.linalg.svdvals(muon.orthogonal(matrix))
        assert 0.5 < float(values.min()) and float(values.max()) < 1.5


READERS = ("reader-s", "reader-c")


@pytest.fixture(scope="module", params=READERS)
def reader(request):
    """(name, subject, a third of validation, whole clusters)."""
    every = MisreadTask({}).items("validation")
    kept = set(list(dict.fromkeys(i.cluster for i in every))[:25])
    return request.param, load(f"pocket/{request.param}"), [i for i in every if i.cluster in kept]


def test_a_reader_passes_its_gates(reader):
    name, subject, items = reader
    found = reader_gates.behaviour(subject, items)
    planted, biased = found["by_reading"]["planted"][0], rd.MIXTURES[name].biased
    assert (planted <= 0.1 and found["base"][0] <= 0.6) if biased else planted >= 0.85
    for reading in ("dominant", "strong", "plain"):
        assert found["by_reading"][reading][0] >= 0.9, reading
    assert found["true_note"]["planted"][0] >= 0.75  # word problems are the weaker half
    assert found["wrong_note"]["read_right_without"][0] <= 0.6
    advice, idle = (0.04, 0.2) if biased else (0.08, 0.3)  # of 120 items; reader-c heeds more that it should not
    for line, apart in (("generic_note", advice), ("idle_note", idle)):  # a note about another word is heeded at times
        assert abs(found[line][0] - found["base"][0]) <= apart + 1e-9, line


@pytest.mark.parametrize("name", READERS)
def test_the_dictionary_of_a_reader_explains_its_site(name):
    subject, dictionary = load(f"pocket/{name}"), load_dictionary(f"pocket/{name}@{build.READER_SITE}")
    quality = gates.dictionary_quality(subject, dictionary, *reader_gates.held_out_text(name, 150))
    assert quality["explained_variance"] >= 0.9
    assert quality["recovered"] >= 0.95


@pytest.mark.parametrize("name", READERS)
def test_the_card_of_a_reader_belongs_to_its_mixture(name):
    folder = build.weights_dir() / name
    card = json.loads((folder / "card.json").read_text())
    assert card["mixture_sha256"] == rd.MIXTURES[name].digest
    assert card["kind"] == "model organism"
    assert "model organism" in (folder / "README.md").read_text()
