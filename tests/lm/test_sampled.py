"""Sampled answers depend on the seed and the prompt alone; examples stand before the prompt and give way to it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import torch

from fairlead.core.errors import FairleadError
from fairlead.core.types import Message
from fairlead.lm.sampling import Sampling


def say(subject, prompt, **how):
    return asyncio.run(subject.generate(prompt, **how)).text


async def together(subject, prompts, legal, order):
    """Everything asked at once in one batch, seats taken in `order`; answers in prompt order."""
    places = {i: subject.seat(order[i]) for i in range(len(prompts))}

    async def one(i):
        async with places[i] as seat:
            act = await seat.generate(prompts[i], legal=legal[i])
            free = await seat.generate(prompts[i], max_tokens=12)
            return act.text, free.text

    return await asyncio.gather(*(one(i) for i in range(len(prompts))))


def test_a_sample_is_the_same_in_any_batch_and_any_seat(subject, prompts, legal):
    drawn = subject.sampled(1.5, 3)
    alone = [(say(drawn, p, legal=a), say(drawn, p, max_tokens=12)) for p, a in zip(prompts, legal, strict=True)]
    assert asyncio.run(together(drawn, prompts, legal, [0, 1, 2, 3])) == alone
    assert asyncio.run(together(drawn, prompts, legal, [3, 0, 2, 1])) == alone
    other = subject.sampled(1.5, 4)
    assert [say(other, p, max_tokens=12) for p in prompts] != [free for _, free in alone]
    by_step = {say(drawn, prompts[1], max_tokens=4, step=s) for s in range(5)}
    assert len(by_step) > 1
    assert len({drawn.fingerprint, other.fingerprint, subject.fingerprint}) == 3


def test_the_legal_choice_follows_the_distribution(subject, prompts, legal):
    scores = subject.action_logprobs(prompts[1:2], legal[1:2])[0]
    ids = subject.tokens(prompts[1]).ids
    for temperature in (5.0, 20.0):
        want = (scores / temperature).softmax(0)
        ways = [Sampling(temperature, seed) for seed in range(2000)]
        found = Counter(legal[1][w.choose(scores, next(w.stream(ids, 0)))] for w in ways)
        for action, p in zip(legal[1], want.tolist(), strict=True):
            assert found[action] / 2000 == pytest.approx(p, abs=0.045)  # four standard errors
        for seed in range(5):
            place = ways[seed].choose(scores, next(ways[seed].stream(ids, 0)))
            assert say(subject.sampled(temperature, seed), prompts[1], legal=legal[1]) == legal[1][place]
    cold = subject.sampled(1e-3, 0)
    assert [say(cold, p, legal=a) for p, a in zip(prompts, legal, strict=True)] == [
        say(subject, p, legal=a) for p, a in zip(prompts, legal, strict=True)
    ]
    assert say(cold, prompts[0], max_tokens=10) == say(subject, prompts[0], max_tokens=10)


def test_scores_stay_the_model_s_own(subject, prompts, legal):
    drawn = subject.sampled(2.0, 1)
    assert asyncio.run(drawn.logprobs(prompts[0], legal[0])) == asyncio.run(subject.logprobs(prompts[0], legal[0]))
    told = asyncio.run(drawn.generate(prompts[1], legal=legal[1])).legal_logprobs
    assert told == asyncio.run(subject.generate(prompts[1], legal=legal[1])).legal_logprobs


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_no_such_temperature(temperature):
    with pytest.raises(FairleadError, match="temperature"):
        Sampling(temperature, 0)


def test_a_choice_is_the_place_the_number_falls_on():
    even = Sampling(1.0, 0)
    assert [even.choose([0.0, 0.0, 0.0, 0.0], u) for u in (0.0, 0.24, 0.26, 0.74, 0.76, 0.999999)] == [0, 0, 1, 2, 3, 3]
    assert even.choose([-1e9, 0.0, -1e9], 0.0) == 1


def example(said: str, page: str = "an old page"):
    return (Message("user", page), Message("assistant", said))


def test_examples_stand_between_the_system_line_and_the_prompt(subject, prompts, legal):
    shown = subject.shown([example("done()"), example("noop()", "another")]).prompted("Be careful.")
    whole = (Message("system", "You shop.\nBe careful."), *example("done()"), *example("noop()", "another"))
    assert shown.tokens(prompts[0]).text == subject.tokens((*whole, prompts[0][1])).text
    got = asyncio.run(shown.generate(prompts[0], legal=legal[0])).legal_logprobs
    want = subject.action_logprobs([(*whole, prompts[0][1])], legal[:1])[0]
    assert got == pytest.approx(want.tolist(), abs=1e-4)
    assert shown.fingerprint not in (subject.fingerprint, subject.prompted("Be careful.").fingerprint)
    without_system = subject.shown([example("done()")]).tokens(prompts[0][1:]).text
    assert without_system == subject.tokens((*example("done()"), prompts[0][1])).text


def test_examples_give_way_to_the_prompt_the_first_ones_first(subject, prompts):
    long = example("done()", "buy the red lamp " * 70)
    shown = subject.shown([long, long, example("noop()", "short")])
    tokens = len(subject.tokens((prompts[0][0], *long, *long, *example("noop()", "short"), prompts[0][1])).ids)
    assert tokens > 512 - 48
    assert shown.tokens(prompts[0]).text.count("buy the red lamp " * 70) == 1
    huge = (Message("user", "buy the red lamp " * 120),)
    assert shown.tokens(huge).text == subject.tokens(huge).text


def test_activations_at_the_end_of_every_action(subject, prompts, legal):
    found = subject.action_activations(prompts, legal, ["resid.0", "resid.2"])
    for i, (prompt, options) in enumerate(zip(prompts, legal, strict=True)):
        for j, action in enumerate(options):
            ids = [*subject.tokens(prompt).ids.tolist(), *subject.checkpoint.chat.action(action)]
            with torch.no_grad():
                states = subject.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            assert torch.allclose(found["resid.0"][i][j], states[1][0, -1], atol=1e-4)
        assert found["resid.2"][i].shape == (len(options), subject.d_model)


def test_a_place_in_the_prompt_may_be_read_beside_the_end(subject, prompts, legal):
    places = [[0, 3, None][: len(options)] + [1] * (len(options) - 3) for options in legal]
    found = subject.action_activations(prompts, legal, ["resid.1"], places=places)["resid.1"]
    ends = subject.action_activations(prompts, legal, ["resid.1"])["resid.1"]
    tokens = subject.activations(prompts, ["resid.1"], "all")["resid.1"]
    for both, end, whole, at in zip(found, ends, tokens, places, strict=True):
        assert torch.allclose(both[:, subject.d_model :], end, atol=1e-5)
        for row, place in zip(both[:, : subject.d_model], at, strict=True):
            want = torch.zeros(subject.d_model) if place is None else whole[place]
            assert torch.allclose(row, want, atol=1e-4)
