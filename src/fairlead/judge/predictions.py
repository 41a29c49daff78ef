"""How well an arm's claims predict test rows: AUC, R² or accuracy, with intervals from resampled clusters, and the
paired difference to another arm on the same resamples."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.judge.effects import codes_of

Floats = NDArray[np.float64]
RESAMPLES = 500
MEASURES = {"binary": "AUC", "pairwise": "AUC", "numeric": "R²", "multiclass": "accuracy"}


@dataclass(frozen=True)
class Skill:
    """One arm's measure on test; `behind` is the claim's measure less this arm's, with its interval."""

    arm: str
    value: float
    lo: float
    hi: float
    behind: float | None = None
    behind_lo: float | None = None
    behind_hi: float | None = None


def chance(kind: str, labels: Sequence[Any]) -> float:
    """What is reached without reading: 0.5, 0, or the share of the commonest name."""
    if kind == "multiclass":
        return max(labels.count(name) for name in set(labels)) / len(labels)
    return 0.0 if kind == "numeric" else 0.5


def skills(
    kind: str,
    labels: Sequence[Any],
    said: Mapping[str, Sequence[Any]],
    clusters: Sequence[Hashable],
    *,
    claim: str = "",
    seed: int = 0,
) -> tuple[Skill, ...]:
    """`said[arm]` holds, per row: p; or the value; or, of a multiclass label, whether the named class was right."""
    codes, k = codes_of(clusters)
    rng = np.random.default_rng([seed, 7])
    draws = [np.bincount(rng.integers(0, k, k), minlength=k)[codes].astype(float) for _ in range(RESAMPLES)]
    y = np.zeros(len(codes)) if kind == "multiclass" else np.asarray(labels, dtype=float)
    values = {arm: _all(kind, y, np.asarray(rows, dtype=float), draws) for arm, rows in said.items()}
    out = []
    for arm, (value, spread) in values.items():
        lo, hi = _percentiles(spread)
        if claim in values and arm != claim:
            mine, theirs = values[claim], spread
            low, high = _percentiles(mine[1] - theirs)
            out.append(Skill(arm, value, lo, hi, mine[0] - value, low, high))
        else:
            out.append(Skill(arm, value, lo, hi))
    return tuple(out)


def _percentiles(spread: Floats) -> tuple[float, float]:
    known = spread[np.isfinite(spread)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (0.0, 0.0)
    return float(low), float(high)


def _all(kind: str, y: Floats, said: Floats, draws: Sequence[Floats]) -> tuple[float, Floats]:
    """(the measure on all rows, the measure on each resample; NaN where a resample has one label only)."""
    if kind in ("binary", "pairwise"):
        order = np.argsort(said, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(said[order]) != 0, True))
        true, false = y[order], 1 - y[order]

        def measure(w: Floats) -> float:
            weights = w[order]
            up = np.cumsum(weights * true)[ends]
            down = np.cumsum(weights * false)[ends]
            total = up[-1] * down[-1]
            if total <= 0:
                return float("nan")
            steps_up, before = np.diff(up, prepend=0), np.concatenate([[0.0], down[:-1]])
            return float((steps_up * (before + np.diff(down, prepend=0) / 2)).sum() / total)
    elif kind == "numeric":

        def measure(w: Floats) -> float:
            mean = (w * y).sum() / w.sum()
            spread = float((w * (y - mean) ** 2).sum())
            return 1 - float((w * (y - said) ** 2).sum()) / spread if spread > 0 else float("nan")
    else:

        def measure(w: Floats) -> float:
            return float((w * said).sum() / w.sum())

    return measure(np.ones(len(y))), np.array([measure(w) for w in draws])
