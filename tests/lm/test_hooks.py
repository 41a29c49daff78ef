"""Hooks see every token and who it is, change only what they say, and never stay behind."""

from __future__ import annotations

import asyncio

import pytest
import torch
from torch import nn

from fairlead.core.errors import FairleadError, UnknownName
from fairlead.core.types import EditReport, Message
from fairlead.lm.hooks import ROLES, ForwardInfo


def attached(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def none(count=1):
    return lambda: [()] * count


class Watch:
    """A hook that keeps what it sees and changes nothing."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, ForwardInfo]] = []

    def __call__(self, hidden, info):
        self.seen.append((hidden.clone(), info))
        return hidden


def test_sites_add_up_to_the_residual_stream(subject, prompts):
    kinds = ("resid_pre", "attn", "mlp", "resid")
    found = subject.activations(prompts, [f"{k}.{n}" for k in kinds for n in range(3)], "all")
    for n in range(3):
        for row in range(len(prompts)):
            pre, attn, mlp, post = (found[f"{k}.{n}"][row] for k in kinds)
            assert torch.allclose(pre + attn + mlp, post, atol=1e-5)
            if n:
                assert torch.equal(pre, found[f"resid.{n - 1}"][row])


def test_an_identity_edit_is_bit_identical(subject, prompts, legal):
    for site in subject.sites:
        edited = subject.edited({site: lambda h, _: h.clone()}, "id", none(4))
        for a, b in zip(subject.action_logprobs(prompts, legal), edited.action_logprobs(prompts, legal), strict=True):
            assert torch.equal(a, b)


def test_rows_of_slot_0_are_bit_identical(subject, prompts, legal):
    def loud(hidden, info):
        return torch.where((info.slot > 0)[:, None, None], hidden * 3 + 1, hidden)

    plain = subject.action_logprobs(prompts, legal)
    mixed = subject.edited({"resid.1": loud}, "loud", none(4)).action_logprobs(prompts, legal, slots=[0, 1, 0, 2])
    assert [torch.equal(a, b) for a, b in zip(plain, mixed, strict=True)] == [True, False, True, False]


@pytest.mark.parametrize("kind", ["resid", "resid_pre", "attn", "mlp"])
def test_an_edit_moves_nothing_below_it_and_something_above(subject, prompts, kind):
    edited = subject.edited({f"{kind}.1": lambda h, _: h + 1}, "up", none(4))
    sites = [f"resid.{n}" for n in range(3)]
    before, after = subject.activations(prompts, sites), edited.activations(prompts, sites)
    assert [torch.equal(before[s], after[s]) for s in sites] == [True, False, False]


def test_info_of_a_scored_batch(subject, prompts, legal):
    watch = Watch()
    subject.edited({"resid.0": watch}, "w", none(4)).action_logprobs(prompts, legal, steps=[3, 1, 4, 1])
    ((hidden, info),) = watch.seen
    chat = subject.checkpoint.chat
    assert hidden.shape[:2] == info.positions.shape
    assert info.step.tolist() == [3, 1, 4, 1] and info.slot.tolist() == [1] * 4
    assert info.request.tolist() == [0, 1, 2, 3] and info.roles_known.all()
    for i, prompt in enumerate(prompts):
        size = len(subject.tokens(prompt).ids)
        real, mine = info.real[i], info.is_prompt[i]
        assert info.positions[i][mine].tolist() == list(range(size)) and (info.positions[i][~real] == -1).all()
        assert info.positions[i][info.is_last[i]].tolist() == [size - 1]
        answers = {chat.action(o) for o in legal[i]}
        inner = {a[:k] for a in answers for k in range(1, len(a) + 1)}
        depths = sorted(size + len(p) - 1 for p in inner)
        assert sorted(info.positions[i][real & ~mine].tolist()) == depths
        assert set(info.role[i][real & ~mine].tolist()) == {ROLES["assistant"]}


def test_info_of_free_decoding_and_positions_never_from_shape(subject, prompts):
    watch = Watch()
    edited = subject.edited({"resid.0": watch}, "w", none(2))

    async def both():
        async with edited.seat(0) as a, edited.seat(1) as b:
            await asyncio.gather(a.generate(prompts[0], step=5, max_tokens=4), b.generate(prompts[1], max_tokens=6))

    asyncio.run(both())
    sizes = [len(subject.tokens(p).ids) for p in prompts[:2]]
    first, *later = (info for _, info in watch.seen)
    assert first.is_prompt.sum(1).tolist() == sizes and first.step.tolist() == [5, 0]
    for count, info in enumerate(later):
        assert info.positions.flatten().tolist() == [sizes[r] + count for r in info.request.tolist()]
        assert not info.is_prompt.any() and not info.is_last.any() and info.real.all()
        assert info.role.eq(ROLES["assistant"]).all()
    assert len(later) >= 3


def test_edits_act_the_same_on_generated_tokens_with_and_without_a_tree(subject, prompts):
    """`generated` and `last` edits: scoring actions in one tree equals scoring each alone, token by token."""

    def push(hidden, info):
        where = (info.real & ~info.is_prompt) | info.is_last
        return hidden + where[..., None] * torch.linspace(-1, 1, hidden.shape[-1]) * (1 + info.positions[..., None] % 3)

    options = ['click("1")', 'click("2")', "done()", 'fill("3","blue cup")']
    edited = subject.edited({"resid.0": push, "mlp.1": push}, "push", none())
    together = edited.action_logprobs(prompts[:1], [options])[0]
    alone = torch.cat([edited.action_logprobs(prompts[:1], [[o]])[0] for o in options])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together, subject.action_logprobs(prompts[:1], [options])[0], atol=1e-2)


def test_no_hook_stays_behind(subject, prompts, legal):
    def broken(hidden, info):
        raise RuntimeError("broken hook")

    assert attached(subject.model) == 0
    for bad in (broken, lambda h, _: h[:, :1], lambda h, _: h.double()):
        with pytest.raises((RuntimeError, FairleadError)):
            subject.edited({"resid.1": Watch(), "mlp.2": bad}, "b", none(4)).action_logprobs(prompts, legal)
        assert attached(subject.model) == 0
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(subject.edited({"resid.0": broken}, "b", none()).generate(prompts[0]))
    assert attached(subject.model) == 0


def test_a_site_that_never_runs_is_an_error(subject, prompts, legal, monkeypatch):
    monkeypatch.setattr(subject.checkpoint.sites, "mlp", [nn.Identity() for _ in range(3)])
    with pytest.raises(FairleadError, match="never reached mlp.1"):
        subject.edited({"mlp.1": Watch()}, "w", none(4)).action_logprobs(prompts, legal)
    assert attached(subject.model) == 0


@pytest.mark.parametrize("site", ["resid.3", "resid.-1", "head.0", "resid", "resid.x", "resid.²"])
def test_unknown_sites_are_refused_before_anything_runs(subject, site):
    with pytest.raises(UnknownName, match="no site"):
        subject.edited({site: Watch()}, "w", none())


def test_edits_stack_and_report(subject, prompts, legal):
    report = EditReport("a += 1", 1, 1, 0.0, 1.0)
    first = subject.edited({"resid.0": lambda h, _: h + 1}, "a", lambda: [(report,)])
    both = first.edited({"resid.0": lambda h, _: h * 2}, "b", lambda: [(report, report)])
    answer = asyncio.run(both.generate(prompts[0], legal=legal[0]))
    assert answer.edits == (report,) * 3
    one = subject.edited({"resid.0": lambda h, _: (h + 1) * 2}, "c", none())
    assert torch.equal(
        one.action_logprobs(prompts[:1], legal[:1])[0],
        subject.edited([("resid.0", lambda h, _: h + 1), ("resid.0", lambda h, _: h * 2)], "d", none()).action_logprobs(
            prompts[:1], legal[:1]
        )[0],
    )
    assert len({s.fingerprint for s in (subject, first, both, one, subject.prompted("x"))}) == 5
    assert first.fingerprint == subject.edited({"resid.0": lambda h, _: h + 1}, "a", none()).fingerprint


def test_a_failed_batch_leaves_no_counts_behind(subject, prompts, legal):
    kept = []

    def count(hidden, info):
        kept.append(len(hidden))
        if len(hidden) == 2:
            raise RuntimeError("broken hook")
        return hidden

    def reports():
        seen, kept[:] = list(kept), []
        return [(EditReport("e", n, n, None, None),) for n in seen]

    edited = subject.edited({"resid.0": count}, "c", reports)
    with pytest.raises(RuntimeError, match="broken"):
        edited.action_logprobs(prompts[:2], legal[:2])
    assert not kept
    assert asyncio.run(edited.generate(prompts[0], legal=legal[0])).edits == (EditReport("e", 1, 1, None, None),)


def test_roles_are_traced_to_their_messages(subject):
    chat = (Message("system", "You shop."), Message("user", "ok"), Message("assistant", "ok"), Message("user", "ok"))
    prompt = subject.tokens(chat)
    roles = subject.checkpoint.chat.roles(prompt.messages).tolist()
    text = {r: "" for r in ROLES.values()}
    for role, (a, b) in zip(roles, prompt.offsets, strict=True):
        text[role] += prompt.text[a:b]
    assert text == {
        1: "You shop.",
        2: "okok",
        3: "ok",
        0: "<s><|system|><|user|><|assistant|></s><|user|><|assistant|>",
    }


def test_roles_are_unknown_when_the_template_rewrites(subject, prompts):
    chat = subject.checkpoint.chat
    old = chat.tokenizer.chat_template
    rewritten = (Message("system", "some words"), Message("user", "other words"))
    try:
        chat.tokenizer.chat_template = old.replace("m['content']", "m['content'] | upper")
        assert chat.roles(rewritten) is None
        watch = Watch()
        subject.edited({"resid.0": watch}, "w", none()).action_logprobs([rewritten], [["done()"]])
        assert not watch.seen[0][1].roles_known.any() and not watch.seen[0][1].role.any()
    finally:
        chat.tokenizer.chat_template = old
