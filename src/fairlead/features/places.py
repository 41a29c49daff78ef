"""Where an edit should act: latents whose firing marks the tokens at which the decision can be moved.

An edit that adds a direction everywhere also writes it where it only does harm. So the finder looks for
*places*: latents that fire in nearly every prompt, on tokens where the preference (see `attribution`) has a
large gradient. `i += 1x when j > 0.25x` then adds latent i only where place j fires: conditional steering,
chosen from the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairlead.features import attribution
from fairlead.features.points import Point
from fairlead.steering import Compare, Gate, Latent, Level, Reading

LEVEL = 0.25  # of its largest activation, above which a place counts as firing
COVER = 0.8  # share of prompts it must fire in
RARE = 0.1  # share of all tokens a hinted place may fire on
APART = 0.5  # two places share at most this part of their tokens


@dataclass(frozen=True, eq=False)
class Place:
    """A latent that marks tokens; `amplify` [m] is what adding each latent's largest activation there does to
    the preference, to first order, averaged over the points."""

    latent: int
    amplify: Tensor

    @property
    def gate(self) -> Gate:
        """Open at the tokens where the latent fires."""
        return gate(self.latent)


def gate(latent: int) -> Gate:
    return Gate(when=Compare(Reading(Latent(latent)), ">", Level(LEVEL, "max")))


def find_places(subject: Any, dictionary: Any, points: Sequence[Point], n: int) -> list[Place]:
    """At most `n` places for edits at the dictionary's site, most sensitive first. One backward pass."""
    if not points or n < 1:
        return []
    found = attribution.gradients(subject, dictionary.site, points)
    with torch.inference_mode():
        gradients = [g.float() for g in found.gradients]
        fires = [dictionary.encode(x.float()) > LEVEL * dictionary.max_activation for x in found.activations]
        chosen = _choose(fires, gradients, dictionary, n)
        rows = dictionary.decoder_rows(torch.arange(dictionary.n_features)).float()
        out = []
        for j in chosen:
            moved = torch.stack([g[f[:, j]].sum(0) for f, g in zip(fires, gradients, strict=True)]).mean(0)
            out.append(Place(j, dictionary.max_activation * (rows @ moved)))
    return out


def _choose(fires: Sequence[Tensor], gradients: Sequence[Tensor], dictionary: Any, n: int) -> list[int]:
    cover = torch.stack([f.any(0).float() for f in fires]).mean(0)
    all_fires, all_norms = torch.cat(list(fires)), torch.cat([g.norm(dim=1) for g in gradients])
    count = all_fires.sum(0).clamp_min(1)
    strength = (all_fires * all_norms[:, None]).sum(0) / count
    live = (cover >= COVER) & (dictionary.max_activation > 0)
    order = [i for i in strength.argsort(descending=True, stable=True).tolist() if live[i]]
    chosen: list[int] = []
    for i in order:
        shared = [(all_fires[:, i] & all_fires[:, j]).sum() / torch.minimum(count[i], count[j]) for j in chosen]
        if all(float(s) <= APART for s in shared):
            chosen.append(i)
        if len(chosen) == n:
            break
    return chosen


def hinted_place(subject: Any, dictionary: Any, points: Sequence[Point], hints: Sequence[str]) -> Place | None:
    """The place that system lines move: contrast of each prompt with and without a hint of what is wanted.

    At the token after the system line that a hint moves most (relative to its norm), the latents' mean change
    becomes `amplify`, in units of residual norm. The place is the latent that the hints move most, of those that
    fire there in nearly every bare prompt and on few other tokens. None without hints, points or such a latent.
    Where a model is sure of itself gradients vanish; this contrast does not."""
    if not points or not hints:
        return None
    prompts, site = [p.decision.messages for p in points], dictionary.site
    bare = subject.activations(prompts, [site], "all")[site]
    shifts, here = [], []
    for hint in hints:
        asked = subject.prompted(hint)
        for prompt, x, y in zip(prompts, bare, asked.activations(prompts, [site], "all")[site], strict=True):
            shared = _common_suffix(subject.tokens(prompt).ids, asked.tokens(prompt).ids)
            if shared == 0:
                continue
            x, y = x[-shared:].float(), y[-shared:].float()
            at = int(((y - x).norm(dim=1) / x.norm(dim=1).clamp_min(1e-9)).argmax())
            before = dictionary.encode(x[at : at + 1])[0]
            shifts.append(dictionary.encode(y[at : at + 1])[0] - before)
            here.append(before > LEVEL * dictionary.max_activation)
    if not shifts:
        return None
    cover = torch.stack(here).float().mean(0)
    rows = dictionary.decoder_rows(torch.arange(dictionary.n_features)).float()
    amplify = torch.stack(shifts).mean(0) * rows.norm(dim=1)
    fits = (cover >= COVER) & (dictionary.firing_rate > 0) & (dictionary.firing_rate <= RARE)
    latent = int(amplify.abs().masked_fill(~fits, -1.0).argmax())
    return Place(latent, amplify) if bool(fits[latent]) else None


def _common_suffix(a: Sequence[int], b: Sequence[int]) -> int:
    shared = 0
    while shared < min(len(a), len(b)) and a[-1 - shared] == b[-1 - shared]:
        shared += 1
    return shared
