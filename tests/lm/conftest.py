"""A tiny random Llama with its own tokenizer and chat template, built once for all tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fairlead.core.types import Message, Messages
from fairlead.lm.load import load
from fairlead.lm.subject import LocalSubject

TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PAGES = [
    "buy the red lamp [1] link 'Red lamp' $4 [2] button 'Add to cart' step 1/9",
    "find two blue cups under 9 dollars. [1] link 'Home' [2] link 'Blue cup' [3] searchbox '' step 4/12\na new line",
    "goal",
    "the shop has nothing: report_infeasible(\"no such thing\") [7] button 'OK'",
]
LEGAL = [
    ('click("1")', 'click("2")', "done()"),
    ('click("1")', 'click("2")', 'click("3")', 'fill("3","blue cup")', "noop()", 'goto("/cart")'),
    ("noop()",),
    ("go_back()", 'click("7")', 'report_infeasible("no")'),
]


def tokenizer(folder: Path) -> None:
    tok = Tokenizer(models.BPE(unk_token=None))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tok.train_from_iterator([*PAGES, *(a for legal in LEGAL for a in legal)] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def checkpoint(folder: Path, *, layers: int = 3, width: int = 32, kv_heads: int = 2, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=400, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=kv_heads, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def loaded(folder: Path) -> LocalSubject:
    torch.set_num_threads(1)
    return load(folder)


@pytest.fixture
def subject(loaded: LocalSubject) -> LocalSubject:
    return loaded.metered(None)


@pytest.fixture(scope="session")
def prompts() -> list[Messages]:
    return [(Message("system", "You shop."), Message("user", page)) for page in PAGES]


@pytest.fixture(scope="session")
def legal() -> list[tuple[str, ...]]:
    return LEGAL
