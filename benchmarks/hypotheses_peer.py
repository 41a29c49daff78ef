"""Training and selection beside the published tool's own code, on the same embeddings, in one run.

    python -m benchmarks.hypotheses_peer ../shared/data/headlines --peer PYTHON --code DIRECTORY
    python -m benchmarks.hypotheses_peer --drawn 20000 --latents 1024 --epochs 2 --peer PYTHON --code DIRECTORY

PYTHON is a virtual environment's with torch, scikit-learn and tqdm; DIRECTORY a checkout of rmovva/HypotheSAEs. Each
fold of the headline pairs goes to a process of ours and to one of theirs, one thread each: it fits a dictionary on the
training texts (theirs as their headlines notebook does: 256 latents, 8 on, beside 32, 4 on; 200 epochs, patience 5;
L1-logistic selection), takes differences, and selects 20 latents. The same logistic model is then fitted on both
selections and scored on the fold. `--drawn N` has N drawn embeddings with a numeric label instead: theirs has the
latents named and 32 beside them, ours the same at its finest, and a ridge is scored on a fifth.

CPU-seconds and memory are the processes' own (Linux: VmHWM, set back by clear_refs once everything is imported and the
data read; ru_maxrss would begin at the parent's). `gib` is the largest less what was resident then, `peak` all of it.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Any, Any, dict[str, Any]], tuple[Any, Any]]
SIDES = ("ours", "theirs")


def memory(name: str) -> float:
    """GiB of this process: "VmRSS" now, "VmHWM" the largest so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**20


