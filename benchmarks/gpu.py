"""Speed at the size of Llama-3.1-8B, random weights: acting with and without watched latents, harvesting, training.

    python -m benchmarks.gpu [--device cuda] [--rounds 20] [--json OUT]
    python -m benchmarks.gpu --tiny                       # every line of it on a CPU, sizes of no meaning

NO GPU FIGURES EXIST YET: this was written where there is no GPU, and has only been run with --tiny. Put figures into
docs/real-models.md with the device, the command and n.

Weights are random in bf16: cost does not depend on what they mean. Conditions alternate within a round, so that a clock
that drifts meets both; medians over rounds, and ratios of medians. Measured:

- steps/s: an agent step is one forward over a batch of prompts with a tree of legal actions each; without hooks, and
  with eight edits of latents of a dictionary with 65,536 (adds, clamps, scales);
- harvest: tokens/s of reading resid.19, against the bare forward of the same 20 blocks with nothing attached;
- training: activations/s of the sparse TopK trainer (float32), and the share of what the encoder's matrix product alone
  would allow in that dtype: no trainer can be faster than that product.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.stream import Stream
from fairlead.dictionaries.train import TrainConfig, Trainer
from fairlead.lm.forwards import Forwards, Row
from fairlead.lm.hooks import ROLE_USER
from fairlead.lm.masks import Masks
from fairlead.lm.sites import Sites
from fairlead.lm.tree import grow
from fairlead.steering import compile_edits, parse

LINE = "1 += 2; 2 -= 2; 3 *= 0.5; 4 = 0; 5 += 1; 6 = 1; 7 *= 2; 8 -= 1"


@dataclass(frozen=True)
class Sizes:
    """What is run. `layer` is the site that is read and edited."""

    model: dict[str, int]
    layer: int
    latents: int
    prompts: int
    prompt_tokens: int
    texts: int
    text_tokens: int
    batch: int  # of training
    steps: int  # of training, a round


LLAMA = {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8}  # fmt: skip
SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
FULL = Sizes(LLAMA, 19, 65_536, 16, 150, 16, 512, 8192, 10)
TINY = Sizes(SMALL, 1, 1024, 4, 30, 4, 32, 256, 4)


def model_of(sizes: Sizes, device: str) -> Any:
    """A Llama of random weights in bf16, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**sizes.model, max_position_embeddings=4096, tie_word_embeddings=False))
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def dictionary_of(sizes: Sizes, device: str, site: str) -> SparseDictionary:
    d, m = sizes.model["hidden_size"], sizes.latents
    rows = torch.nn.functional.normalize(torch.randn(m, d, device=device), dim=-1)
    return SparseDictionary(
        name="random", site=site, W_enc=rows.T.contiguous(), W_dec=rows, b_enc=torch.zeros(m, device=device),
        b_dec=torch.zeros(d, device=device), training_flops=0.0,
    )  # fmt: skip


def seconds(device: str, run: Callable[[], Any]) -> float:
    """Wall seconds of `run`, the device's queue emptied before and after."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def compared(device: str, rounds: int, arms: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each arm, after one round that does not count."""
    took: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name in list(arms) if number % 2 else list(arms)[::-1]:
            got = seconds(device, arms[name])
            if number:
                took[name].append(got)
    return {name: statistics.median(values) for name, values in took.items()}


def stepping(model: Any, sites: Sites, sizes: Sizes, device: str, rounds: int) -> dict[str, float]:
    """Agent steps a second: bare, and with eight watched latents."""
    checkpoint: Any = SimpleNamespace(model=model, sites=sites, masks=Masks())
    site = f"resid.{sizes.layer}"
    dictionary = dictionary_of(sizes, device, site)
    width, layers = sizes.model["hidden_size"], sizes.model["num_hidden_layers"]
    engine = compile_edits(parse(LINE), dictionary, d_model=width, n_layers=layers)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, sizes.model["vocab_size"], (sizes.prompts, sizes.prompt_tokens))
    roles = np.full(sizes.prompt_tokens, ROLE_USER)
    trees = [grow([tuple(rng.integers(0, 500, 6).tolist()) for _ in range(12)]) for _ in ids]

    def step(hooks: tuple[Any, ...], slot: int) -> Callable[[], Any]:
        forwards = Forwards(checkpoint, hooks, None)
        rows = [Row(row, roles if slot else None, 0, slot) for row in ids]

        def run() -> None:
            with torch.inference_mode():
                forwards.score(rows, trees, lambda _: 0)
            if slot:
                engine.reports()

        return run

    took = compared(device, rounds, {"bare": step((), 0), "watched": step(tuple(engine.hooks.items()), 1)})
    return {
        "steps_per_second": sizes.prompts / took["bare"],
        "steps_per_second_8_latents": sizes.prompts / took["watched"],
        "time_ratio": took["watched"] / took["bare"],
    }


