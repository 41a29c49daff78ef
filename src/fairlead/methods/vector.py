"""A difference-of-means vector added to the residual stream: the dense baseline every sparse edit must beat.

vector          mean activation at the decision token of right decisions minus that of failed ones, taken within
                each stratum that has both and averaged, on train
vector.prompts  mean activation under the `careful` system lines minus that under the `eager` ones, over the tokens
                that a prompt has whatever the line
vector.place    the same, but position by position over the first `front` tokens of the last message: read at the one
                that moves most, added to the span of those that move at least a tenth as much
vector.caa      contrastive activation addition: mean activation at the end of right actions minus that at the end of
                wrong ones (traps, where there are some) after the same prompt; added from the decision token on

Every site × strength is one tuning attempt on validation, the strengths near 1 first; doing nothing is tried too.
Options: sites (default: every resid site), strengths (multiples of the difference itself), scope (of the first two),
careful, eager, front, n_decisions, and select, measure, balance, n_validation as in `feature`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairlead import steering
from fairlead.core.errors import NotApplicable
from fairlead.core.protocols import FitContext
from fairlead.features.points import Point, choose, needed, points
from fairlead.methods import _choice, _options, _steered
from fairlead.methods._logistic import even
from fairlead.methods._steered import Steered
from fairlead.steering import Edit, Op, Scope, StoredVector

MOVED = 0.1  # of the largest movement, from which on a position counts as moved
DEFAULTS: dict[str, Any] = {
    "sites": [],
    "strengths": [1.0, 2.0, 0.5, 4.0],
    "scope": "all",
    "careful": ["Be careful.", "Follow the goal to the letter.", "Ignore deals and ads."],
    "eager": ["Be quick.", "Say yes to offers.", "Deals come first."],
    "front": 12,
    "n_decisions": 120,
    "select": "decisions",
    "measure": "strict",
    "balance": "trap",
    "n_validation": 120,
}


@dataclass(frozen=True)
class VectorMethod:
    """See the module."""

    variant: str
    options: Mapping[str, Any]
    name: str = "vector"
    makes: str = "subject"
    uses_dictionary: bool = False

    async def fit(self, ctx: FitContext[Any]) -> Steered:
        if not hasattr(ctx.subject, "activations"):
            raise NotApplicable("this subject's activations cannot be read", expected="a local model")
        options = self.options
        sites = list(options["sites"]) or [f"resid.{layer}" for layer in range(ctx.subject.n_layers)]
        episodes = await ctx.rollout(ctx.subject, ctx.train)
        found = choose(needed(points(episodes, options["balance"]), "train"), options["n_decisions"], ctx.seed)
        scopes: tuple[Scope, ...] = (Scope(options["scope"]),)
        if self.variant == "prompts":
            vectors = between_prompts(ctx.subject, found, sites, options["careful"], options["eager"])
        elif self.variant == "place":
            lines = (options["careful"], options["eager"])
            vectors, scope = at_a_place(ctx.subject, found, sites, *lines, options["front"])
            scopes = (scope,)
        elif self.variant == "caa":
            vectors, scopes = between_actions(ctx.subject, found, sites), (Scope("last"), Scope("generated"))
        else:
            vectors = between_outcomes(ctx.subject, found, sites)
        judge = await _choice.judge(ctx, {**options, "n_decisions": options["n_validation"]})
        cells = [(site, float(strength)) for strength in options["strengths"] for site in sites]
        candidates: list[tuple[Edit, ...]] = [(), *(tuple(edit(*cell, s) for s in scopes) for cell in cells)]
        chosen, scores = await _choice.best(
            ctx, judge, candidates, lambda e: steering.apply(ctx.subject, e, None, vectors) if e else ctx.subject
        )
        tried = [
            {
                "edit": steering.format(edits) if edits else "",
                "site": site,
                "strength": strength,
                "score": s["all"],
                "strata": s,
            }
            for edits, (site, strength), s in zip(candidates, [(None, 0.0), *cells], scores, strict=False)
        ]
        kept = {e.direction.name: vectors[e.direction.name] for e in chosen if isinstance(e.direction, StoredVector)}
        about = {
            "tried": tried,
            "validation_score": _choice.validation_score(tried),
            "cells_left_out": len(cells) + 1 - len(tried),
            "dose_response": _doses(tried, chosen),
        }
        return Steered("vector", chosen, None, kept, about)

    def load(self, path: Path) -> Steered:
        return _steered.load(path, "vector")


def between_outcomes(subject: Any, found: Sequence[Point], sites: Sequence[str]) -> dict[str, Tensor]:
    """{name: [d]} of a site's mean at right decisions minus failed ones, within strata that have both; pooled
    where none has. NotApplicable where all decisions went one way."""
    failed = torch.tensor([p.failed for p in found])
    groups = [torch.tensor([p.stratum == name for p in found]) for name in sorted({p.stratum for p in found})]
    usable = [g for g in groups if bool((g & failed).any()) and bool((g & ~failed).any())]
    usable = usable or [torch.ones_like(failed)]
    if not bool(failed.any()) or bool(failed.all()):
        way = "failed" if bool(failed.any()) else "were right"
        raise NotApplicable(f"all {len(found)} decisions on train {way}: there is no difference of means")
    read = subject.activations(*prompts_of(found, sites))
    return {
        _name(site): torch.stack([x[g & ~failed].mean(0) - x[g & failed].mean(0) for g in usable]).mean(0).float()
        for site, x in read.items()
    }


def between_prompts(
    subject: Any, found: Sequence[Point], sites: Sequence[str], careful: Sequence[str], eager: Sequence[str]
) -> dict[str, Tensor]:
    """{name: [d]} of a site's mean under the careful lines minus that under the eager ones."""
    if not careful or not eager:
        raise NotApplicable("vector.prompts needs lines to tell apart", expected="careful and eager, one line each")
    means = []
    for lines in (careful, eager):
        asked = [subject.prompted(line) for line in lines]
        means.append({site: torch.stack([_mean(subject, one, found, site) for one in asked]).mean(0) for site in sites})
    return {_name(site): (means[0][site] - means[1][site]).float() for site in sites}