def ours() -> Run:
    import fairlead.features.texts.dictionary as dictionary
    import fairlead.features.texts.select as select

    def run(x: Any, fit: Any, given: dict[str, Any]) -> tuple[Any, Any]:
        levels = dictionary.fit("levels", fit, given["seed"], n_features=given["latents"] or None,
                                epochs=given["epochs"] or None)  # fmt: skip
        z, y = dictionary.encode(levels, x), given["y"]
        d = z[: len(x) // 2] - z[len(x) // 2 :] if given["pairs"] else z
        chosen = list(select.select(d[: len(y)], y, 20, pairs=given["pairs"]).columns)
        return d[:, chosen].toarray(), len(chosen)

    return run


def theirs(code: str) -> Run:
    import importlib.util

    import torch

    def module(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, f"{code}/hypothesaes/{name}.py")
        assert spec is not None and spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    network, selecting = module("sae").SparseAutoencoder, module("select_neurons").select_neurons_lasso

    def run(x: Any, fit: Any, given: dict[str, Any]) -> tuple[Any, Any]:
        torch.manual_seed(given["seed"])
        order = np.random.default_rng(given["seed"]).permutation(len(fit))
        held, train = (torch.from_numpy(fit[rows]) for rows in (order[: len(fit) // 10], order[len(fit) // 10 :]))
        parts, y = [], given["y"]
        for m, k in ((given["latents"] or 256, 8), (32, 4)):
            sae = network(fit.shape[1], m, k, device="cpu")
            sae.fit(train, held, n_epochs=given["epochs"] or 200, patience=5, show_progress=False)
            parts.append(sae.get_activations(x, show_progress=False))
        z = np.hstack(parts)
        d = z[: len(x) // 2] - z[len(x) // 2 :] if given["pairs"] else z
        chosen, _ = selecting(d[: len(y)], y, 20, classification=given["pairs"])
        return d[:, chosen], len(chosen)

    return run


def worker(which: str, folder: Path, code: str) -> None:
    """Reads x.npy [rows, d] (of pairs, all first texts, then all second ones), y.npy of the first rows or pairs, and
    given.json; leaves features of all rows."""
    import torch

    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1)])  # imports much
    run = ours() if which == "ours" else theirs(code)
    x, given = np.load(folder / "x.npy"), json.loads((folder / "given.json").read_text())
    given["y"] = np.load(folder / "y.npy")
    n, half = len(given["y"]), len(x) // 2
    fit = np.vstack([x[:n], x[half : half + n]]) if given["pairs"] else x[:n]
    Path("/proc/self/clear_refs").write_text("5")
    before, clock = memory("VmRSS"), time.process_time()
    features, count = run(x, fit, given)
    spent, peak = time.process_time() - clock, memory("VmHWM")
    np.save(folder / f"{which}.npy", features)
    print(json.dumps({"cpu": spent, "gib": peak - before, "peak": peak, "count": count}))


def both(x: Any, y: Any, given: dict[str, Any], told: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each side spent, and its features of all rows."""
    spent, found = {}, {}
    with tempfile.TemporaryDirectory() as where:
        np.save(f"{where}/x.npy", x)
        np.save(f"{where}/y.npy", y.astype(np.float64))
        Path(where, "given.json").write_text(json.dumps(given | {"latents": told.latents, "epochs": told.epochs}))
        for which, run in zip(SIDES, (sys.executable, told.peer), strict=True):
            command = [run, "-W", "ignore", os.path.abspath(__file__), "--worker", which, "--file", where]
            command += ["--code", told.code]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
            spent[which] = json.loads(said.stdout.splitlines()[-1])
            found[which] = np.load(f"{where}/{which}.npy")
    print(given["seed"], spent, file=sys.stderr, flush=True)
    return spent, found


def ratios(rows: list[dict[str, Any]], what: str) -> None:
    """Medians of each side, and of theirs the share that ours is in every single one."""
    for key, unit in (("cpu", "CPU-s"), ("gib", "GiB above imports and data"), ("peak", "GiB in all")):
        one, two = (np.array([row[side][key] for row in rows]) for side in SIDES)
        low, high = np.quantile(one / two, (0.025, 0.975))
        print(f"{np.median(one):.3f} against {np.median(two):.3f} {unit}: {np.median(one / two):.2f} of it "
              f"(95 % of {len(rows)} {what} in [{low:.2f}, {high:.2f}])")  # fmt: skip


async def headlines(told: argparse.Namespace) -> None:
    from benchmarks.hypotheses import auc, boot, pairs

    from fairlead.lm.embed import kept, sentences
    from fairlead.methods._claims import model

    items = pairs(told.folder)
    y = np.array([item.data["label"] for item in items])
    clusters = np.unique([item.cluster for item in items], return_inverse=True)[1]
    embedder = kept(sentences())
    one, two = [await embedder.embed([i.data["texts"][side] for i in items]) for side in (0, 1)]
    p = {which: np.zeros((told.seeds, len(items))) for which in SIDES}
    rows = []
    for seed in range(told.seeds):
        part = (np.random.default_rng(seed).permutation(clusters.max() + 1) % told.folds)[clusters]
        for fold in range(told.folds):
            order = np.concatenate([np.flatnonzero(part != fold), np.flatnonzero(part == fold)])
            n = int((part != fold).sum())
            x, wanted = np.vstack([one[order], two[order]]), y[order[:n]].astype(float)
            spent, found = both(x, wanted, {"seed": seed, "pairs": True}, told)
            rows.append(spent)
            for which, z in found.items():
                p[which][seed, order[n:]] = model(z[:n], wanted, "pairwise", 0.01)(z[n:])[:, 0]
    draws = boot(p, y, clusters)
    print(f"{len(items)} pairs, {told.folds} folds, {told.seeds} seeds; AUC, 95 % interval (clusters drawn again)")
    for which, said in p.items():
        low, high = np.quantile(draws[which], (0.025, 0.975))
        print(f"{which:8s} {np.mean([auc(r, y) for r in said]):.3f} [{low:.3f}, {high:.3f}]")
    gap = draws["ours"] - draws["theirs"]
    print(f"ours − theirs {gap.mean():+.3f} [{np.quantile(gap, 0.025):+.3f}, {np.quantile(gap, 0.975):+.3f}]")
    ratios(rows, "folds")


def drawn(told: argparse.Namespace) -> None:
    """Clusters of unit rows [n, width], some of which move a numeric label; one draw a seed."""
    from fairlead.methods._claims import model

    rows, n = [], told.drawn
    fits: dict[str, list[float]] = {side: [] for side in SIDES}
    for seed in range(told.seeds):
        rng = np.random.default_rng(seed)
        centres = rng.standard_normal((max(8, (told.latents or 256) // 4), told.width), dtype=np.float32)
        place = rng.integers(0, len(centres), n)
        x = centres[place]
        for part in np.array_split(x, max(1, n // 4096)):
            part += 0.7 * rng.standard_normal(part.shape, dtype=np.float32)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
        effect = rng.standard_normal(len(centres)) * (rng.random(len(centres)) < max(0.1, 20 / len(centres)))
        y, train = effect[place] + rng.standard_normal(n), 4 * n // 5
        spent, found = both(x, y[:train], {"seed": seed, "pairs": False}, told)
        rows.append(spent)
        for which, z in found.items():
            said = model(z[:train], y[:train], "numeric", 1.0)(z[train:])[:, 0]
            fits[which].append(1 - ((y[train:] - said) ** 2).sum() / ((y[train:] - y[train:].mean()) ** 2).sum())
    print(f"{n} drawn rows × {told.width}, {told.latents} latents, {told.epochs or 'own number of'} epochs; "
          f"R² on {n - train} rows: " + ", ".join(f"{side} {np.mean(v):.3f}" for side, v in fits.items()))  # fmt: skip
    ratios(rows, "draws")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument("--code", default="")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--drawn", type=int, default=0, help="rows of drawn embeddings, instead of headlines")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--latents", type=int, default=0, help="0: ours from the number of texts, theirs 256")
    parser.add_argument("--epochs", type=int, default=0, help="at most, for both; 0: each side's own rule")
    parser.add_argument("--worker", default="")
    parser.add_argument("--file", default="", type=Path)
    told = parser.parse_args()
    if told.worker:
        return worker(told.worker, told.file, told.code)
    drawn(told) if told.drawn else asyncio.run(headlines(told))


if __name__ == "__main__":
    main()
