"""What it costs to read every latent on every word, and to set wrong items against right ones: memory, and throughput.

    python -m benchmarks.reformulate memory
    python -m benchmarks.reformulate speed --rounds 5

memory  10,000 items × 65,536 latents through `read_peaks` and the outcome contrast, on a small random model (64 wide)
        with random latents of which about 40 fire on a token: peak memory of a process of its own, and CPU seconds. A
        dense table of the same would take 2.6 GB by itself, and twice that to rank. Target: 4 GB.
speed   items a CPU second, `read_peaks` (forward up to the dictionary's site, encode 65,536 latents on the words, keep
        the maxima) against the bare forward of the same prompts, interleaved rounds, one thread, on a random Llama of
        --width and --layers. Beside the whole forward, and beside a forward that stops at the site. What encoding adds
        falls with the model's size: it is 2·d·65,536 FLOPs a word against 2·(all weights). Target: 0.8 of the whole
        forward.

Exits with 1 where a target is missed. Random weights: nothing here is about what is found.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ITEMS, LATENTS, GIGABYTES, SHARE = 10_000, 65_536, 4.0, 0.8
ACTIVE = 40


def model(width: int, layers: int, folder: Path) -> Any:
    """A random Llama with the pocket shopper's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from fairlead.lm.load import load
    from fairlead.worlds.build import weights_dir

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(weights_dir() / "shopper-s")
    heads = max(2, width // 64)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(folder)


def dictionary(subject: Any, site: str, prompts: list[Any]) -> Any:
    """LATENTS random directions with one threshold, so that about ACTIVE fire on a token."""
    from fairlead.dictionaries.base import SparseDictionary

    generator = torch.Generator().manual_seed(1)
    x = torch.cat(subject.activations(prompts[:16], [site], "all")[site]).float()
    rows = torch.nn.functional.normalize(torch.randn(LATENTS, x.shape[1], generator=generator), dim=1)
    pre = (x - x.mean(0)) @ rows.T
    level = float(pre.flatten()[:: max(1, pre.numel() // 2_000_000)].quantile(1 - ACTIVE / LATENTS))
    return SparseDictionary(
        name="random", site=site, W_enc=rows.T.contiguous(), W_dec=rows, b_enc=torch.full((LATENTS,), -level),
        b_dec=x.mean(0), training_flops=0.0,
    )  # fmt: skip


def prompts_of(n: int) -> list[Any]:
    """Questions of about twenty words, no two alike."""
    from fairlead.core.types import Message

    rng = np.random.default_rng(0)
    words = "buy a red lamp blue chair add to cart deal of the day price under desk plant green mug small large".split()
    return [(Message("user", " ".join(rng.choice(words, 18)) + f"\nitem {i}"),) for i in range(n)]


def memory(items: int) -> dict[str, float]:
    from fairlead.features.misread.outcome import outcome
    from fairlead.features.misread.peaks import read_peaks

    with tempfile.TemporaryDirectory() as folder:
        subject = model(64, 2, Path(folder))
    prompts = prompts_of(items)
    found = dictionary(subject, "resid.0", prompts)
    started = time.process_time()
    peaks = read_peaks(subject, found, prompts)
    read = time.process_time()
    rng = np.random.default_rng(2)
    wrong, clusters = rng.random(items) < 0.4, [str(i // 2) for i in range(items)]
    contrast = outcome(peaks.values, wrong, clusters, rng.random((items, 2)))
    done = time.process_time()
    assert np.isfinite(contrast.p).all()
    return {
        "items": items, "latents": LATENTS, "entries": int(peaks.values.nnz), "read_cpu_s": read - started,
        "contrast_cpu_s": done - read, "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }  # fmt: skip


def speed(rounds: int, items: int, width: int, layers: int) -> dict[str, Any]:
    from fairlead.features.misread.peaks import read_peaks

    with tempfile.TemporaryDirectory() as folder:
        subject = model(width, layers, Path(folder))
    prompts, site = prompts_of(items), f"resid.{layers // 2}"
    found = dictionary(subject, site, prompts)
    last = f"resid.{layers - 1}"
    sides = {
        "peaks": lambda: read_peaks(subject, found, prompts),
        "whole forward": lambda: subject.activations(prompts, [last]),
        "forward to the site": lambda: subject.activations(prompts, [site]),
    }
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, run in sides.items():
            started = time.process_time()
            run()
            spent[name].append(time.process_time() - started)
    spent = {name: seconds[1:] for name, seconds in spent.items()}  # the first round warms up
    ratios = {name: _ratio(spent[name], spent["peaks"]) for name in sides if name != "peaks"}
    millions = sum(p.numel() for p in subject.model.parameters()) / 1e6
    return {
        "items": items, "rounds": rounds, "width": width, "layers": layers, "site": site, "million_weights": millions,
        "items_per_cpu_s": {name: items / float(np.median(s)) for name, s in spent.items()}, "throughput_ratio": ratios,
    }  # fmt: skip


def _ratio(bare: list[float], ours: list[float]) -> dict[str, float]:
    """Median of bare over ours, round by round, with a 95 % bootstrap interval."""
    each = np.asarray(bare) / np.asarray(ours)
    drawn = np.median(np.random.default_rng(0).choice(each, (2000, len(each))), axis=1)
    return {"median": float(np.median(each)), "low": float(np.quantile(drawn, 0.025)),
            "high": float(np.quantile(drawn, 0.975))}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["memory", "speed", "both"], default="both")
    parser.add_argument("--items", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "both":  # each in a process of its own, for its own peak of memory
        ran = [subprocess.run([sys.executable, "-m", "benchmarks.reformulate", what]) for what in ("memory", "speed")]
        return max(r.returncode for r in ran)
    if args.what == "memory":
        told: dict[str, Any] = memory(args.items or ITEMS)
        missed = told["gigabytes"] > GIGABYTES
    else:
        told = speed(args.rounds, args.items or 64, args.width, args.layers)
        missed = told["throughput_ratio"]["whole forward"]["median"] < SHARE
    print(json.dumps(told, indent=1))  # noqa: T201
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
