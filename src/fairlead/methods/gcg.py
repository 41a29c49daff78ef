"""An adversarial suffix of the system line, searched token by token along the gradient: greedy coordinate gradient.

One step: one gradient pass over the embeddings of the suffix, on a fresh draw of train decisions; the `top_k` most
promising tokens at every place; `width` suffixes that differ from the present one in one token, drawn among those;
each is read on the same decisions, and the best is kept. A suffix whose own text does not come back as the same tokens
is never tried (the retokenisation filter), so what is found is a text anyone can paste. Every `check` steps the suffix
is judged on validation, one tuning attempt; the best of those is kept, and doing nothing wins ties. The search ends at
its steps or at its budget, whichever is first. Options:
length     tokens of the suffix; start: the text it starts from ("": drawn words)
steps, width, top_k, check
batch      decisions a step is read on, drawn from n_decisions train decision points
objective  "odds": log-odds of the right actions among the legal ones, what a choice turns on, cut off as in the
           feature search; "right": log p of the right actions alone, as an attacker without a list of choices has it
fluent     only whole words, and `fluency` × the suffix's own loss (nats a token, under the unchanged model) taken off
select, measure, balance, n_validation: see `prompt`

Source: Zou et al., arXiv:2307.15043, with the filter and the sampling of nanoGCG.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import BudgetExceeded, NotApplicable, PlanError
from fairlead.core.keys import content_key, derive_seed
from fairlead.core.protocols import FitContext
from fairlead.features.points import FLOOR, MARGIN, WHOLE, Point, choose, needed, points
from fairlead.lm.training import Span, span_losses, token_gradients
from fairlead.methods import _choice, _options
from fairlead.methods._saved import read_json, write_json

TEXT, WORD = re.compile(r"[!-~ ]*[!-~][!-~ ]*"), re.compile(r" ?[A-Za-z][a-z]+[.,]?")
OBJECTIVES = ("odds", "right")
DEFAULTS: dict[str, Any] = {
    "length": 12,
    "start": "",
    "steps": 38,
    "width": 32,
    "top_k": 64,
    "check": 2,
    "batch": 24,
    "n_decisions": 240,
    "objective": "odds",
    "fluent": False,
    "fluency": 0.2,
    "select": "decisions",
    "measure": "strict",
    "balance": "trap",
    "n_validation": 120,
}


@dataclass(frozen=True)
class Suffix:
    """The chosen suffix, "" for none; `tried` lists every suffix that was judged, with its score on validation."""

    text: str
    tried: tuple[Mapping[str, Any], ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return content_key(["gcg", self.text])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        return nullcontext(subject.prompted(self.text) if self.text else subject)

    def describe(self) -> dict[str, Any]:
        score = _choice.validation_score(self.tried)
        return {"prompt": self.text, "tried": [dict(t) for t in self.tried], "validation_score": score, **self.about}

    def save(self, path: Path) -> None:
        write_json(path, "gcg", {"text": self.text, "tried": list(self.tried), "about": dict(self.about)})


class Reader:
    """How a Subject reads a suffix: which tokens it becomes, and what it does to the choices at some points."""

    def __init__(self, subject: Any, objective: str) -> None:
        self.subject, self.objective = subject, objective

    def span(self, text: str, point: Point) -> tuple[Span, list[int]] | None:
        """Where `text` is among the prompt's tokens, and which they are; None where tokens straddle its ends."""
        prompt = self.subject.prompted(text).tokens(point.decision.messages)
        head = prompt.messages[0].content
        at = prompt.text.find(head)
        if at < 0 or not head.endswith(text):
            return None
        start, stop = at + len(head) - len(text), at + len(head)
        inside = (
            (prompt.offsets[:, 1] > start)
            & (prompt.offsets[:, 0] < stop)
            & (prompt.offsets[:, 1] > prompt.offsets[:, 0])
        )
        where = inside.nonzero()[0]
        if not len(where) or prompt.offsets[where[0], 0] < start or prompt.offsets[where[-1], 1] > stop:
            return None
        first, last = int(where[0]), int(where[-1]) + 1
        return (first, last), [int(i) for i in prompt.ids[first:last]]

    def text(self, ids: Sequence[int]) -> str:
        return str(self.subject.checkpoint.chat.decode(ids))

    def value(self, text: str, found: Sequence[Point]) -> float:
        """The objective, summed over points: larger is better."""
        legal, metrics = self._asked(found)
        decisions = [p.decision for p in found]
        world = self.subject.prompted(text)
        scores = world.action_logprobs([d.messages for d in decisions], legal, [d.step for d in decisions])
        return float(sum(metric(s) for metric, s in zip(metrics, scores, strict=True)))

    def gradient(self, text: str, found: Sequence[Point]) -> Tensor | None:
        """How fast the objective grows as token i of the suffix turns into token v, [n, V]; None where the suffix is
        not the same tokens in every prompt."""
        spans = [self.span(text, p) for p in found]
        if any(s is None for s in spans) or len({tuple(s[1]) for s in spans if s is not None}) != 1:
            return None
        legal, metrics = self._asked(found)
        decisions = [p.decision for p in found]
        messages, steps = [d.messages for d in decisions], [d.step for d in decisions]
        where = [s[0] for s in spans if s is not None]
        return token_gradients(self.subject.prompted(text), messages, legal, metrics, where, steps)[0]

    def _asked(self, found: Sequence[Point]) -> tuple[list[Sequence[str]], list[Any]]:
        """The actions to score at every point, and the metric over their log-probabilities."""
        if self.objective == "right":
            legal: list[Sequence[str]] = [[a for a in p.decision.legal if a in p.decision.right] for p in found]
            return legal, [lambda scores: scores.logsumexp(0)] * len(found)
        return [p.decision.legal for p in found], [_odds(p) for p in found]


