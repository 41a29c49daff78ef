"""Simulated clustered studies whose truth is known, many at once."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm

from fairlead.judge import stats


def arms(rng, worlds, clusters, size, p_a, p_b, rho_a, rho_b=None):
    """Yes-or-no outcomes of two arms [worlds, clusters, size]: a latent difficulty is shared within a cluster and, by
    half, between the arms. `rho` is the latent correlation within a cluster of one arm."""
    shared = rng.normal(size=(worlds, clusters, 1))
    found = []
    for p, rho in ((p_a, rho_a), (p_b, rho_a if rho_b is None else rho_b)):
        own = rng.normal(size=(worlds, clusters, 1))
        noise = rng.normal(size=(worlds, clusters, size))
        found.append(math.sqrt(rho / 2) * (shared + own) + math.sqrt(1 - rho) * noise < norm.ppf(p))
    return found[0], found[1]


def differences(worlds, clusters, size, p_a, p_b, rho_a, rho_b=None, *, seed=0):
    """The judge's own Difference of each simulated study."""
    a, b = arms(np.random.default_rng([seed, clusters, size]), worlds, clusters, size, p_a, p_b, rho_a, rho_b)
    codes = np.repeat(np.arange(clusters), size)
    deltas = a.astype(float) - b.astype(float)
    return [stats.paired(world.ravel(), codes) for world in deltas]


def rate(found):
    """The share of True."""
    found = list(found)
    return sum(found) / len(found)
