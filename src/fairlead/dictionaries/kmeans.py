"""k-means as a dictionary: the latent of the nearest centroid is 1, all others 0.

The nearest centroid maximises x·c − ‖c‖²/2, so a one-hot activation over a linear encoder is exact.
A latent's decoder row is its centroid minus the mean of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairlead.core.errors import FairleadError
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.quality import with_statistics


def fit(
    activations: Tensor,
    n_features: int,
    seed: int = 0,
    *,
    iterations: int = 20,
    rows: int = 65_536,
    name: str = "kmeans",
    site: str = "",
) -> SparseDictionary:
    """Lloyd's algorithm on at most `rows` rows of `activations` [n, d], from random rows; a centroid that
    loses all its rows moves to the row worst served."""
    if len(activations) < n_features:
        raise FairleadError("too few rows for k-means", expected=f"at least {n_features}", got=str(len(activations)))
    generator = torch.Generator().manual_seed(seed)
    sample = activations[torch.randperm(len(activations), generator=generator)[: max(rows, n_features)]]
    mean = sample.mean(0)
    x = sample - mean
    centroids = x[:n_features].clone()
    for _ in range(iterations):
        nearest, distance = _assign(x, centroids)
        count = torch.bincount(nearest, minlength=n_features)
        total = torch.zeros_like(centroids).index_add_(0, nearest, x)
        centroids = total / count.clamp_min(1)[:, None]
        empty = (count == 0).nonzero().squeeze(1)
        centroids[empty] = x[distance.topk(len(empty)).indices]
    dictionary = SparseDictionary(
        name=name,
        site=site,
        W_enc=centroids.T.contiguous(),
        W_dec=centroids,
        b_enc=-centroids.square().sum(-1) / 2,
        b_dec=mean,
        activation="onehot",
        training_flops=2.0 * iterations * x.numel() * n_features,
    )
    return with_statistics(dictionary, sample)


def _assign(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """(nearest centroid [n], half the squared distance to it [n]), a block of rows at a time."""
    offset = centroids.square().sum(-1) / 2
    best = [(part @ centroids.T - offset).max(-1) for part in x.split(4096)]
    score = torch.cat([b.values for b in best])
    return torch.cat([b.indices for b in best]), x.square().sum(-1) / 2 - score


plugin = fit