def _odds(point: Point) -> Any:
    right = torch.tensor(point.right)

    def metric(scores: Tensor) -> Tensor:
        chosen = right.to(scores.device)
        return (scores[chosen].logsumexp(0) - scores[~chosen].logsumexp(0)).clamp(FLOOR, MARGIN)

    return metric


@dataclass(frozen=True)
class GcgMethod:
    """See the module. Needs a subject whose gradients are at hand."""

    options: Mapping[str, Any]
    name: str = "gcg"
    makes: str = "subject"
    uses_dictionary: bool = False

    async def fit(self, ctx: FitContext[Any]) -> Suffix:
        if not hasattr(ctx.subject, "attribution"):
            raise NotApplicable("this subject's gradients are not at hand", expected="a local model")
        options = self.options
        episodes = await ctx.rollout(ctx.subject, ctx.train)
        found = choose(needed(points(episodes, options["balance"]), "train"), options["n_decisions"], ctx.seed)
        judge = await _choice.judge(ctx, {**options, "n_decisions": options["n_validation"]})
        tried: list[dict[str, Any]] = []
        walk = _Walk(ctx, options, found)
        try:
            ctx.try_one()
            strata = await judge(ctx.subject)
            tried.append({"prompt": "", "step": 0, "score": strata[WHOLE], "strata": strata})
            for step in range(1, options["steps"] + 1):
                if not walk.step(step):
                    break
                if step % options["check"] == 0 or step == options["steps"]:
                    ctx.try_one()
                    strata = await judge(ctx.subject.prompted(walk.text))
                    tried.append({"prompt": walk.text, "step": step, "score": strata[WHOLE], "strata": strata})
        except BudgetExceeded:
            pass  # what was judged so far counts
        best = max(tried, key=lambda t: t["score"], default={"prompt": ""})
        about = {"steps": walk.done, "suffixes_read": walk.read, "gains": walk.gains, "ended": walk.ended}
        return Suffix(best["prompt"], tuple(tried), about)

    def load(self, path: Path) -> Suffix:
        data = read_json(path, "gcg")
        return Suffix(data["text"], tuple(data["tried"]), data["about"])


