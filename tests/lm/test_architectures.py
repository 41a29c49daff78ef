"""One conformance test for every architecture, on tiny random checkpoints, against plain forwards of the same model.

Sliding windows are 8 tokens here and prompts are longer, so a mask that forgets the window is seen at once.
"""

from __future__ import annotations

import asyncio

import pytest
import torch
from tests.lm.conftest import LEGAL, PAGES
from tests.lm.test_scores import naive, naive_greedy
from tests.lm.tiny import ARCHITECTURES, LAYERS, WIDTH, write
from torch.utils.flop_counter import FlopCounterMode

from fairlead import steering
from fairlead.core.ledger import Meter
from fairlead.core.types import Message
from fairlead.lm.load import load
from fairlead.lm.subject import LocalSubject

SITES = [f"{kind}.{layer}" for kind in ("resid", "resid_pre", "attn", "mlp", "mlp_in") for layer in range(LAYERS)]
PROMPTS = [(Message("system", "You shop."), Message("user", page)) for page in PAGES[:3]]
KINDS = ("resid_pre", "attn", "mlp", "resid")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tmp_path_factory) -> LocalSubject:
    """Every architecture as it is used on a CPU."""
    torch.set_num_threads(1)
    return load(write(tmp_path_factory.mktemp(request.param), request.param))


def attention_of(model: LocalSubject) -> list[str]:
    """Gemma 2 caps its attention scores, which sdpa cannot do."""
    return ["eager"] if model.model.config.model_type == "gemma2" else ["eager", "sdpa"]


def test_sites_are_the_residual_stream(model):
    assert model.sites == SITES
    found = model.activations(PROMPTS, SITES, "all")
    for row in range(len(PROMPTS)):
        for n in range(LAYERS):
            pre, attn, mlp, post = (found[f"{kind}.{n}"][row] for kind in KINDS)
            assert torch.allclose(pre + attn + mlp, post, atol=1e-4 * float(post.abs().max()))
            assert attn.abs().max() > 0 and mlp.abs().max() > 0
            if n:
                assert torch.equal(pre, found[f"resid.{n - 1}"][row])


def test_mlp_in_is_what_the_mlp_reads(model):
    """Behind every norm: the MLP, found by its name here, makes mlp.L (or what a norm makes into it) of it."""
    block = model.checkpoint.sites.blocks[1]
    mlp = getattr(block, "mlp", None) or block.block_sparse_moe
    seen: list[torch.Tensor] = []
    hook = mlp.register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    got = model.activations(PROMPTS[:1], ["mlp_in.1"], "all")["mlp_in.1"][0]
    hook.remove()
    assert torch.equal(seen[0][0], got)
    edited = model.edited({"mlp_in.1": lambda h, _: h * 0 + 1}, "same", lambda: [()])
    moved = edited.activations(PROMPTS[:1], ["resid.0", "attn.1", "mlp.1"], "all")
    assert torch.equal(moved["resid.0"][0], model.activations(PROMPTS[:1], ["resid.0"], "all")["resid.0"][0])
    assert torch.allclose(moved["mlp.1"][0], moved["mlp.1"][0][:1].expand_as(moved["mlp.1"][0]), atol=1e-5)


def test_scores_equal_plain_forwards_with_either_attention(model):
    """The tree, its mask and positions, left padding and batching: against each string alone, without any."""
    for kind in attention_of(model):
        model.model.set_attn_implementation(kind)
        for got, prompt, options in zip(model.action_logprobs(PROMPTS, LEGAL[:3]), PROMPTS, LEGAL, strict=False):
            assert got.tolist() == pytest.approx([naive(model, prompt, o) for o in options], abs=5e-4, rel=1e-4)


def test_left_padding_changes_no_activation(model):
    together = model.activations(PROMPTS, ["resid.2", "attn.1"], "all")
    for i, prompt in enumerate(PROMPTS):
        alone = model.activations([prompt], ["resid.2", "attn.1"], "all")
        for site in together:
            scale = float(alone[site][0].abs().max())
            assert torch.allclose(together[site][i], alone[site][0], atol=1e-5 * scale + 1e-5)


def test_cached_decoding_equals_uncached(model):
    limits = [6, 14, 9]
    rows = [model._as_row(model.tokens(p), 0, 0) for p in PROMPTS]
    with torch.inference_mode():
        said = model._forwards().decode(rows, limits, frozenset({1}))
    for prompt, limit, got in zip(PROMPTS, limits, said, strict=True):
        assert got == naive_greedy(model, prompt, limit)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_moves_nothing_below_it_and_something_above(model, kind):
    edited = model.edited({f"{kind}.1": lambda h, _: h + 1}, "up", lambda: [()] * len(PROMPTS))
    sites = [f"resid.{n}" for n in range(LAYERS)]
    before, after = model.activations(PROMPTS, sites), edited.activations(PROMPTS, sites)
    same = [torch.equal(before[s], after[s]) for s in sites]
    assert same == [True, False, False]


