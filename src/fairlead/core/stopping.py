"""When a comparison of two arms may stop early: an anytime-valid paired test. Nothing here needs numpy.

`E = B(1 + b, 1 + c) / B(1, 1) · 2^(b + c)` bets, uniformly over the unknown share, that the b wins and c losses
among pairs that differ are not a fair coin. Under the null it is a nonnegative martingale that starts at 1, so by
Ville's inequality it ever reaches 1/alpha with probability at most alpha, however often one looks. Pairs must be
independent: take one pair a cluster. Pairs that tie change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fairlead.core.errors import PlanError

NONE, ANYTIME = "none", "anytime"
RULES = (NONE, ANYTIME)
ALPHA = 0.05


@dataclass(frozen=True)
class Tally:
    """Pairs so far: where only the first arm succeeded, only the second, and where they agreed."""

    wins: int = 0
    losses: int = 0
    ties: int = 0

    def add(self, first: bool, second: bool) -> Tally:
        """The tally with one more pair."""
        return Tally(
            self.wins + (first and not second),
            self.losses + (second and not first),
            self.ties + (first == second),
        )

    @property
    def log_e(self) -> float:
        """The natural logarithm of E."""
        b, c = self.wins, self.losses
        return math.lgamma(1 + b) + math.lgamma(1 + c) - math.lgamma(2 + b + c) + (b + c) * math.log(2)

    @property
    def e(self) -> float:
        """The e-value; 1 before any pair differs. Large values are cut at 1e300."""
        return math.exp(min(self.log_e, 690.0))

    def stops(self, alpha: float = ALPHA) -> bool:
        """True when the arms differ, at level alpha, at any time one asks."""
        return self.log_e >= -math.log(alpha)


def first_stop(pairs: Iterable[tuple[bool, bool]], alpha: float = ALPHA) -> tuple[int | None, Tally]:
    """After how many pairs a study that looks after every one may stop (None: never), and the tally of all pairs."""
    tally, at = Tally(), None
    for number, (first, second) in enumerate(pairs, start=1):
        tally = tally.add(first, second)
        if at is None and tally.stops(alpha):
            at = number
    return at, tally


def rule(stop: Mapping[str, Any]) -> float | None:
    """The alpha of a plan's `stop = {rule = "anytime", alpha = 0.05}`; None for no rule. Raises PlanError."""
    name = stop.get("rule", NONE)
    if name not in RULES:
        raise PlanError("unknown stopping rule", expected=" or ".join(RULES), got=repr(name))
    alpha = stop.get("alpha", ALPHA)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1:
        raise PlanError("stop.alpha is no level", expected="a number between 0 and 1", got=repr(alpha))
    return float(alpha) if name == ANYTIME else None
