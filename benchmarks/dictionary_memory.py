"""What it costs in memory to load a large dictionary and steer with eight of its latents.

    python -m benchmarks.dictionary_memory [--width 1024] [--latents 65536] [--json OUT]

For each format a file of random weights is written, then loaded in a process of its own that reads eight encoder
and decoder rows, and then encodes 16 tokens. Anonymous memory (RssAnon, sampled every 2 ms) is what the process
asked for itself; pages of a mapped file are the kernel's and are dropped when memory is short, so they are shown
apart. Figures are peaks above the process before the load, as a share of the file. "float32 copy" is the plain
way: read everything and widen it. Target: loading and steering never ask for a quarter of the file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import load_file, save_file

TARGET = 0.25
FORMATS = ("saelens bf16", "saelens f32", "goodfire bf16", "llama-scope bf16", "gemma-scope f32", "sparsify bf16")


def status(name: str) -> float:
    """A field of /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


class Peak:
    """The highest RssAnon and RssFile while it runs."""

    def __enter__(self) -> Peak:
        self.start = {name: status(name) for name in ("RssAnon", "RssFile")}
        self.most, self._stop, self.began = dict(self.start), threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._look()
            time.sleep(0.002)

    def _look(self) -> None:
        for name in self.most:
            self.most[name] = max(self.most[name], status(name))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self.seconds = time.monotonic() - self.began

    def above(self, name: str) -> float:
        return self.most[name] - self.start[name]


def made(folder: Path, kind: str, d: int, m: int) -> tuple[str, float]:
    """(reference, MB) of a file of random weights."""
    name, _, precision = kind.partition(" ")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    W_enc, W_dec = (torch.randn(*shape).mul_(0.02).to(dtype) for shape in ((d, m), (m, d)))
    b_enc, b_dec, threshold = torch.zeros(m), torch.zeros(d), torch.full((m,), 0.1)
    parts = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold}
    if name == "saelens":
        save_file(parts, folder / "sae_weights.safetensors")
        cfg = {"architecture": "jumprelu", "d_in": d, "d_sae": m, "metadata": {"hook_name": "blocks.3.hook_resid_post"}}
        (folder / "cfg.json").write_text(json.dumps(cfg))
    elif name == "goodfire":
        keys = ("encoder_linear.weight", "decoder_linear.weight", "encoder_linear.bias", "decoder_linear.bias")
        values = (W_enc.T.contiguous(), W_dec.T.contiguous(), b_enc, b_dec)
        torch.save(dict(zip(keys, values, strict=True)), folder / "x-SAE-l3.pth")
    elif name == "gemma-scope":
        folder = folder / "gemma-scope-2b-pt-res" / "layer_3" / "width_65k" / "average_l0_70"
        folder.mkdir(parents=True)
        np.savez(folder / "params.npz", **{key: value.numpy() for key, value in parts.items()})
    elif name == "sparsify":
        folder = folder / "layers.3"
        folder.mkdir()
        state = {"encoder.weight": W_enc.T.contiguous(), "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        save_file(state, folder / "sae.safetensors")
        (folder / "cfg.json").write_text(json.dumps({"k": 64, "d_in": d, "num_latents": m, "activation": "topk"}))
    else:
        (folder / "checkpoints").mkdir()
        state = {"encoder.weight": W_enc.T.contiguous(), "encoder.bias": b_enc, "decoder.weight": W_dec.T.contiguous(),
                 "decoder.bias": b_dec}  # fmt: skip
        save_file(state, folder / "checkpoints" / "final.safetensors")
        hook = "blocks.3.hook_resid_post"
        (folder / "hyperparams.json").write_text(json.dumps({
            "hook_point_in": hook, "hook_point_out": hook, "d_model": d, "d_sae": m, "act_fn": "jumprelu",
            "jump_relu_threshold": 0.3, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True,
            "dataset_average_activation_norm": {"in": 9.0, "out": 9.0}, "apply_decoder_bias_to_pre_encoder": False,
        }))  # fmt: skip
    files = [p for p in folder.rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    return str(largest if largest.suffix == ".pth" else folder), largest.stat().st_size / 2**20


def child(ref: str, plain: bool) -> dict[str, float]:
    """Measured in this process."""
    from fairlead import dictionaries

    torch.set_num_threads(1)
    with Peak() as load:
        if plain:
            held = {key: value.float() for key, value in load_file(Path(ref) / "sae_weights.safetensors").items()}
            rows = held["W_enc"][:, :8]
        else:
            dictionary = dictionaries.load(ref)
            rows, _ = dictionary.encoder_rows(range(8)) if hasattr(dictionary, "encoder_rows") else (None, None)
            dictionary.decoder_rows(range(8))
    out = {"anonymous": load.above("RssAnon"), "mapped": load.above("RssFile"), "seconds": load.seconds}
    assert rows is not None
    if not plain:
        with Peak() as encode:
            dictionary.encode(torch.randn(16, dictionary.d_in))
        out["encode"] = encode.above("RssAnon")
    return out


@click.command()
@click.option("--width", default=1024)
@click.option("--latents", default=65_536)
@click.option("--json", "to", type=click.Path(path_type=Path))
@click.option("--child", "ref", hidden=True)
@click.option("--plain", is_flag=True, hidden=True)
def main(width: int, latents: int, to: Path | None, ref: str | None, plain: bool) -> None:
    if ref is not None:
        click.echo(json.dumps(child(ref, plain)))
        return
    rows: list[dict[str, Any]] = []
    click.echo(f"{width} x {latents}; MB above the process before, and as a share of the file")
    click.echo(f"{'format':<22}{'file':>8}{'anonymous':>18}{'mapped':>9}{'encode 16':>11}{'seconds':>9}")
    for kind in (*FORMATS, "float32 copy"):
        with tempfile.TemporaryDirectory() as folder:
            path, size = made(Path(folder), "saelens bf16" if kind == "float32 copy" else kind, width, latents)
            words = [sys.executable, "-m", "benchmarks.dictionary_memory", "--child", path]
            words += ["--plain"] if kind == "float32 copy" else []
            got = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        rows.append({"format": kind, "file": size, **got})
        encode = f"{got['encode']:.0f}" if "encode" in got else "-"
        click.echo(f"{kind:<22}{size:>8.0f}{got['anonymous']:>10.0f} ({got['anonymous'] / size:4.2f})"
                   f"{got['mapped']:>9.0f}{encode:>11}{got['seconds']:>9.1f}")  # fmt: skip
    if to:
        to.write_text(json.dumps(rows, indent=1) + "\n")
    worst = max(row["anonymous"] / row["file"] for row in rows if row["format"] != "float32 copy")
    click.echo(f"worst share: {worst:.2f} (target: at most {TARGET})")
    sys.exit(worst > TARGET)


if __name__ == "__main__":
    main()
