"""A linear probe as a policy: it scores every legal action from the model's activations, and takes the best.

The probe (see `_probe`) is a logistic one over a page's actions, fitted on train decisions with the task's labels; site
and penalty are ranked on held-out parts of train, and the best `finalists` of them compared on validation, each one
tuning attempt; the bare model is tried first and wins ties. Where decoding is free there is no menu: the probe then
chooses among `samples` answers of the model, the most probable one and others drawn at `temperature`. Options:
sites        default: every resid site
penalties    C, the inverse of the L2 penalty
finalists    settings that go to validation
n_decisions  train decisions at most
samples, temperature
select, measure, balance, n_validation: see `prompt`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fairlead.core.errors import NotApplicable
from fairlead.core.keys import content_key, derive_seed
from fairlead.core.protocols import FitContext
from fairlead.core.types import Generation
from fairlead.features.points import choose, needed, points
from fairlead.methods import _choice, _options, _probe
from fairlead.methods._probe import Scorer
from fairlead.methods._saved import read_json, write_json
from fairlead.methods._steered import read_tensors, write_tensors
from fairlead.methods._world import Answer, Ask, World, together

DEFAULTS: dict[str, Any] = {
    "sites": [],
    "penalties": [0.1, 1.0, 10.0],
    "finalists": 6,
    "n_decisions": 400,
    "samples": 4,
    "temperature": 1.0,
    "select": "decisions",
    "measure": "strict",
    "balance": "trap",
    "n_validation": 120,
}


@dataclass(frozen=True, eq=False)
class Probed:
    """The chosen probe; None where the bare model was at least as good."""

    scorer: Scorer | None
    samples: int
    temperature: float
    seed: int
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        scorer = None if self.scorer is None else self.scorer.fingerprint
        return content_key(["probe", scorer, self.samples, self.temperature, self.seed])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        return nullcontext(subject if self.scorer is None else world(subject, self))

    def describe(self) -> dict[str, Any]:
        chosen = None if self.scorer is None else {"site": self.scorer.site, "penalty": self.scorer.c}
        free = {"samples": self.samples, "temperature": self.temperature}
        return {"probe": chosen, "free_decoding": free, **self.about}

    def save(self, path: Path) -> None:
        scorer = self.scorer
        write_tensors({} if scorer is None else {"weight": scorer.weight}, path)
        told = None if scorer is None else {"site": scorer.site, "c": scorer.c}
        data = {"scorer": told, "samples": self.samples, "temperature": self.temperature, "seed": self.seed}
        write_json(path, "probe", {**data, "about": dict(self.about)})


@dataclass(frozen=True)
class ProbeMethod:
    """See the module."""

    options: Mapping[str, Any]
    name: str = "probe"
    makes: str = "subject"
    uses_dictionary: bool = False

    async def fit(self, ctx: FitContext[Any]) -> Probed:
        options = self.options
        need_local(ctx.subject)
        sites = list(options["sites"]) or [f"resid.{layer}" for layer in range(ctx.subject.n_layers)]
        episodes = await ctx.rollout(ctx.subject, ctx.train)
        found = choose(needed(points(episodes, options["balance"]), "train"), options["n_decisions"], ctx.seed)
        cells, menus = _probe.survey(ctx.subject, found, sites, [float(c) for c in options["penalties"]], ctx.seed)
        judge = await _choice.judge(ctx, {**options, "n_decisions": options["n_validation"]})
        bare = Probed(None, options["samples"], float(options["temperature"]), ctx.seed)
        finalists = [
            replace(bare, scorer=_probe.fit(ctx.subject, menus[cell.site], found, cell.site, cell.c))
            for cell in cells[: options["finalists"]]
        ]
        chosen, scores = await _choice.best(ctx, judge, [bare, *finalists], lambda p: _opened(ctx.subject, p))
        told: list[dict[str, Any]] = [{"site": None, "penalty": None}]
        told += [{"site": c.site, "penalty": c.c} for c in cells]
        tried = [{**t, "score": s["all"], "strata": s} for t, s in zip(told, scores, strict=False)]
        about = {
            "validation_score": _choice.validation_score(tried),
            "tried": tried,
            "train": [{"site": c.site, "penalty": c.c, "held_out": c.score} for c in cells],
            "decisions": len(found),
        }
        return replace(chosen, about=about)

    def load(self, path: Path) -> Probed:
        data, tensors = read_json(path, "probe"), read_tensors(path)
        told = data["scorer"]
        scorer = None if told is None else Scorer(told["site"], told["c"], tensors["weight"])
        return Probed(scorer, data["samples"], data["temperature"], data["seed"], data["about"])


def need_local(subject: Any) -> None:
    """NotApplicable where activations cannot be read."""
    if not hasattr(subject, "action_activations"):
        raise NotApplicable("this subject's activations cannot be read", expected="a local model")


def _opened(subject: Any, probed: Probed) -> Any:
    return subject if probed.scorer is None else world(subject, probed)


def world(subject: Any, probed: Probed) -> World:
    """`subject` with the probe choosing. What it says of an action's probability is the probe's softmax."""
    scorer = probed.scorer
    assert scorer is not None

    def make(inner: Any) -> Answer:
        seeds = [derive_seed(probed.seed, "sample", i) for i in range(1, probed.samples)]
        others = [inner.sampled(probed.temperature, seed) for seed in seeds]

        async def answer(asks: Sequence[Ask]) -> list[Generation | Exception]:
            said = await together(inner, asks)
            free = [i for i, s in enumerate(said) if asks[i].legal is None and isinstance(s, Generation)]
            more = [await together(other, [asks[i] for i in free]) for other in others] if free else []
            drawn = {i: [m[place] for m in more] for place, i in enumerate(free)}
            return choose_by(scorer, inner, asks, said, drawn)

        return answer

    return World(subject, make, probed.fingerprint)


def choose_by(
    scorer: Scorer,
    subject: Any,
    asks: Sequence[Ask],
    said: Sequence[Generation | Exception],
    drawn: Mapping[int, Sequence[Generation | Exception]],
) -> list[Generation | Exception]:
    """Each ask's best option by the scorer: of its menu, or of the texts `said` and `drawn` for it. Tokens of all
    drawn answers are counted."""
    going = [i for i, s in enumerate(said) if isinstance(s, Generation)]
    texts: dict[int, list[str]] = {}
    for i in going:
        first, legal = said[i], asks[i].legal
        assert isinstance(first, Generation)
        others = [d.text for d in drawn.get(i, ()) if isinstance(d, Generation)]
        texts[i] = list(legal) if legal is not None and i not in drawn else list(dict.fromkeys([first.text, *others]))
    scores = scorer(subject, [asks[i].prompt for i in going], [texts[i] for i in going], [asks[i].step for i in going])
    answers = list(said)
    for i, values in zip(going, scores, strict=True):
        whole = asks[i].legal is not None and i not in drawn
        answers[i] = _taken(said[i], drawn.get(i, ()), texts[i], values, whole)
    return answers


def _taken(first: Any, drawn: Sequence[Any], texts: Sequence[str], values: torch.Tensor, whole: bool) -> Generation:
    heard = [first, *(d for d in drawn if isinstance(d, Generation))]
    return replace(
        first,
        text=texts[int(values.argmax())],
        prompt_tokens=sum(g.prompt_tokens for g in heard),
        new_tokens=sum(g.new_tokens for g in heard),
        legal_logprobs=tuple(values.log_softmax(0).tolist()) if whole else None,
    )


def plugin(variant: str | None, options: Mapping[str, Any]) -> ProbeMethod:
    """`probe`; it has no variants."""
    _options.variant_of(variant, ("",), "probe")
    return ProbeMethod(_options.read(options, DEFAULTS, "probe"))