class _Walk:
    """The search itself: a suffix that changes by one token a step."""

    def __init__(self, ctx: FitContext[Any], options: Mapping[str, Any], found: Sequence[Point]) -> None:
        self.ctx, self.options, self.found = ctx, options, found
        self.reader = Reader(ctx.subject, options["objective"])
        self.rng = random.Random(derive_seed(ctx.seed, "gcg"))
        self.allowed = allowed(ctx.subject, options["fluent"])
        self.text = self._start()
        self.done, self.read, self.ended = 0, 0, "steps"
        self.gains: list[float] = []  # per step, what the objective gained a decision

    def step(self, number: int) -> bool:
        """Change one token, or none where none of those tried is better; False where no gradient can be taken."""
        here = self.rng.sample(list(self.found), min(self.options["batch"], len(self.found)))
        gradient = self.reader.gradient(self.text, here)
        place = self.reader.span(self.text, here[0])
        if gradient is None or place is None:
            self.ended = f"step {number}: the suffix is not the same tokens in every prompt"
            return False
        old = self._value(self.text, here)
        values = {text: self._value(text, here) for text in self._candidates(gradient, place[1], here[0])}
        best = max(values, key=values.__getitem__, default=None)
        gained = 0.0 if best is None else max(0.0, values[best] - old)
        if best is not None and gained > 0.0:
            self.text = best
        self.done = number
        self.gains.append(gained / len(here))
        return True

    def _value(self, text: str, here: Sequence[Point]) -> float:
        if self.ctx.budget is not None:
            self.ctx.budget.check()
        self.read += 1
        value = self.reader.value(text, here)
        if self.options["fluent"]:
            place = self.reader.span(text, here[0])
            if place is not None:
                world = self.ctx.subject.prompted(text)
                loss = float(span_losses(world, [here[0].decision.messages], [place[0]])[0])
                value -= self.options["fluency"] * loss * len(here)
        return value

    def _candidates(self, gradient: Tensor, ids: list[int], point: Point) -> list[str]:
        """Up to `width` texts, each one token away from `ids` and read back as exactly those tokens."""
        pool = self.allowed.to(gradient.device)
        top = gradient[:, pool].topk(min(self.options["top_k"], len(pool)), dim=1).indices
        choices = [(i, int(pool[j])) for i, row in enumerate(top.tolist()) for j in row if int(pool[j]) != ids[i]]
        self.rng.shuffle(choices)
        texts: list[str] = []
        for i, token in choices[: 4 * self.options["width"]]:
            changed = [*ids[:i], token, *ids[i + 1 :]]
            text = self.reader.text(changed)
            if text not in texts and self._comes_back(text, changed, point):
                texts.append(text)
            if len(texts) == self.options["width"]:
                break
        return texts

    def _comes_back(self, text: str, ids: Sequence[int], point: Point) -> bool:
        if text.strip() != text:  # templates strip, and so would whoever pastes it
            return False
        place = self.reader.span(text, point)
        return place is not None and place[1] == list(ids)

    def _start(self) -> str:
        """The text to start from: the option, or drawn tokens, as many as asked for, that are read back as they are."""
        if self.options["start"]:
            return str(self.options["start"])
        words = allowed(self.ctx.subject, fluent=True).tolist() or self.allowed.tolist()
        ids: list[int] = []
        for _ in range(200 * self.options["length"]):
            more = [*ids, self.rng.choice(words)]
            text = self.reader.text(more).strip()
            place = self.reader.span(text, self.found[0]) if text else None
            if place is not None and len(place[1]) == len(more):
                ids = place[1]
            if len(ids) == self.options["length"]:
                return self.reader.text(ids)
        raise NotApplicable("no text of this tokenizer comes back as the tokens it was made of")


def allowed(subject: Any, fluent: bool) -> Tensor:
    """Ids of the tokens a suffix may have: printable ASCII, none that the template or the model keeps to itself, and
    whole words only where it must be fluent."""
    tokenizer, decode = subject.tokenizer, subject.checkpoint.chat.decode
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    size = min(len(tokenizer), subject.model.get_input_embeddings().weight.shape[0])
    pattern = WORD if fluent else TEXT
    found = [i for i in range(size) if i not in special and pattern.fullmatch(decode([i]))]
    if not found:
        raise NotApplicable("this tokenizer has no printable tokens to search among")
    return torch.tensor(found)


def plugin(variant: str | None, options: Mapping[str, Any]) -> GcgMethod:
    """`gcg`; it has no variants."""
    _options.variant_of(variant, ("",), "gcg")
    read = _options.read(options, DEFAULTS, "gcg")
    if read["objective"] not in OBJECTIVES:
        raise PlanError("gcg has no such objective", expected=", ".join(OBJECTIVES), got=str(read["objective"]))
    if min(read[k] for k in ("length", "steps", "width", "top_k", "check", "batch")) < 1:
        raise PlanError(
            "gcg cannot search with that", expected="length, steps, width, top_k, check, batch of 1 or more"
        )
    return GcgMethod(read)
