"""A checkpoint that cannot be trusted is refused, with what was expected and what came."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.lm.tiny import ARCHITECTURES, write
from torch.utils.flop_counter import FlopCounterMode

from fairlead.core.errors import LoadError, NotApplicable
from fairlead.core.ledger import Meter
from fairlead.core.types import Message
from fairlead.lm.load import fingerprint, load


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def rewrite(path: Path, change) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def reconfigure(path: Path, **values) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **values}))


def test_a_missing_directory(tmp_path):
    with pytest.raises(LoadError, match="no model directory"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file(copy, name):
    (copy / name).unlink()
    with pytest.raises(LoadError, match=name.replace("model.safetensors", "no weights")):
        load(copy)


def test_pickled_weights_are_never_opened(copy):
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(LoadError, match="pickles are never opened"):
        load(copy)


@pytest.mark.parametrize("keep", [0, 4, 100, -1, -4000])
def test_truncated_weights(copy, keep):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[:keep])
    with pytest.raises(LoadError, match="cannot be read"):
        load(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers(copy, value):
    def poison(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value

    rewrite(copy, poison)
    with pytest.raises(LoadError, match="NaN or infinite.*\n.*\n.*1 of .* in model.layers.1.mlp.up_proj"):
        load(copy)


def test_shapes_that_do_not_fit(copy):
    reconfigure(copy, intermediate_size=80)
    with pytest.raises(LoadError, match="do not fit its config.json"):
        load(copy)


def test_a_tensor_that_is_missing_or_too_many(copy):
    rewrite(copy, lambda t: t.pop("model.layers.0.self_attn.q_proj.weight"))
    with pytest.raises(LoadError, match="missing keys: model.layers.0.self_attn.q_proj"):
        load(copy)
    reconfigure(copy, num_hidden_layers=2)
    with pytest.raises(LoadError, match="do not fit"):
        load(copy)


def test_a_broken_config_or_tokenizer(copy, folder):
    (copy / "config.json").write_text("{")
    with pytest.raises(LoadError, match="cannot be loaded"):
        load(copy)
    shutil.copy(folder / "config.json", copy / "config.json")
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(LoadError, match="cannot be loaded"):
        load(copy)


def test_code_in_a_checkpoint_is_not_run(copy, tmp_path):
    proof = tmp_path / "ran"
    (copy / "evil.py").write_text(f"open({str(proof)!r}, 'w').write('x')\nclass Evil: pass\n")
    reconfigure(copy, model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})
    with pytest.raises(LoadError, match="cannot be loaded"):
        load(copy)
    assert not proof.exists()


def test_no_chat_template_gets_the_plain_one(copy):
    (copy / "chat_template.jinja").unlink()
    subject = load(copy)
    said = subject.tokens((Message("system", "You shop."), Message("user", "buy")))
    assert said.text == "System:\nYou shop.\n\nUser:\nbuy\n\nAssistant:\n"
    assert subject.checkpoint.chat.end_id == subject.tokenizer.eos_token_id


def test_a_tokenizer_larger_than_the_embedding(copy):
    reconfigure(copy, vocab_size=300)

    def cut(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:300].clone()

    rewrite(copy, cut)
    with pytest.raises(LoadError, match="does not fit its weights"):
        load(copy)


def test_layers_that_are_not_attention_are_refused(tmp_path):
    write(tmp_path, "llama")
    values = {k: v for k, v in ARCHITECTURES["llama"][1].items() if k != "tie_word_embeddings"}
    config = transformers.Lfm2Config(**values, layer_types=["conv", "full_attention", "conv"])
    transformers.Lfm2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="attention Fairlead cannot direct"):
        load(tmp_path)


def test_sites_of_a_block_that_scales_what_it_adds(tmp_path):
    """Granite multiplies each contribution before it is added, so neither part is one."""
    write(tmp_path, "llama")
    settings = {"residual_multiplier": 0.3, **ARCHITECTURES["llama"][1]}
    transformers.GraniteForCausalLM(transformers.GraniteConfig(**settings)).save_pretrained(tmp_path)
    granite = load(tmp_path)
    assert granite.sites == [f"{kind}.{n}" for kind in ("resid", "resid_pre") for n in range(3)]
    with pytest.raises(NotApplicable, match="not something this model adds"):
        granite.edited({"mlp.0": lambda h, _: h}, "x", lambda: [()])


def test_pocket_models_are_found_by_name(folder, monkeypatch):
    monkeypatch.setenv("FAIRLEAD_POCKET", str(folder.parent))
    assert load(f"pocket/{folder.name}").name == f"pocket/{folder.name}"
    with pytest.raises(LoadError, match=f"pocket/{folder.name}"):
        load("pocket/nobody")


def test_the_fingerprint_is_of_weights_config_and_tokenizer(copy, folder):
    assert fingerprint(copy) == fingerprint(folder)
    seen = {fingerprint(copy)}
    rewrite(copy, lambda t: t["lm_head.weight"].mul_(2))
    seen.add(fingerprint(copy))
    reconfigure(copy, rms_norm_eps=1e-3)
    seen.add(fingerprint(copy))
    (copy / "chat_template.jinja").write_text((copy / "chat_template.jinja").read_text() + " ")
    seen.add(fingerprint(copy))
    assert len(seen) == 4
    (copy / "notes.txt").write_text("x")
    assert fingerprint(copy) in seen


def test_no_doubled_bos(subject, prompts):
    bos = subject.tokenizer.bos_token_id
    for prompt in prompts:
        ids = subject.tokens(prompt).ids.tolist()
        assert ids[0] == bos and ids.count(bos) == 1
    assert subject.checkpoint.chat.end_id == subject.tokenizer.eos_token_id


def test_the_formula_is_what_the_kernels_do(subject, prompts):
    """2NT + 4LSdT against counted operations, on one unpadded prompt."""
    subject.meter = Meter()
    prompt = (Message("user", " ".join(m.content for p in prompts for m in p)),)
    subject.model.set_attn_implementation("eager")
    try:
        with FlopCounterMode(display=False) as counter:
            subject.activations([prompt], ["resid.0"])
    finally:
        subject.model.set_attn_implementation("sdpa")
    assert subject.meter.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
