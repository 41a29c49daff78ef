"""Controls for the feature arm: what the same machinery does without the feature.

Matched to the edit of the fitted `feature` arm of the same study:
empty       the feature's latents, with 0 added: must equal `none` exactly
wrong_sign  the change −Δh at every token, so the same norm: an added amount is negated, ablating a latent becomes
            doubling it (a clamp of z to c becomes 2z − c)
random      other live latents, one for each edited one, near it in firing rate; same operation and sign, the same
            mean ‖Δh‖ on the decisions' tokens; drawn anew for every item
noise       an isotropic Gaussian direction of that norm added at the same tokens; drawn anew for every item
dense       the difference of means of right and failed train decisions, of that norm at the same tokens
other_layer the same latents' directions, of the same size, `layers` further up; down where the model ends

The whole pipeline again, same options and same budget, on another dictionary of the same site:
random_dictionary  directions that owe nothing to the data, firing as often as the dictionary's latents do
shuffled           the dictionary's own encoder over a decoder dealt to other latents
pca, kmeans        fitted here, on the activations of the train decisions' prompts; that is charged to the arm

Options: `nearest`, how many latents of nearest firing rate one is drawn from; `layers` of other_layer; `n_decisions`,
train decisions that activations and means are taken from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import NotApplicable
from fairlead.core.protocols import FitContext
from fairlead.dictionaries import random as random_dictionary
from fairlead.dictionaries import shuffled
from fairlead.dictionaries.base import SparseDictionary
from fairlead.features.change import in_raw, mirrored, norm, watched
from fairlead.features.excerpt import cut
from fairlead.features.points import Point, choose, needed, points
from fairlead.methods import _drawn, _options, _steered, feature
from fairlead.methods._altered import shifted
from fairlead.methods._drawn import Drawn, in_place_of
from fairlead.methods._other import other_dictionary
from fairlead.methods._saved import read_json
from fairlead.methods._steered import Steered
from fairlead.methods.vector import between_outcomes
from fairlead.steering import Edit, Latent, Op

PIPELINES = ("random_dictionary", "shuffled", "pca", "kmeans")
VARIANTS = ("empty", "wrong_sign", "random", "noise", "dense", "other_layer", *PIPELINES)
DEFAULTS: dict[str, Any] = {"nearest": 32, "layers": 1, "n_decisions": 240}


@dataclass(frozen=True)
class ControlMethod:
    """See the module."""

    variant: str
    options: Mapping[str, Any]
    makes: str = "subject"
    uses_dictionary: bool = True
    siblings: tuple[str, ...] = ("feature",)

    @property
    def name(self) -> str:
        return f"control.{self.variant}"

    async def fit(self, ctx: FitContext[Any]) -> Steered | Drawn:
        matched = ctx.sibling("feature")
        if self.variant in PIPELINES:
            return await self._again(ctx, matched)
        if not isinstance(matched, Steered) or (not matched.edits and self.variant != "empty"):
            raise NotApplicable("the feature arm made no edit, so there is nothing to match")
        if self.variant == "empty":
            return Steered("control", tuple(map(_nothing, matched.edits)), matched.rows)
        if self.variant == "wrong_sign":
            return Steered("control", mirrored(matched.edits), matched.rows)
        if self.variant == "other_layer":
            up = self.options["layers"]
            layers = [int((e.site or matched.rows.site).partition(".")[2]) for e in matched.edits]
            by = up if max(layers) + up < ctx.subject.n_layers else -up
            return shifted(matched, by, ctx.subject.n_layers, "control")
        assert matched.sample is not None
        template = tuple(in_raw(e, matched.rows) for e in matched.edits)
        size = norm(template, matched.rows, matched.sample)
        parts = (template, matched.rows, (), matched.sample, size, ctx.seed)
        if self.variant == "noise":
            return Drawn("noise", *parts)
        if self.variant == "dense":
            return await self._dense(ctx, template, matched, size)
        if ctx.dictionary is None:
            raise NotApplicable("control.random needs a dictionary", do="name one in the plan")
        pools = _pools(template, ctx.dictionary, matched.sample, self.options["nearest"])
        named = [*watched(template), *(i for pool in pools for i in pool)]
        return replace(Drawn("random", *parts), rows=cut(ctx.dictionary, named), pools=pools)

    async def _dense(self, ctx: FitContext[Any], template: tuple[Edit, ...], matched: Steered, size: float) -> Steered:
        """The dense direction in the place of every edit."""
        found = await self._points(ctx)
        (direction,) = between_outcomes(ctx.subject, found, [matched.rows.site]).values()
        assert matched.sample is not None
        names = [f"difference_{i}" for i in range(len(template))]
        directions = direction.expand(len(template), -1)
        edits, vectors = in_place_of(template, matched.rows, matched.sample, size, directions, names)
        return Steered("control", edits, matched.rows, vectors, {"size": size})

    async def _again(self, ctx: FitContext[Any], matched: Any) -> Steered:
        """The feature arm on another dictionary, with the feature arm's own options."""
        if ctx.dictionary is None:
            raise NotApplicable(f"{self.name} needs a dictionary to stand in for", do="name one in the plan")
        if not hasattr(ctx.subject, "attribution"):
            raise NotApplicable("this subject's activations cannot be read", expected="a local model")
        options = matched.about.get("options", {}) if isinstance(matched, Steered) else {}
        other = await self._dictionary(ctx)
        method = feature.plugin(None, options)
        found = await method.fit(replace(ctx, dictionary=other, options=dict(options)))
        told = {"name": other.name, "latents": other.n_features, "training_flops": other.training_flops}
        return replace(found, method="control", about={**found.about, "dictionary": told})

    async def _dictionary(self, ctx: FitContext[Any]) -> SparseDictionary:
        """The variant's dictionary, fitted where it has to be; what that took is charged."""
        base = ctx.dictionary
        assert base is not None
        if self.variant == "shuffled":
            return shuffled.shuffle(base, ctx.seed)
        decisions = [p.decision.messages for p in await self._points(ctx)]
        if self.variant in ("pca", "kmeans"):
            return other_dictionary(self.variant, ctx, decisions)
        x = torch.cat(ctx.subject.activations(decisions, [base.site], "all")[base.site]).float().cpu()
        active = float(torch.cat([(base.encode(part) > 0).float().sum(-1) for part in x.split(64)]).mean())
        l0 = min(max(active, 1.0), base.n_features / 2)
        named = {"site": base.site, "name": self.variant}
        fitted = random_dictionary.fit(x, base.n_features, ctx.seed, l0=l0, **named)
        if ctx.subject.meter is not None:
            ctx.subject.meter.charge(flops=fitted.training_flops or 0.0)
        return fitted

    async def _points(self, ctx: FitContext[Any]) -> list[Point]:
        episodes = await ctx.rollout(ctx.subject, ctx.train)
        return choose(needed(points(episodes), "train"), self.options["n_decisions"], ctx.seed)

    def load(self, path: Path) -> Steered | Drawn:
        kind = read_json(path, "control").get("kind")
        return _steered.load(path, "control") if kind is None else _drawn.load(path)


