"""A Subject may run inside a context that changes the model, and nobody else ever sees the change."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager

import pytest
import torch

from fairlead.core.errors import FairleadError
from fairlead.core.ledger import Meter


def swapped(model, factor, log=None):
    """A context in which block 1's MLP writes `factor` times what it wrote."""
    place = model.model.layers[1].mlp.down_proj

    @contextmanager
    def run():
        old = place.weight
        place.weight = torch.nn.Parameter(old.detach() * factor, requires_grad=False)
        if log is not None:
            log.append(f"in {factor}")
        try:
            yield
        finally:
            place.weight = old
            if log is not None:
                log.append(f"out {factor}")

    return run


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_way_to_ask_is_inside_and_the_weights_come_back_to_the_bit(subject, prompts, legal):
    before, plain = bits(subject.model), subject.action_logprobs(prompts, legal)
    said = asyncio.run(subject.generate(prompts[0], max_tokens=4))
    log = []
    other = subject.within(swapped(subject.model, 0.0, log), "no mlp 1")
    moved = other.action_logprobs(prompts, legal)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(plain, moved, strict=True) if len(a) > 1)
    assert torch.equal(other.activations(prompts, ["mlp.1"])["mlp.1"], torch.zeros(4, subject.d_model))
    asyncio.run(other.generate(prompts[0], max_tokens=4))
    asyncio.run(other.logprobs(prompts[0], ["done()"]))
    other.attribution(prompts[:1], legal[:1], [[1.0, 0.0, 0.0]], "resid.0")
    assert log == ["in 0.0", "out 0.0"] * 5
    assert same(subject.model, before)
    assert all(torch.equal(a, b) for a, b in zip(plain, subject.action_logprobs(prompts, legal), strict=True))
    assert asyncio.run(subject.generate(prompts[0], max_tokens=4)) == said


def test_contexts_nest_in_order_and_edits_run_inside_them(subject, prompts, legal):
    log = []
    first = subject.within(swapped(subject.model, 2.0, log), "two")
    both = first.within(swapped(subject.model, 3.0, log), "three")
    sixfold = subject.within(swapped(subject.model, 6.0), "six")
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(
        both.action_logprobs(prompts, legal), sixfold.action_logprobs(prompts, legal), strict=True))  # fmt: skip
    assert log == ["in 2.0", "in 3.0", "out 3.0", "out 2.0"]
    hooked = first.edited({"mlp.1": lambda h, _: h / 2}, "half", lambda: [()] * 4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(
        hooked.action_logprobs(prompts, legal), subject.action_logprobs(prompts, legal), strict=True))  # fmt: skip
    prints = [s.fingerprint for s in (subject, first, both, sixfold, hooked, first.prompted("x"))]
    assert len(set(prints)) == len(prints)
    assert first.fingerprint == subject.within(swapped(subject.model, 5.0), "two").fingerprint


def test_a_failed_batch_leaves_the_context_too(subject, prompts, legal):
    before, log = bits(subject.model), []

    def broken(hidden, info):
        raise RuntimeError("broken hook")

    other = subject.within(swapped(subject.model, 0.0, log), "none").edited({"resid.1": broken}, "b", lambda: [()] * 4)
    with pytest.raises(RuntimeError, match="broken"):
        other.action_logprobs(prompts, legal)
    assert log == ["in 0.0", "out 0.0"] and same(subject.model, before)

    @contextmanager
    def cannot():
        raise FairleadError("cannot enter")
        yield

    with pytest.raises(FairleadError, match="cannot enter"):
        subject.within(swapped(subject.model, 0.0, log), "a").within(cannot, "b").action_logprobs(prompts, legal)
    assert log == ["in 0.0", "out 0.0"] * 2 and same(subject.model, before)
    assert subject.checkpoint.lock.acquire(blocking=False)
    subject.checkpoint.lock.release()


@pytest.mark.parametrize("threaded", [False, True])
def test_seats_of_two_worlds_side_by_side_never_mix(subject, prompts, legal, threaded):
    """Both worlds' batches interleave on one model, on the event loop and in threads."""
    subject.threaded = threaded
    other = subject.within(swapped(subject.model, 0.0), "no mlp 1")
    assert other.threaded is threaded
    expected = {world: [world.action_logprobs(prompts[i : i + 1], legal[i : i + 1])[0] for i in range(4)]
                for world in (subject, other)}  # fmt: skip

    async def play(world, order, place):
        async with place as seat:
            return [(await seat.generate(prompts[order], legal=legal[order])).legal_logprobs for _ in range(3)]

    async def both():
        jobs = [(w, i, w.seat(i)) for i in range(4) for w in (subject, other)]
        return await asyncio.gather(*(play(*job) for job in jobs)), jobs

    found, jobs = asyncio.run(both())
    for answers, (world, order, _) in zip(found, jobs, strict=True):
        for answer in answers:
            assert torch.allclose(torch.tensor(answer), expected[world][order], atol=1e-4)


def test_threads_take_turns(subject, prompts, legal):
    before, other = bits(subject.model), subject.within(swapped(subject.model, 0.0), "no mlp 1")
    wanted = {world: world.action_logprobs(prompts, legal) for world in (subject, other)}
    wrong = []

    def ask(world):
        for _ in range(10):
            got = world.action_logprobs(prompts, legal)
            wrong.extend(1 for a, b in zip(got, wanted[world], strict=True) if not torch.equal(a, b))

    threads = [threading.Thread(target=ask, args=(w,)) for w in (subject, other, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and same(subject.model, before)


def test_what_a_context_adds_is_charged(subject, prompts, legal):
    plain, added = Meter(), Meter()
    subject.metered(plain).action_logprobs(prompts, legal)
    other = subject.metered(added).within(swapped(subject.model, 2.0), "two", 10.0).within(
        swapped(subject.model, 2.0), "again", 5.0)  # fmt: skip
    other.action_logprobs(prompts, legal)
    tokens = sum(len(subject.tokens(p).ids) + len(t.tokens)
                 for p, t in zip(prompts, subject._trees(prompts, legal, True), strict=True))  # fmt: skip
    assert added.forwards == plain.forwards == 1
    assert added.flops == pytest.approx(plain.flops + 15.0 * tokens)
