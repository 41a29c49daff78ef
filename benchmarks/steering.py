"""What eight watched latents cost a generating model: time as a ratio to no hook, FLOPs as a share.

    python -m benchmarks.steering [--rounds 30] [--json OUT]

Every round runs all conditions once, in shuffled order, and gives one ratio each: its seconds over the seconds
of no hook in the same round. Seconds are CPU seconds of this one-thread process, so that a busy machine does
not drown the ratio (on an idle one they are wall seconds); the wall ratio is printed beside them. Reported:
the median ratio over rounds and the 95 % bootstrap interval of that median. Targets: upper bound of time
≤ 1.10 at batch 1 and 16, added FLOPs ≤ 0.1 % on the 25M model, and the same from 2,048 to 65,536 latents.
The models are random: cost does not depend on what weights mean. Each line holds eight edits of six kinds;
"8 adds" is the common case of constant strengths; "empty hook" does nothing and shows what being hooked costs.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fairlead.dictionaries.base import SparseDictionary
from fairlead.lm.forwards import Forwards, Row
from fairlead.lm.hooks import ROLE_USER
from fairlead.lm.masks import Masks
from fairlead.lm.sites import Sites
from fairlead.steering import compile_edits, parse

LINE = "; ".join(
    f"{i} {op}" for i, op in enumerate(["+= 0.1", "-= 0.1", "*= 0.5", "= 0.1", "-> off", "<= 1", ">= 0", "= 0"])
)
ADDS = "; ".join(f"{i} += 0.1" for i in range(8))
MODELS = {
    "pocket 4x128": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "intermediate_size": 384,
        "vocab_size": 1024,
        "heads": 4,
    },
    "25M 8x384": {
        "hidden_size": 384,
        "num_hidden_layers": 8,
        "intermediate_size": 1280,
        "vocab_size": 8192,
        "heads": 6,
    },
}
PROMPT = 16
"""Prompt tokens; a page of the shop is longer, which would only make the hook look cheaper."""


def model(shape: dict[str, int]) -> Any:
    """A random Llama of that shape."""
    torch.manual_seed(0)
    sizes = {key: value for key, value in shape.items() if key != "heads"}
    config = LlamaConfig(**sizes, num_attention_heads=shape["heads"], num_key_value_heads=shape["heads"])
    return LlamaForCausalLM(config).eval()


def dictionary(d: int, m: int, site: str) -> SparseDictionary:
    """A random ReLU dictionary."""
    g = torch.Generator().manual_seed(m)
    w = torch.randn(d, m, generator=g) / d**0.5
    return SparseDictionary("random", site, w, w.T.contiguous(), torch.zeros(m), torch.zeros(d))


def generate(net: Any, sites: Sites, batch: int, new: int, engine: Any | None) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of lm's own decoding: a prompt and `new` greedy tokens a row, reports included."""
    checkpoint: Any = SimpleNamespace(model=net, sites=sites, masks=Masks())  # all that decoding asks of one
    hooks = tuple(engine.hooks.items()) if engine is not None else ()
    roles = np.full(PROMPT, ROLE_USER) if hooks else None
    ids = np.arange(batch * PROMPT).reshape(batch, PROMPT) % net.config.vocab_size
    started, wall = time.process_time(), time.perf_counter()
    with torch.inference_mode():
        rows = [Row(ids[i], roles, 0, int(bool(hooks))) for i in range(batch)]
        said = Forwards(checkpoint, hooks, None).decode(rows, [new] * batch, frozenset())
        reports = engine.reports() if engine is not None else [()] * batch
    took = time.process_time() - started, time.perf_counter() - wall
    if [len(s) for s in said] != [new] * batch or len(reports) != batch:
        raise SystemExit("a row or a report is missing")
    if any(not r.fired for row in reports for r in row if "+= " in r.edit):
        raise SystemExit("an edit that always fires did not: this would measure nothing")
    return took


