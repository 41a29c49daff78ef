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


@dataclass(frozen=True, eq=False)
class _Firing:
    """Where latents are above their level: `tokens` and `latents` [n], by latent, then token; tokens of all prompts
    are counted through, and `starts` [m + 1] says where each latent's begin."""

    tokens: Tensor
    latents: Tensor
    starts: Tensor

    def of(self, latent: int) -> Tensor:
        return self.tokens[self.starts[latent] : self.starts[latent + 1]]


def find_places(
    subject: Any, dictionary: Any, points: Sequence[Point], n: int, *, found: Any = None
) -> list[Place]:
    """At most `n` places for edits at the dictionary's site, most sensitive first. `found` is what
    `attribution.gradients` gave for these points; without it, one backward pass."""
    if not points or n < 1:
        return []
    found = attribution.gradients(subject, dictionary.site, points) if found is None else found
    with torch.inference_mode():
        gradients = [g.float() for g in found.gradients]
        firing = _firing(found.activations, dictionary)
        chosen = _choose(firing, gradients, dictionary, n)
        rows = dictionary.decoder_rows(torch.arange(dictionary.n_features)).float()
        ends = torch.tensor([len(g) for g in gradients]).cumsum(0)
        out = []
        for j in chosen:
            at, sums = firing.of(j), []
            for g, end in zip(gradients, ends.tolist(), strict=True):
                here = at[(at >= end - len(g)) & (at < end)] - (end - len(g))
                sums.append(g[here].sum(0))
            out.append(Place(j, dictionary.max_activation * (rows @ torch.stack(sums).mean(0))))
    return out


def _firing(activations: Sequence[Tensor], dictionary: Any) -> _Firing:
    level = LEVEL * dictionary.max_activation
    step = max(1, attribution.DENSE_AT_ONCE // dictionary.n_features)
    tokens, latents, seen = [], [], 0
    for x in activations:
        for part in x.split(step):
            token, latent = (dictionary.encode(part.float()) > level).nonzero(as_tuple=True)
            tokens.append(token.cpu() + seen)
            latents.append(latent.cpu())
            seen += len(part)
    token, latent = torch.cat(tokens), torch.cat(latents)
    order = latent.argsort(stable=True)
    count = torch.bincount(latent, minlength=dictionary.n_features)
    return _Firing(token[order], latent[order], torch.cat([count.new_zeros(1), count.cumsum(0)]))


def _choose(firing: _Firing, gradients: Sequence[Tensor], dictionary: Any, n: int) -> list[int]:
    m, lengths = dictionary.n_features, torch.tensor([len(g) for g in gradients])
    norms = torch.cat([g.norm(dim=1) for g in gradients]).cpu().double()
    prompt = torch.repeat_interleave(torch.arange(len(gradients)), lengths)[firing.tokens]
    pairs = torch.unique(firing.latents * len(gradients) + prompt)
    cover = torch.bincount(pairs // len(gradients), minlength=m) / len(gradients)
    count = firing.starts.diff().clamp_min(1)
    strength = torch.zeros(m, dtype=torch.float64).index_add_(0, firing.latents, norms[firing.tokens]) / count
    live = (cover >= COVER) & (dictionary.max_activation.cpu() > 0)
    order = strength.masked_fill(~live, -1.0).argsort(descending=True, stable=True)[: int(live.sum())]
    chosen: list[int] = []
    for i in order.tolist():
        shared = [torch.isin(firing.of(i), firing.of(j)).sum() / torch.minimum(count[i], count[j]) for j in chosen]
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
