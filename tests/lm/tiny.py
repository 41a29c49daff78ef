"""Tiny random-weight checkpoints of every architecture that is verified, written as real files.

    from tests.lm.tiny import ARCHITECTURES, write
    folder = write(tmp_path / "gemma2", "gemma2")       # config.json, model.safetensors, tokenizer, chat template

Layers 3, width 32, 4 heads of 8, vocabulary 400, context 512; sliding windows are 8 tokens, so that a prompt
of a few words is longer. Norm weights are moved off their start, so that no norm is the identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tests.lm.conftest import tokenizer

LAYERS, WIDTH, WINDOW = 3, 32, 8
_COMMON: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False, "initializer_range": 0.2,
}  # fmt: skip
_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_PLAIN = {k: v for k, v in _COMMON.items() if k not in ("num_key_value_heads", "head_dim")}
_NO_HEAD_DIM = {k: v for k, v in _COMMON.items() if k != "head_dim"}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _COMMON),
    "mistral": ("Mistral", {**_COMMON, "sliding_window": WINDOW}),
    "qwen2": ("Qwen2", {**_NO_HEAD_DIM, "use_sliding_window": True, **_MIXED}),
    "qwen3": ("Qwen3", _COMMON),
    "gemma2": ("Gemma2", {**_COMMON, **_MIXED, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3", {**_COMMON, **_MIXED, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}),
    "gpt2": ("GPT2", {
        "vocab_size": 400, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 512, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.2,
    }),
    "gpt_neox": ("GPTNeoX", {**_PLAIN, "rotary_pct": 0.25}),
    "phi": ("Phi", {**_PLAIN, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", {**_NO_HEAD_DIM, "sliding_window": WINDOW}),
    "mixtral": ("Mixtral", {**_COMMON, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3Moe", {
        **_COMMON, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1],
    }),
    "olmoe": ("Olmoe", {**_NO_HEAD_DIM, "num_experts": 4, "num_experts_per_tok": 2}),
}  # fmt: skip
WITHOUT_TEMPLATE = ("gpt2", "gpt_neox")  # published without a chat template, so they are here


def write(folder: Path, architecture: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0,
          template: bool | None = None, **config: Any) -> Path:  # fmt: skip
    """Writes a checkpoint of `architecture` into `folder` and returns it. `config` overrides entries of its
    config.json; `template` says whether it has a chat template (default: as published)."""
    family, values = ARCHITECTURES[architecture]
    name = "Gemma3Text" if family == "Gemma3" else family
    settings = getattr(transformers, f"{name}Config")(**{**values, **config})
    class_name = f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, class_name)(settings)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight.add_(0.2 * torch.randn_like(weight))
    model.to(dtype).save_pretrained(folder)
    tokenizer(folder)
    if not (architecture not in WITHOUT_TEMPLATE if template is None else template):
        (folder / "chat_template.jinja").unlink()
    return folder
