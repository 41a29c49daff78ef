"""Causal screening: what an edit does to P(right) at decision points, patched in and scored, not rolled out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fairlead import steering
from fairlead.features.points import WHOLE, Point, by_stratum, climbed, measure, with_intervals
from fairlead.steering import Edit, Latent, Op, Scope


@dataclass(frozen=True, eq=False)
class Effect:
    """What edits do at some decision points: P(right) of each [N], its mean per stratum and over all strata, and
    `score`, what a search climbs (see points.climbed)."""

    edits: tuple[Edit, ...]
    values: Tensor
    strata: dict[str, float]
    score: float


@dataclass
class Screen:
    """Scores edits of one dictionary's latents on one subject at fixed points.

    `ends` is a time (time.monotonic) after which `late` holds; nothing stops by itself. `scored` counts the
    edits measured, and `prompts` the prompts read for it.
    """

    subject: Any
    dictionary: Any
    points: Sequence[Point]
    ends: float | None = None
    scored: int = 0
    prompts: int = 0
    _known: dict[str, Effect] = field(default_factory=dict)

    def effect(self, edits: Sequence[Edit]) -> Effect:
        """P(right) under `edits`; measured once."""
        key = steering.fingerprint(edits)
        if key not in self._known:
            steered = steering.apply(self.subject, edits, self.dictionary) if edits else self.subject
            odds = measure(steered, self.points)
            values = odds.sigmoid()
            found = Effect(tuple(edits), values, by_stratum(values, self.points), climbed(odds, self.points))
            self._known[key] = found
            self.scored += 1
            self.prompts += len(self.points)
        return self._known[key]

    @property
    def bare(self) -> Effect:
        """The subject as it is."""
        return self.effect(())

    @property
    def late(self) -> bool:
        return self.ends is not None and time.monotonic() > self.ends

    def on(self, points: Sequence[Point]) -> Screen:
        """The same screen on other points, with nothing measured yet."""
        return Screen(self.subject, self.dictionary, points, self.ends)


def suppress(latent: int, scope: str) -> Edit:
    """Clamp the latent to 0 where it fires."""
    return Edit(Latent(latent), Op.ABLATE, scope=Scope(scope))  # type: ignore[arg-type]


def add(latent: int, strength: float, scope: str) -> Edit:
    """Add `strength` times the latent's largest activation."""
    return Edit(Latent(latent), Op.ADD, strength, "max", scope=Scope(scope))  # type: ignore[arg-type]


def scaled(edits: Sequence[Edit], factor: float) -> tuple[Edit, ...]:
    """Every added amount times `factor`; other operations stay as they are."""
    return tuple(replace(e, value=e.value * factor) if e.op is Op.ADD else e for e in edits)


def dose_response(effects: Sequence[tuple[float, Effect]], points: Sequence[Point], seed: int) -> list[dict[str, Any]]:
    """Rows the report draws: {"strength", stratum: {value, lo, hi}, ..., "balanced": {...}}, by strength.

    A single stratum is drawn once, as it is named."""
    rows = []
    for strength, effect in sorted(effects, key=lambda pair: pair[0]):
        found = with_intervals(effect.values, points, seed=seed)
        whole = found.pop(WHOLE) if len(found) > 1 else None
        rows.append({"strength": strength, **found, **({"balanced": whole} if whole else {})})
    return rows
