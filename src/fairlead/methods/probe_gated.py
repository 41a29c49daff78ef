"""A linear probe decides when an edit is made: conditional steering with a stated false-positive rate.

The probe (L2 logistic) reads the decision token and tells decisions about to fail from right ones; its site and penalty
are those with the best AUC on held-out parts of train. The threshold is the (1 − fpr) quantile of its score on
right decisions of clusters that it was not fitted on. Two kinds of gate:
prompt  the probe reads the prompt once, in a forward of its own, and the whole answer is then edited or left alone;
        the edit may act at any token, and below the probe
token   a gate row of the hook engine (w·h + b > τ as a condition on a stored vector), at the decision token: no second
        forward, but the edit acts at that token only, and not below the probe
Both are exact, act row by row, and are reported: a generation says whether the gate opened, with its reading.

probe_gated          edits with differences of means: outcomes, prompts and place of `vector`
probe_gated.feature  edits with what the plan's `feature` arm found

Edits × gates are ranked on train (balanced P(right) with the gate at work); the best `finalists` go to validation, each
one tuning attempt; doing nothing is tried first and wins ties. Options:
fprs        false-positive rates that are tried
gates       of prompt, token
penalties   of the probe
sources     of outcomes, prompts, place
strengths   multiples of a difference
finalists
n_rank      train decisions that edits are ranked on
sites, careful, eager, front, n_decisions, select, measure, balance, n_validation: see `vector`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairlead import steering
from fairlead.core.errors import NotApplicable, PlanError
from fairlead.core.keys import content_key
from fairlead.core.protocols import FitContext
from fairlead.core.types import EditReport, Generation
from fairlead.features.points import WHOLE, Point, by_stratum, choose, measure, needed, points
from fairlead.methods import _choice, _options, _steered, vector
from fairlead.methods._logistic import Linear, binary, even, folds
from fairlead.methods._steered import Steered, tensor_hash
from fairlead.methods._world import Answer, Ask, World, together
from fairlead.steering import Compare, Edit, Gate, Level, Reading, Scope, StoredVector
from fairlead.steering.edit import site_order

PROBE = "probe"
GATES, SOURCES = ("prompt", "token"), ("outcomes", "prompts", "place")
DEFAULTS: dict[str, Any] = {
    "fprs": [0.05, 0.2, 0.4],
    "gates": list(GATES),
    "penalties": [0.1, 1.0, 10.0],
    "sources": list(SOURCES),
    "strengths": [1.0, 2.0, 4.0, 8.0],
    "finalists": 10,
    "sites": [],
    "careful": vector.DEFAULTS["careful"],
    "eager": vector.DEFAULTS["eager"],
    "front": vector.DEFAULTS["front"],
    "n_decisions": 400,
    "n_rank": 120,
    "select": "decisions",
    "measure": "strict",
    "balance": "trap",
    "n_validation": 120,
}


@dataclass(frozen=True, eq=False)
class Watch:
    """The probe as a gate: open where weight·h + bias > threshold at the decision token, h read at `site`."""

    site: str
    weight: Tensor  # [d]
    bias: float
    threshold: float
    fpr: float
    kind: str = "prompt"

    @property
    def fingerprint(self) -> str:
        return content_key([self.site, tensor_hash(self.weight), self.bias, self.threshold, self.kind])

    def readings(self, subject: Any, prompts: Sequence[Any], steps: Sequence[int]) -> Tensor:
        """Score [N] of each prompt: one forward."""
        x = subject.activations(prompts, [self.site], "last", steps)[self.site]
        if getattr(subject, "meter", None) is not None:
            subject.meter.charge(flops=2.0 * x.numel())
        return Linear(self.weight, self.bias)(x).cpu()

    def row(self) -> Gate:
        """The same gate as a condition on the stored vector PROBE, whose reading is weight·h / |weight|²."""
        level = (self.threshold - self.bias) / float(self.weight.double() @ self.weight.double())
        return Gate(when=Compare(Reading(StoredVector(PROBE), self.site), ">", Level(level)))


@dataclass(frozen=True, eq=False)
class Gated:
    """`steered` where `watch` is open; without `watch`, the subject as it is."""

    steered: Steered
    watch: Watch | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        watch = None if self.watch is None else self.watch.fingerprint
        return content_key(["probe_gated", self.steered.fingerprint, watch])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        return nullcontext(world(subject, self))

    def describe(self) -> dict[str, Any]:
        watch = self.watch
        told = None
        if watch is not None:
            told = {"site": watch.site, "kind": watch.kind, "threshold": watch.threshold, "false_positives": watch.fpr}
        return {"edit": steering.format(self.steered.edits), "gate": told, **self.about}

    def save(self, path: Path) -> None:
        watch, held = self.watch, dict(self.steered.vectors)
        told = None
        if watch is not None:
            held[PROBE] = watch.weight
            told = {k: getattr(watch, k) for k in ("site", "bias", "threshold", "fpr", "kind")}
        about = {"watch": told, "about": dict(self.about), "vectors": sorted(self.steered.vectors)}
        replace(self.steered, vectors=held, about=about).save(path)


@dataclass(frozen=True)
class _Cell:
    """One edit under one gate; `score` on train."""

    edits: tuple[Edit, ...]
    watch: Watch
    source: str
    score: float


@dataclass(frozen=True)
class ProbeGated:
    """See the module."""

    variant: str
    options: Mapping[str, Any]
    name: str = "probe_gated"
    makes: str = "subject"

    @property
    def uses_dictionary(self) -> bool:
        return self.variant == "feature"

    @property
    def siblings(self) -> tuple[str, ...]:
        return ("feature",) if self.variant == "feature" else ()

    async def fit(self, ctx: FitContext[Any]) -> Gated:
        subject, options = ctx.subject, self.options
        if not hasattr(subject, "activations") or not hasattr(subject, "edited"):
            raise NotApplicable("this subject's activations cannot be read", expected="a local model")
        episodes = await ctx.rollout(subject, ctx.train)
        found = choose(needed(points(episodes, options["balance"]), "train"), options["n_decisions"], ctx.seed)
        sites = list(options["sites"]) or [f"resid.{layer}" for layer in range(subject.n_layers)]
        watches, probes = watched(subject, found, sites, options, ctx.seed)
        rows, vectors, proposals = self._proposals(ctx, found, sites)
        enough = _choice.purse(ctx)
        trial = _Trial.of(subject, choose(found, options["n_rank"], ctx.seed), watches, rows, vectors)
        cells: list[_Cell] = []
        for source, edits in proposals:
            if enough():
                break
            cells += trial.measured(edits, source, options["gates"])
        cells.sort(key=lambda c: -c.score)
        judge = await _choice.judge(ctx, {**options, "n_decisions": options["n_validation"]})
        finalists = [Gated(Steered("probe_gated", ()))]
        for c in cells[: options["finalists"]]:
            names = {e.direction.name for e in c.edits if isinstance(e.direction, StoredVector)}
            held = {n: v for n, v in vectors.items() if n in names}
            finalists.append(Gated(Steered("probe_gated", c.edits, rows, held), c.watch))
        chosen, scores = await _choice.best(ctx, judge, finalists, lambda g: world(subject, g))
        tried = [
            {**({"gate": None} if i == 0 else _told(cells[i - 1])), "score": s["all"], "strata": s}
            for i, s in enumerate(scores)
        ]
        score = _choice.validation_score(tried)
        return replace(chosen, about={"validation_score": score, "tried": tried, "probes": probes, "cells": len(cells)})

    def _proposals(
        self, ctx: FitContext[Any], found: Sequence[Point], sites: Sequence[str]
    ) -> tuple[Any, dict[str, Tensor], list[tuple[str, tuple[Edit, ...]]]]:
        """(dictionary rows, vectors by name, (source, edits) to try)."""
        options, subject = self.options, ctx.subject
        if self.variant == "feature":
            other = ctx.sibling("feature")
            if not isinstance(other, Steered) or not other.edits:
                raise NotApplicable("the feature arm made no edit, so there is nothing to gate")
            return other.rows, dict(other.vectors), [("feature", other.edits)]
        vectors: dict[str, Tensor] = {}
        scopes: dict[str, Scope] = {}
        lines = (options["careful"], options["eager"])
        for source in options["sources"]:
            scope = Scope()
            try:
                if source == "outcomes":
                    made = vector.between_outcomes(subject, found, sites)
                elif source == "prompts":
                    made = vector.between_prompts(subject, found, sites, *lines)
                else:
                    made, scope = vector.at_a_place(subject, found, sites, *lines, options["front"])
            except NotApplicable:
                continue  # another source may apply; that there is none is told below
            vectors |= {f"{source}_{name}": v for name, v in made.items() if bool(v.any())}
            scopes[source] = scope
        if not vectors:
            raise NotApplicable("no difference of means can be taken on train")
        found_edits: list[tuple[str, tuple[Edit, ...]]] = []
        for strength in options["strengths"]:
            for source, scope in scopes.items():
                for site in sites:
                    plain = vector.edit(site, float(strength), scope)
                    name = f"{source}_{plain.direction.name}"  # type: ignore[union-attr]
                    if name in vectors:
                        found_edits.append((source, (replace(plain, direction=StoredVector(name)),)))
        return None, vectors, found_edits

    def load(self, path: Path) -> Gated:
        steered = _steered.load(path, "probe_gated")
        told, about = steered.about["watch"], steered.about["about"]
        watch = None if told is None else Watch(weight=steered.vectors[PROBE], **told)
        held = {name: steered.vectors[name] for name in steered.about["vectors"]}
        return Gated(replace(steered, vectors=held, about={}), watch, about)


def world(subject: Any, gated: Gated) -> Any:
    """`subject` with the edit where the gate is open."""
    watch, steered = gated.watch, gated.steered
    if watch is None or not steered.edits:
        return subject
    if watch.kind == "token":
        return steering.apply(subject, steered.edits, steered.rows, {**steered.vectors, PROBE: watch.weight})

    def make(inner: Any) -> Answer:
        edited = steering.apply(inner, steered.edits, steered.rows, steered.vectors)

        async def answers(asks: Sequence[Ask]) -> list[Generation | Exception]:
            readings = watch.readings(inner, [a.prompt for a in asks], [a.step for a in asks]).tolist()
            said: list[Generation | Exception | None] = [None] * len(asks)
            for subject, open_ in ((inner, False), (edited, True)):
                going = [i for i, reading in enumerate(readings) if (reading > watch.threshold) is open_]
                for i, answer in zip(going, await together(subject, [asks[i] for i in going]), strict=True):
                    said[i] = answer if isinstance(answer, Exception) else _reported(answer, readings[i], watch)
            return [s for s in said if s is not None]

        return answers

    return World(subject, make, gated.fingerprint)


def _reported(said: Generation, reading: float, watch: Watch) -> Generation:
    """With a report of the gate before those of the edits. The probe's own reading of the prompt is counted too."""
    name, fired = f"probe at {watch.site} > {watch.threshold:.4g}", int(reading > watch.threshold)
    edits = (EditReport(name, fired, 1, reading, None), *said.edits)
    return replace(said, edits=edits, prompt_tokens=2 * said.prompt_tokens)