def test_an_edit_of_a_part_is_added_to_the_stream(model):
    """What is added to attn or mlp arrives in resid, unscaled: the site is the contribution itself. (Where the MLP
    reads what attention wrote, resid.1 moves by more.)"""
    push = torch.linspace(-1, 1, WIDTH)
    edited = model.edited({"mlp.1": lambda h, _: h + push}, "push", lambda: [()] * len(PROMPTS))
    moved = edited.activations(PROMPTS, ["resid.1"])["resid.1"] - model.activations(PROMPTS, ["resid.1"])["resid.1"]
    assert torch.allclose(moved, push.expand_as(moved), atol=1e-3)


def test_attribution_is_the_gradient(model):
    """Central differences along a direction at the decision token."""
    weights = [[1.0, -1.0, 0.5]]
    got = model.attribution(PROMPTS[:1], LEGAL[:1], weights, "resid.0")
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    direction *= 1e-2 * got.activations[0][-1].norm() / direction.norm()
    values = []
    for sign in (1, -1):

        def push(hidden, info, sign=sign):
            return hidden + (info.is_last & info.real)[..., None] * sign * direction

        moved = model.edited({"resid.0": push}, "push", lambda: [()]).action_logprobs(PROMPTS[:1], LEGAL[:1])
        values.append(float(torch.tensor(weights[0]) @ moved[0]))
    expected = float(got.gradients[0][-1] @ direction)
    assert (values[0] - values[1]) / 2 == pytest.approx(expected, rel=0.1, abs=5e-3)


def test_the_ledger_counts_what_the_kernels_do(model):
    """2NT + 4LSdT with active experts, GPT-2's Conv1D and every projection, within 2 % of counted operations."""
    text = " ".join(PAGES)
    model.model.set_attn_implementation("eager")
    if hasattr(model.model.config, "num_experts_per_tok"):
        model.model.set_experts_implementation("eager")  # torch does not count the grouped kernel
    for sites in (["resid.2"], ["resid.0"]):
        meter = Meter()
        with FlopCounterMode(display=False) as counter:
            model.metered(meter).text_activations([text], sites)
        assert meter.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_text_is_read_as_by_the_model_alone(model):
    got = model.text_activations([*PAGES, "a"], ["resid.1"])["resid.1"]
    for text, rows in zip([*PAGES, "a"], got, strict=True):
        ids = model.text_tokens([text])[0]
        found = []
        block = model.checkpoint.sites.blocks[1]
        hook = block.register_forward_hook(
            lambda _m, _a, out, found=found: found.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.no_grad():
            model.model(torch.tensor([ids]), use_cache=False)
        hook.remove()
        assert torch.allclose(rows, found[0][0], atol=1e-4 * float(rows.abs().max()))


def test_a_choice_is_the_same_in_a_batch_and_alone(model):
    async def both():
        async with model.seat(0) as a, model.seat(1) as b:
            return await asyncio.gather(
                a.generate(PROMPTS[0], legal=LEGAL[0]), b.generate(PROMPTS[1], legal=LEGAL[1])
            )

    for got, prompt, legal in zip(asyncio.run(both()), PROMPTS, LEGAL, strict=False):
        alone = asyncio.run(model.generate(prompt, legal=legal))
        assert got.text == alone.text
        assert got.legal_logprobs == pytest.approx(alone.legal_logprobs, abs=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision(architecture, tmp_path):
    """bf16: scores are computed in float32 from bf16 logits, sites add up to rounding, and nothing overflows."""
    folder = write(tmp_path, architecture, dtype=torch.bfloat16)
    half, full = load(folder, dtype="bfloat16"), load(folder, dtype="float32")
    assert half.model.dtype == torch.bfloat16 and half.sites == SITES
    got, want = (m.action_logprobs(PROMPTS[:2], LEGAL[:2]) for m in (half, full))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32 and torch.isfinite(a).all()
        assert (a - b).abs().max() < 0.1 * b.abs().max()
    found = half.activations(PROMPTS, SITES, "all")
    pre, attn, mlp, post = (torch.cat(found[f"{kind}.1"]).float() for kind in KINDS)
    assert ((pre + attn + mlp - post).norm() / post.norm()) < 0.01
    assert half.fingerprint != full.fingerprint
    vector = {"v": torch.linspace(-1, 1, WIDTH)}
    pushed = [steering.apply(m, "@resid.1: $v += 2 at prompt", None, vector) for m in (half, full)]
    got, want = (m.action_logprobs(PROMPTS[:2], LEGAL[:2]) for m in pushed)
    for a, b, c in zip(got, want, full.action_logprobs(PROMPTS[:2], LEGAL[:2]), strict=True):
        assert (a - b).abs().max() < 0.1 * b.abs().max() and not torch.allclose(b, c, atol=1e-2)
