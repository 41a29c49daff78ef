"""What an edit of its own costs each request of one batch, and how the server's loop stands beside others.

    python -m benchmarks.serving [--rounds 12] [--model pocket|small|medium|wide] [--steps|--peers] [--json OUT]

Every round runs all conditions once, in shuffled order; each gives one ratio, its CPU seconds of this one-thread
process against those of the reference in the same round, so that a busy machine does not drown it. Reported: the
median ratio over rounds and the 95 % bootstrap interval of that median, as tokens per second relative to the
reference (above 1: faster). Weights are random: cost does not depend on what they mean. 16 rows, 16-token prompts,
greedy tokens, clamps of one watched latent each unless it says otherwise. Beside whole runs, steps of decoding alone
are compared on one cache: each step is read with every set of edits, in shuffled order, before the next one. What a
busy machine does then falls on all of them, so that a few percent can be told; --steps does nothing else.

Targets: 16 different edits against 16 unedited rows in the same loop >= 0.95; against transformers' `generate` with
hooks per request >= 1.2; a clamp at d_sae 65,536 by watched rows against full encode and decode >= 5 (the site alone).
With --peers, each library that has a virtual environment of its own in $FAIRLEAD_BENCH_VENVS (see
benchmarks/serving_peer.py) is run instead, on the same weights and prompts, a process each, all of a round at once;
what is not installed is named as absent. interp-engine's eager engine takes one prompt a call: 16 calls.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fairlead import steering
from fairlead.dictionaries.base import SparseDictionary
from fairlead.lm.masks import Masks
from fairlead.lm.rows import Piece, Rows
from fairlead.lm.sites import Sites
from fairlead.steering.rowwise import RowEngine
from fairlead.steering.slots import compile_row

MODELS = {
    "pocket": {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384, "vocab_size": 1024, "heads": 4},
    "small": {"hidden_size": 384, "num_hidden_layers": 8, "intermediate_size": 1280, "vocab_size": 8192, "heads": 6},
    "medium": {"hidden_size": 768, "num_hidden_layers": 8, "intermediate_size": 2304, "vocab_size": 8192, "heads": 12},
    "wide": {"hidden_size": 1024, "num_hidden_layers": 12, "intermediate_size": 2816, "vocab_size": 8192, "heads": 16},
}
ROWS, PROMPT, NEW = 16, 16, 32
PEERS = ("nnsight", "steering-vectors", "pyvene", "repeng", "transformer-lens", "sae-lens", "interp-engine")


def build(shape: dict[str, int]) -> Any:
    """A random Llama of that shape."""
    torch.manual_seed(0)
    sizes = {key: value for key, value in shape.items() if key != "heads"}
    config = LlamaConfig(
        **sizes, num_attention_heads=shape["heads"], num_key_value_heads=shape["heads"], eos_token_id=None,
        max_position_embeddings=512,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def dictionary(d: int, m: int, site: str) -> SparseDictionary:
    """A random ReLU dictionary of m latents."""
    g = torch.Generator().manual_seed(m)
    w = torch.randn(d, m, generator=g) / d**0.5
    return SparseDictionary("random", site, w, w.T.contiguous(), torch.zeros(m), torch.zeros(d))


class Loop:
    """The server's decode loop on a bare model: what `serve.batch` does with 16 rows that come together."""

    def __init__(self, net: Any, held: SparseDictionary, lines: list[str], backend: str | None = None) -> None:
        shape = SimpleNamespace(context=512)
        checkpoint: Any = SimpleNamespace(model=net, sites=Sites(net, net.config.num_hidden_layers), masks=Masks(),
                                          shape=shape, fits=lambda _: None)  # fmt: skip
        self.rows = Rows(checkpoint, ROWS, None, backend)
        d = net.config.hidden_size
        self.engine = RowEngine(ROWS, d, torch.device("cpu"))
        self.steered = [bool(line) for line in lines]
        for row, line in enumerate(lines):
            if line:
                edits = compile_row(steering.parse(line), {held.site: held}, None, d_model=d,
                                    n_layers=net.config.num_hidden_layers)  # fmt: skip
                self.engine.put(row, edits)

    def run(self, prompts: np.ndarray[Any, Any]) -> list[list[int]]:
        said: list[list[int]] = [[] for _ in range(ROWS)]
        ids, start = list(prompts), 0
        for _ in range(NEW):
            pieces = [Piece(own, start, PROMPT, None, 0, flag) for own, flag in zip(ids, self.steered, strict=True)]
            hooks, traced = (lambda span: self.engine.hooks(span, self.rows.room)), self.engine.traced
            logits = self.rows.forward(0, pieces, hooks, 0.0, traced)
            tokens = logits.argmax(-1).tolist()
            for own, token in zip(said, tokens, strict=True):
                own.append(token)
            start += len(ids[0])
            ids = [np.array([token]) for token in tokens]
        return said