def between_actions(subject: Any, found: Sequence[Point], sites: Sequence[str]) -> dict[str, Tensor]:
    """{name: [d]} of a site's mean at the end of right actions minus wrong ones after the same prompt, strata alike."""
    decisions = [p.decision for p in found]
    read = subject.action_activations(
        [d.messages for d in decisions], [d.legal for d in decisions], sites, [d.step for d in decisions]
    )
    weights = even([p.stratum for p in found])[:, None] / len(found)
    sides = [(torch.tensor(p.right), torch.tensor(p.wrong)) for p in found]
    return {_name(site): (weights * _pairs(menus, sides)).sum(0).float() for site, menus in read.items()}


def _pairs(menus: Sequence[Tensor], sides: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """[N, d] mean of the right options minus that of the wrong ones."""
    return torch.stack(
        [m.cpu()[right].mean(0) - m.cpu()[wrong].mean(0) for m, (right, wrong) in zip(menus, sides, strict=True)]
    )


def at_a_place(
    subject: Any, found: Sequence[Point], sites: Sequence[str], careful: Sequence[str], eager: Sequence[str], front: int
) -> tuple[dict[str, Tensor], Scope]:
    """({name: [d]} of a site's mean difference at the position that moves most, the tokens it is to be added at).

    Positions count from the first token of the last message, which must stand at one place in every prompt."""
    starts = set(message_starts(subject, found)[0])
    shortest = min(len(subject.tokens(p.decision.messages).ids) - s for p in found for s in starts)
    front = min(front, shortest)
    if len(starts) != 1 or front < 1:
        raise NotApplicable(
            "vector.place needs messages that begin at the same token in every prompt",
            expected="one system line for all",
            got=f"{len(starts)} places",
        )
    sides = [[_front(subject.prompted(line), found, sites, front) for line in lines] for lines in (careful, eager)]
    kind, rude = ({site: torch.stack([s[site] for s in side]).mean(0) for site in sites} for side in sides)
    apart = {site: kind[site] - rude[site] for site in sites}
    moves = torch.stack(
        [apart[site].norm(dim=1) / apart[site].norm(dim=1).max().clamp_min(1e-12) for site in sites]
    ).mean(0)
    moved = (moves >= MOVED * moves.max()).nonzero()[:, 0]
    (start,) = starts
    vectors = {_name(site): apart[site][int(apart[site].norm(dim=1).argmax())].clone() for site in sites}
    return vectors, Scope("tokens", start + int(moved[0]), start + int(moved[-1]))


def _front(subject: Any, found: Sequence[Point], sites: Sequence[str], front: int) -> dict[str, Tensor]:
    """Mean activation {site: [front, d]} at the first tokens of the last message."""
    prompts, _, _, steps = prompts_of(found, sites)
    read, starts = subject.activations(prompts, list(sites), "all", steps), message_starts(subject, found)[0]
    cut = {site: [x[s : s + front].float().cpu() for x, s in zip(read[site], starts, strict=True)] for site in sites}
    return {site: torch.stack(rows).mean(0) for site, rows in cut.items()}


def message_starts(subject: Any, found: Sequence[Point]) -> tuple[list[int], int]:
    """(the first token of each prompt's last message, how many tokens every template puts after it)."""
    starts, after = [], []
    for p in found:
        rendered, said = subject.tokens(p.decision.messages), p.decision.messages[-1].content.strip()
        at = max(rendered.text.rfind(said), 0)
        starts.append(int((rendered.offsets[:, 1] <= at).sum()))
        after.append(int((rendered.offsets[:, 0] >= at + len(said)).sum()))
    return starts, min(after, default=1)


def _mean(bare: Any, asked: Any, found: Sequence[Point], site: str) -> Tensor:
    """Mean activation [d] of `asked` over the tokens that end a prompt alike with and without its line."""
    prompts, _, _, steps = prompts_of(found, [site])
    read = asked.activations(prompts, [site], "all", steps)[site]
    return torch.cat(
        [x[-_shared(bare.tokens(m).ids, asked.tokens(m).ids) :] for m, x in zip(prompts, read, strict=True)]
    ).mean(0)


def _shared(a: Any, b: Any) -> int:
    """How many last tokens two prompts have in common; at least the decision token."""
    n = min(len(a), len(b))
    apart = (a[len(a) - n :] != b[len(b) - n :]).nonzero()[0]
    return max(1, n - 1 - int(apart[-1]) if len(apart) else n)


def prompts_of(found: Sequence[Point], sites: Sequence[str]) -> tuple[Any, ...]:
    return [p.decision.messages for p in found], list(sites), "last", [p.decision.step for p in found]


def _name(site: str) -> str:
    return "difference_" + site.replace(".", "_")


def edit(site: str, strength: float, scope: Scope) -> Edit:
    """`strength` times the difference found at `site`, added there."""
    return Edit(StoredVector(_name(site)), Op.ADD, strength, site=site, scope=scope)


def _doses(tried: Sequence[Mapping[str, Any]], chosen: Sequence[Edit]) -> list[dict[str, Any]]:
    """The chosen site's strengths, as the report draws them."""
    site = chosen[0].site if chosen else None
    rows = [t for t in tried if t["site"] in (None, site)]
    return [{"strength": t["strength"], **t["strata"]} for t in sorted(rows, key=lambda t: t["strength"])]


def plugin(variant: str | None, options: Mapping[str, Any]) -> VectorMethod:
    """`vector` (right against failed decisions), `vector.prompts` and `vector.place` (careful against eager lines, over
    all tokens or at one place), `vector.caa` (right against wrong actions)."""
    known = _options.variant_of(variant, ("", "prompts", "place", "caa"), "vector")
    return VectorMethod(known, _options.read(options, DEFAULTS, "vector"))
