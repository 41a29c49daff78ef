"""What a model will take, told before it is loaded, against what it takes."""

from __future__ import annotations

import json

import pytest
import torch
from tests.lm.tiny import ARCHITECTURES, write
from transformers import DynamicCache

from fairlead.core.errors import LoadError
from fairlead.lm import estimate as room
from fairlead.lm.estimate import SCORED, estimate
from fairlead.lm.load import load


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_and_cache_are_what_is_allocated(architecture, tmp_path):
    folder = write(tmp_path, architecture, dtype=torch.bfloat16)
    found, subject = estimate(folder, dtype="bfloat16", rows=3, tokens=20), load(folder, dtype="bfloat16")
    model, shape = subject.model, subject.checkpoint.shape
    assert found.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.ones(3, 20 + SCORED, dtype=torch.long), past_key_values=cache, use_cache=True)
    assert found.cache == sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.flops_per_token == 2 * (shape.body + shape.head)


def test_the_default_dtype_is_float32_on_the_cpu_and_as_stored_elsewhere(tmp_path):
    folder = write(tmp_path, "llama", dtype=torch.bfloat16)
    assert estimate(folder).dtype == "float32" and estimate(folder, device="cuda").dtype == "bfloat16"
    assert estimate(folder, quantize="4bit").weights < estimate(folder, quantize="8bit").weights
    assert estimate(folder, quantize="8bit").weights < estimate(folder, dtype="bfloat16").weights


def test_what_cannot_fit_is_refused_and_what_may_not_is_warned_of(tmp_path, monkeypatch):
    folder = write(tmp_path, "llama")
    need = estimate(folder)
    monkeypatch.setattr(room, "free_memory", lambda device: need.weights - 1)
    with pytest.raises(LoadError, match="does not fit into memory"):
        load(folder)
    assert load(folder, check_memory=False).sites
    monkeypatch.setattr(room, "free_memory", lambda device: need.total - 1)
    with pytest.warns(ResourceWarning, match="lower max_batch"):
        load(folder)
    monkeypatch.setattr(room, "free_memory", lambda device: None)
    assert load(folder).sites and estimate(folder).fits is None


def test_the_sizes_of_llama_3_1_8b():
    """Known figures: 8.03 billion parameters, 16.06 GB in bf16, 128 KiB of cache a token."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072,
    )  # fmt: skip
    found = room.total_up(
        room.sizes_from(config), "bfloat16", device="cuda", dtype=None, quantize=None, rows=1, tokens=1000
    )
    assert found.parameters == 8_030_261_248
    assert found.weights == 16_060_522_496
    assert found.cache == 131072 * (1000 + SCORED)


def test_free_memory_is_a_number_here():
    free = room.free_memory("cpu")
    assert free is None or 0 < free < 1e15


def test_a_config_that_is_no_json_object(tmp_path):
    folder = write(tmp_path, "llama")
    (folder / "config.json").write_text(json.dumps([1]))
    with pytest.raises(LoadError):
        estimate(folder)
