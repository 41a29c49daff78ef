"""The finder: from decision points to a small edit, by contrast, attribution, causal screening and combination.

1. Rank the latents three ways on train points and take turns: attribution on decisions that are not safely
   right, balanced over strata; attribution on failed decisions; contrast. What never fires is left out.
2. Find places: latents whose firing marks the tokens where the decision can be moved (see `places`), and for each
   the latents that adding there should help most; one more place and its latents come from hints, system lines
   whose effect on the activations is contrasted with the bare prompt (the edit itself carries no prompt).
   Screen both by patching: clamp at 0, add and subtract one largest activation, everywhere or only at a place.
3. Give the best a dose-response, both ways, 0.25 to 4 largest activations.
4. Combine greedily, up to k latents, while the objective grows.
5. Leave the choice among the few best, and doing nothing, to the caller's validation.

Latents are told apart by what they do and never by their number: a permuted dictionary gives permuted edits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fairlead import steering
from fairlead.dictionaries.quality import with_statistics
from fairlead.features import attribution, contrast
from fairlead.features.places import Place, find_places, hinted_place
from fairlead.features.points import MARGIN, WHOLE, Point, choose, needed
from fairlead.features.screen import Effect, Screen, add, dose_response, scaled, suppress
from fairlead.steering import Edit, Gate, Op


@dataclass(frozen=True)
class Search:
    """How far the finder looks. Counts bound its work the same on every machine. `seconds` is a stop by the clock for
    interactive use: past it the finder goes on with what it has, and says so; None, and nothing depends on speed."""

    k: int = 4
    scope: str = "all"
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    n_decisions: int = 72
    n_screen: int = 36
    shortlist: int = 16
    places: int = 3
    per_place: int = 8
    hints: tuple[str, ...] = ("Be careful.", "Do only what is asked.")
    kept: int = 6
    finalists: int = 5
    least_gain: float = 0.05
    seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Kept:
    """A latent that went through screening: its best single edit and its doses, 0 being the bare subject.
    `gain` is in what the search climbs, `effect` in P(right) balanced over strata."""

    index: int
    gate: Gate
    best: Effect
    doses: list[dict[str, Any]]
    gain: float
    effect: float
    contrast: dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Found:
    """What the finder hands to validation: candidate edits, best on train first, and how it got there."""

    candidates: tuple[Effect, ...]
    kept: tuple[Kept, ...]
    bare: Effect
    points: tuple[Point, ...]
    dictionary: Any
    scored: int
    prompts: int
    stopped_early: bool
    shortlist: tuple[int, ...] = field(default=())


def find(subject: Any, dictionary: Any, train: Sequence[Point], search: Search | None = None) -> Found:
    """Candidate edits for what goes wrong at `train` points. NotApplicable without points.

    `dictionary` is a SparseDictionary at one site of `subject` (a LocalSubject); where it has no
    max_activation, that is measured on the points' prompts."""
    search = search or Search()
    ends = None if search.seconds is None else time.monotonic() + search.seconds
    points = choose(needed(train, "train"), search.n_decisions, search.seed)
    dictionary = _measured(subject, dictionary, points)
    few = Screen(subject, dictionary, choose(points, search.n_screen, search.seed), ends)
    all_ = few.on(points)
    slopes = attribution.gradients(subject, dictionary.site, points)
    latents, ranked, numbers = _shortlist(subject, dictionary, points, search, slopes)
    chosen = [i for i, p in enumerate(points) if p.failed] or [i for i, p in enumerate(points) if p.critical]
    critical = [points[i] for i in chosen]
    places = find_places(subject, dictionary, critical, search.places, found=attribution.only(slopes, chosen))
    hinted = hinted_place(subject, dictionary, critical, search.hints)
    gated = _at_places([*([hinted] if hinted else []), *places], search.per_place)
    started = _first_pass(few, [*((i, Gate()) for i in ranked), *gated], search)
    kept = tuple(
        _doses(all_, index, gate, search, numbers.get(index, {}))
        for index, gate in started
        if not all_.late or not all_.scored
    )
    kept = tuple(sorted(kept, key=lambda found: -found.gain))
    candidates = _combine(all_, kept, search)
    scored, prompts = few.scored + all_.scored, few.prompts + all_.prompts
    prompts += latents + len(critical) * len(search.hints)
    return Found(
        candidates, kept, all_.bare, tuple(points), dictionary, scored, prompts, all_.late, tuple(ranked)
    )


def _measured(subject: Any, dictionary: Any, points: Sequence[Point]) -> Any:
    """The dictionary with max activations and firing rates: its own, or measured here."""
    if dictionary.max_activation is not None and dictionary.firing_rate is not None:
        return dictionary
    prompts = [p.decision.messages for p in points]
    x = torch.cat(subject.activations(prompts, [dictionary.site], "all")[dictionary.site]).float()
    fresh = with_statistics(dictionary, x)
    if dictionary.max_activation is None:
        return fresh
    return dictionary.replace(firing_rate=fresh.firing_rate)


