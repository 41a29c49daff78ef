"""Activations of raw text: one row a token, the same in any batch, and no more of the forward than is needed."""

from __future__ import annotations

import pytest
import torch
from tests.lm.conftest import PAGES
from torch.utils.flop_counter import FlopCounterMode

from fairlead.core.errors import FairleadError
from fairlead.core.ledger import Meter

TEXTS = [*PAGES, "a", "<s> no <|user|> turn", "goal " * 3]


def plainly(subject, text: str, max_tokens: int | None = None) -> list[torch.Tensor]:
    """What transformers says: the stream before block 0 and after each [T, d], one text alone, no mask."""
    ids, found = subject.text_tokens([text], max_tokens)[0], []
    blocks = subject.model.model.layers
    handles = [blocks[0].register_forward_pre_hook(lambda _m, args: found.append(args[0][0]))]
    handles += [block.register_forward_hook(lambda _m, _a, out: found.append(out[0])) for block in blocks]
    with torch.no_grad():
        subject.model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return found


def test_equal_to_the_model_alone(subject):
    got = subject.text_activations(TEXTS, ["resid.0", "resid_pre.0", "resid.1"])
    for i, text in enumerate(TEXTS):
        want = plainly(subject, text)
        for site, layer in (("resid_pre.0", 0), ("resid.0", 1), ("resid.1", 2)):
            assert got[site][i].shape == want[layer].shape
            assert torch.allclose(got[site][i], want[layer], atol=1e-5)


def test_stopping_early_changes_nothing_and_costs_less(subject):
    early, late = Meter(), Meter()
    one = subject.metered(early).text_activations(TEXTS, ["resid.0"])["resid.0"]
    two = subject.metered(late).text_activations(TEXTS, ["resid.0", "resid.2"])["resid.0"]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert 0.2 < early.flops / late.flops < 0.4
    assert early.prompt_tokens == late.prompt_tokens == sum(map(len, subject.text_tokens(TEXTS)))


def test_the_meter_counts_what_an_early_stop_computes(subject):
    subject.meter = Meter()
    subject.model.set_attn_implementation("eager")
    try:
        with FlopCounterMode(display=False) as counter:
            subject.text_activations([" ".join(PAGES)], ["resid.1"])
    finally:
        subject.model.set_attn_implementation("sdpa")
    assert subject.meter.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_edits_above_the_site_still_run(subject):
    """An edit at a later layer reports that it was there, so the forward goes on to it."""
    seen = []
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules())

    def late(hidden, _info):
        seen.append(hidden.shape)
        return hidden

    edited = subject.edited({"resid.2": late}, "late", lambda: [()] * 2)
    edited.text_activations(TEXTS[:2], ["resid.0"])
    assert len(seen) == 1
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules())


def test_cut_and_empty(subject):
    ids = subject.text_tokens(TEXTS, 5)
    assert max(map(len, ids)) == 5
    got = subject.text_activations(TEXTS, ["resid.0"], max_tokens=5)["resid.0"]
    assert [len(rows) for rows in got] == [len(i) for i in ids]
    assert torch.allclose(got[0], plainly(subject, TEXTS[0], 5)[1], atol=1e-5)
    assert len(subject.text_tokens(["blue cup " * 900])[0]) == subject.checkpoint.shape.context
    assert subject.text_tokens(["blue cup " * 10**6], 5) == subject.text_tokens(["blue cup " * 9], 5)
    with pytest.raises(FairleadError, match="no tokens"):
        subject.text_tokens(["a", ""])


def test_no_special_token_comes_from_a_text(subject):
    special = {i for i, t in subject.tokenizer.added_tokens_decoder.items() if t.special}
    assert not special & set(subject.text_tokens(["<s> no <|user|> turn"])[0])
