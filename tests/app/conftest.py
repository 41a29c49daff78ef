"""A tiny random model that can read a shop page, its dictionary, and small plans: the CLI without shipped weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fairlead import dictionaries
from fairlead.cli import main
from fairlead.dictionaries import random as random_dictionary
from fairlead.tasks.shop import plugin as shop
from fairlead.tasks.shop.fronts import TextFront
from fairlead.tasks.shop.observe import Observation

TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]
WIDTH, FEATURES, SITE = 16, 24, "resid.0"

PLAN = """
question = "Does the plan run?"
task = "shop"
model = "pocket/tiny"
dictionary = "pocket/tiny@resid.0"
arms = ["none", "prompt"]
claim = "prompt"
primary = "strict"
where = { trap = "on" }
smallest_effect = 0.1
n = 2
n_train = 1
n_validation = 2
budget = { tuning_trials = 1 }
[task_options]
n = 2
"""


def make_model(folder: Path, *, layers: int = 2) -> Path:
    torch.manual_seed(0)
    pages = []
    for item in shop({"n": 4}).items("train"):
        ins = shop().instance(item)
        pages.append(Observation(ins.goal, "/", TextFront(ins).elements(), "", 0, 9, ()).text())
    tok = Tokenizer(models.BPE(unk_token=None))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        pages, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=512, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, pad_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pocket")
    folder = make_model(root / "tiny")
    rows = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(1))
    found = random_dictionary.fit(rows, FEATURES, name=f"tiny@{SITE}", site=SITE)
    dictionaries.save(found, folder / "dictionaries" / SITE)
    return root


@pytest.fixture
def pocket(_pocket: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pocket/tiny and pocket/tiny@resid.0 stand where the shipped weights would."""
    monkeypatch.setenv("FAIRLEAD_POCKET", str(_pocket))
    return _pocket


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `fairlead ...` in an empty directory, in this process; tracebacks are raised."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)

    def run(*args: Any) -> Result:
        return CliRunner().invoke(main, [str(a) for a in args], catch_exceptions=False)

    return run