def _nothing(edit: Edit) -> Edit:
    return replace(edit, op=Op.ADD, value=0.0, unit="raw")


def _latents(edits: tuple[Edit, ...]) -> list[int]:
    return [e.direction.index for e in edits if isinstance(e.direction, Latent)]


def _pools(edits: tuple[Edit, ...], dictionary: Any, sample: Tensor, nearest: int) -> tuple[tuple[int, ...], ...]:
    """For each edit, the latents nearest in log firing rate on the sample, the edited ones left out. They are
    told apart by their numbers' values, not their order, so a permuted dictionary gives permuted pools."""
    fires = torch.stack([(dictionary.encode(x) > 0).float().mean(0) for x in sample.split(64)])
    rates = (fires * torch.tensor([len(x) for x in sample.split(64)])[:, None]).sum(0) / len(sample)
    live = rates > 0
    live[_latents(edits)] = False
    ids = live.nonzero()[:, 0]
    if len(ids) < len(edits):
        raise NotApplicable("too few live latents to draw from", expected=f"{len(edits)} or more", got=str(len(ids)))
    pools = []
    for index in _latents(edits):
        own = rates[index].clamp(min=0.5 / len(sample)).log()
        apart = (rates[ids].log() - own).abs()
        order = sorted(range(len(ids)), key=lambda i: (float(apart[i]), _trace(dictionary, int(ids[i]))))
        pools.append(tuple(int(ids[i]) for i in order[: max(nearest, 2 * len(edits))]))
    return tuple(pools)


def _trace(dictionary: Any, index: int) -> float:
    """A number of the latent's own, to order those that fire equally often."""
    return float(dictionary.decoder_rows([index])[0].abs().sum())


def plugin(variant: str | None, options: Mapping[str, Any]) -> ControlMethod:
    """`control.empty`, `control.wrong_sign`, `control.random` and the others of the module."""
    return ControlMethod(_options.variant_of(variant, VARIANTS, "control"), _options.read(options, DEFAULTS, "control"))
