"""The best of n sampled answers: by a probe that verifies them, or by a vote.

best_of_n       a linear probe on the model's activations (see `probe`), fitted on train decisions, scores each distinct
                answer; the `verifiers` that are best on held-out parts of train are tried
best_of_n.vote  the answer that came most often; the first of them in a tie (self-consistency)

Every answer is a request of its own, sampled at a temperature, reproducible from seed, prompt and step, and charged:
n forwards a step, and the verifier's two. Each n × temperature (× verifier) is one tuning attempt on validation; the
bare model is tried first and wins ties. Candidates are compared by how often their choice is right. Options:
n             how many answers
temperatures  of the softmax they are drawn from
greedy        whether the most probable answer is one of the n
verifiers     probes that are tried
sites, penalties, n_decisions: see `probe`
select, measure, balance, n_validation: see `prompt`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fairlead.core.errors import NotApplicable, PlanError
from fairlead.core.keys import content_key, derive_seed
from fairlead.core.protocols import FitContext
from fairlead.core.types import Generation
from fairlead.features.points import choose, needed, points
from fairlead.methods import _choice, _options, _probe
from fairlead.methods._probe import Scorer
from fairlead.methods._saved import read_json, write_json
from fairlead.methods._steered import read_tensors, write_tensors
from fairlead.methods._world import Answer, Ask, World, together
from fairlead.methods.probe import choose_by, need_local

DEFAULTS: dict[str, Any] = {
    "n": [8, 4],
    "temperatures": [2.0, 1.0, 4.0],
    "greedy": True,
    "verifiers": 4,
    "sites": [],
    "penalties": [0.1, 1.0, 10.0],
    "n_decisions": 400,
    "select": "decisions",
    "measure": "strict",
    "balance": "trap",
    "n_validation": 120,
}


@dataclass(frozen=True, eq=False)
class Best:
    """n answers at `temperature`, one of them greedy where so wished; n = 1 is the bare model. No `scorer`: a vote."""

    n: int
    temperature: float
    greedy: bool
    seed: int
    scorer: Scorer | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        scorer = None if self.scorer is None else self.scorer.fingerprint
        return content_key(["best_of_n", self.n, self.temperature, self.greedy, self.seed, scorer])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        return nullcontext(world(subject, self))

    @property
    def by(self) -> Any:
        """Who chooses, as JSON; None where nobody needs to."""
        if self.n == 1:
            return None
        return "vote" if self.scorer is None else {"site": self.scorer.site, "penalty": self.scorer.c}

    def describe(self) -> dict[str, Any]:
        return {"n": self.n, "temperature": self.temperature, "greedy": self.greedy, "verifier": self.by, **self.about}

    def save(self, path: Path) -> None:
        scorer = self.scorer
        write_tensors({} if scorer is None else {"weight": scorer.weight}, path)
        data = {"n": self.n, "temperature": self.temperature, "greedy": self.greedy, "seed": self.seed}
        told = None if scorer is None else {"site": scorer.site, "c": scorer.c}
        write_json(path, "best_of_n", {**data, "scorer": told, "about": dict(self.about)})


@dataclass(frozen=True)
class BestOfN:
    """See the module."""

    variant: str
    options: Mapping[str, Any]
    name: str = "best_of_n"
    makes: str = "subject"
    uses_dictionary: bool = False

    async def fit(self, ctx: FitContext[Any]) -> Best:
        options = self.options
        if not hasattr(ctx.subject, "sampled"):
            raise NotApplicable("this subject cannot be sampled", expected="a subject with `sampled`")
        verifiers: tuple[Scorer | None, ...] = (None,)
        about: dict[str, Any] = {}
        if self.variant != "vote":
            verifiers, about = await self._verifiers(ctx)
        judge = await _choice.judge(ctx, {**options, "n_decisions": options["n_validation"]}, hard=True)
        bare = Best(1, 1.0, True, ctx.seed)
        cells = [(int(n), float(t), v) for n in options["n"] for t in options["temperatures"] for v in verifiers]
        candidates = [bare, *(Best(n, t, options["greedy"], ctx.seed, v) for n, t, v in cells)]
        chosen, scores = await _choice.best(ctx, judge, candidates, lambda best: world(ctx.subject, best))
        tried = [
            {"n": c.n, "temperature": c.temperature, "verifier": c.by, "score": s["all"], "strata": s}
            for c, s in zip(candidates, scores, strict=False)
        ]
        return replace(chosen, about={**about, "validation_score": _choice.validation_score(tried), "tried": tried})

    async def _verifiers(self, ctx: FitContext[Any]) -> tuple[tuple[Scorer, ...], dict[str, Any]]:
        options = self.options
        need_local(ctx.subject)
        sites = list(options["sites"]) or [f"resid.{layer}" for layer in range(ctx.subject.n_layers)]
        episodes = await ctx.rollout(ctx.subject, ctx.train)
        found = choose(needed(points(episodes, options["balance"]), "train"), options["n_decisions"], ctx.seed)
        cells, menus = _probe.survey(ctx.subject, found, sites, [float(c) for c in options["penalties"]], ctx.seed)
        taken = cells[: options["verifiers"]]
        scorers = tuple(_probe.fit(ctx.subject, menus[cell.site], found, cell.site, cell.c) for cell in taken)
        return scorers, {"train": [{"site": c.site, "penalty": c.c, "held_out": c.score} for c in cells]}

    def load(self, path: Path) -> Best:
        data, tensors = read_json(path, "best_of_n"), read_tensors(path)
        told = data["scorer"]
        scorer = None if told is None else Scorer(told["site"], told["c"], tensors["weight"])
        return Best(data["n"], data["temperature"], data["greedy"], data["seed"], scorer, data["about"])


def world(subject: Any, best: Best) -> Any:
    """`subject` answering n times. The probabilities of its choice are not known, so none are reported."""
    if best.n == 1:
        return subject

    def make(inner: Any) -> Answer:
        seeds = [derive_seed(best.seed, "answer", i) for i in range(best.n - best.greedy)]
        voices = [*([inner] if best.greedy else []), *(inner.sampled(best.temperature, seed) for seed in seeds)]

        async def answer(asks: Sequence[Ask]) -> list[Generation | Exception]:
            heard = [await together(voice, asks) for voice in voices]
            if best.scorer is None:
                return [_vote([answers[i] for answers in heard]) for i in range(len(asks))]
            drawn = {i: [answers[i] for answers in heard[1:]] for i in range(len(asks))}
            return choose_by(best.scorer, inner, asks, heard[0], drawn)

        return answer

    return World(subject, make, best.fingerprint)


def _vote(heard: Sequence[Generation | Exception]) -> Generation | Exception:
    said = [g for g in heard if isinstance(g, Generation)]
    if not said:
        return heard[0]
    winner = Counter(g.text for g in said).most_common(1)[0][0]  # the first of equals
    first = next(g for g in said if g.text == winner)
    prompt_tokens, new_tokens = sum(g.prompt_tokens for g in said), sum(g.new_tokens for g in said)
    return replace(first, prompt_tokens=prompt_tokens, new_tokens=new_tokens, legal_logprobs=None)


def plugin(variant: str | None, options: Mapping[str, Any]) -> BestOfN:
    """`best_of_n` (a verifier probe chooses) and `best_of_n.vote`."""
    known = _options.variant_of(variant, ("", "vote"), "best_of_n")
    read = _options.read(options, DEFAULTS, "best_of_n")
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 2 for n in read["n"]):
        raise PlanError("best_of_n needs answers to choose from", expected="n of 2 or more", got=repr(read["n"]))
    return BestOfN(known, read)
