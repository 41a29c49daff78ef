"""Lockstep: what is in a batch depends on the episodes, never on timing."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch

from fairlead.core.errors import FairleadError
from fairlead.core.ledger import Meter
from fairlead.core.protocols import Subject
from fairlead.core.types import Message
from fairlead.lm.forwards import Forwards


async def episodes(subject, prompts, lengths, pause):
    """Episode i asks lengths[i] times, with pauses in between; returns all answers in episode order."""

    async def one(order, place):
        async with place as seat:
            answers = []
            for step in range(lengths[order]):
                await pause()
                answers.append(await seat.generate(prompts[order % 4], step=step, legal=["done()", f'click("{step}")']))
            return answers

    seats = [asyncio.create_task(one(order, subject.seat(order))) for order in range(len(lengths))]
    return await asyncio.gather(*seats)


def test_results_and_batches_do_not_depend_on_timing(subject, prompts, monkeypatch):
    sizes: list[tuple[int, ...]] = []
    score = Forwards.score

    def spy(self, rows, trees, spent):
        sizes[-1] += (tuple(r.step for r in rows),)
        return score(self, rows, trees, spent)

    monkeypatch.setattr(Forwards, "score", spy)
    outcomes = []
    for seed in range(4):
        subject.threaded = seed % 2 == 1
        chance = random.Random(seed)

        async def pause(chance=chance):
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)

        sizes.append(())
        outcomes.append(asyncio.run(episodes(subject, prompts, [3, 1, 2, 4, 0], pause)))
    assert sizes[0] == ((0, 0, 0, 0), (1, 1, 1), (2, 2), (3,))
    assert all(s == sizes[0] for s in sizes)
    assert all(o == outcomes[0] for o in outcomes)


def test_tasks_that_take_their_seats_as_they_start_still_share_a_batch(subject, prompts):
    subject.meter = Meter()

    async def one(order):
        async with subject.seat(order) as seat:
            return await seat.generate(prompts[order], legal=["done()"])

    async def run():
        return await asyncio.gather(*(one(order) for order in range(4)))

    assert len(asyncio.run(run())) == 4 and subject.meter.forwards == 1


def test_a_seat_in_lockstep_answers_as_alone(subject, prompts):
    async def pause():
        pass

    together = asyncio.run(episodes(subject, prompts, [2, 2, 2, 2], pause))
    for order in range(4):
        for step in range(2):
            options = ["done()", f'click("{step}")']
            alone = asyncio.run(subject.generate(prompts[order], step=step, legal=options))
            assert alone.text == together[order][step].text
            assert together[order][step].legal_logprobs == pytest.approx(alone.legal_logprobs, abs=1e-4)


def test_free_and_constrained_requests_share_a_round(subject, prompts):
    async def mixed():
        async with subject.seat(7) as a, subject.seat(2) as b, subject.seat(5) as c:
            return await asyncio.gather(
                a.generate(prompts[0], max_tokens=3),
                b.generate(prompts[1], legal=["done()", "noop()"]),
                c.logprobs(prompts[2], ["done()"]),
            )

    free, acted, scored = asyncio.run(mixed())
    assert free == asyncio.run(subject.generate(prompts[0], max_tokens=3))
    assert acted.text in ("done()", "noop()") and acted.new_tokens > 1
    assert scored == pytest.approx(asyncio.run(subject.logprobs(prompts[2], ["done()"])), abs=1e-4)


def test_a_failed_episode_frees_its_seat(subject, prompts):
    async def run():
        async def good(seat):
            async with seat as s:
                return [await s.generate(prompts[0], legal=["done()"]) for _ in range(3)]

        async def bad(seat):
            async with seat as s:
                await s.generate(prompts[1], legal=["done()"])
                raise ValueError("this episode broke")

        async def cancelled(seat):
            async with seat as s:
                await s.generate(prompts[2], legal=["done()"])
                await asyncio.sleep(60)

        late = asyncio.create_task(cancelled(subject.seat(2)))
        jobs = [asyncio.create_task(good(subject.seat(0))), asyncio.create_task(bad(subject.seat(1)))]
        await asyncio.sleep(0.05)
        late.cancel()
        return await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 10)

    answers, error = asyncio.run(run())
    assert len(answers) == 3 and isinstance(error, ValueError)


def test_one_impossible_request_fails_alone(subject, prompts):
    async def run():
        async with subject.seat(0) as a, subject.seat(1) as b:
            with pytest.raises(FairleadError, match="longer than"):
                await a.generate((Message("user", "blue cup " * 400),), legal=["done()"])
            return await asyncio.gather(
                a.generate(prompts[0], legal=["done()"]), b.generate(prompts[1], legal=["done()"])
            )

    assert [g.text for g in asyncio.run(run())] == ["done()", "done()"]


def test_an_error_in_the_model_reaches_every_seat(subject, prompts):
    def broken(hidden, info):
        raise RuntimeError("broken hook")

    edited = subject.edited({"resid.0": broken}, "b", lambda: [(), ()])

    async def run():
        async with edited.seat(0) as a, edited.seat(1) as b:
            asked = (s.generate(prompts[0], legal=["done()"]) for s in (a, b))
            return await asyncio.gather(*asked, return_exceptions=True)

    assert [str(e) for e in asyncio.run(run())] == ["broken hook"] * 2


def test_seats_are_taken_once_and_asked_once(subject, prompts):
    async def run():
        async with subject.seat(0) as seat, subject.seat(1):
            with pytest.raises(FairleadError, match="is taken"):
                async with subject.seat(0):
                    pass
            first = asyncio.create_task(seat.generate(prompts[0], legal=["done()"]))
            await asyncio.sleep(0)
            with pytest.raises(FairleadError, match="asked twice"):
                await seat.generate(prompts[0], legal=["done()"])
            with pytest.raises(FairleadError, match="cannot take"):
                seat.seat(3)
            first.cancel()
        with pytest.raises(FairleadError, match="was left"):
            await seat.generate(prompts[0], legal=["done()"])

    asyncio.run(run())


def test_a_seat_can_be_prompted(subject, prompts):
    async def run():
        async with subject.seat(0) as seat:
            assert isinstance(seat, Subject) and isinstance(subject, Subject)
            return await seat.prompted("Be careful.").generate(prompts[0], legal=["done()", "noop()"]), seat

    got, seat = asyncio.run(run())
    told = subject.prompted("Be careful.")
    assert got == asyncio.run(told.generate(prompts[0], legal=["done()", "noop()"]))
    assert seat.prompted("Be careful.").fingerprint == told.fingerprint != seat.fingerprint
    assert told.tokens(prompts[0]).text.startswith("<s><|system|>You shop.\nBe careful.<|user|>")
    assert told.tokens(prompts[0][1:]).text.startswith("<s><|system|>Be careful.<|user|>")


def test_threads_with_different_edits_do_not_mix(subject, prompts, legal):
    """Two Subjects of one model, each with its hook, at once in two threads."""
    subject.threaded = True
    up = subject.edited({"resid.0": lambda h, _: h + 1}, "up", lambda: [()])
    plain = torch.tensor(asyncio.run(subject.generate(prompts[1], legal=legal[1])).legal_logprobs)
    lifted = torch.tensor(asyncio.run(up.generate(prompts[1], legal=legal[1])).legal_logprobs)
    assert not torch.equal(plain, lifted)

    async def run():
        return await asyncio.gather(*(s.generate(prompts[1], legal=legal[1]) for s in (subject, up) * 8))

    for got, want in zip(asyncio.run(run()), (plain, lifted) * 8, strict=True):
        assert torch.equal(torch.tensor(got.legal_logprobs), want)


def test_every_forward_is_on_the_meter(subject, prompts, legal):
    subject.meter = meter = Meter()
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    handle = subject.model.register_forward_pre_hook(count)  # a forward that stops early counts too
    try:
        free = asyncio.run(subject.generate(prompts[0], max_tokens=7))
        acted = asyncio.run(subject.prompted("x").generate(prompts[1], legal=legal[1]))
        subject.action_logprobs(prompts, legal)
        subject.activations(prompts, ["resid.0", "mlp.1"])
        subject.attribution(prompts, legal, [[1.0] * len(o) for o in legal], "resid.0")
        asyncio.run(subject.logprobs(prompts[0], ["a", "b"]))
    finally:
        handle.remove()
    assert meter.forwards == calls == free.new_tokens + 1 + 1 + 1 + 1 + 1
    assert meter.new_tokens == free.new_tokens + acted.new_tokens
    one = sum(len(subject.tokens(p).ids) for p in prompts)
    assert meter.prompt_tokens == 2 * free.prompt_tokens + acted.prompt_tokens + 3 * one
    assert meter.flops > 0 and meter.seconds > 0


def test_what_hooks_add_is_on_the_meter(subject, prompts, legal):
    plain, steered = Meter(), Meter()
    subject.metered(plain).action_logprobs(prompts, legal)
    subject.metered(steered).edited({"resid.0": lambda h, _: h}, "x", lambda: [()] * 4, 7.0).action_logprobs(
        prompts, legal
    )
    tokens = sum(
        len(subject.tokens(p).ids) + len(subject._tree(o, True).tokens) for p, o in zip(prompts, legal, strict=True)
    )
    assert steered.flops - plain.flops == pytest.approx(7.0 * tokens)
