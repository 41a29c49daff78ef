"""How good a dictionary is: reconstruction, sparsity, dead latents, and what the model loses by it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fairlead.core.errors import FairleadError
from fairlead.dictionaries.base import SparseDictionary

_CHUNK, _ROWS = 2**22, 256  # latents and rows held at once
_CALIBRATION = 2**24  # pre-activations a threshold is read from


@torch.no_grad()
def evaluate(dictionary: SparseDictionary, activations: Tensor) -> dict[str, float]:
    """Measured on `activations` [n, d], which should be held out:

    explained_variance  1 − Σ‖x − x̂‖² / Σ‖x − mean‖² (below 0 when worse than the mean)
    l0                  latents above 0 per row
    dead                share of latents that never fired here
    rows                n
    """
    dictionary.check_width(activations.shape[-1])
    mean = activations.mean(0)
    error = spread = active = 0.0
    fired = torch.zeros(dictionary.n_features, dtype=torch.bool, device=activations.device)
    for x in _chunks(dictionary, activations):
        f = dictionary.encode(x)
        error += float(dictionary.decode(f).sub_(x).square_().sum(dtype=torch.float64))
        spread += float((x - mean).square_().sum(dtype=torch.float64))
        active += float((f > 0).sum())
        fired |= (f > 0).any(0)
    if spread == 0.0:
        raise FairleadError(
            "explained variance has no meaning here", expected="activations that differ", got="one value"
        )
    return {
        "explained_variance": 1.0 - error / spread,
        "l0": active / len(activations),
        "dead": 1.0 - float(fired.float().mean()),
        "rows": float(len(activations)),
    }


@torch.no_grad()
def with_statistics(dictionary: SparseDictionary, activations: Tensor) -> SparseDictionary:
    """A copy with `max_activation` and `firing_rate` [m] measured on `activations` [n, d]."""
    highest = torch.zeros(dictionary.n_features, device=activations.device)
    count = torch.zeros_like(highest)
    for x in _chunks(dictionary, activations):
        f = dictionary.encode(x)
        highest = torch.maximum(highest, f.amax(0))
        count += (f > 0).sum(0)
    return dictionary.replace(max_activation=highest, firing_rate=count / len(activations))


@torch.no_grad()
def calibrated(dictionary: SparseDictionary, activations: Tensor, l0: float | None = None) -> SparseDictionary:
    """A copy with one threshold for all latents, the quantile of the pre-activations above which `l0` latents
    (default: the dictionary's k) fire per row of `activations` [n, d], on average."""
    wanted = l0 if l0 is not None else dictionary.k
    if wanted is None:
        raise FairleadError("nothing to calibrate to", expected="l0, or a dictionary with k", got="neither")
    rows = activations[: max(1, _CALIBRATION // dictionary.n_features)]
    pre = dictionary.preactivations(rows).relu().flatten()
    above = min(len(pre), max(1, round(wanted * len(rows))))
    value = pre.kthvalue(len(pre) - above + 1).values
    return dictionary.replace(threshold=value.expand(dictionary.n_features).clone())


def _chunks(dictionary: SparseDictionary, activations: Tensor) -> Iterator[Tensor]:
    yield from activations.split(max(1, min(_ROWS, _CHUNK // dictionary.n_features)))