def generate(net: Any, prompts: np.ndarray[Any, Any], hook: Callable[..., Any] | None, site: int) -> list[list[int]]:
    """transformers' own `generate`, with a hook on the block where one is given."""
    handle = net.model.layers[site].register_forward_hook(hook) if hook else None
    with torch.inference_mode():
        ids = torch.from_numpy(prompts)
        mask = torch.ones_like(ids)
        out = net.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    if handle:
        handle.remove()
    return out[:, PROMPT:].tolist()


def per_request_hook(held: SparseDictionary, latents: list[int], value: float) -> Callable[..., Any]:
    """A clamp of one latent a row, written as a user would: read the row's latent, add what is missing."""
    e, d = held.W_enc.T[latents], held.W_dec[latents]

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        z = torch.relu(torch.einsum("btd,bd->bt", h, e))
        new = h + (value - z)[..., None] * d[:, None]
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


def full_hook(held: SparseDictionary, latents: list[int], value: float) -> Callable[..., Any]:
    """The clamp as published: encode all, decode twice, keep the error."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        f = held.encode(h)
        error = h - held.decode(f)
        f = f.clone()
        f[torch.arange(len(latents)), :, latents] = value
        new = held.decode(f) + error
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


def clamp_alone(d: int, m: int) -> dict[str, Callable[[], Any]]:
    """16 rows of 8 tokens through one clamp: watched rows, and full encode and decode."""
    held, latents = dictionary(d, m, "resid.0"), list(range(ROWS))
    h = torch.randn(ROWS, 8, d, generator=torch.Generator().manual_seed(1))
    watched, full = per_request_hook(held, latents, 1.0), full_hook(held, latents, 1.0)
    return {"watched": lambda: watched(None, None, h), "full": lambda: full(None, None, h)}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def rounds(conditions: dict[str, Callable[[], Any]], count: int, rng: random.Random) -> dict[str, list[float]]:
    """CPU seconds by condition, a value a round; every round in another order."""
    for work in conditions.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in conditions}
    for _ in range(count):
        for name in rng.sample(list(conditions), len(conditions)):
            seconds[name].append(timed(conditions[name])[0])
    return seconds


def ratio(reference: list[float], own: list[float]) -> dict[str, float]:
    """Median of reference / own over rounds, with its 95 % bootstrap interval: how many times as fast."""
    ratios = [a / b for a, b in zip(reference, own, strict=True)]
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"ratio": statistics.median(ratios), "low": float(low), "high": float(high), "n": len(ratios)}


def prompts_of(net: Any) -> np.ndarray[Any, Any]:
    return (np.arange(ROWS * PROMPT).reshape(ROWS, PROMPT) * 7) % int(net.config.vocab_size)


def lines_at(site: int) -> dict[str, list[str]]:
    """What the rows' edits are, by condition."""
    at = f"@resid.{site}: "
    return {
        "unedited": [""] * ROWS,
        "16 different clamps": [f"{at}{i} = 1" for i in range(ROWS)],
        "16 times the same clamp": [f"{at}0 = 1"] * ROWS,
        "16 different gated clamps": [f"{at}{i} = 1 at generated when {i + 20} > 0.{i:02d}" for i in range(ROWS)],
        "16 times 8 different edits": ["; ".join(f"{at}{8 * i + j} += 0.1" for j in range(8)) for i in range(ROWS)],
    }


def steps_alone(net: Any, held: SparseDictionary, site: int, count: int, rng: random.Random) -> dict[str, list[float]]:
    """CPU seconds of decode steps by condition, a sum a round, on one cache and with the conditions' turns shuffled at
    every step."""
    loops = {name: Loop(net, held, own) for name, own in lines_at(site).items()}
    rows, prompts = loops["unedited"].rows, prompts_of(net)

    def read(name: str, pieces: list[Piece]) -> float:
        engine = loops[name].engine
        return timed(lambda: rows.forward(0, pieces, lambda span: engine.hooks(span, rows.room)))[0]

    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(count + 1):
        read("unedited", [Piece(own, 0, PROMPT) for own in prompts])
        found = dict.fromkeys(loops, 0.0)
        for start in range(PROMPT, PROMPT + NEW):
            pieces = [Piece(own[start % PROMPT :][:1], start, PROMPT, None, 0, True) for own in prompts]
            for name in rng.sample(list(loops), len(loops)):
                found[name] += read(name, pieces)
        for name, own in found.items():
            seconds[name] += [own] if turn else []  # the first round is to warm up
    return seconds