def _shortlist(
    subject: Any, dictionary: Any, points: Sequence[Point], search: Search, slopes: Any
) -> tuple[int, list[int], dict[int, dict[str, float | None]]]:
    """(prompts read, latents best first, their numbers). The three rankings take turns."""
    effects = attribution.attribute(subject, dictionary, points, search.scope, found=slopes)
    _, told = contrast.at_decisions(subject, dictionary, points)
    strongest = torch.maximum(effects.suppress, effects.amplify.abs())
    failed = torch.tensor([p.failed for p in points])
    unsafe = (effects.margin < MARGIN).float()[:, None]
    suppress_, amplify = (effects.mean(unsafe * e, points) for e in (effects.suppress, effects.amplify))
    gain = torch.maximum(suppress_, amplify.abs())
    rankings = [gain]
    if bool(failed.any()):
        rankings.append(torch.maximum(effects.suppress[failed].mean(0), effects.amplify[failed].mean(0).abs()))
    rankings.append((told.auroc - 0.5).abs())
    live = (strongest.abs().amax(0) > 0) & (dictionary.max_activation > 0) & (dictionary.firing_rate > 0)
    ranked = _take_turns(rankings, live, search.shortlist)
    names = ("difference", "auroc", "log_odds")
    numbers = {
        i: {name: _number(getattr(told, name)[i]) for name in names} | {"attribution": _number(gain[i])} for i in ranked
    }
    return 2 * len(points), ranked, numbers


def _take_turns(rankings: Sequence[Tensor], live: Tensor, n: int) -> list[int]:
    """Up to `n` live latents. Ties in a ranking (a contrast of few decisions has many) go by the first ranking."""
    orders = []
    for values in rankings:
        ids = (live & torch.isfinite(values)).nonzero()[:, 0]
        ids = ids[rankings[0][ids].argsort(descending=True)]
        orders.append(ids[values[ids].argsort(descending=True, stable=True)].tolist())
    taken: list[int] = []
    for place in range(int(live.numel())):
        for order in orders:
            if place < len(order) and order[place] not in taken and len(taken) < n:
                taken.append(order[place])
        if len(taken) >= n:
            break
    return taken


def _number(value: Tensor) -> float | None:
    return float(value) if bool(torch.isfinite(value)) else None


def _at_places(places: Sequence[Place], n: int) -> list[tuple[int, Gate]]:
    """For each place, the `n` latents that adding or subtracting there moves the preference most."""
    out = []
    for place in places:
        order = place.amplify.abs().nan_to_num(0.0).argsort(descending=True, stable=True)
        out += [(i, place.gate) for i in order[:n].tolist() if float(place.amplify[i]) != 0.0]
    return out


def _first_pass(screen: Screen, latents: Sequence[tuple[int, Gate]], search: Search) -> list[tuple[int, Gate]]:
    """The `kept` latents, each with where it acts, whose best of three edits does most for the objective."""
    gains: list[tuple[float, int, Gate]] = []
    for index, gate in latents:
        if screen.late:
            break
        trials = [add(index, 1.0, search.scope), add(index, -1.0, search.scope), suppress(index, search.scope)]
        gains.append((max(screen.effect((replace(e, gate=gate),)).score for e in trials), index, gate))
    best: dict[int, tuple[int, Gate]] = {}
    for _, index, gate in sorted(gains, key=lambda found: -found[0]):
        best.setdefault(index, (index, gate))
    return list(best.values())[: search.kept]


def _doses(screen: Screen, index: int, gate: Gate, search: Search, numbers: dict[str, float | None]) -> Kept:
    """The latent at every strength, both ways, and clamped at 0, where `gate` is open."""
    bare = screen.bare
    doses: list[tuple[float, Effect]] = [(0.0, bare)]
    best = screen.effect((replace(suppress(index, search.scope), gate=gate),))
    for strength in sorted(search.strengths):
        for signed in (strength, -strength):
            if screen.late:
                continue
            effect = screen.effect((replace(add(index, signed, search.scope), gate=gate),))
            doses.append((signed, effect))
            best = max(best, effect, key=lambda e: e.score)
    rows = dose_response(doses, screen.points, search.seed)
    gained = best.strata[WHOLE] - bare.strata[WHOLE]
    return Kept(index, gate, best, rows, best.score - bare.score, gained, numbers)


def _combine(screen: Screen, kept: Sequence[Kept], search: Search) -> tuple[Effect, ...]:
    """Greedy combination from the best single edit; the finalists are the best of every size and of strength."""
    singles = [found.best for found in kept if found.gain > 0]
    if not singles:
        return ()
    current = max(singles, key=lambda e: e.score)
    path = [current]
    while len(current.edits) < search.k and not screen.late:
        used = {edit.direction for edit in current.edits}
        more = [e for single in singles for e in _variants(single.edits[0]) if e.direction not in used]
        tried = [screen.effect((*current.edits, edit)) for edit in more if not screen.late]
        best = max(tried, key=lambda e: e.score, default=current)
        if best.score < current.score + search.least_gain:
            break
        current = best
        path.append(current)
    if not screen.late:
        path += [screen.effect(scaled(current.edits, factor)) for factor in (0.5, 1.5)]
    distinct = {steering.fingerprint(e.edits): e for e in [*path, *sorted(singles, key=lambda e: -e.score)]}
    helpful = [e for e in distinct.values() if e.score > screen.bare.score]
    return tuple(sorted(helpful, key=lambda e: (-e.score, len(e.edits)))[: search.finalists])


def _variants(edit: Edit) -> tuple[Edit, ...]:
    """An edit and, where it adds, half of it."""
    return (edit, replace(edit, value=edit.value / 2)) if edit.op is Op.ADD else (edit,)
