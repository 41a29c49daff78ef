"""What a paired, clustered study can see: the detectable effect, power by formula, power by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats as sps

from fairlead.judge.stats import Floats, t_quantile

ALPHA = 0.05
CHUNK = 200  # worlds simulated at once


@dataclass(frozen=True)
class Assumed:
    """What a study is expected to look like. `discordance` is the share of pairs of items whose outcomes differ
    between the arms; `icc` how much of that is shared within a cluster of `size` items. A pilot measures them;
    without one they are assumptions and are stated as such."""

    clusters: int
    size: int = 1
    discordance: float = 0.3
    icc: float = 1.0
    source: str = "assumed"

    def spread(self, effect: float) -> float:
        """The standard deviation of a cluster's mean difference, for a true difference of `effect`."""
        variance = max(self.discordance, abs(effect)) - effect**2
        return math.sqrt(max(0.0, variance) * (1 + (self.size - 1) * self.icc) / self.size)


def detectable(se: float | None, clusters: int, *, power: float = 0.8, alpha: float = ALPHA) -> float | None:
    """The smallest effect found with `power` at standard error `se`: (t_(1−α/2) + t_power) · se, k − 1 degrees of
    freedom. None where there is no standard error."""
    if se is None or clusters < 2:
        return None
    return (t_quantile(1 - alpha / 2, clusters - 1) + t_quantile(power, clusters - 1)) * se


def power(effect: float, assumed: Assumed, *, alpha: float = ALPHA) -> float:
    """Power of the two-sided cluster t test, by the noncentral t distribution."""
    k = assumed.clusters
    if k < 2:
        return 0.0
    spread = assumed.spread(effect)
    added = 1 / k  # the discordant cluster that the interval adds
    se = math.sqrt((spread**2 + added) / k) if spread > 0 else 1 / k
    limit, shift = t_quantile(1 - alpha / 2, k - 1), abs(effect) / se
    return 1.0 if shift > limit + 8 else float(sps.nct.sf(limit, k - 1, shift))


def smallest(assumed: Assumed, *, wanted: float = 0.8, alpha: float = ALPHA) -> float | None:
    """The smallest effect that these clusters find with the power wanted; None when not even 1 is found."""
    low, high = 0.0, 1.0
    if power(high, assumed, alpha=alpha) < wanted:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, assumed, alpha=alpha) >= wanted else (middle, high)
    return high


def clusters_needed(
    effect: float, assumed: Assumed, *, wanted: float = 0.8, alpha: float = ALPHA, most: int = 1_000_000
) -> int | None:
    """The fewest clusters that find `effect` with the power wanted; None when more than `most` are needed."""

    def enough(k: int) -> bool:
        return power(effect, Assumed(k, assumed.size, assumed.discordance, assumed.icc), alpha=alpha) >= wanted

    if effect <= 0 or not enough(most):
        return None
    low, high = 2, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def draw(rng: np.random.Generator, worlds: int, effect: float, assumed: Assumed) -> Floats:
    """Cluster sums of paired differences [worlds, clusters]. Each pair is +1, −1 or 0 with the assumed discordance
    and a mean of `effect`; with probability √icc a pair repeats its cluster's own draw, so that two pairs of one
    cluster correlate by icc."""
    d = max(assumed.discordance, abs(effect))
    up, down = (d + effect) / 2, (d - effect) / 2
    shape = (worlds, assumed.clusters, assumed.size)

    def signs(shape: tuple[int, ...]) -> Floats:
        u = rng.random(shape)
        found: Floats = (u < up).astype(float) - (u >= 1 - down).astype(float)
        return found

    own, shared = signs(shape), signs((*shape[:2], 1))
    repeats = rng.random(shape) < math.sqrt(assumed.icc)
    sums: Floats = np.where(repeats, shared, own).sum(axis=2)
    return sums


def interval_of(sums: Floats, size: int, *, alpha: float = ALPHA) -> tuple[Floats, Floats, Floats]:
    """Estimates and ends of the judge's interval for many worlds of equal clusters: sums [worlds, k] -> [worlds]."""
    k, n = sums.shape[1], sums.shape[1] * size
    mean = sums.sum(axis=1) / n
    squares = ((sums - mean[:, None] * size) ** 2).sum(axis=1)
    moved = (sums != 0).sum(axis=1)
    added = np.where(moved > 0, (sums**2).sum(axis=1) / np.maximum(moved, 1), float(size**2))
    half = t_quantile(1 - alpha / 2, k - 1) * np.sqrt(k / (k - 1) * (squares + added)) / n
    return mean, mean - half, mean + half


def simulate(
    effect: float,
    assumed: Assumed,
    *,
    worlds: int = 2_000,
    alpha: float = ALPHA,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """The share of simulated studies whose interval lies above 0 for a true `effect` (below 0 when negative)."""
    if assumed.clusters < 2:
        return 0.0
    rng, found, done = np.random.default_rng([seed, assumed.clusters]), 0, 0
    while done < worlds:
        now = min(CHUNK, worlds - done)
        _, low, high = interval_of(draw(rng, now, effect, assumed), assumed.size, alpha=alpha)
        found += int(((low > 0) | (high < 0)).sum())
        done += now
        if progress is not None:
            progress(done, worlds)
    return found / worlds