def watched(
    subject: Any, found: Sequence[Point], sites: Sequence[str], options: Mapping[str, Any], seed: int
) -> tuple[list[Watch], list[dict[str, Any]]]:
    """(the best probe, with a threshold for each false-positive rate; what every probe reached on train)."""
    failed = torch.tensor([p.failed for p in found])
    read = subject.activations(*vector.prompts_of(found, sites))
    parts = folds([p.cluster for p in found], 4, seed)
    held = torch.zeros(len(found), dtype=torch.bool)
    held[torch.tensor(parts[0])] = True
    if len(parts) < 2 or not bool(failed[~held].any()) or bool(failed[~held].all()) or bool(failed[held].all()):
        raise NotApplicable(
            "train has too few clusters to fit a probe and to set its threshold on others",
            expected="failed and right decisions, and right ones of clusters that are held out",
            do="raise n_train",
        )
    weights = even([f"{p.stratum}/{p.failed}" for p in found])
    told: list[dict[str, Any]] = []
    probes: dict[tuple[str, float], Linear] = {}
    for site in sites:
        x = read[site].float().cpu()
        for c in options["penalties"]:
            scores = torch.zeros(len(found))
            for part in parts:
                rest = torch.ones(len(found), dtype=torch.bool)
                rest[torch.tensor(part)] = False
                if bool(failed[rest].any()) and not bool(failed[rest].all()):
                    scores[~rest] = binary(x[rest], failed[rest], float(c), weights[rest])(x[~rest])
            told.append({"site": site, "penalty": float(c), "auc": _auc(scores, failed)})
            probes[site, float(c)] = binary(x[~held], failed[~held], float(c), weights[~held])
            if subject.meter is not None:
                subject.meter.charge(flops=probes[site, float(c)].flops * (len(parts) + 1))
    best = max(told, key=lambda t: t["auc"])
    probe, negatives = probes[best["site"], best["penalty"]], held & ~failed
    scores = probe(read[best["site"]].float().cpu())[negatives]
    found_watches = [
        Watch(best["site"], probe.weight, probe.bias, float(torch.quantile(scores, 1.0 - float(fpr))), float(fpr))
        for fpr in options["fprs"]
    ]
    return found_watches, told


