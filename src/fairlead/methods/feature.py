"""Edit the features behind the failure: found on train, chosen on validation, saved with the rows they need.

The bare subject is rolled out on train and validation; its decisions there are all the finder sees. Options:
k            latents at most
scope        "all" tokens, "prompt", or "last" (the decision token)
strengths    in units of a latent's largest activation
n_decisions  train decision points; n_screen of them for the first pass
places       latents whose firing may gate an edit; per_place latents screened at each
hints        system lines whose effect on the activations is one more source of candidates
shortlist    latents screened; kept of them get a dose-response
finalists    edits that go to validation, each one tuning attempt; doing nothing is one more
seconds      past this the finder goes on with what it has (0: no stop)
episodes     train and validation episodes rolled out at most, each (0: all)
select, measure, balance, n_validation: see `prompt`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairlead import steering
from fairlead.core.errors import NotApplicable
from fairlead.core.protocols import FitContext
from fairlead.core.types import Item
from fairlead.features import cards
from fairlead.features.change import watched
from fairlead.features.excerpt import cut
from fairlead.features.find import Found, Search, find
from fairlead.features.points import points
from fairlead.methods import _choice, _options, _steered
from fairlead.methods._steered import Steered
from fairlead.steering import Edit

SAMPLE = 1024
_SEARCH = Search()
DEFAULTS: dict[str, Any] = {
    "k": _SEARCH.k,
    "scope": _SEARCH.scope,
    "strengths": list(_SEARCH.strengths),
    "n_decisions": _SEARCH.n_decisions,
    "n_screen": _SEARCH.n_screen,
    "shortlist": _SEARCH.shortlist,
    "places": _SEARCH.places,
    "per_place": _SEARCH.per_place,
    "hints": list(_SEARCH.hints),
    "kept": _SEARCH.kept,
    "finalists": _SEARCH.finalists,
    "seconds": 0.0,
    "episodes": 0,
    "select": "decisions",
    "measure": "strict",
    "balance": "trap",
    "n_validation": 120,
}


@dataclass(frozen=True)
class FeatureMethod:
    """See the module. Needs a dictionary and a subject whose activations can be edited."""

    options: Mapping[str, Any]
    name: str = "feature"
    makes: str = "subject"
    uses_dictionary: bool = True

    async def fit(self, ctx: FitContext[Any]) -> Steered:
        if ctx.dictionary is None:
            raise NotApplicable("feature needs a dictionary", do='name one in the plan: dictionary = "..."')
        if hasattr(ctx.dictionary, "site_in"):
            raise NotApplicable(
                "feature clamps latents where they are read, and this dictionary is a transcoder",
                expected="a dictionary that reads and writes at one site",
                got=f"it reads {ctx.dictionary.site_in} and explains {ctx.dictionary.site}",
            )
        if not hasattr(ctx.subject, "attribution"):
            raise NotApplicable("this subject's activations cannot be read", expected="a local model")
        options = self.options
        episodes = await ctx.rollout(ctx.subject, some(ctx.train, options["episodes"]))
        found = find(ctx.subject, ctx.dictionary, points(episodes, options["balance"]), search(options, ctx.seed))
        chosen, tried = await choose(ctx, found, options)
        rows = cut(found.dictionary, watched(chosen)) if chosen else None
        told = {**about(ctx.subject, found, chosen, tried), "options": dict(options)}
        return Steered("feature", chosen, rows, {}, told, sample(ctx.subject, found, options["scope"], ctx.seed))

    def load(self, path: Path) -> Steered:
        return _steered.load(path, "feature")


def search(options: Mapping[str, Any], seed: int) -> Search:
    """The finder's settings among an arm's options."""
    names = ("k", "scope", "n_decisions", "n_screen", "shortlist", "places", "per_place", "kept", "finalists")
    taken = {name: options[name] for name in names}
    strengths = tuple(float(s) for s in options["strengths"])
    hints, seconds = tuple(options["hints"]), options["seconds"] or None
    return Search(**taken, strengths=strengths, hints=hints, seconds=seconds, seed=seed)


def some(items: Sequence[Item], n: int) -> Sequence[Item]:
    """The first `n` items by whole clusters; all where n is 0."""
    if not n or n >= len(items):
        return items
    clusters = {item.cluster for item in items[:n]}
    return [item for item in items if item.cluster in clusters]


async def choose(
    ctx: FitContext[Any], found: Found, options: Mapping[str, Any]
) -> tuple[tuple[Edit, ...], list[dict[str, Any]]]:
    """(the edit that is best on validation, what was tried). Doing nothing is tried first and wins ties."""
    subset = some(ctx.validation, options["episodes"])
    judge = await _choice.judge(replace(ctx, validation=subset), {**options, "n_decisions": options["n_validation"]})
    candidates: list[tuple[Edit, ...]] = [(), *(c.edits for c in found.candidates)]
    chosen, scores = await _choice.best(
        ctx, judge, candidates, lambda e: steering.apply(ctx.subject, e, found.dictionary) if e else ctx.subject
    )
    tried = [
        {"edit": steering.format(edits) if edits else "", "score": s["all"], "strata": s}
        for edits, s in zip(candidates, scores, strict=False)
    ]
    return chosen, tried


def about(subject: Any, found: Found, chosen: Sequence[Edit], tried: list[dict[str, Any]]) -> dict[str, Any]:
    """What the report prints: cards of the chosen latents, then of those that gate them (of the best ones where
    none was chosen), doses, effort."""
    used = watched(chosen)
    by_index = {k.index: k for k in found.kept}
    shown = used or [k.index for k in found.kept[:2]]
    made = []
    for i in shown:
        known = by_index.get(i)
        told: dict[str, Any] = (
            {} if known is None else {"doses": known.doses, "effect": known.effect, "contrast": known.contrast}
        )
        made.append(cards.card(i, subject, found.dictionary, found.points, **told))
    return {
        "cards": made,
        "dose_response": by_index[shown[0]].doses if shown else [],
        "tried": tried,
        "validation_score": _choice.validation_score(tried),
        "train": {"bare": found.bare.strata, "best": found.candidates[0].strata if found.candidates else None},
        "search": {
            "decisions": len(found.points), "failed": sum(p.failed for p in found.points),
            "shortlist": list(found.shortlist), "edits_scored": found.scored, "prompts_read": found.prompts,
            "stopped_early": found.stopped_early,
        },
    }  # fmt: skip


def sample(subject: Any, found: Found, scope: str, seed: int) -> Tensor:
    """At most SAMPLE activations [n, d] of tokens in scope at the train points, drawn by seed."""
    site, prompts = found.dictionary.site, [p.decision.messages for p in found.points]
    read = subject.activations(prompts, [site], "last" if scope == "last" else "all")[site]
    x = read if scope == "last" else torch.cat(read)
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:SAMPLE]].float().cpu()


def plugin(variant: str | None, options: Mapping[str, Any]) -> FeatureMethod:
    """`feature`; it has no variants."""
    _options.variant_of(variant, ("",), "feature")
    return FeatureMethod(_options.read(options, DEFAULTS, "feature"))
