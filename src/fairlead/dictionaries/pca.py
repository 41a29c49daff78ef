"""PCA± as a dictionary: each principal direction v gives two latents, max(v·x, 0) and max(−v·x, 0)."""

from __future__ import annotations

import torch
from torch import Tensor

from fairlead.core.errors import NotApplicable
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.quality import with_statistics


def fit(activations: Tensor, n_features: int, seed: int = 0, *, name: str = "pca", site: str = "") -> SparseDictionary:
    """The `n_features`/2 leading principal directions of `activations` [n, d], positive halves first.

    Deterministic: `seed` is taken because every plugin takes one. NotApplicable when `n_features` is odd or
    above 2·d, because there are no more directions.
    """
    del seed
    d = activations.shape[1]
    if n_features % 2 or n_features > 2 * d:
        raise NotApplicable(
            "PCA± has two latents for each of at most d directions",
            expected=f"an even number up to {2 * d}",
            got=str(n_features),
        )
    mean = activations.mean(0)
    x = (activations - mean).double()
    _, vectors = torch.linalg.eigh(x.T @ x)
    leading = vectors.flip(1)[:, : n_features // 2]
    largest = leading.gather(0, leading.abs().argmax(0, keepdim=True))
    leading = (leading * largest.sign()).to(activations.dtype)
    signed = torch.cat([leading, -leading], dim=1)
    dictionary = SparseDictionary(
        name=name,
        site=site,
        W_enc=signed.contiguous(),
        W_dec=signed.T.contiguous(),
        b_enc=torch.zeros_like(signed[0]),
        b_dec=mean,
        training_flops=2.0 * len(activations) * d * d,
    )
    return with_statistics(dictionary, activations)


plugin = fit
