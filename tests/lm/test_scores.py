"""What the model says, checked against plain full forwards of the same model."""

from __future__ import annotations

import asyncio

import pytest
import torch

from fairlead.core.errors import FairleadError
from fairlead.core.ledger import Meter
from fairlead.core.types import Message


def naive(subject, prompt, text, end=True):
    """log p of one whole string by one full forward, no cache, no padding, no tree."""
    chat = subject.checkpoint.chat
    ids = subject.tokens(prompt).ids.tolist()
    answer = [*chat.action(text), *([chat.end_id] if end else [])]
    with torch.no_grad():
        logits = subject.model(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
    return sum(float(logits[len(ids) - 1 + i, t]) for i, t in enumerate(answer))


def naive_greedy(subject, prompt, limit):
    ids = subject.tokens(prompt).ids.tolist()
    said = []
    while len(said) < limit and (not said or said[-1] != 1):
        with torch.no_grad():
            said.append(int(subject.model(torch.tensor([ids + said])).logits[0, -1].argmax()))
    return said


def test_legal_logprobs_equal_full_forwards(subject, prompts, legal):
    for got, prompt, options in zip(subject.action_logprobs(prompts, legal), prompts, legal, strict=True):
        assert got.tolist() == pytest.approx([naive(subject, prompt, o) for o in options], abs=2e-4, rel=1e-5)


def test_a_batch_equals_single_requests(subject, prompts, legal):
    together = subject.action_logprobs(prompts, legal)
    for i, got in enumerate(together):
        assert torch.allclose(got, subject.action_logprobs(prompts[i : i + 1], legal[i : i + 1])[0], atol=1e-4)


def test_left_padding_changes_no_activation(subject, prompts):
    together = subject.activations(prompts, ["resid.2"], "all")["resid.2"]
    for prompt, got in zip(prompts, together, strict=True):
        alone = subject.activations([prompt], ["resid.2"], "all")["resid.2"][0]
        assert got.shape == alone.shape == (len(subject.tokens(prompt).ids), subject.d_model)
        assert torch.allclose(got, alone, atol=1e-5)


def test_cached_decoding_equals_uncached_and_batched_equals_single(subject, prompts):
    limits = [5, 24, 9, 16]
    rows = [subject._as_row(subject.tokens(p), 0, 0) for p in prompts]
    with torch.inference_mode():
        said = subject._forwards().decode(rows, limits, frozenset({1}))
    for prompt, limit, got in zip(prompts, limits, said, strict=True):
        assert got == naive_greedy(subject, prompt, limit)


def test_generate_takes_the_most_probable_action(subject, prompts, legal):
    got = asyncio.run(subject.generate(prompts[1], legal=legal[1]))
    assert got.legal_logprobs == pytest.approx([naive(subject, prompts[1], o) for o in legal[1]], abs=2e-4)
    assert got.text == legal[1][max(range(6), key=got.legal_logprobs.__getitem__)]
    assert got.prompt_tokens == len(subject.tokens(prompts[1]).ids)
    assert got.new_tokens == len(subject.checkpoint.chat.action(got.text)) + 1


def test_logprobs_do_not_end_the_turn(subject, prompts):
    got = asyncio.run(subject.logprobs(prompts[0], ["done()", "", "noop()"]))
    want = [naive(subject, prompts[0], o, end=False) if o else 0.0 for o in ["done()", "", "noop()"]]
    assert got == pytest.approx(want, abs=2e-4)


def test_equal_actions_get_equal_scores_and_the_first_wins(subject, prompts):
    got = asyncio.run(subject.generate(prompts[0], legal=["done()", "done()"]))
    assert got.legal_logprobs[0] == got.legal_logprobs[1]


def test_a_finished_transcript_is_read_to_its_last_token(subject, prompts):
    said = (*prompts[0], Message("assistant", "done()"))
    assert subject.tokens(said).text.endswith("done()</s>")
    assert subject.activations([said], ["resid.0"])["resid.0"].shape == (1, subject.d_model)


def test_free_text_stops_at_a_newline_when_asked(subject, prompts):
    newline = subject.checkpoint.chat.action("\n")[0]
    loud = subject.model.lm_head.weight[newline] * 100

    def say(when):
        def hook(hidden, info):
            return torch.where((info.positions >= when)[..., None], loud.expand_as(hidden), hidden)

        return subject.edited({"resid.2": hook}, "say", lambda: [()])

    size = len(subject.tokens(prompts[0]).ids)
    on = asyncio.run(say(size + 2).generate(prompts[0], max_tokens=9))
    assert on.new_tokens == 9 and on.text.endswith("\n" * 6)
    subject.stop_at_newline = True
    off = asyncio.run(say(size + 2).generate(prompts[0], max_tokens=9))
    assert off.new_tokens == 4 and off.text == on.text.split("\n", 1)[0]


def test_too_long_and_too_little_are_refused(subject, prompts):
    with pytest.raises(FairleadError, match="longer than the model's context"):
        asyncio.run(subject.generate((Message("user", "blue cup " * 400),), legal=["done()"]))
    with pytest.raises(FairleadError, match="no room in the model's context"):
        asyncio.run(subject.generate(prompts[0], max_tokens=500))
    with pytest.raises(FairleadError, match="no action"):
        asyncio.run(subject.generate(prompts[0], legal=[]))
    with pytest.raises(FairleadError, match="no messages"):
        asyncio.run(subject.generate(()))


def test_max_batch_splits_in_order(subject, prompts, legal):
    whole = subject.action_logprobs(prompts * 2, legal * 2)
    subject.max_batch, subject.meter = 3, Meter()
    split = subject.action_logprobs(prompts * 2, legal * 2)
    assert subject.meter.forwards == 3
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole, split, strict=True))


def test_attribution_is_the_gradient(subject, prompts, legal):
    """Moving an activation a little changes the metric by gradient times change."""
    weights = [[1.0, -1.0, 0.0], [1.0, 0, 0, -2.0, 0, 0.5]]
    got = subject.attribution(prompts[:2], legal[:2], weights, "resid.0")
    logprobs = subject.action_logprobs(prompts[:2], legal[:2])
    for i in (0, 1):
        assert torch.allclose(got.logprobs[i], logprobs[i], atol=1e-4)
        assert got.metric[i] == pytest.approx(float(torch.tensor(weights[i]) @ logprobs[i]), abs=1e-3)
        assert got.activations[i].shape == got.gradients[i].shape == (len(subject.tokens(prompts[i]).ids), 32)
    direction, size = torch.randn(32, generator=torch.Generator().manual_seed(1)), 1e-2
    for sign in (1, -1):

        def push(hidden, info, sign=sign):
            return hidden + (info.is_last & info.real)[..., None] * sign * size * direction

        moved = subject.edited({"resid.0": push}, "push", lambda: [(), ()]).action_logprobs(prompts[:2], legal[:2])
        for i in (0, 1):
            change = float(torch.tensor(weights[i]) @ (moved[i] - logprobs[i]))
            assert change == pytest.approx(sign * size * float(got.gradients[i][-1] @ direction), rel=0.1, abs=2e-3)