def flops_per_token(net: Any) -> float:
    """2 FLOPs for every weight that multiplies a token (embedding look-ups do not)."""
    return 2.0 * sum(p.numel() for name, p in net.named_parameters() if p.dim() == 2 and "embed_tokens" not in name)


def interval(ratios: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """(median, lower, upper): 95 % bootstrap interval of the median over rounds."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return statistics.median(ratios), medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def measure(net: Any, batch: int, rounds: int, new: int) -> list[dict[str, Any]]:
    """Interleaved, shuffled rounds of no hook, no hook again, and eight watched latents of two dictionaries."""
    d, layer = net.config.hidden_size, net.config.num_hidden_layers // 2
    site, sites = f"resid.{layer}", Sites(net, net.config.num_hidden_layers)
    engines = {m: compile_edits(parse(LINE), dictionary(d, m, site)) for m in (2048, 65536)}
    arms: dict[str, Callable[[], tuple[float, float]]] = {
        "no hook, again": lambda: generate(net, sites, batch, new, None)
    }
    for m, engine in engines.items():
        arms[f"8 of {m}"] = lambda engine=engine: generate(net, sites, batch, new, engine)  # type: ignore[misc]
    adds = compile_edits(parse(ADDS), dictionary(d, 2048, site))
    arms["8 adds of 2048"] = lambda: generate(net, sites, batch, new, adds)
    idle = SimpleNamespace(hooks={site: lambda h, _info: h}, reports=lambda: [()] * batch)
    arms["empty hook"] = lambda: generate(net, sites, batch, new, idle)
    names = ["no hook", *arms]
    arms["no hook"] = lambda: generate(net, sites, batch, new, None)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    walls: dict[str, list[float]] = {name: [] for name in names}
    rng = random.Random(1)
    for done in range(rounds + 2):
        for name in rng.sample(names, len(names)):
            cpu, wall = arms[name]()
            if done >= 2:  # the first two warm up
                seconds[name].append(cpu)
                walls[name].append(wall)
    out = []
    for name in names[1:]:
        middle, low, high = interval([a / b for a, b in zip(seconds[name], seconds["no hook"], strict=True)])
        wall = statistics.median(a / b for a, b in zip(walls[name], walls["no hook"], strict=True))
        added = 0 if not name.startswith("8") else next(iter(engines.values())).flops_per_token
        speed = batch * new / statistics.median(seconds[name])
        row = {"batch": batch, "arm": name, "ratio": middle, "low": low, "high": high, "wall": wall}
        out.append({**row, "share": added / flops_per_token(net), "tokens_per_second": speed})
    flat = [a / b for a, b in zip(seconds["8 of 65536"], seconds["8 of 2048"], strict=True)]
    middle, low, high = interval(flat)
    out.append({"batch": batch, "arm": "65536 over 2048", "ratio": middle, "low": low, "high": high})
    return out


@click.command()
@click.option("--rounds", default=30, show_default=True)
@click.option("--new", default=32, show_default=True, help="Tokens generated in each run.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Also write the figures there.")
def main(rounds: int, new: int, path: Path | None) -> None:
    """Measure, print one line a condition, and leave with 1 when a target is missed."""
    torch.set_num_threads(1)
    rows, missed = [], 0
    for name, shape in MODELS.items():
        net = model(shape)
        click.echo(f"{name}: {sum(p.numel() for p in net.parameters()) / 1e6:.1f}M parameters")
        for batch in (1, 16):
            for row in measure(net, batch, rounds, new):
                rows.append({"model": name, **row})
                steered = row["arm"].startswith("8 ")
                late = steered and (row["high"] > 1.10 or (name.startswith("25M") and row["share"] > 0.001))
                missed += late
                tail = (f"   added FLOPs {row['share']:.4%}" if steered else "") + ("   MISSED" if late else "")
                time_ = f"time x{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
                time_ += f"   wall x{row['wall']:.3f}" if "wall" in row else ""
                click.echo(f"  batch {batch:2d}  {row['arm']:16s} {time_}{tail}")
    if path is not None:
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