def harvesting(model: Any, sites: Sites, sizes: Sizes, device: str, rounds: int) -> dict[str, float]:
    """Tokens a second read at the layer, against the same blocks run bare."""
    checkpoint: Any = SimpleNamespace(model=model, sites=sites, masks=Masks())
    rng = np.random.default_rng(1)
    ids = rng.integers(0, sizes.model["vocab_size"], (sizes.texts, sizes.text_tokens))
    forwards = Forwards(checkpoint, (), None)
    rows = [Row(row, None, 0, 0) for row in ids]
    inputs = torch.from_numpy(ids).to(device)
    whole = model.model.layers

    def read() -> None:
        with torch.inference_mode():
            forwards.read(rows, [f"resid.{sizes.layer}"])

    def bare() -> None:
        model.model.layers = whole[: sizes.layer + 1]
        try:
            with torch.inference_mode():
                model.model(input_ids=inputs, use_cache=False)
        finally:
            model.model.layers = whole

    def full() -> None:
        with torch.inference_mode():
            model.model(input_ids=inputs, use_cache=False)

    took = compared(device, rounds, {"read": read, "bare": bare, "all blocks": full})
    tokens = ids.size
    return {
        "tokens_per_second": tokens / took["read"],
        "bare_tokens_per_second": tokens / took["bare"],
        "share_of_bare": took["bare"] / took["read"],
        "saved_by_stopping": 1 - took["read"] / took["all blocks"],
    }


def training(sizes: Sizes, device: str, rounds: int) -> dict[str, float]:
    """Activations a second of the trainer, and its share of what the encoder's product alone allows."""
    d, m = sizes.model["hidden_size"], sizes.latents
    rows = torch.randn(4 * sizes.batch, d, device=device)
    config = TrainConfig(n_features=m, k=64 if m >= 4096 else 8, batch=sizes.batch, steps=10_000)
    generator = torch.Generator().manual_seed(0)
    stream = Stream(rows, batch=sizes.batch, held_out=0, buffer=0, generator=generator)
    trainer = Trainer(stream, config, generator)
    numbers = iter(range(10_000))
    weights, x = torch.randn(d, m, device=device), rows[: sizes.batch]

    def train() -> None:
        for _ in range(sizes.steps):
            trainer.step(next(numbers))

    def multiply() -> None:
        for _ in range(sizes.steps):
            torch.mm(x, weights)

    took = compared(device, max(1, rounds // 2), {"trainer": train, "encoder product": multiply})
    done = sizes.batch * sizes.steps
    return {
        "activations_per_second": done / took["trainer"],
        "encoder_product_activations_per_second": done / took["encoder product"],
        "share_of_ceiling": took["encoder product"] / took["trainer"],
    }


@click.command()
@click.option("--device", help="[default: cuda]")
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--tiny", is_flag=True, help="Small sizes on the CPU: does it run? Its figures say nothing.")
@click.option("--json", "out", type=click.Path(path_type=Path))
def main(device: str | None, rounds: int, tiny: bool, out: Path | None) -> None:
    """Prints the three groups of figures as JSON; without a GPU, that there is none."""
    if tiny:
        device, rounds = "cpu", min(rounds, 2)
        torch.set_num_threads(1)
    elif device is None and not torch.cuda.is_available():
        click.echo("no GPU here, and no GPU figures exist yet; --tiny runs every line on the CPU")
        return
    device = device or "cuda"
    sizes = TINY if tiny else FULL
    model = model_of(sizes, device)
    sites = Sites(model, sizes.model["num_hidden_layers"])
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "rounds": rounds, "tiny": tiny}
    found["stepping"] = stepping(model, sites, sizes, device, rounds)
    found["harvesting"] = harvesting(model, sites, sizes, device, rounds)
    del model, sites
    found["training"] = training(sizes, device, rounds)
    if tiny:
        found["note"] = "tiny sizes on a CPU: these figures say nothing about a GPU, and no GPU figures exist yet"
    text = json.dumps(found, indent=2)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
