"""Training and selection beside the published tool's own code, on the same embeddings, in one run.

    python -m benchmarks.hypotheses_peer ../shared/data/headlines --peer PYTHON --code DIRECTORY

PYTHON is a virtual environment's with torch, scikit-learn and tqdm; DIRECTORY a checkout of rmovva/HypotheSAEs. Each
fold of the headline pairs goes to a process of ours and to one of theirs, one thread each: it fits a dictionary on the
training texts (theirs as their headlines notebook does: 256 latents, 8 on, beside 32, 4 on), takes differences, and
selects 20 latents by the lasso. The same logistic model is then fitted on both selections and scored on the fold.
CPU-seconds and the largest memory are the processes' own, imports and the data apart (Linux: VmHWM, set back by
clear_refs; ru_maxrss would begin at the parent's).
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def memory(name: str) -> float:
    """GiB of this process: "VmRSS" now, "VmHWM" the largest so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**20


def ours(x: Any, fit: Any, seed: int, y: Any) -> tuple[Any, Any]:
    from fairlead.features.texts import dictionary, select

    levels = dictionary.fit("levels", np.unique(fit, axis=0), seed)
    z = dictionary.encode(levels, x)
    half, n = z.shape[0] // 2, len(y)
    d = z[:half] - z[half:]
    chosen = list(select.select(d[:n], y, 20, pairs=True).columns)
    return d[:, chosen].toarray(), len(chosen)


def theirs(x: Any, fit: Any, seed: int, y: Any, code: str) -> tuple[Any, Any]:
    import importlib.util

    import torch

    def module(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, f"{code}/hypothesaes/{name}.py")
        assert spec is not None and spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    torch.manual_seed(seed)
    rows = torch.tensor(np.unique(fit, axis=0))
    order = torch.randperm(len(rows))
    held, train = rows[order[: len(rows) // 10]], rows[order[len(rows) // 10 :]]
    parts = []
    for m, k in ((256, 8), (32, 4)):
        sae = module("sae").SparseAutoencoder(rows.shape[1], m, k, device="cpu")
        sae.fit(train, held, n_epochs=100, patience=3, show_progress=False)
        parts.append(sae.get_activations(x, show_progress=False))
    z = np.hstack(parts)
    half, n = len(z) // 2, len(y)
    d = z[:half] - z[half:]
    chosen, _ = module("select_neurons").select_neurons_lasso(d[:n], y, 20)
    return d[:, chosen], len(chosen)


def worker(which: str, file: str, code: str) -> None:
    """Reads x [2 n, d], y of the first of the pairs and a seed; writes features of all pairs."""
    import torch

    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1)])  # imports much
    data = dict(np.load(file))
    if which == "ours":
        import scipy.sparse  # noqa: F401

        import fairlead.features.texts.dictionary  # noqa: F401
    else:
        import sklearn.linear_model  # noqa: F401
    Path("/proc/self/clear_refs").write_text("5")
    before, clock = memory("VmRSS"), time.process_time()
    n = len(data["y"])
    half = len(data["x"]) // 2
    fit = np.vstack([data["x"][:n], data["x"][half : half + n]])
    args = (data["x"], fit, int(data["seed"]), data["y"])
    features, count = ours(*args) if which == "ours" else theirs(*args, code)
    spent = time.process_time() - clock
    np.save(file + f".{which}.npy", features)
    print(json.dumps({"cpu": spent, "gib": memory("VmHWM") - before, "count": count}))


async def compare(folder: Path, python: str, code: str, seeds: int, folds: int) -> None:
    from benchmarks.hypotheses import auc, boot, pairs

    from fairlead.lm.embed import kept, sentences
    from fairlead.methods._claims import model

    items = pairs(folder)
    y = np.array([item.data["label"] for item in items])
    clusters = np.unique([item.cluster for item in items], return_inverse=True)[1]
    embedder = kept(sentences())
    one, two = [await embedder.embed([i.data["texts"][side] for i in items]) for side in (0, 1)]
    p = {which: np.zeros((seeds, len(items))) for which in ("ours", "theirs")}
    spent: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for seed in range(seeds):
        part = (np.random.default_rng(seed).permutation(clusters.max() + 1) % folds)[clusters]
        for fold in range(folds):
            order = np.concatenate([np.flatnonzero(part != fold), np.flatnonzero(part == fold)])
            n = int((part != fold).sum())
            with tempfile.TemporaryDirectory() as where:
                file = f"{where}/data.npz"
                np.savez(file, x=np.vstack([one[order], two[order]]), y=y[order[:n]].astype(float), seed=seed)
                for which, run in (("ours", sys.executable), ("theirs", python)):
                    command = [run, os.path.abspath(__file__), "--worker", which, "--file", file, "--code", code]
                    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
                    spent[which].append(json.loads(said.stdout.splitlines()[-1]))
                    x = np.load(file + f".{which}.npy")
                    made = model(x[:n], y[order[:n]].astype(float), "pairwise", 0.01)
                    p[which][seed, order[n:]] = made(x[n:])[:, 0]
            print(seed, fold, {w: spent[w][-1] for w in spent}, file=sys.stderr, flush=True)
    draws = boot(p, y, clusters)
    print(f"{len(items)} pairs, {folds} folds, {seeds} seeds; AUC with the 95 % interval of a bootstrap over clusters")
    for which, rows in p.items():
        low, high = np.quantile(draws[which], (0.025, 0.975))
        cpu, gib = (np.median([s[key] for s in spent[which]]) for key in ("cpu", "gib"))
        value = np.mean([auc(r, y) for r in rows])
        print(f"{which:8s} {value:.3f} [{low:.3f}, {high:.3f}]  {cpu:.1f} CPU-s  {gib:.2f} GiB")
    gap = draws["ours"] - draws["theirs"]
    print(f"ours − theirs {gap.mean():+.3f} [{np.quantile(gap, 0.025):+.3f}, {np.quantile(gap, 0.975):+.3f}]")
    for key in ("cpu", "gib"):
        ratio = [a[key] / b[key] for a, b in zip(spent["ours"], spent["theirs"], strict=True)]
        low, high = np.quantile(ratio, (0.025, 0.975))
        print(f"{key}: ours / theirs, median {np.median(ratio):.2f}, 95 % of folds in [{low:.2f}, {high:.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument("--code", default="")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--worker", default="")
    parser.add_argument("--file", default="")
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker, given.file, given.code)
    asyncio.run(compare(given.folder, given.peer, given.code, given.seeds, given.folds))


if __name__ == "__main__":
    main()
