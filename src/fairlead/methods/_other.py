"""Another dictionary of the same site, fitted on a subject's own prompts and charged to the arm that asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fairlead.core.protocols import FitContext
from fairlead.core.types import Messages
from fairlead.dictionaries import kmeans, pca
from fairlead.dictionaries.base import SparseDictionary


def other_dictionary(kind: str, ctx: FitContext[Any], prompts: Sequence[Messages]) -> SparseDictionary:
    """`kind` is pca or kmeans; as many latents as the arm's own dictionary, or as the prompts' tokens allow."""
    base = ctx.dictionary
    assert base is not None
    x = torch.cat(ctx.subject.activations(prompts, [base.site], "all")[base.site]).float().cpu()
    settings = {"site": base.site, "name": kind}
    if kind == "pca":
        fitted = pca.fit(x, min(base.n_features // 2, x.shape[1]) * 2, **settings)
    else:
        fitted = kmeans.fit(x, min(base.n_features, len(x) // 4), ctx.seed, **settings)
    if ctx.subject.meter is not None:
        ctx.subject.meter.charge(flops=fitted.training_flops or 0.0)
    return fitted
