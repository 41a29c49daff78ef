"""Controls for the feature arm: what the same machinery does without the feature.

empty       the feature's latents, with 0 added: must equal `none` exactly
wrong_sign  the change −Δh at every token, so the same norm: an added amount is negated, ablating a latent becomes
            doubling it (a clamp of z to c becomes 2z − c)
random      other live latents, one for each edited one, near it in firing rate; same operation and sign, the same
            mean ‖Δh‖ on the decisions' tokens; drawn anew for every item
noise       an isotropic Gaussian direction of that norm added at the same tokens; drawn anew for every item

All match the fitted `feature` arm of the same study. Option `nearest`: how many latents of nearest firing rate
one is drawn from.
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
from fairlead.features.change import in_raw, mirrored, norm, watched
from fairlead.features.excerpt import cut
from fairlead.methods import _drawn, _options, _steered
from fairlead.methods._drawn import Drawn
from fairlead.methods._saved import read_json
from fairlead.methods._steered import Steered
from fairlead.steering import Edit, Latent, Op

VARIANTS = ("empty", "wrong_sign", "random", "noise")
DEFAULTS: dict[str, Any] = {"nearest": 32}


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
        if not isinstance(matched, Steered) or (not matched.edits and self.variant != "empty"):
            raise NotApplicable("the feature arm made no edit, so there is nothing to match")
        if self.variant == "empty":
            return Steered("control", tuple(map(_nothing, matched.edits)), matched.rows)
        if self.variant == "wrong_sign":
            return Steered("control", mirrored(matched.edits), matched.rows)
        assert matched.sample is not None
        template = tuple(in_raw(e, matched.rows) for e in matched.edits)
        size = norm(template, matched.rows, matched.sample)
        parts = (template, matched.rows, (), matched.sample, size, ctx.seed)
        if self.variant == "noise":
            return Drawn("noise", *parts)
        if ctx.dictionary is None:
            raise NotApplicable("control.random needs a dictionary", do="name one in the plan")
        pools = _pools(template, ctx.dictionary, matched.sample, self.options["nearest"])
        named = [*watched(template), *(i for pool in pools for i in pool)]
        return replace(Drawn("random", *parts), rows=cut(ctx.dictionary, named), pools=pools)

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
    """`control.empty`, `control.wrong_sign`, `control.random`, `control.noise`."""
    return ControlMethod(_options.variant_of(variant, VARIANTS, "control"), _options.read(options, DEFAULTS, "control"))
