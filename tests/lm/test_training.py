"""Losses with gradients: equal to plain forwards of the same model, charged what torch's own counter counts."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fairlead.core.ledger import Meter
from fairlead.lm.training import span_losses, target_losses, token_gradients

TARGETS = ['click("2")', 'fill("3","blue cup")', "noop()", 'click("7")']


def ids_of(subject, prompt, text):
    chat = subject.checkpoint.chat
    return subject.tokens(prompt).ids.tolist(), [*chat.action(text), chat.end_id]


def naive(subject, prompt, text):
    """Mean loss of one target by one full forward."""
    before, answer = ids_of(subject, prompt, text)
    logits = subject.model(torch.tensor([before + answer])).logits[0].log_softmax(-1)
    return -sum(logits[len(before) - 1 + i, t] for i, t in enumerate(answer)) / len(answer)


def lifted(subject, site, vector, count=1):
    return subject.edited({site: lambda h, info: h + vector * info.real[..., None]}, "lift", lambda: [()] * count)


@contextmanager
def eager(model):
    old = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(old)


def test_losses_are_those_of_plain_forwards(subject, prompts):
    subject.max_batch = 3
    got = target_losses(subject, prompts, TARGETS)
    assert not got.requires_grad
    assert got.tolist() == pytest.approx([float(naive(subject, p, t)) for p, t in zip(prompts, TARGETS, strict=True)])


def test_the_gradient_reaches_a_hooks_parameter_and_nothing_else(subject, prompts):
    vector = torch.zeros(subject.d_model, requires_grad=True)
    loss = target_losses(lifted(subject, "resid.0", vector, 4), prompts, TARGETS)
    (slope,) = torch.autograd.grad(loss.sum(), vector)
    step = 1e-2 * slope / slope.norm()
    with torch.no_grad():
        ends = [float(target_losses(lifted(subject, "resid.0", s * step, 4), prompts, TARGETS).sum()) for s in (1, -1)]
    assert (ends[0] - ends[1]) / 2 == pytest.approx(float(slope @ step.detach()), rel=0.02)
    assert all(p.grad is None for p in subject.model.parameters())


def test_the_prompt_is_as_generate_has_it(subject, prompts):
    loss = target_losses(subject.prompted("Be careful."), prompts[:1], TARGETS[:1])
    assert float(loss[0]) == pytest.approx(float(naive(subject.prompted("Be careful."), prompts[0], TARGETS[0])))


def test_token_gradients_are_those_of_one_hot_tokens(subject, prompts):
    legal = [['click("1")', "done()"], ["noop()", 'click("2")', "done()"]]
    weights = [[1.0, -1.0], [0.0, 2.0, -1.0]]
    spans, table = [(3, 6), (5, 8)], subject.model.get_input_embeddings().weight.detach()
    subject.max_batch = 1
    got, values = token_gradients(subject, prompts[:2], legal, weights, spans)
    assert got.shape == (3, table.shape[0])
    want, totals = torch.zeros_like(got), []
    for prompt, options, weight, (start, stop) in zip(prompts, legal, weights, spans, strict=False):
        before = subject.tokens(prompt).ids.tolist()
        hot = torch.nn.functional.one_hot(torch.tensor(before), table.shape[0]).float().requires_grad_(True)
        total = torch.zeros(())
        for text, w in zip(options, weight, strict=True):
            answer = ids_of(subject, prompt, text)[1]
            rows = torch.cat([hot @ table, table[torch.tensor(answer)]])[None]
            logits = subject.model(inputs_embeds=rows).logits[0].log_softmax(-1)
            total = total + w * sum(logits[len(before) - 1 + i, t] for i, t in enumerate(answer))
        want += torch.autograd.grad(total, hot)[0][start:stop]
        totals.append(float(total.detach()))
    assert torch.allclose(got, want, atol=1e-3, rtol=1e-3)
    assert values == pytest.approx(totals, abs=1e-3)


def test_span_losses_are_those_of_plain_forwards(subject, prompts):
    got = span_losses(subject, prompts[:3], [(3, 6), (0, 4), (5, 6)])
    for value, prompt, (start, stop) in zip(got.tolist(), prompts, [(3, 6), (0, 4), (5, 6)], strict=False):
        ids = subject.tokens(prompt).ids.tolist()
        with torch.no_grad():
            logits = subject.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        want = [-float(logits[i - 1, ids[i]]) for i in range(max(start, 1), stop)]
        assert value == pytest.approx(sum(want) / len(want), abs=1e-4)


@pytest.mark.parametrize("site", ["resid_pre.0", "resid.0", "resid.2"])
def test_a_trained_hook_is_charged_what_it_costs(subject, prompts, site):
    subject.meter, vector = Meter(), torch.zeros(subject.d_model, requires_grad=True)
    with eager(subject.model), FlopCounterMode(display=False) as counter:
        target_losses(lifted(subject, site, vector), prompts[:1], TARGETS[:1]).sum().backward()
    assert subject.meter.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert subject.meter.forwards == 1


def test_without_gradients_only_the_forward_is_charged(subject, prompts):
    subject.meter = Meter()
    with torch.no_grad(), eager(subject.model), FlopCounterMode(display=False) as counter:
        target_losses(subject, prompts[:1], TARGETS[:1])
    assert subject.meter.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_token_gradients_and_span_losses_are_charged_what_they_cost(subject, prompts):
    subject.meter = Meter()
    with eager(subject.model), FlopCounterMode(display=False) as counter:
        token_gradients(subject, prompts[:1], [["done()", "noop()"]], [[1.0, 0.0]], [(3, 20)])
        span_losses(subject, prompts[:1], [(3, 20)])
    assert subject.meter.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert subject.meter.forwards == 2
