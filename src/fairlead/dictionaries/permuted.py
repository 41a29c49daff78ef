"""The same dictionary with its latents renumbered: nothing that is found or judged may depend on the numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import FairleadError
from fairlead.dictionaries import sae
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.stream import Activations


def permute(base: SparseDictionary, order: Tensor) -> SparseDictionary:
    """`base` with latent `order[i]` renumbered to i; `order` [m] holds every latent once."""
    if not torch.equal(order.sort().values, torch.arange(base.n_features, device=order.device)):
        raise FairleadError("order is not a permutation", expected=f"each of 0 to {base.n_features - 1} once")
    per_latent = ("b_enc", "threshold", "max_activation", "firing_rate")
    moved = {label: value[order] for label in per_latent if (value := getattr(base, label)) is not None}
    return base.replace(name=f"{base.name}-permuted", W_enc=base.W_enc[:, order], W_dec=base.W_dec[order], **moved)


def fit(
    activations: Activations, n_features: int, seed: int = 0, *, base: SparseDictionary | None = None, **options: Any
) -> SparseDictionary:
    """`base` under a seeded random permutation; without a base, a SAE trained with `options` first."""
    chosen = base if base is not None else sae.fit(activations, n_features, seed, **options)
    if chosen.n_features != n_features:
        raise FairleadError("base has another width", expected=f"{n_features} latents", got=str(chosen.n_features))
    return permute(chosen, torch.randperm(n_features, generator=torch.Generator().manual_seed(seed)))


plugin = fit
