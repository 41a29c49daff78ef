"""A shuffled decoder: the base dictionary's encoder kept, its decoder rows dealt to other latents.

The control for "the decoder directions belong to these latents": firing is the same, what an edit adds is not.
"""

from __future__ import annotations

from typing import Any

import torch

from fairlead.core.errors import FairleadError
from fairlead.dictionaries import sae
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.stream import Activations


def shuffle(base: SparseDictionary, seed: int = 0) -> SparseDictionary:
    """`base` with its decoder rows along a random cycle, so that no latent keeps its own."""
    order = torch.randperm(base.n_features, generator=torch.Generator().manual_seed(seed)).to(base.W_dec.device)
    rows = torch.empty_like(base.W_dec)
    rows[order] = base.W_dec[order.roll(1)]
    metadata = {key: value for key, value in base.metadata.items() if key != "statistics"}
    return base.replace(name=f"{base.name}-shuffled", W_dec=rows, metadata=metadata)


def fit(
    activations: Activations, n_features: int, seed: int = 0, *, base: SparseDictionary | None = None, **options: Any
) -> SparseDictionary:
    """`base` shuffled; without a base, a SAE trained with `options` first."""
    chosen = base if base is not None else sae.fit(activations, n_features, seed, **options)
    if chosen.n_features != n_features:
        raise FairleadError("base has another width", expected=f"{n_features} latents", got=str(chosen.n_features))
    return shuffle(chosen, seed)


plugin = fit
