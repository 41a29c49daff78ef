"""Dictionaries fitted on embeddings of texts, by one protocol: `fit(kind, x, seed)` and `encode(dictionary, x)`.

    levels       TopK dictionaries of 4, 8, 16 ... latents beside each other, coarse to fine; each begins at k-means,
                 and the best epoch by held-out reconstruction is restored (the default)
    matryoshka   one BatchTopK dictionary with nested prefixes, the best epoch restored
    kmeans       one latent a cluster, 1 or 0
    pca, ica     two latents a direction, one for each sign; a latent fires above `TAIL` of the training rows
    random       directions drawn by seed, with the same rule: the control

Topics, which read words and not embeddings, are in `topics.py`. Sizes come from the number of texts alone. Levels
are the default because nested prefixes leave residues in the coarse latents: docs/log.md, 2026-11-21.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fairlead.core.errors import FairleadError
from fairlead.dictionaries import kmeans, pca, quality
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.stream import Stream
from fairlead.dictionaries.train import TrainConfig, Trainer

Kind = Literal["levels", "matryoshka", "kmeans", "pca", "ica", "random"]
KINDS: tuple[str, ...] = get_args(Kind)
LEAST = 20  # texts below which nothing is fitted
TAIL = 0.9  # a direction's latent fires on the tenth of the training texts where it is largest
EPOCHS = 60
PATIENCE = {"topk": 3, "matryoshka": 8}  # epochs without a better one; levels begin where they nearly end
_ROWS = 256  # read at once
_TAIL_READ = 1 << 27  # pre-activations that a direction's threshold is read from

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Levels:
    """Dictionaries beside each other; their latents are numbered through. Most kinds have one."""

    kind: str
    parts: tuple[SparseDictionary, ...]

    @property
    def n_features(self) -> int:
        return sum(p.n_features for p in self.parts)

    @property
    def training_flops(self) -> float:
        return sum(p.training_flops or 0.0 for p in self.parts)

    def scores(self, x: Any, ids: Any) -> Any:
        """[n, len(ids)] what latents read before anything is cut off: how near a text is to firing."""
        rows = torch.as_tensor(np.asarray(x, dtype=np.float32))
        with torch.inference_mode():
            return torch.cat([p.preactivations(rows) for p in self.parts], dim=1)[:, list(ids)].numpy()


def sizes(n: int) -> tuple[int, int]:
    """(latents, latents on per text) from the number of texts alone: about one latent to 16 texts, a power of two from
    16 to 4,096; one in 16 of them on, 8 at most."""
    m = int(2 ** np.clip(np.round(np.log2(max(n, 1) / 16)), 4, 12))
    return m, on(m)


def on(m: int) -> int:
    """Latents on per text, of m."""
    return max(1, min(8, m // 16))


def fit(
    kind: str, x: Any, seed: int = 0, *, n_features: int | None = None, k: int | None = None,
    epochs: int | None = None, progress: Progress | None = None,
) -> Levels:  # fmt: skip
    """A dictionary of x [n, d], unit rows of float32. `n_features` (of levels: the finest) and `k` default to
    `sizes(n)`; `epochs`, passes over the texts at most, to fewer the more there are. FairleadError where there are
    too few texts, or where all are alike."""
    if kind not in KINDS:
        raise FairleadError("unknown kind of dictionary", expected=" or ".join(KINDS), got=kind)
    rows = torch.as_tensor(np.asarray(x, dtype=np.float32))
    n, d = rows.shape
    if n < LEAST:
        raise FairleadError("too few texts to fit a dictionary on", expected=f"at least {LEAST}", got=str(n),
                            do="add texts, or use n-grams (the arm texts.ngrams)")  # fmt: skip
    if not any(bool((part != rows[0]).any()) for part in rows.split(_ROWS)):
        raise FairleadError("all texts are alike", expected="texts that differ", got=f"{n} texts with one embedding")
    m = min(n_features or sizes(n)[0], n // 2)
    if kind == "levels":
        ladder = [s for s in (4 * 2**i for i in range(12)) if s < m] + [m]
        fitted = []
        for i, size in enumerate(ladder):
            fitted.append(_trained("topk", rows, size, k if k and size == m else on(size), seed, epochs))
            if progress:
                progress(i + 1, len(ladder))
        return Levels(kind, tuple(fitted))
    if kind == "matryoshka":
        return Levels(kind, (_trained(kind, rows, m, min(k or on(m), m), seed, epochs, progress),))
    if kind == "kmeans":
        return Levels(kind, (kmeans.fit(rows, m, seed, iterations=50),))
    m = min(m - m % 2, 2 * (d - d % 2))
    if kind == "pca":
        return Levels(kind, (_tailed(pca.fit(rows, m), rows),))
    directions = _independent(rows, m // 2, seed) if kind == "ica" else _drawn(rows, m // 2, seed)
    return Levels(kind, (_tailed(_signed(kind, directions, rows.mean(0)), rows),))


def encode(dictionary: Levels, x: Any) -> Any:
    """Latents of x [n, d] as a sparse matrix [n, m] of float32, a chunk of rows at a time."""
    from scipy.sparse import csr_matrix, hstack, vstack

    rows, chunks = np.asarray(x, dtype=np.float32), []
    with torch.inference_mode():
        for start in range(0, len(rows), _ROWS):
            chunk = torch.from_numpy(rows[start : start + _ROWS])
            chunks.append(hstack([_sparse(p, chunk) for p in dictionary.parts], format="csr"))
    if not chunks:
        return csr_matrix((0, dictionary.n_features), dtype=np.float32)
    return chunks[0] if len(chunks) == 1 else vstack(chunks, format="csr")


def _sparse(part: SparseDictionary, x: Tensor) -> Any:
    """`part.encode(x)` as a sparse matrix; of a TopK without a dense one between."""
    from scipy.sparse import csr_matrix

    if part.activation != "topk" or part.k is None:
        return csr_matrix(part.encode(x).numpy())
    top = part.preactivations(x).topk(part.k, dim=-1)
    starts = np.arange(0, top.values.numel() + 1, part.k, dtype=np.int32)
    found = csr_matrix(
        (top.values.relu().flatten().numpy(), top.indices.flatten().to(torch.int32).numpy(), starts),
        shape=(len(x), part.n_features),
    )
    found.eliminate_zeros()
    found.sort_indices()
    return found


# ---- trained


def _trained(
    kind: Any, rows: Tensor, m: int, k: int, seed: int, epochs: int | None, progress: Progress | None = None
) -> SparseDictionary:
    """Epochs until held-out reconstruction has not improved for more than `PATIENCE`; the best one's weights."""
    n = len(rows)
    held = max(4, min(8192, n // 10))
    batch = max(4, min(128 if n < 20_000 else 1024, (n - held) // 4))
    per_epoch = max(1, (n - held) // batch)
    epochs = epochs or int(np.clip(EPOCHS * 2000 // n, 4, EPOCHS))
    config = TrainConfig(
        n_features=m, kind=kind, k=k, groups=_groups(m), steps=per_epoch * epochs, batch=batch,
        lr=1e-3 if kind == "topk" else 3e-3, decay=0.5, dead_after=2 * n, held_out=held, seed=seed,
        name=f"texts-{kind}-{m}",
    )  # fmt: skip
    start = kmeans.fit(rows, m, seed, iterations=20, rows=16_384).W_dec if kind == "topk" else None
    stream = Stream(rows, batch=batch, held_out=held, buffer=batch, generator=torch.Generator().manual_seed(seed))
    trainer = Trainer(stream, config, stream.generator)
    if start is not None:
        with torch.no_grad():
            trainer.encoder.copy_(torch.nn.functional.normalize(start, dim=1))
            trainer.decoder.copy_(trainer.encoder)
    del start
    best: tuple[float, int, SparseDictionary] | None = None
    for epoch in range(epochs):
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            trainer.step(step)
        if progress:
            progress(epoch + 1, epochs)
        trainer.optimizer.zero_grad(set_to_none=True)  # frees the gradients
        found = _usable(trainer.dictionary(shared=True), stream.held_out)
        explained = quality.evaluate(found, stream.held_out)["explained_variance"]
        if best is None or explained > best[0]:
            best = None  # frees its weights before the next are copied
            best = explained, epoch, _copied(found)
        elif epoch - best[1] > PATIENCE[kind]:
            break
    assert best is not None
    about = {"kind": kind, "n_features": m, "k": k, "seed": seed, "epoch": best[1] + 1, "held_out": held,
             "explained_variance": best[0]}  # fmt: skip
    return quality.with_statistics(best[2], rows).replace(training_flops=trainer.flops, metadata=about)


def _copied(found: SparseDictionary) -> SparseDictionary:
    """With weights of its own."""
    return found.replace(W_enc=found.W_enc.clone(memory_format=torch.contiguous_format), W_dec=found.W_dec.clone())


def _usable(dictionary: SparseDictionary, held_out: Tensor) -> SparseDictionary:
    """As it selects one text at a time: a TopK as it is, the others by a threshold calibrated to k."""
    if dictionary.name.startswith("texts-topk"):
        return dictionary
    return quality.calibrated(dictionary, held_out).replace(activation="jumprelu", k=None)


def _groups(m: int) -> tuple[float, ...]:
    shares = [1.0]
    while shares[0] * m > 8:
        shares.insert(0, shares[0] / 2)
    return tuple(shares)


# ---- directions


def _signed(kind: str, directions: Tensor, mean: Tensor) -> SparseDictionary:
    """Two latents a direction [d, h]: one for each sign."""
    both = torch.cat([directions, -directions], dim=1)
    return SparseDictionary(
        name=f"texts-{kind}", site="", W_enc=both.contiguous(), W_dec=both.T.contiguous(),
        b_enc=torch.zeros(both.shape[1]), b_dec=mean,
    )  # fmt: skip


def _tailed(dictionary: SparseDictionary, rows: Tensor) -> SparseDictionary:
    """Each latent fires on the share 1 − `TAIL` of the rows where it is largest, and nowhere else."""
    pre = dictionary.preactivations(rows[: max(1, _TAIL_READ // dictionary.n_features)])
    at = torch.quantile(pre.double(), TAIL, dim=0).float() if len(pre) < 100_000 else _quantile(pre)
    return dictionary.replace(activation="jumprelu", threshold=at.clamp_min(0.0))


def _quantile(pre: Tensor) -> Tensor:
    return pre.kthvalue(max(1, int(TAIL * len(pre))), dim=0).values


def _drawn(rows: Tensor, h: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows.shape[1], h, generator=generator), dim=0)


def _independent(rows: Tensor, h: int, seed: int, rounds: int = 200) -> Tensor:
    """[d, h] directions of FastICA (Hyvärinen 1999): symmetric, tanh, on the h leading principal components."""
    x = (rows - rows.mean(0)).double()
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    h = min(h, int((values > 1e-9 * values[-1]).sum()))
    whiten = vectors[:, -h:] / values[-h:].sqrt()
    z = x @ whiten
    w = _orthogonal(torch.randn(h, h, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    for _ in range(rounds):
        g = torch.tanh(z @ w.T)
        new = _orthogonal(g.T @ z / len(z) - (1 - g.square()).mean(0)[:, None] * w)
        moved = float((1 - (new * w).sum(1).abs()).max())
        w = new
        if moved < 1e-4:
            break
    directions = whiten @ w.T
    skew = ((x @ directions) ** 3).mean(0).sign()
    return torch.nn.functional.normalize(directions * torch.where(skew == 0, 1, skew), dim=0).float()


def _orthogonal(w: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(w)
    return u @ v
