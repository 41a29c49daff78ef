"""The annotating world on a pocket model: what fires is noted, what does not is left to the byte, and both are
answered."""

import asyncio
from dataclasses import replace

import pytest

from fairlead import dictionaries
from fairlead.core.ledger import Meter
from fairlead.core.types import Message
from fairlead.features.excerpt import cut
from fairlead.features.misread.naming import Gloss
from fairlead.features.misread.peaks import read_peaks
from fairlead.features.misread.senses import patch
from fairlead.features.misread.triggers import Condition, Trigger
from fairlead.lm.load import load
from fairlead.methods import _noted
from fairlead.methods._noted import Entry, Noted
from fairlead.methods._world import Ask

ON = (Message("user", "goal: buy a lamp\n[1] button 'Add lamp'\n[2] button 'Deal of the day'"),)
OFF = (Message("user", "goal: buy a mug\n[1] button 'Add mug'"),)
LEGAL = ('click("1")', 'click("2")')


@pytest.fixture(scope="module")
def subject():
    return load("pocket/shopper-s")


@pytest.fixture(scope="module")
def noted(subject):
    """A latent that fires on the one prompt and not on the other, and what a note would say."""
    dictionary = dictionaries.load("pocket/shopper-s@resid.1")
    peaks = read_peaks(subject, dictionary, [ON, OFF])
    one, other = (peaks.values[i].toarray()[0] for i in (0, 1))
    latent = int((one * (other == 0)).argmax())
    trigger = Trigger(Condition(latent, float(one[latent]) / 2))
    edits = patch(trigger, [(latent, -1.0)])
    return Noted((Entry(trigger, Gloss("lamp", "mug"), edits),), cut(dictionary, [latent]))


def answers(world, *prompts):
    async def ask():
        async def one(seat, prompt):
            async with seat as taken:
                return await taken.generate(prompt, legal=LEGAL)

        seats = [world.seat(i) for i in range(len(prompts))]
        return await asyncio.gather(*(one(s, p) for s, p in zip(seats, prompts, strict=True)))

    return asyncio.run(ask())


def test_what_fires_is_noted_at_its_word_and_what_does_not_is_untouched(subject, noted):
    with noted.open(subject) as world:
        on, off = answers(world, ON, OFF)
    plain_on, plain_off = answers(subject, ON, OFF)
    assert off == plain_off and off.rewrite is None
    (hit,) = [h for h in noted.find(subject, [Ask(ON)]) if h]
    note = f'Note: here "{hit.word.text}" means lamp, not mug.'
    assert on.rewrite.note == note and on.rewrite.plain == plain_on.text
    assert ON[0].content[on.rewrite.start :].startswith(on.rewrite.span)
    lines = ON[0].content.split("\n")
    at = next(i for i in range(len(lines)) if len("\n".join(lines[: i + 1])) >= on.rewrite.start)
    told = (Message("user", "\n".join([*lines[: at + 1], note, *lines[at + 1 :]])),)
    again = answers(subject, told)[0]
    assert on.text == again.text and on.legal_logprobs == pytest.approx(again.legal_logprobs, abs=1e-4)
    extra = len(subject.tokens(told).ids) - len(subject.tokens(ON).ids)
    assert on.rewrite.tokens == extra > 0 and on.prompt_tokens == plain_on.prompt_tokens + again.prompt_tokens


def test_both_answers_and_the_reading_are_charged(subject, noted):
    meter = Meter()
    with noted.open(subject.metered(meter)) as world:
        on, off = answers(world, ON, OFF)
    assert meter.snapshot().prompt_tokens > on.prompt_tokens + off.prompt_tokens  # and the read


def test_a_generic_note_is_as_long_and_an_edit_adds_nothing(subject, noted):
    with noted.open(subject) as world:
        gloss = answers(world, ON)[0].rewrite
    with replace(noted, style="generic").open(subject) as world:
        generic = answers(world, ON)[0].rewrite
    with replace(noted, style="edit").open(subject) as world:
        edited = answers(world, ON)[0]
    assert generic.note.startswith("Note: read") and abs(generic.tokens - gloss.tokens) <= 3
    assert edited.rewrite.tokens == 0 and edited.rewrite.note == _noted.PATCHED
    assert any(report.fired for report in edited.edits)


def test_a_note_over_the_cap_is_not_made(subject, noted):
    with replace(noted, cap=2).open(subject) as world:
        assert answers(world, ON)[0].rewrite is None


def test_saved_and_loaded_it_is_the_same_and_annotates_the_same(subject, noted, tmp_path):
    noted.save(tmp_path)
    again = _noted.load(tmp_path)
    assert again.fingerprint == noted.fingerprint and again.entries == noted.entries
    with again.open(subject) as world, noted.open(subject) as first:
        assert answers(world, ON) == answers(first, ON)
    assert replace(noted, cap=9).fingerprint != noted.fingerprint


def test_no_entries_is_the_subject_itself(subject):
    with Noted(()).open(subject) as world:
        assert world is subject
