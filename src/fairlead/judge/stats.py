"""Statistics for paired, clustered, mostly binary results. Numbers in, numbers out; None is not measured.

Clusters, never items, are the unit: the renderings and seeds of one instance are not independent. What each
procedure promises is audited by simulation in tests/judge/test_audits.py; formulas are in docs/judging.md.
Sources: fair_fight.md §3; Wilson 1927; Bonett & Price 2012 (discordant pairs added); Hall 1992 (skewness);
Schuirmann 1987 (TOST); Holm 1979; Benjamini & Hochberg 1995.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Singles = NDArray[np.float32]  # resampling matrices: half the memory, and exact for whole sums
FEW_CLUSTERS = 40
FEW_INFORMATIVE = 10
RESAMPLES = 10_000
EXACT_UP_TO = 16  # clusters whose 2**n sign flips are enumerated
NORMAL_FROM = 2_000  # clusters from which the sign-flip distribution is its normal limit
POWER = 0.8


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Clustering:
    """How much n is worth. `icc` is None when it cannot be estimated (no variance, or no two items in one
    cluster); `effective_n` is then the number of clusters, the cautious choice."""

    n: int
    clusters: int
    icc: float | None
    effective_n: float


@dataclass(frozen=True)
class Difference:
    """A paired difference a − b. `interval` is the cluster t interval, `p` flips the signs of cluster sums.
    `missing` counts items without a value in one or both arms. None: nothing to compare.

    `mde` is the smallest effect that two sides at .05 find with 80 % power at this spread and these clusters;
    `effective_n` what the pairs are worth; `informative` the number of clusters that the spread rests on.
    """

    estimate: float | None
    interval: Interval | None
    p: float | None
    pairs: int
    clusters: int
    missing: int
    warnings: tuple[str, ...] = ()
    se: float | None = None
    mde: float | None = None
    effective_n: float | None = None
    informative: float = 0.0
    skew: float = 0.0  # skewness of the estimate, for the equivalence test
    se_wide: float | None = None  # with one discordant cluster added on each side, for the equivalence test


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval | None:
    """The Wilson score interval of a proportion; n may be an effective n. None when n is 0."""
    if n <= 0:
        return None
    if not 0 <= successes <= n * (1 + 1e-12):
        raise ValueError(f"successes must be between 0 and n: {successes} of {n}")
    z = _z(confidence)
    p = min(1.0, successes / n)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(0.0 if p == 0 else max(0.0, centre - half), 1.0 if p == 1 else min(1.0, centre + half))


@lru_cache(maxsize=8)
def _z(confidence: float) -> float:
    return float(sps.norm.ppf(0.5 + confidence / 2))


@lru_cache(maxsize=512)
def t_quantile(q: float, df: int) -> float:
    """The q-quantile of Student's t."""
    return float(sps.t.ppf(q, df))


def clustering(values: Sequence[float] | Floats, clusters: Sequence[Hashable] | Ints) -> Clustering:
    """Intra-cluster correlation (one-way ANOVA estimator, cut to [0, 1]) and effective n = n / (1 + (m − 1)·ICC),
    with m the size-weighted mean cluster size."""
    x, codes, k = _coded(values, clusters)
    n = len(x)
    sizes = np.bincount(codes, minlength=k).astype(float)
    if n <= k or k < 2 or np.ptp(x) == 0:
        return Clustering(n, k, None, float(k))
    means = np.bincount(codes, weights=x, minlength=k) / sizes
    between = float((sizes * (means - x.mean()) ** 2).sum() / (k - 1))
    within = float(((x - means[codes]) ** 2).sum() / (n - k))
    m0 = float((n - (sizes**2).sum() / n) / (k - 1))
    total = between + (m0 - 1) * within
    icc = min(1.0, max(0.0, (between - within) / total)) if total > 0 else 1.0
    m = float((sizes**2).sum() / n)
    return Clustering(n, k, icc, n / (1 + (m - 1) * icc))


def mean_interval(
    values: Sequence[float] | Floats, clusters: Sequence[Hashable] | Ints, confidence: float = 0.95
) -> Interval | None:
    """Cluster t interval of a mean. None for fewer than two clusters."""
    x, codes, k = _coded(values, clusters)
    if k < 2:
        return None
    sums, counts = _sums(x, codes, k)
    mean = float(x.mean())
    residuals = sums - mean * counts
    half = t_quantile(0.5 + confidence / 2, k - 1) * math.sqrt(k / (k - 1) * float((residuals**2).sum())) / len(x)
    return Interval(mean - half, mean + half)


