"""Words and tokens of a prompt, and what fires on them, on a pocket model: against reading everything densely."""

import re

import numpy as np
import pytest
import torch

from fairlead import dictionaries
from fairlead.core.types import Message
from fairlead.features.misread.peaks import read_peaks
from fairlead.features.misread.spans import first_difference, noted, swapped, words_of
from fairlead.lm.load import load

TEXTS = (
    "goal: buy a red lamp\n[1] button 'Add lamp'",
    "  Add the lamp, don't add <|user|> a deal-of-the-day!  ",
    "lamp",
    "... ?!",
)


def asked(text):
    return (Message("system", "Be careful."), Message("user", text))


@pytest.fixture(scope="module")
def subject():
    return load("pocket/shopper-s")


@pytest.fixture(scope="module")
def dictionary():
    return dictionaries.load("pocket/shopper-s@resid.1")


def test_every_word_token_lies_in_its_word_and_none_outside(subject):
    for text in (TEXTS[0], TEXTS[2]):
        prompt, words = subject.tokens(asked(text)), words_of(subject, asked(text))
        at = prompt.text.rfind(text)
        assert [w.text for w in words.words] == re.findall(r"\w+", text)
        for token, owner in zip(words.tokens, words.owner, strict=True):
            word, (start, end) = words.words[owner], prompt.offsets[token] - at
            assert start < word.start + len(word.text) and end > word.start
            assert text[word.start : word.start + len(word.text)] == word.text
        spelled = {words.words[o].text for o in words.owner}
        assert spelled == {w.text for w in words.words}  # every word is spelled by some token


def test_no_words_no_user_turn_and_a_spelled_special_token(subject):
    assert len(words_of(subject, asked(TEXTS[3])).tokens) == 0
    assert words_of(subject, (Message("system", "only this"),)).words == ()
    assert words_of(subject, asked(TEXTS[1])).words == ()  # the message is not what the model reads: nothing is traced


def test_peaks_are_the_dense_maximum_over_word_tokens_in_any_batching(subject, dictionary):
    prompts = [asked(t) for t in (TEXTS[0], TEXTS[2], TEXTS[3], TEXTS[0] + " twice")]
    found = read_peaks(subject, dictionary, prompts, batch=3)
    assert found.values.shape == (4, dictionary.n_features)
    for i, prompt in enumerate(prompts):
        tokens = words_of(subject, prompt).tokens
        if not len(tokens):
            assert found.values[i].nnz == 0
            continue
        x = subject.activations([prompt], [dictionary.site], "all")[dictionary.site][0][torch.from_numpy(tokens)]
        dense, place = dictionary.encode(x.float()).max(0)
        assert np.allclose(found.values[i].toarray()[0], dense.numpy(), atol=1e-5)
        fires = np.flatnonzero(dense.numpy() > 1e-4)
        at = [int(found.place(int(j))[i]) for j in fires[:40]]
        assert at == tokens[place.numpy()[fires[:40]]].tolist()


def test_a_note_goes_behind_the_line_of_its_word_and_nothing_else_moves():
    before = asked("first line\nthe bats fly\nlast line")
    after = noted(before, before[1].content.index("bats"), "Note: x.")
    assert after[1].content == "first line\nthe bats fly\nNote: x.\nlast line"
    assert after[0] == before[0]
    assert noted(asked("bats"), 0, "Note.")[1].content == "bats\nNote."


def test_paraphrases_differ_where_they_differ(subject):
    one = asked("the bats fly\nhow many")
    other = swapped(one, "the bats fly", "the owls fly")
    words = words_of(subject, one), words_of(subject, other)
    assert first_difference(words[0].words, words[1].words) == 1
    assert first_difference(words[0].words, words[0].words) is None
    assert swapped(one, "absent", "x") is None
