"""A random dictionary: directions that owe nothing to the data, firing as often as a fitted one would.

The control for "any set of directions would do". Encoder and decoder share random unit rows; each latent's
threshold is the quantile of its own pre-activations at which `l0` latents fire per row on average; one gain
for all latents makes the reconstruction the best multiple of itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fairlead.core.errors import FairleadError
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.quality import with_statistics


@torch.no_grad()
def fit(
    activations: Tensor,
    n_features: int,
    seed: int = 0,
    *,
    l0: float | None = None,
    rows: int = 4096,
    name: str = "random",
    site: str = "",
) -> SparseDictionary:
    """Random directions calibrated on the first `rows` rows of `activations` [n, d]; `l0` defaults to
    a sixteenth of the latents."""
    wanted = l0 if l0 is not None else n_features / 16
    if not 0 < wanted <= n_features / 2:
        raise FairleadError("l0 does not fit", expected=f"above 0, at most {n_features / 2}", got=str(wanted))
    generator = torch.Generator().manual_seed(seed)
    sample = activations[:rows]
    mean = sample.mean(0)
    directions = functional.normalize(torch.randn(n_features, sample.shape[1], generator=generator), dim=-1).to(sample)
    pre = (sample - mean) @ directions.T
    rank = min(len(sample), max(1, round(len(sample) * (1 - wanted / n_features))))
    threshold = pre.kthvalue(rank, dim=0).values.clamp_min(0)
    rebuilt = (pre * (pre > threshold)) @ directions
    gain = ((rebuilt * (sample - mean)).sum() / rebuilt.square().sum().clamp_min(1e-12)).clamp_min(1e-6)
    dictionary = SparseDictionary(
        name=name,
        site=site,
        W_enc=(directions * gain).T.contiguous(),
        W_dec=directions,
        b_enc=torch.zeros_like(threshold),
        b_dec=mean,
        activation="jumprelu",
        threshold=threshold * gain,
        training_flops=2.0 * sample.numel() * n_features,
    )
    return with_statistics(dictionary, activations)


plugin = fit
