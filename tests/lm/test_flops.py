"""The ledger's formulas against what torch counts, operation by operation, under eager attention.

FlopCounterMode does not see inside fused attention and does not see embedding_bag, so attention is eager here and
dictionaries are charged as if their kernels were dense.
"""

from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from fairlead.core.ledger import (
    Meter,
    adapter_flops,
    dictionary_training_flops,
    forward_flops,
    read_flops,
    training_flops,
)
from fairlead.core.types import Message
from fairlead.dictionaries.stream import Stream
from fairlead.dictionaries.train import TrainConfig, Trainer, steps_flops

T, D, L = 64, 64, 4


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=D, intermediate_size=3 * D, num_hidden_layers=L, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def sizes(model, tokens=T, context=T):
    matmul = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    return {"n_matmul": matmul, "tokens": tokens, "context": context, "n_layers": L, "d_model": D}


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def close(formula, run):
    assert formula == pytest.approx(counted(run), rel=0.02)


def test_forward_backward_and_decoding_with_a_cache(model):
    ids = torch.randint(0, 300, (1, T))
    close(forward_flops(**sizes(model)), lambda: model(ids))
    close(training_flops(**sizes(model)), lambda: model(ids, labels=ids).loss.backward())
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    close(forward_flops(**sizes(model, tokens=1)), lambda: model(ids[:, -1:], past_key_values=cache))


def test_a_step_of_an_adapter_and_a_gradient_of_activations(model):
    """No gradient of the base weights: one forward, and one pass of input gradients; attention's backward is whole,
    which the two forwards of the formula leave out, so the sequence is short beside the width here."""
    ids = torch.randint(0, 300, (1, 16))
    for p in model.parameters():
        p.requires_grad_(False)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    close(
        adapter_flops(**sizes(model, tokens=16, context=16)),
        lambda: model(inputs_embeds=embedded, labels=ids).loss.backward(),
    )
    for p in model.parameters():
        p.requires_grad_(True)


@pytest.mark.parametrize("kind", ["relu", "topk", "batchtopk"])
def test_training_a_dictionary(kind):
    x = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(n_features=128, kind=kind, k=8, steps=5, batch=256, dead_after=10**9)
    generator = torch.Generator().manual_seed(0)
    trainer = Trainer(Stream(x, batch=256, held_out=100, buffer=1000, generator=generator), config, generator)
    found = counted(lambda: [trainer.step(i) for i in range(5)])
    dense = dictionary_training_flops(d_model=32, n_features=128, tokens=5 * 256)
    assert trainer.flops == steps_flops(config, 32, 5 * 256) == pytest.approx(dense * (1.2 if kind == "relu" else 1.0))
    if kind == "relu":
        assert trainer.flops == pytest.approx(found, rel=0.02)
    else:
        assert trainer.flops >= found  # sparse kernels do less, and torch does not see all of that


def test_reading_and_writing_latents():
    x, encoder, decoder = torch.randn(10, 32), torch.randn(32, 4), torch.randn(4, 32)
    close(read_flops(d_model=32, n_rows=4, tokens=10), lambda: x + (x @ encoder) @ decoder)


@contextmanager
def eager(model):
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


PROMPT = (Message("system", "You shop."), Message("user", "buy the red lamp [1] link [2] button step 1/9"))


@pytest.mark.parametrize("what", ["score", "decode", "activations", "attribution"])
async def test_what_a_subject_is_charged(subject, what):
    subject.meter, legal = Meter(), ('click("1")', 'click("2")', "done()")
    with eager(subject.model), FlopCounterMode(display=False) as counter:
        if what == "score":
            subject.action_logprobs([PROMPT], [legal])
        elif what == "decode":
            await subject.generate(PROMPT, max_tokens=12)
        elif what == "activations":
            subject.activations([PROMPT], ["resid.0"])
        else:
            subject.attribution([PROMPT], [legal], [[1.0, -1.0, 0.0]], "resid_pre.0")
    spent = asdict(subject.meter.snapshot())
    if what == "attribution":  # charged as two forwards, less than attention's whole backward
        assert spent["flops"] == pytest.approx(counter.get_total_flops(), rel=0.1)
    else:
        assert spent["flops"] == pytest.approx(counter.get_total_flops(), rel=0.02)
