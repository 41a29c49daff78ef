"""Hypotheses on real data: recovery of reference concepts, prediction of which headline drew more clicks, and scale.

    python -m benchmarks.hypotheses recovery  ../shared/data/nlparam/agnews.json ../shared/data/nlparam/dbpedia.json
    python -m benchmarks.hypotheses headlines ../shared/data/headlines
    python -m benchmarks.hypotheses scale --n 200000 --width 384 --latents 4096

Embeddings come from `--embedder` (minilm, tfidf, a directory) and are kept in the cache. Recovery: half the texts to
fit, half to score; each concept is matched to one latent or predicate (Hungarian, F1) on the half that was fitted, and
its F1 there is counted on the other. Headlines: cross-fitted over all pairs, pairs that share a text together.
"""

from __future__ import annotations

# ruff: noqa: T201
import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata, t

from fairlead.core.keys import sha256
from fairlead.core.protocols import FitContext
from fairlead.core.types import Item
from fairlead.features.texts import dictionary, labellers, predicates, select, topics
from fairlead.lm.embed import Kept, kept, sentences, tfidf
from fairlead.methods import texts as arms

ARMS = ("dense", "latents", "labels", "ngrams", "matryoshka", "kmeans", "pca", "ica", "topics", "random")


def interval(values: Any) -> str:
    """Mean of runs with its 95 % interval (Student)."""
    found = np.asarray(values, dtype=np.float64)
    half = t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else float("nan")
    return f"{found.mean():.3f} [{found.mean() - half:.3f}, {found.mean() + half:.3f}]"


# ---- recovery


def overlap(said: Any, true: Any) -> Any:
    """F1 [a, b] of every column of said [n, a] with every one of true [n, b]."""
    both = said.T.astype(np.float64) @ true
    return 2 * both / np.maximum(said.sum(0)[:, None] + true.sum(0)[None], 1e-12)


def recovered(fit: Any, score: Any, true_fit: Any, true_score: Any) -> float:
    """Mean F1 on the scored half of concepts matched on the fitted half; a concept without a match counts 0."""
    i, j = linear_sum_assignment(-overlap(fit, true_fit))
    return float(overlap(score, true_score)[i, j].sum() / true_fit.shape[1])


