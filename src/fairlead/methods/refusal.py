"""One direction that mediates a behaviour, found by the published rule and taken out of the model everywhere.

refusal             r̂ is projected out at the input of every block and of what every attention and MLP adds
refusal.orthogonal  the weights that write to the stream are made orthogonal to r̂: the same function, at no cost

The rule of Arditi et al. 2024 ("Refusal in language models is mediated by a single direction"), for any behaviour that
a task labels: here decisions that failed against decisions that were right, in place of harmful and harmless
instructions. Candidates are the differences of mean activations before block l, l < `depth` · L, at each of the last
tokens of the prompt; on train decisions that the means did not see, one is kept when projecting it out leaves right
decisions alone (mean KL ≤ `kl` nats) and adding it to them brings the behaviour on (mean log-odds of failing ≥
`induce`); those that pass are ranked by the mean log-odds of failing, at failed decisions, with the direction projected
out. Where none passes, those within the KL are ranked, then all; `passed` says so. The first `finalists` go to
validation, each one tuning attempt; doing nothing is tried first and wins ties. Options:
contrasts   "outcomes": failed against right decisions; "lines": means under the `eager` against the `careful` lines
positions   how many last tokens of the prompt (the template's own, where it has more after the last message)
front       how many first tokens of the last message are candidate positions too: a goal may stand there
depth, kl, induce, finalists
n_decisions train decisions for the means; n_selection more, of each kind, for the rule
careful, eager, select, measure, balance, n_validation: see `vector`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairlead import steering
from fairlead.core.errors import NotApplicable
from fairlead.core.keys import content_key
from fairlead.core.protocols import FitContext
from fairlead.features.points import Point, choose, log_odds, needed, points
from fairlead.methods import _choice, _options, _steered
from fairlead.methods._logistic import folds
from fairlead.methods._orthogonal import orthogonalised
from fairlead.methods._saved import read_json, write_json
from fairlead.methods._steered import Steered, read_tensors, tensor_hash, write_tensors
from fairlead.methods.vector import message_starts
from fairlead.steering import Edit, Op, StoredVector

NAME = "refusal"
SAME = 0.05  # nats that ablated and orthogonalised log-probabilities may differ by
DEFAULTS: dict[str, Any] = {
    "contrasts": ["outcomes", "lines"],
    "positions": 5,
    "front": 8,
    "depth": 0.8,
    "kl": 0.1,
    "induce": 0.0,
    "finalists": 6,
    "n_decisions": 240,
    "n_selection": 32,
    "careful": ["Be careful.", "Follow the goal to the letter.", "Ignore deals and ads."],
    "eager": ["Be quick.", "Say yes to offers.", "Deals come first."],
    "select": "decisions",
    "measure": "strict",
    "balance": "trap",
    "n_validation": 120,
}


@dataclass(frozen=True, eq=False)
class Candidate:
    """One direction, and what the rule reads of it on train."""

    direction: Tensor
    contrast: str
    layer: int
    position: int  # −1 is the decision token; 0, 1, ... count from the first token of the last message
    ablated: float = 0.0  # log-odds of failing at failed decisions, without it
    kl: float = 0.0
    induced: float = 0.0

    def passes(self, kl: float, induce: float) -> bool:
        return self.kl <= kl and self.induced >= induce

    def told(self) -> dict[str, Any]:
        return {
            "contrast": self.contrast, "layer": self.layer, "position": self.position,
            "log_odds_ablated": self.ablated, "kl": self.kl, "log_odds_added": self.induced,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Orthogonal:
    """Opens the subject with weights that cannot write `direction`; None: as it is."""

    direction: Tensor | None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return content_key(["refusal.orthogonal", None if self.direction is None else tensor_hash(self.direction)])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        return nullcontext(_orthogonal(subject, self.direction, self.fingerprint))

    def describe(self) -> dict[str, Any]:
        return {"edit": "nothing" if self.direction is None else "weights orthogonal to r", **self.about}

    def save(self, path: Path) -> None:
        write_tensors({} if self.direction is None else {"direction": self.direction}, path)
        write_json(path, "refusal.orthogonal", {"about": dict(self.about)})


@dataclass(frozen=True)
class RefusalMethod:
    """See the module."""

    variant: str
    options: Mapping[str, Any]
    name: str = "refusal"
    makes: str = "subject"
    uses_dictionary: bool = False

    async def fit(self, ctx: FitContext[Any]) -> Steered | Orthogonal:
        if not hasattr(ctx.subject, "activations") or not hasattr(ctx.subject, "edited"):
            raise NotApplicable("this subject's activations cannot be read", expected="a local model")
        options = self.options
        episodes = await ctx.rollout(ctx.subject, ctx.train)
        found = needed(points(episodes, options["balance"]), "train")
        means, held = _apart(found, options["n_decisions"], ctx.seed)
        enough = _choice.purse(ctx)
        candidates = ranked(ctx.subject, directions(ctx.subject, means, options), held, options, enough)
        judge = await _choice.judge(ctx, {**options, "n_decisions": options["n_validation"]})
        finalists: list[Candidate | None] = [None, *candidates[: options["finalists"]]]
        chosen, scores = await _choice.best(ctx, judge, finalists, lambda c: self._world(ctx.subject, c, held))
        tried = [
            {**({} if c is None else c.told()), "score": s["all"], "strata": s}
            for c, s in zip(finalists, scores, strict=False)
        ]
        about = {
            "chosen": None if chosen is None else chosen.told(),
            "validation_score": _choice.validation_score(tried),
            "tried": tried,
            "candidates": len(candidates),
            "passed": sum(c.passes(options["kl"], options["induce"]) for c in candidates),
        }
        direction = None if chosen is None else chosen.direction
        if self.variant == "orthogonal":
            return Orthogonal(direction, about)
        edits = () if direction is None else ablation(ctx.subject)
        return Steered("refusal", edits, None, {} if direction is None else {NAME: direction}, about)

    def _world(self, subject: Any, candidate: Candidate | None, held: Sequence[Point]) -> Any:
        if candidate is None:
            return subject
        ablated = steering.apply(subject, ablation(subject), None, {NAME: candidate.direction})
        if self.variant != "orthogonal":
            return ablated
        swapped = _orthogonal(subject, candidate.direction, "candidate")
        _check_same(ablated, swapped, held[:4])
        return swapped

    def load(self, path: Path) -> Steered | Orthogonal:
        if self.variant == "orthogonal":
            data = read_json(path, "refusal.orthogonal")
            return Orthogonal(read_tensors(path).get("direction"), data["about"])
        return _steered.load(path, "refusal")


def ablation(subject: Any) -> tuple[Edit, ...]:
    """r̂ projected out at every site: block inputs, attention and MLP outputs; block inputs and outputs where a model's
    parts are not sites."""
    names = set(subject.sites)
    kinds: tuple[str, ...] = ("resid_pre", "attn", "mlp")
    if not all(f"{kind}.{layer}" in names for kind in kinds for layer in range(subject.n_layers)):
        kinds = ("resid_pre", "resid")
    return tuple(
        Edit(StoredVector(NAME), Op.PROJECT_OUT, site=f"{kind}.{layer}")
        for layer in range(subject.n_layers)
        for kind in kinds
    )


def _orthogonal(subject: Any, direction: Tensor | None, fingerprint: str) -> Any:
    return subject if direction is None else subject.within(orthogonalised(subject, direction), fingerprint)


def _check_same(ablated: Any, swapped: Any, held: Sequence[Point]) -> None:
    """NotApplicable where projected weights do not do what ablation does: a norm behind a part, experts, a bias."""
    apart = max(
        float((a - b).abs().max())
        for a, b in zip(*(_scores(world, held) for world in (ablated, swapped)), strict=True)
    )
    if apart > SAME:
        raise NotApplicable(
            "this model's weights cannot be made orthogonal to a direction",
            expected=f"log-probabilities within {SAME} nats of ablation at every site",
            got=f"{apart:.3g}",
            do="use `refusal`, which projects the direction out as the model runs",
        )


def _scores(world: Any, held: Sequence[Point]) -> list[Tensor]:
    decisions = [p.decision for p in held]
    found: list[Tensor] = world.action_logprobs(
        [d.messages for d in decisions], [d.legal for d in decisions], [d.step for d in decisions]
    )
    return found


def _apart(found: Sequence[Point], n: int, seed: int) -> tuple[list[Point], list[Point]]:
    """(points for the means, points for the rule): two thirds and one third of the clusters, each with both kinds."""
    parts = folds([p.cluster for p in found], 3, seed)
    held = [found[i] for i in parts[0]]
    means = [found[i] for part in parts[1:] for i in part] or held
    for group, what in ((means, "for the means"), (held, "for the selection rule")):
        if not any(p.failed for p in group) or all(p.failed for p in group):
            raise NotApplicable(
                f"train decisions {what} all went one way: there is no behaviour to tell from another",
                expected="failed and right decisions",
                do="raise n_train",
            )
    failed, right = [p for p in means if p.failed], [p for p in means if not p.failed]
    return [*choose(failed, n // 2, seed), *choose(right, n // 2, seed)], held


def directions(subject: Any, means: Sequence[Point], options: Mapping[str, Any]) -> list[Candidate]:
    """Every contrast × layer × position, as the difference of two means; those of length 0 are left out."""
    layers = [layer for layer in range(subject.n_layers) if layer < options["depth"] * subject.n_layers]
    starts, after = message_starts(subject, means)
    sizes = [len(subject.tokens(p.decision.messages).ids) for p in means]
    front = min(int(options["front"]), *(n - start for n, start in zip(sizes, starts, strict=True)))
    last = min(max(int(options["positions"]), after), *sizes)
    count = [*range(front), *range(-last, 0)]
    found = []
    for contrast in options["contrasts"]:
        if contrast == "outcomes":
            sides = [_mean(subject, [p for p in means if p.failed is side], layers, count) for side in (True, False)]
        elif contrast == "lines":
            lines = (options["eager"], options["careful"])
            sides = [
                torch.stack([_mean(subject.prompted(line), means, layers, count) for line in side]).mean(0)
                for side in lines
            ]
        else:
            raise NotApplicable("refusal knows no such contrast", expected="outcomes or lines", got=repr(contrast))
        apart = sides[0] - sides[1]
        for i, layer in enumerate(layers):
            for j, position in enumerate(count):
                if float(apart[i, j].norm()) > 1e-6:
                    found.append(Candidate(apart[i, j].clone(), contrast, layer, position))
    return found


def _mean(subject: Any, found: Sequence[Point], layers: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Mean activation before each block at each position (see Candidate): [layers, positions, d]."""
    sites = [f"resid_pre.{layer}" for layer in layers]
    prompts, steps = [p.decision.messages for p in found], [p.decision.step for p in found]
    read, starts = subject.activations(prompts, sites, "all", steps), message_starts(subject, found)[0]
    places = [[at if at < 0 else start + at for at in positions] for start in starts]
    means = [
        torch.stack([x[torch.tensor(at, device=x.device)].float() for x, at in zip(read[site], places, strict=True)])
        for site in sites
    ]
    return torch.stack([m.mean(0) for m in means]).cpu()


