"""Which latents tell items that were answered wrongly from items that were answered rightly, beyond what is plain.

The test is a rank test (Wilcoxon's, as a score test): each latent's ranks over the items, against what covariates
such as length and difficulty leave of the outcome; its variance is summed by cluster, so that ten items of one
cluster do not count as ten. Without covariates and with one item a cluster it is the Mann-Whitney test. Reading it
needs only what fires: all zeros share one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

Floats = npt.NDArray[np.float64]
BLOCK = 2**25  # cluster sums held at once: 256 MB


@dataclass(frozen=True, eq=False)
class Outcome:
    """Per latent [m]: `auroc` of telling wrong from right by its largest activation; `adjusted`, the same with the
    covariates taken out; `p` of the test, two-sided; `q` after Benjamini-Hochberg over the latents that fire at all.
    `fires` counts the items where it does. NaN where there are no wrong items, or no right ones."""

    auroc: Floats
    adjusted: Floats
    p: Floats
    q: Floats
    fires: npt.NDArray[np.int64]
    n_wrong: int
    n_right: int


def outcome(values: Any, wrong: Sequence[bool], clusters: Sequence[str], covariates: Any = None) -> Outcome:
    """`values` [N, m] sparse and non-negative; `wrong[i]` whether item i was answered wrongly; `covariates` [N, c]
    dense.

    Items of one cluster are taken to depend on each other. A latent that fires in fewer than two clusters has p = 1."""
    y = np.asarray(wrong, dtype=np.float64)
    n, m = values.shape
    n_wrong, n_right = int(y.sum()), int(n - y.sum())
    fires = np.bincount(values.indices, minlength=m).astype(np.int64)
    if not n_wrong or not n_right:
        nothing = np.full(m, np.nan)
        return Outcome(nothing, nothing, nothing, nothing, fires, n_wrong, n_right)
    ranks = _ranks(values)
    design = _design(n, covariates)
    plain = _scores(ranks, y - y.mean())
    left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    total = _scores(ranks, left)
    known = float(left @ left)
    adjusted = 0.5 + total / (n * known) if known > 1e-9 * n else np.full(m, 0.5)
    names, where = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    variance, seen = _variance(ranks, left, design, where, len(names))
    size = np.asarray(ranks.multiply(ranks).sum(0)).ravel() * known / n  # of a variance, were the ranks about 0
    ok = (seen >= 2) & (variance > 1e-9 * size)  # a latent that fires alike in all items tells nothing
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(ok, total / np.sqrt(np.where(ok, variance, 1.0)), 0.0)
    p = np.where(ok, 2 * stats.t.sf(np.abs(t), np.maximum(seen - 1, 1)), 1.0)
    q = np.ones(m)
    live = fires > 0
    if live.any():
        q[live] = stats.false_discovery_control(p[live])
    return Outcome(0.5 + plain / (n_wrong * n_right), adjusted, p, q, fires, n_wrong, n_right)


def _ranks(values: Any) -> Any:
    """[N, m] sparse: each entry's rank in its column above the shared rank of the column's zeros."""
    columns = values.tocsc()
    n, m = columns.shape
    count = np.diff(columns.indptr)
    column = np.repeat(np.arange(m), count)
    order = np.lexsort((columns.data, column))
    data = columns.data[order]
    begin = np.repeat(columns.indptr[:-1], count)
    new = np.ones(len(data), dtype=bool)
    new[1:] = (data[1:] != data[:-1]) | (column[1:] != column[:-1])
    group = np.cumsum(new) - 1
    place = np.arange(len(data), dtype=np.float64) - begin + 1
    mean = (np.bincount(group, weights=place) / np.bincount(group))[group] if len(data) else place
    zeros = np.repeat(n - count, count)
    rank = np.empty(len(data))
    rank[order] = mean + zeros - (zeros + 1) / 2
    return sparse.csc_matrix((rank, columns.indices, columns.indptr), shape=columns.shape)


def _design(n: int, covariates: Any) -> Floats:
    """An intercept and the covariates that vary, standardised."""
    parts = [np.ones((n, 1))]
    if covariates is not None:
        x = np.asarray(covariates, dtype=np.float64).reshape(n, -1)
        spread = x.std(0)
        parts.append((x - x.mean(0))[:, spread > 0] / spread[spread > 0])
    return np.concatenate(parts, axis=1)


def _scores(ranks: Any, left: Floats) -> Floats:
    found: Floats = np.asarray(ranks.T @ left, dtype=np.float64).ravel()
    return found


def _variance(
    ranks: Any, left: Floats, design: Floats, where: npt.NDArray[np.int64], groups: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """(the variance of each latent's score, summed by cluster; in how many clusters it fires), in blocks of latents."""
    n, m = ranks.shape
    member = sparse.csr_matrix((np.ones(n), (where, np.arange(n))), shape=(groups, n))
    slope = np.linalg.pinv(design) @ ranks  # [1 + c, m]: the ranks on the covariates
    apart = np.asarray((member.multiply(left[None, :])) @ design)  # [groups, 1 + c]
    weighted = sparse.diags(left) @ ranks
    variance, seen = np.zeros(m), np.zeros(m, dtype=np.int64)
    step = max(1, BLOCK // max(groups, 1))
    for start in range(0, m, step):
        part = slice(start, min(start + step, m))
        sums = np.asarray((member @ weighted[:, part]).todense()) - apart @ slope[:, part]
        variance[part] = (sums**2).sum(0) * groups / max(groups - 1, 1)
        held = member @ (ranks[:, part] != 0).astype(np.float64)
        seen[part] = np.asarray((held > 0).sum(0)).ravel()
    return variance, seen