def difference(
    a: Mapping[Hashable, float | None],
    b: Mapping[Hashable, float | None],
    cluster_of: Mapping[Hashable, Hashable],
    *,
    confidence: float = 0.95,
) -> Difference:
    """The paired difference a − b over items measured in both; None counts as missing, never as zero."""
    measured_a = {key for key, value in a.items() if value is not None}
    measured_b = {key for key, value in b.items() if value is not None}
    both = sorted(measured_a & measured_b, key=repr)
    missing = len((set(a) | set(b)) - set(both))
    deltas = [float(a[key] or 0.0) - float(b[key] or 0.0) for key in both]
    return paired(deltas, [cluster_of[key] for key in both], missing=missing, confidence=confidence)


def paired(
    deltas: Sequence[float] | Floats,
    clusters: Sequence[Hashable] | Ints,
    *,
    missing: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """The mean of paired differences [n] in clusters [n], with its interval and test.

    Interval: mean ± t(k − 1) · se, se² = k/(k − 1) · (Σ_c e_c² + (r·m̄)²) / n², e_c the cluster's sum less its
    size times the mean, and one discordant cluster added (half one on each side; r the root mean square of
    the cluster means that are not 0, 1 when all are), so that agreement everywhere is not certainty.
    """
    if len(deltas) == 0:
        return Difference(None, None, None, 0, 0, missing, ("nothing to compare",))
    x, codes, k = _coded(deltas, clusters)
    sums, counts = _sums(x, codes, k)
    n, mean = len(x), float(x.mean())
    group = clustering(x, codes)
    if k < 2:
        return Difference(mean, None, sign_flip(sums), n, k, missing, _notes(k, 0.0, missing), None, None,
                          group.effective_n)  # fmt: skip
    residuals = sums - mean * counts
    squares = float((residuals**2).sum())
    moved = (sums / counts)[sums != 0]
    added = (math.sqrt(float((moved**2).mean())) if len(moved) else 1.0) * n / k
    se = math.sqrt(k / (k - 1) * (squares + added**2)) / n
    wide = math.sqrt(k / (k - 1) * (squares + 2 * added**2)) / n
    skew = float((residuals**3).sum()) / (squares + 2 * added**2) ** 1.5
    informative = squares**2 / float((residuals**4).sum()) if squares > 1e-18 else 0.0
    half = t_quantile(0.5 + confidence / 2, k - 1) * se
    found = Interval(_neat(max(-1.0, mean - half) if _bounded(x) else mean - half),
                     _neat(min(1.0, mean + half) if _bounded(x) else mean + half))  # fmt: skip
    mde = (t_quantile(0.975, k - 1) + t_quantile(POWER, k - 1)) * se
    return Difference(
        mean, found, sign_flip(sums), n, k, missing, _notes(k, informative, missing), se, mde, group.effective_n,
        informative, skew, wide,
    )  # fmt: skip


def _bounded(x: Floats) -> bool:
    return bool(np.abs(x).max() <= 1)


def _neat(value: float) -> float:
    return round(value, 9)


def _notes(k: int, informative: float, missing: int) -> tuple[str, ...]:
    notes = []
    if k < FEW_CLUSTERS:
        notes.append(f"{k} clusters: intervals and tests are unreliable below {FEW_CLUSTERS}")
    elif informative < FEW_INFORMATIVE:
        notes.append(f"the spread rests on about {informative:.0f} clusters that differ: read the interval as rough")
    if missing:
        notes.append(f"{missing} items are not measured in both arms")
    return tuple(notes)


def equivalence(found: Difference, margin: float) -> float | None:
    """TOST: the p that the true difference lies within ±margin, the larger of two one-sided p-values of a
    skewness-corrected (Hall) cluster t. None when nothing was compared, when there is no margin, or below 40
    clusters or 10 informative ones where any differ: there it is never claimed."""
    if found.estimate is None or found.se_wide is None or margin <= 0 or found.clusters < FEW_CLUSTERS:
        return None
    if 0 < found.informative < FEW_INFORMATIVE:
        return None
    df, g = found.clusters - 1, found.skew

    def upper_tail(distance: float, g: float) -> float:
        """P(the estimate is this many standard errors or more below the truth), Hall's cubic transformation."""
        t = -distance
        hall = t + g * t * t / 3 + g * g * t**3 / 27 + g / 6
        return float(sps.t.cdf(hall, df))

    above = upper_tail((margin - found.estimate) / found.se_wide, g)
    below = upper_tail((margin + found.estimate) / found.se_wide, -g)
    return max(above, below)


def sign_flip(sums: Sequence[float] | Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Two-sided sign-flip permutation p of cluster sums against 0: exact up to 16 non-zero clusters, sampled
    with (1 + hits) / (1 + draws), which is never 0, and the normal limit from 2,000 clusters on."""
    x = np.asarray(sums, dtype=float)
    x = x[x != 0]  # flipping a zero changes nothing
    k = len(x)
    if k == 0:
        return 1.0
    seen = abs(float(x.sum())) * (1 - 1e-5) - 1e-9  # ties count as hits, rounding aside
    if k <= EXACT_UP_TO:
        return float(np.mean(np.abs(_all_signs(k) @ x.astype(np.float32)) >= seen))
    if k >= NORMAL_FROM:
        return float(2 * sps.norm.sf(abs(float(x.sum())) / math.sqrt(float((x**2).sum()))))
    hits = int(np.count_nonzero(np.abs(_signs(k, resamples, seed) @ x.astype(np.float32)) >= seen))
    return (1 + hits) / (1 + resamples)


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Holm's step-down adjusted p-values, in the order given."""
    ranked = sorted(p_values, key=lambda name: p_values[name])
    adjusted, running = {}, 0.0
    for i, name in enumerate(ranked):
        running = max(running, min(1.0, (len(ranked) - i) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def benjamini_hochberg(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Benjamini–Hochberg adjusted p-values (q), in the order given: q ≤ .05 holds false discoveries to 5 %."""
    if not p_values:
        return {}
    names = list(p_values)
    adjusted = sps.false_discovery_control([p_values[name] for name in names], method="bh")
    return {name: float(q) for name, q in zip(names, adjusted, strict=True)}


def _coded(values: Sequence[float] | Floats, clusters: Sequence[Hashable] | Ints) -> tuple[Floats, Ints, int]:
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values but {len(clusters)} clusters")
    x = np.asarray(values, dtype=float)
    if not np.isfinite(x).all():
        raise ValueError("values must be finite; leave out what was not measured")
    if isinstance(clusters, np.ndarray) and clusters.dtype.kind in "iu":
        codes, k = _dense(clusters)
        return x, codes, k
    places: dict[Hashable, int] = {}
    codes = np.fromiter((places.setdefault(c, len(places)) for c in clusters), dtype=np.intp, count=len(clusters))
    return x, codes, len(places)


def _dense(codes: NDArray[Any]) -> tuple[Ints, int]:
    """Whole numbers from 0 to k − 1, without sorting."""
    if len(codes) == 0:
        return codes.astype(np.intp), 0
    low = codes.min()
    present = np.bincount(codes - low) > 0
    return (np.cumsum(present) - 1)[codes - low], int(present.sum())


def _sums(x: Floats, codes: Ints, k: int) -> tuple[Floats, Floats]:
    sums: Floats = np.bincount(codes, weights=x, minlength=k).astype(np.float64)
    counts: Floats = np.bincount(codes, minlength=k).astype(np.float64)
    return sums, counts


def _signs(k: int, resamples: int, seed: int) -> Singles:
    return _sign_block(1 << (k - 1).bit_length(), resamples, seed)[:, :k]


@lru_cache(maxsize=4)
def _sign_block(k: int, resamples: int, seed: int) -> Singles:
    rng = np.random.default_rng([seed, k, resamples, 1])
    return rng.integers(0, 2, size=(resamples, k), dtype=np.int8).astype(np.float32) * 2 - 1


@lru_cache(maxsize=4)
def _all_signs(k: int) -> Singles:
    bits = (np.arange(2**k)[:, None] >> np.arange(k)[None, :]) & 1
    return bits.astype(np.float32) * 2 - 1