def ranked(
    subject: Any,
    candidates: Sequence[Candidate],
    held: Sequence[Point],
    options: Mapping[str, Any],
    enough: Callable[[], bool] = lambda: False,
) -> list[Candidate]:
    """The candidates as the rule orders them, measured on `held` until `enough`."""
    n = int(options["n_selection"])
    failed, right = [p for p in held if p.failed][:n], [p for p in held if not p.failed][:n]
    bare, edits = [x.log_softmax(0) for x in _scores(subject, right)], ablation(subject)
    measured = []
    for c in candidates:
        if enough():
            break
        without = steering.apply(subject, edits, None, {NAME: c.direction})
        added = steering.apply(
            subject, (Edit(StoredVector(NAME), Op.ADD, 1.0, site=f"resid_pre.{c.layer}"),), None, {NAME: c.direction}
        )
        spared = [x.log_softmax(0) for x in _scores(without, right)]
        kl = sum(float((a.exp() * (a - b)).sum()) for a, b in zip(bare, spared, strict=True)) / len(right)
        measured.append(
            replace(
                c,
                ablated=-float(log_odds(_scores(without, failed), failed).mean()),
                induced=-float(log_odds(_scores(added, right), right).mean()),
                kl=kl,
            )
        )

    def rank(c: Candidate) -> tuple[bool, bool, float]:
        return not c.passes(options["kl"], options["induce"]), c.kl > options["kl"], c.ablated

    return sorted(measured, key=rank)


def plugin(variant: str | None, options: Mapping[str, Any]) -> RefusalMethod:
    """`refusal` (ablation at every site) and `refusal.orthogonal` (the same, in the weights)."""
    known = _options.variant_of(variant, ("", "orthogonal"), "refusal")
    return RefusalMethod(known, _options.read(options, DEFAULTS, "refusal"))