async def recovery(file: Path, embedder: Kept, seeds: int) -> None:
    data = json.loads(file.read_text(encoding="utf-8"))
    texts, true = data["texts"], np.array(data["reference_phi_denotation"]) > 0
    x, found = await embedder.embed(texts), {}
    tools = predicates.Tools(embedder)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(texts))
        a, b = order[: len(order) // 2], order[len(order) // 2 :]
        first, second = [texts[i] for i in a], [texts[i] for i in b]

        def score(name: str, fit: Any, held: Any, a: Any = a, b: Any = b) -> None:
            found.setdefault(name, []).append(recovered(fit > 0, held > 0, true[a], true[b]))

        k = true.shape[1]
        made: dict[str, Any] = {"k-means, true K": dictionary.fit("kmeans", x[a], seed, n_features=k)}
        made |= {name: dictionary.fit(name, x[a], seed) for name in dictionary.KINDS}
        for name, levels in made.items():
            score(name, dictionary.encode(levels, x[a]).toarray(), dictionary.encode(levels, x[b]).toarray())
        for name, m in (("topics, true K", k), ("topics", dictionary.sizes(len(a))[0])):
            model = topics.fit(first, m, seed)
            score(name, model.encode(first).toarray(), model.encode(second).toarray())
        corpus, after = labellers.Corpus(first, x[a], tools), predicates.Read(second, tools, x[b])
        latents, apart = dictionary.encode(made["levels"], x[a]).toarray(), labellers.parts(range(len(a)), seed)
        ways = labellers.standard(corpus)
        for name, some in {
            "predicates": ways,
            "predicates, words only": {w: ways[w] for w in ways if w != "near"},
        }.items():
            labels = [await labellers.label(corpus, z, apart, some, seed) for z in latents.T]
            said = [label.predicate for label in labels if label.predicate is not None]
            score(name, np.array([await predicates.fires(p, corpus.read) for p in said]).T,
                  np.array([await predicates.fires(p, after) for p in said]).T)  # fmt: skip
            found.setdefault(f"held-out F1 of {name}", []).append(
                float(np.mean([x.f1 for x in labels if x.f1 is not None]))
            )
    print(f"\n{file.stem}: {len(texts)} texts, {true.shape[1]} concepts, {seeds} seeds, {embedder.name}")
    for name, values in found.items():
        print(f"{name:36s} {interval(values)}")


# ---- headlines


def pairs(folder: Path) -> list[Item]:
    """All pairs; a cluster is all pairs that share a text, directly or not."""
    rows = []
    for name in ("train", "val", "test"):
        data = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        rows += list(zip(data["headline_1"], data["headline_2"], data["label"], strict=True))
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            text = parent[text]
        return text

    for one, two, _ in rows:
        parent[root(one)] = root(two)
    return [
        Item(str(i), "train", root(one), {}, {"texts": [one, two], "label": label.startswith("Headline 1")})
        for i, (one, two, label) in enumerate(rows)
    ]


def auc(p: Any, y: Any) -> float:
    m = int(y.sum())
    return float((rankdata(p)[y].sum() - m * (m + 1) / 2) / (m * (len(y) - m)))


def fitted_once() -> None:
    """Arms that ask for one dictionary of the same rows share its fit; the first of them is charged its seconds."""
    inner, known = dictionary.fit, {}

    def fit(kind: str, x: Any, seed: int = 0, **more: Any) -> Any:
        key = (kind, sha256(np.ascontiguousarray(x).tobytes()), seed, tuple(sorted(more.items())))
        if key not in known:
            known[key] = inner(kind, x, seed, **more)
        return known[key]

    dictionary.fit = fit  # type: ignore[assignment]


@dataclass(frozen=True)
class Said:
    """What an arm said of every pair [n] in one cross-fitting, its CPU-seconds and its claims in a fold."""

    p: Any
    seconds: float
    claims: float


async def cross_fitted(name: str, items: list[Item], part: Any, folds: int, k: int, seed: int, embedder: Kept) -> Said:
    """`part` [n] is a fold, and whether a pair tunes."""
    p, clock, claims = np.zeros(len(items)), time.process_time(), 0
    for fold in range(folds):
        rest, held = part % folds != fold, part // folds == 0
        train, tunes, test = (np.flatnonzero(rows) for rows in (rest & ~held, rest & held, ~rest))
        ctx = FitContext(embedder, None, [items[i] for i in train], [items[i] for i in tunes], seed, None,
                         no_rollout, lambda: None, {}, no_sibling)  # fmt: skip
        fitted = await arms.plugin(name, {"k": k}).fit(ctx)
        with fitted.open(embedder) as world:
            p[test] = [s.p for s in await world.predict_all([items[i] for i in test])]
        claims += len(fitted.hypotheses)
    return Said(p, (time.process_time() - clock) / folds, claims / folds)


async def headlines(
    folder: Path, embedder: Kept, seeds: int, folds: int, k: int, names: tuple[str, ...], keep: Path | None
) -> None:
    """`keep` is a folder for what each arm said at each seed: a run that was stopped goes on, and arms can be added."""
    fitted_once()
    items = pairs(folder)
    y = np.array([item.data["label"] for item in items])
    clusters = np.unique([item.cluster for item in items], return_inverse=True)[1]
    found: dict[str, list[Said]] = {name: [] for name in names}
    for seed in range(seeds):
        part = (np.random.default_rng(seed).permutation(clusters.max() + 1) % (4 * folds))[clusters]
        for name in names:
            file = keep / f"{seed}-{name}.npz" if keep else None
            if file and file.is_file():
                said = Said(**{key: value[()] for key, value in np.load(file).items()})
            else:
                said = await cross_fitted(name, items, part, folds, k, seed, embedder)
            if file and not file.is_file():
                np.savez(file, **asdict(said))
            found[name].append(said)
            print(f"seed {seed} {name} {auc(said.p, y):.3f}", file=sys.stderr, flush=True)
    print(f"\nheadlines: {len(items)} pairs in {clusters.max() + 1} clusters, {folds} folds, {seeds} seeds, k = {k}, "
          f"{embedder.name}; AUC, mean of seeds, with the 95 % interval of a bootstrap over clusters")  # fmt: skip
    p = {name: np.array([said.p for said in all_]) for name, all_ in found.items()}
    draws = boot(p, y, clusters)
    for name in names:
        low, high = np.quantile(draws[name], (0.025, 0.975))
        value, claims, spent = (
            np.mean([f(said) for said in found[name]])
            for f in (lambda s: auc(s.p, y), lambda s: s.claims, lambda s: s.seconds)
        )
        print(f"{name:12s} {value:.3f} [{low:.3f}, {high:.3f}]  {claims:5.1f} claims {spent:6.1f} CPU-s a fit")
    if {"labels", "latents"} <= set(names):
        share = (draws["labels"] - 0.5) / (draws["latents"] - 0.5)
        value = np.mean([auc(r, y) for r in p["labels"]]) - 0.5, np.mean([auc(r, y) for r in p["latents"]]) - 0.5
        low, high = np.quantile(share, (0.025, 0.975))
        print(f"labels keep {value[0] / value[1]:.2f} [{low:.2f}, {high:.2f}] of their latents' AUC above 0.5")


def boot(p: dict[str, Any], y: Any, clusters: Any, times: int = 1000) -> dict[str, Any]:
    """[times] mean AUC over seeds, of clusters drawn again, the same for all arms."""
    rng, found = np.random.default_rng(0), {name: np.zeros(times) for name in p}
    members = np.split(np.argsort(clusters, kind="stable"), np.cumsum(np.bincount(clusters))[:-1])
    for i in range(times):
        rows = np.concatenate([members[c] for c in rng.integers(0, len(members), len(members))])
        for name in p:
            found[name][i] = np.mean([auc(row[rows], y[rows]) for row in p[name]])
    return found


async def no_rollout(*_: Any) -> list[Any]:
    return []


def no_sibling(name: str) -> Any:
    raise KeyError(name)


# ---- scale


def scale(n: int, width: int, latents: int, kind: str, epochs: int | None) -> None:
    """Fit, encode and select on drawn rows; the most memory the process held."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((latents // 4, width)).astype(np.float32)
    x = centres[rng.integers(0, len(centres), n)] + 0.7 * rng.standard_normal((n, width)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = (x @ centres[0] + 0.3 * rng.standard_normal(n) > 0.5).astype(np.float64)

    def timed(what: str, do: Callable[[], Any]) -> Any:
        clock = time.perf_counter()
        found = do()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{what:28s} {time.perf_counter() - clock:7.1f} s   peak so far {peak:.2f} GiB", flush=True)
        return found

    print(f"{n} rows × {width}, {latents} latents, {kind}")
    levels = timed("fit", lambda: dictionary.fit(kind, x, 0, n_features=latents, epochs=epochs))
    z = timed("encode", lambda: dictionary.encode(levels, x))
    chosen = timed("lasso to exactly 20", lambda: select.select(z, y, 20))
    timed("separation", lambda: select.select(z, y, 20, "separation"))
    timed("max-T, 400 permutations", lambda: select.select(z, y, 20, "correlation", rate=0.05))
    print(f"{len(chosen.columns)} columns, {z.nnz / n:.1f} latents on a row, {z.shape[1]} in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("recovery", "headlines", "scale"))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--keep", type=Path, help="of headlines: a folder, so that a run that was stopped goes on")
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--kind", default="levels")
    parser.add_argument("--epochs", type=int, help="of scale: passes over the rows; default: from their number")
    given = parser.parse_args()
    if given.what == "scale":
        return scale(given.n, given.width, given.latents, given.kind, given.epochs)
    for path in given.paths:
        if given.embedder == "tfidf":
            data = json.loads(path.read_text(encoding="utf-8")) if given.what == "recovery" else None
            embedder = kept(tfidf(data["texts"] if data else [t for i in pairs(path) for t in i.data["texts"]]))
        else:
            embedder = kept(sentences(given.embedder))
        if given.what == "recovery":
            asyncio.run(recovery(path, embedder, given.seeds))
        else:
            names = tuple(given.arms.split(","))
            asyncio.run(headlines(path, embedder, given.seeds, given.folds, given.k, names,
                                  given.keep))


if __name__ == "__main__":
    main()
