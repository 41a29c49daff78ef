"""k-means as a dictionary: the latent of the nearest centroid is 1, all others 0.

The nearest centroid maximises x·c − ‖c‖²/2, so a one-hot activation over a linear encoder is exact.
A latent's decoder row is its centroid minus the mean of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairlead.core.errors import FairleadError
from fairlead.dictionaries.base import SparseDictionary

_ROWS = 256  # read at once


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
    order = torch.randperm(len(activations), generator=torch.Generator().manual_seed(seed))
    places = order[: max(rows, n_features)]
    mean = torch.stack([activations[part].sum(0) for part in places.split(_ROWS)]).sum(0) / len(places)
    centroids = activations[places[:n_features]] - mean
    for _ in range(iterations):
        count, total, distance = _assign(activations, places, mean, centroids)
        centroids = total.div_(count.clamp_min(1)[:, None])
        empty = (count == 0).nonzero().squeeze(1)
        centroids[empty] = activations[places[distance.topk(len(empty)).indices.cpu()]] - mean
    count = _assign(activations, places, mean, centroids)[0]
    return SparseDictionary(
        name=name,
        site=site,
        W_enc=centroids.T.contiguous(),
        W_dec=centroids,
        b_enc=-centroids.square().sum(-1) / 2,
        b_dec=mean,
        activation="onehot",
        training_flops=2.0 * iterations * len(places) * activations.shape[1] * n_features,
        max_activation=(count > 0).float(),
        firing_rate=count / len(places),
    )


def _assign(activations: Tensor, places: Tensor, mean: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows at `places`, less `mean`: how many are nearest to each centroid [m], their sums [m, d], and half the
    squared distance of each row to its centroid [n]; a block of rows at a time, so that none are copied."""
    offset, distance = centroids.square().sum(-1) / 2, []
    count, total = torch.zeros_like(offset, dtype=torch.long), torch.zeros_like(centroids)
    for part in places.split(_ROWS):
        x = activations[part].sub_(mean)
        best = (x @ centroids.T).sub_(offset).max(-1)
        count += torch.bincount(best.indices, minlength=len(centroids))
        total.index_add_(0, best.indices, x)
        distance.append(x.square_().sum(-1) / 2 - best.values)
    return count, total, torch.cat(distance)


plugin = fit
