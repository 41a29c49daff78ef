"""The fake obeys the Subject protocol: deterministic, a value, and in lockstep."""

import asyncio
import math

import pytest

from fairlead.core.fake import FakeSubject
from fairlead.core.protocols import Subject
from fairlead.core.types import Message

ASK = (Message("system", "shop"), Message("user", "buy the red one"))
LEGAL = ("look", "buy", "bait")


def careful(messages, legal, step):
    return "buy" if "careful" in messages[0].content else "bait"


async def test_it_answers():
    fake = FakeSubject(careful)
    assert isinstance(fake, Subject)
    said = await fake.generate(ASK, legal=LEGAL)
    assert said.text == "bait" and max(said.legal_logprobs) == said.legal_logprobs[2]
    assert math.isclose(sum(map(math.exp, said.legal_logprobs)), 1.0)
    assert (await fake.generate(ASK)).legal_logprobs is None
    assert await fake.logprobs(ASK, LEGAL) == said.legal_logprobs
    assert fake.meter.forwards == 3 and fake.meter.prompt_tokens == 15


async def test_prompting_makes_another_subject():
    fake = FakeSubject(careful)
    other = fake.prompted("be careful")
    twice = other.prompted("please")
    assert (await other.generate(ASK, legal=LEGAL)).text == "buy"
    assert (await fake.generate(ASK, legal=LEGAL)).text == "bait"
    assert len({fake.fingerprint, other.fingerprint, twice.fingerprint}) == 3
    assert other.fingerprint == FakeSubject(careful).prompted("be careful").fingerprint
    assert (await other.generate(ASK[1:], legal=LEGAL)).text == "buy"  # a system line is created
    assert other.meter is fake.meter


async def test_seats_run_in_lockstep():
    fake = FakeSubject(careful)

    async def episode(order, steps):
        async with fake.seat(order) as seat:
            ready.append(order)
            while len(ready) < 3:
                await asyncio.sleep(0)
            for step in range(steps):
                await asyncio.sleep(0.001 * (3 - order))
                await seat.generate(ASK, step=step, legal=LEGAL)

    ready = []
    await asyncio.gather(episode(2, 1), episode(0, 3), episode(1, 2))
    assert fake.batches == [(0, 1, 2), (0, 1), (0,)]


async def test_a_seat_is_taken_once_and_freed_by_an_error():
    fake = FakeSubject(careful)
    with pytest.raises(RuntimeError):
        async with fake.seat(0):
            raise RuntimeError
    async with fake.seat(0):
        with pytest.raises(ValueError, match="taken"):
            async with fake.seat(0):
                pass


async def test_it_can_be_shown_examples_and_sampled():
    def copycat(messages, legal, step):
        said = [m.content for m in messages if m.role == "assistant"]
        return said[-1] if said else "bait"

    fake = FakeSubject(copycat)
    shown = fake.shown([(Message("user", "buy the blue one"), Message("assistant", "buy"))])
    assert (await fake.generate(ASK, legal=LEGAL)).text == "bait"
    assert (await shown.generate(ASK, legal=LEGAL)).text == "buy"
    assert (await shown.prompted("now").generate(ASK, legal=LEGAL)).text == "buy"
    drawn = [fake.sampled(2.0, seed) for seed in range(40)]
    texts = [(await one.generate(ASK, legal=LEGAL)).text for one in drawn]
    assert texts == [(await one.generate(ASK, legal=LEGAL)).text for one in drawn]
    assert set(texts) == set(LEGAL)
    assert len({s.fingerprint for s in (fake, shown, *drawn)}) == 42