def _auc(scores: Tensor, positive: Tensor) -> float:
    a, b = scores[positive][:, None], scores[~positive][None]
    return float(((a > b).float() + 0.5 * (a == b).float()).mean())


@dataclass(frozen=True, eq=False)
class _Trial:
    """Train points on which edits are tried under gates: P(right) of the bare subject, the probe's readings."""

    subject: Any
    found: Sequence[Point]
    watches: Sequence[Watch]
    rows: Any
    vectors: Mapping[str, Tensor]
    bare: Tensor  # [N]
    readings: Tensor  # [N]

    @classmethod
    def of(
        cls, subject: Any, found: Sequence[Point], watches: Sequence[Watch], rows: Any, vectors: Mapping[str, Tensor]
    ) -> _Trial:
        prompts, steps = [p.decision.messages for p in found], [p.decision.step for p in found]
        bare = measure(subject, found).sigmoid()
        return cls(subject, found, watches, rows, vectors, bare, watches[0].readings(subject, prompts, steps))

    def measured(self, edits: tuple[Edit, ...], source: str, gates: Sequence[str]) -> list[_Cell]:
        """The edit under every gate, with its balanced P(right)."""
        cells = []
        if "prompt" in gates:
            moved = measure(steering.apply(self.subject, edits, self.rows, self.vectors), self.found).sigmoid()
            for watch in self.watches:
                values = torch.where(self.readings > watch.threshold, moved, self.bare)
                cells.append(self._cell(edits, watch, source, values))
        own = [e.site or self.rows.site for e in edits]
        after = all(site_order(site) >= site_order(self.watches[0].site) for site in own)  # the probe was read by then
        if "token" in gates and after and all(e.gate.when is None for e in edits):
            for watch in self.watches:
                gate = watch.row().when
                rows = tuple(replace(e, scope=Scope("last"), gate=replace(e.gate, when=gate)) for e in edits)
                world = steering.apply(self.subject, rows, self.rows, {**self.vectors, PROBE: watch.weight})
                values = measure(world, self.found).sigmoid()
                cells.append(self._cell(rows, replace(watch, kind="token"), source, values))
        return cells

    def _cell(self, edits: tuple[Edit, ...], watch: Watch, source: str, values: Tensor) -> _Cell:
        return _Cell(edits, watch, source, by_stratum(values, self.found)[WHOLE])


def _told(cell: _Cell) -> dict[str, Any]:
    gate = {"kind": cell.watch.kind, "site": cell.watch.site, "false_positives": cell.watch.fpr}
    return {"edit": steering.format(cell.edits), "source": cell.source, "gate": gate, "train": cell.score}


def plugin(variant: str | None, options: Mapping[str, Any]) -> ProbeGated:
    """`probe_gated` (differences of means) and `probe_gated.feature` (the feature arm's edit)."""
    known = _options.variant_of(variant, ("", "feature"), "probe_gated")
    read = _options.read(options, DEFAULTS, "probe_gated")
    for key, allowed in (("gates", GATES), ("sources", SOURCES)):
        if set(read[key]) - set(allowed) or not read[key]:
            raise PlanError(f"probe_gated knows no such {key}", expected=", ".join(allowed), got=repr(read[key]))
    if not read["fprs"] or not all(0.0 < float(f) < 1.0 for f in read["fprs"]):
        raise PlanError("a false-positive rate lies between 0 and 1", expected="such as [0.05]", got=repr(read["fprs"]))
    return ProbeGated(known, read)
