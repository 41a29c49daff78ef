"""The feature store beside a naive multi-pass over blocks of latents, on the same synthetic codes, as a ratio.

    python -m benchmarks.feature_store --rounds 5
    python -m benchmarks.feature_store --rounds 3 --tokens 40000

The codes stand for a dictionary of 65,536 latents on 400,000 tokens in texts of 256: 50 latents a token, drawn by a
power law (exponent 0.7), activations exponential. Neither side encodes or runs a model, so the figures are what a
store costs on top of encoding. `fairlead` writes the shards and builds the whole index of all latents: top windows,
uniform samples, quantiles, densities, partners (decoder neighbours are left out: they are a product of weights).
`naive` does what dashboards do that work on 128 latents at a time: it goes over all codes for each block, makes them
dense, and takes densities, quantiles and top windows (no samples, no partners). It is measured on a few blocks a
round and multiplied by the number of blocks; really it would encode, and often run the model, once a block besides.

CPU seconds of processes of their own, one thread; medians over rounds, and a 95 % bootstrap interval of the ratio.
Exits with 1 where the store costs more than 10 CPU seconds or 4 GB at the full size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

LATENTS, ACTIVE, LENGTH, WINDOW, BLOCK, TOP = 65_536, 50, 256, 32, 128, 20
SHARD, FULL = 65_536, 400_000
SECONDS, GIGABYTES = 10.0, 4.0  # the targets


def codes(tokens: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(token ids [n], latents [n, 50] ascending and distinct, activations [n, 50]), shard by shard."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, LATENTS + 1) ** -0.7
    levels = np.cumsum(weights / weights.sum())
    for start in range(0, tokens, SHARD):
        n = min(SHARD, tokens - start)
        drawn = np.minimum(np.searchsorted(levels, rng.random((n, ACTIVE))), LATENTS - 1)
        drawn.sort(axis=1)
        for _ in range(20):  # a latent fires once on a token: the second of two moves on to the next number
            same = np.flatnonzero((drawn[:, 1:] == drawn[:, :-1]).any(1))
            if not len(same):
                break
            again = drawn[same]
            again[:, 1:] += again[:, 1:] == again[:, :-1]
            drawn[same] = np.sort(again % LATENTS, axis=1)
        yield rng.integers(0, 32_000, n), drawn, rng.exponential(1.0, (n, ACTIVE)).astype(np.float32)


def fairlead(tokens: int, seed: int) -> dict[str, float]:
    """CPU seconds of writing and indexing a store, and the process's peak of memory in GB."""
    from fairlead.features import store as stores
    from fairlead.features.index import build

    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "store"
        count = -(-tokens // LENGTH)
        header = stores.Header("synthetic", "", "synthetic", "", "resid.0", LATENTS, str(seed), count, tokens, WINDOW)
        stores.begin(root, header, [""])
        wrote = 0.0
        for number, (ids, latents, values) in enumerate(codes(tokens, seed)):
            sequences = np.split(ids, range(LENGTH, len(ids), LENGTH))
            piece = stores.Codes(np.full(len(ids), ACTIVE), latents.reshape(-1), values.reshape(-1))
            started = time.process_time()
            stores.write_shard(root, number, header, sequences, [piece])
            wrote += time.process_time() - started
        started = time.process_time()
        build(stores.Store(root))
        indexed = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": wrote + indexed, "write": wrote, "index": indexed, "gigabytes": peak}


def naive(tokens: int, seed: int, blocks: int) -> dict[str, float]:
    """CPU seconds of all blocks, estimated from `blocks` of them."""
    parts = list(codes(tokens, seed))
    latents = np.concatenate([p[1] for p in parts]).astype(np.uint16)
    values = np.concatenate([p[2] for p in parts]).astype(np.float16)
    del parts
    chosen = np.random.default_rng(seed).choice(LATENTS // BLOCK, blocks, replace=False)
    started = time.process_time()
    for block in chosen.tolist():
        here = (latents >= block * BLOCK) & (latents < (block + 1) * BLOCK)
        row, column = here.nonzero()
        dense = np.zeros((tokens, BLOCK), dtype=np.float32)
        dense[row, latents[row, column].astype(np.int64) - block * BLOCK] = values[row, column]
        (dense > 0).mean(0)
        usable = tokens // WINDOW * WINDOW
        windows = dense[:usable].reshape(-1, WINDOW, BLOCK).max(1)
        np.argpartition(-windows, TOP, axis=0)[:TOP]
        for latent in range(BLOCK):
            fires = dense[:, latent][dense[:, latent] > 0]
            if len(fires):
                np.quantile(fires, [0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
    spent = time.process_time() - started
    return {"seconds": spent / blocks * (LATENTS // BLOCK)}


def worker(name: str, tokens: int, seed: int, blocks: int) -> dict[str, float]:
    """One side, in a process of its own, so that peaks of memory are its own."""
    command = [sys.executable, "-m", "benchmarks.feature_store", "--worker", name, "--tokens", str(tokens),
               "--seed", str(seed), "--blocks", str(blocks)]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    got = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(got.stdout)
    return found


def main(argv: list[str]) -> int:
    """Parse, run, write a table (or JSON with --json)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=FULL)
    parser.add_argument("--blocks", type=int, default=2, help="blocks of 128 latents that the naive way is timed on")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=["fairlead", "naive"], help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    o = parser.parse_args(argv)
    if o.worker:
        found = fairlead(o.tokens, o.seed) if o.worker == "fairlead" else naive(o.tokens, o.seed, o.blocks)
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    ours, theirs = [], []
    for seed in range(o.rounds):  # by turns, so that a busy machine is busy for both
        ours.append(worker("fairlead", o.tokens, seed, o.blocks))
        theirs.append(worker("naive", o.tokens, seed, o.blocks))
    a, b = (np.array([r["seconds"] for r in rows]) for rows in (ours, theirs))
    draws = np.random.default_rng(0).integers(0, o.rounds, (4000, o.rounds))
    low, high = np.quantile(np.median((b / a)[draws], axis=1), [0.025, 0.975])
    result = {
        "tokens": o.tokens, "latents": LATENTS, "active": ACTIVE, "rounds": o.rounds,
        "seconds": float(np.median(a)), "least": float(a.min()), "most": float(a.max()),
        "write": float(np.median([r["write"] for r in ours])), "index": float(np.median([r["index"] for r in ours])),
        "gigabytes": max(r["gigabytes"] for r in ours), "naive_seconds": float(np.median(b)),
        "ratio": float(np.median(b / a)), "low": float(low), "high": float(high),
    }  # fmt: skip
    if o.json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        r = result
        sys.stdout.write(
            f"{o.tokens} tokens x {LATENTS} latents x {ACTIVE} active, {o.rounds} rounds\n"
            f"fairlead  {r['seconds']:.1f} CPU-s ({r['least']:.1f} to {r['most']:.1f}): {r['write']:.1f} to write, "
            f"{r['index']:.1f} to index; peak {r['gigabytes']:.2f} GB\n"
            f"naive     {r['naive_seconds']:.0f} CPU-s, from {o.blocks} of {LATENTS // BLOCK} blocks a round\n"
            f"naive over fairlead  {r['ratio']:.0f} [{low:.0f}, {high:.0f}]\n"
        )
    over = o.tokens >= FULL and (result["seconds"] > SECONDS or result["gigabytes"] > GIGABYTES)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