def conditions(net: Any, held: SparseDictionary, site: int, compiled: bool = False) -> dict[str, Callable[[], Any]]:
    prompts, lines = prompts_of(net), lines_at(site)
    found: dict[str, Callable[[], Any]] = {}
    for name, own in lines.items():
        loop = Loop(net, held, own)
        found[name] = lambda loop=loop: loop.run(prompts)
    for name in ("unedited", "16 different gated clamps") if compiled else ():
        loop = Loop(net, held, lines[name], "inductor")
        found[f"compiled, {name}"] = lambda loop=loop: loop.run(prompts)
    latents = list(range(ROWS))
    found["generate, no hook"] = lambda: generate(net, prompts, None, site)
    found["generate, hook per request"] = lambda: generate(net, prompts, per_request_hook(held, latents, 1.0), site)
    return found


def peers(shape: dict[str, int], count: int) -> dict[str, Any]:
    """How many times as fast ours is as each installed peer, every one in a process of its own."""
    home = Path(os.environ.get("FAIRLEAD_BENCH_VENVS", "build/bench-venvs"))
    script = Path(__file__).with_name("serving_peer.py")
    pythons = {name: home / name / "bin" / "python" for name in PEERS}
    here = {name: python for name, python in pythons.items() if python.exists()}
    found: dict[str, Any] = {name: "not installed" for name in PEERS if name not in here}
    here = {"fairlead": Path(sys.executable), **here}
    speeds: dict[str, list[float]] = {name: [] for name in here}
    with tempfile.TemporaryDirectory() as folder:
        build(shape).save_pretrained(folder)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        for _ in range(count):  # all of a round at once: each has the same neighbours
            started = {name: subprocess.Popen([python, script, name, folder], stdout=subprocess.PIPE,
                                              stderr=subprocess.PIPE, text=True, env=env)
                       for name, python in here.items()}  # fmt: skip
            for name, process in started.items():
                out, err = process.communicate()
                if process.returncode:
                    found[name] = f"failed: {err.strip().splitlines()[-1][:200] if err else '?'}"
                    here.pop(name), speeds.pop(name)
                else:
                    speeds[name].append(json.loads(out.strip().splitlines()[-1])["tokens_per_cpu_second"])
    for name, own in speeds.items():
        if name != "fairlead":
            found[name] = ratio([1 / x for x in own], [1 / x for x in speeds["fairlead"]])
    return found


@click.command()
@click.option("--rounds", "count", default=12, show_default=True)
@click.option("--model", "names", multiple=True, type=click.Choice(list(MODELS)), default=["pocket", "medium"])
@click.option("--peers", "with_peers", is_flag=True, help="Instead: ours against other libraries.")
@click.option("--steps", "only_steps", is_flag=True, help="Only steps of decoding alone.")
@click.option("--compiled", is_flag=True, help="The compiled step too (Inductor; minutes to compile).")
@click.option("--json", "out", type=click.Path(path_type=Path))
def main(
    count: int, names: tuple[str, ...], with_peers: bool, only_steps: bool, compiled: bool, out: Path | None
) -> None:
    torch.set_num_threads(1)
    rng = random.Random(0)
    told: dict[str, Any] = {"rounds": count}
    for name in names:
        if with_peers:
            told[name] = {"16 clamps relative to peers": peers(MODELS[name], count)}
            continue
        net = build(MODELS[name])
        site = MODELS[name]["num_hidden_layers"] // 2
        held = dictionary(MODELS[name]["hidden_size"], 2048, f"resid.{site}")
        alone = steps_alone(net, held, site, count, rng)
        alone_told = {key: ratio(alone["unedited"], own) for key, own in alone.items()}
        milliseconds = 1e3 * statistics.median(alone["unedited"]) / NEW
        told[name] = {"steps of decoding alone": alone_told, "CPU milliseconds a step, unedited": milliseconds}
        if only_steps:
            continue
        work = conditions(net, held, site, compiled)
        same = work["16 different clamps"]() == work["generate, hook per request"]()
        seconds = rounds(work, count, rng)
        plain, hooked = seconds["unedited"], seconds["generate, hook per request"]
        rows = {key: ratio(plain, own) for key, own in seconds.items()}
        against = {key: ratio(hooked, own) for key, own in seconds.items() if "different" in key}
        if compiled:
            own = seconds["compiled, 16 different gated clamps"]
            told.setdefault("compiled gated clamps relative to compiled unedited rows", {})[name] = ratio(
                seconds["compiled, unedited"], own
            )
        told[name] |= {"speed relative to unedited rows": rows, "relative to generate with hooks": against,
                       "tokens equal those of generate with hooks": same,
                       "tokens per CPU second, unedited": ROWS * NEW / statistics.median(plain)}  # fmt: skip
    if not with_peers and not only_steps:
        site_alone = rounds(clamp_alone(256, 65_536), max(3, count // 2), rng)
        told["clamp at d_sae 65,536, watched rows relative to full"] = ratio(site_alone["full"], site_alone["watched"])
    click.echo(json.dumps(told, indent=1))
    if out:
        out.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
