"""A system line found by search: phrases recombined, mutated and crossed, with proposals of another model if named.

The search runs on train decisions: every round scores its candidates on a quarter of `n_search` decisions, the better
half on half of them, the better half of those on all (successive halving); the best breed the next round. It costs
FLOPs, not attempts, as the feature finder's does. The `finalists` that scored best then go to validation, each one
tuning attempt; the empty line is tried first and wins ties. Phrases are those of `prompt`, those of `_phrases` and the
plan's. With `proposer` (the base URL of an OpenAI-compatible endpoint) a model is shown failures and the best lines so
far each round, and writes new ones; its calls are charged as judge calls. Options:
phrases           tried before the package's own
population        candidates a round; rounds; longest: phrases a line at most
n_search          train decisions; finalists
proposer          base URL ("": none); proposer_model; proposer_key_env: the variable that holds its key ("": no key)
proposals         lines asked for a round
select, measure, balance, n_decisions: see `prompt`
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.core.errors import BudgetExceeded, PlanError
from fairlead.core.keys import content_key
from fairlead.core.protocols import FitContext
from fairlead.core.types import Message
from fairlead.features.points import WHOLE, Point, choose, needed, points
from fairlead.methods import _choice, _options, prompt
from fairlead.methods._phrases import PHRASES, Wording, crossed, mutated, sentences
from fairlead.methods._saved import read_json, write_json

DEFAULTS: dict[str, Any] = {
    "phrases": [],
    "population": 16,
    "rounds": 4,
    "longest": 4,
    "n_search": 96,
    "finalists": 12,
    "proposer": "",
    "proposer_model": "",
    "proposer_key_env": "",
    "proposals": 6,
    "select": "decisions",
    "measure": "strict",
    "balance": "trap",
    "n_decisions": 120,
}
ASKED = """You improve the system line of an agent that acts on pages by choosing one of the listed actions.
Pages where it chose wrongly:

{failures}

System lines so far, with the share of decisions that come out right:
{lines}

Write {n} new system lines that would do better on pages like these and on all others. They must not name anything that
stands on one page only. One line each, no numbers, nothing else."""


@dataclass(frozen=True)
class Searched:
    """The chosen line; `tried` are the finalists on validation, `search` the best of each round on train."""

    text: str
    tried: tuple[Mapping[str, Any], ...] = field(default=())
    search: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return content_key(["prompt_search", self.text])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        return nullcontext(subject.prompted(self.text) if self.text else subject)

    def describe(self) -> dict[str, Any]:
        score, tried = _choice.validation_score(self.tried), [dict(t) for t in self.tried]
        return {"prompt": self.text, "validation_score": score, "tried": tried, "search": dict(self.search)}

    def save(self, path: Path) -> None:
        write_json(path, "prompt_search", {"text": self.text, "tried": list(self.tried), "search": dict(self.search)})


@dataclass(frozen=True)
class PromptSearch:
    """See the module."""

    options: Mapping[str, Any]
    name: str = "prompt_search"
    makes: str = "subject"
    uses_dictionary: bool = False

    async def fit(self, ctx: FitContext[Any]) -> Searched:
        options = self.options
        episodes = await ctx.rollout(ctx.subject, ctx.train)
        found = choose(needed(points(episodes, options["balance"]), "train"), options["n_search"], ctx.seed)
        judge = await _choice.judge(ctx, options)  # before the search, so that this much is always paid for
        search = _Search(ctx, options, found)
        best = await search.run()
        lines = ["", *(w.text for w in best[: options["finalists"]])]
        text, scores = await _choice.best(ctx, judge, lines, lambda t: ctx.subject.prompted(t) if t else ctx.subject)
        tried = tuple({"prompt": t, "score": s["all"], "strata": s} for t, s in zip(lines, scores, strict=False))
        return Searched(text, tried, search.told())

    def load(self, path: Path) -> Searched:
        data = read_json(path, "prompt_search")
        return Searched(data["text"], tuple(data["tried"]), data["search"])


class _Search:
    """The state of one search: what each wording scored, on how many decisions."""

    def __init__(self, ctx: FitContext[Any], options: Mapping[str, Any], found: Sequence[Point]) -> None:
        self.ctx, self.options, self.rng = ctx, options, random.Random(ctx.seed)
        self.found = self.rng.sample(found, len(found))
        self.pool = sentences([*options["phrases"], *prompt.POOL, *PHRASES])
        self.scores: dict[Wording, float] = {}  # on all decisions
        self.first: dict[Wording, float] = {}  # on the smallest part of them, for a search that got no further
        self.rounds: list[dict[str, Any]] = []
        self.proposed: list[str] = []
        self.evaluated, self.cut_short = 0, False
        self.spent = _choice.purse(ctx)

    async def run(self) -> list[Wording]:
        """The wordings that were scored on all decisions, or else on some, best first."""
        own = [Wording((line,)) for line in (*self.options["phrases"], *prompt.POOL)]
        candidates = list(dict.fromkeys(own))[: self.options["population"]]
        try:
            for _ in range(int(self.options["rounds"])):
                candidates = list(dict.fromkeys([*(await self._proposals()), *self._filled(candidates)]))
                await self._halve(candidates)
                best = self.best()
                score = self.scores[best[0]]
                self.rounds.append({"candidates": len(candidates), "prompt": best[0].text, "score": score})
                candidates = self._bred(best)
        except BudgetExceeded:
            self.cut_short = True
        return self.best()

    def best(self) -> list[Wording]:
        scores = self.scores or self.first
        return sorted(scores, key=lambda w: (-scores[w], len(w.text)))

    def told(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds, "evaluated": self.evaluated, "decisions": len(self.found),
            "proposed": self.proposed, "cut_short": self.cut_short,
        }  # fmt: skip

    async def _halve(self, candidates: Sequence[Wording]) -> None:
        """Scores on ever more decisions; half of the candidates go on each time. All decisions' scores are kept."""
        going = [w for w in candidates if w not in self.scores]
        for part, share in ((4, 2), (2, 2), (1, 1)):
            subset = self.found[: max(1, len(self.found) // part)]
            scored: dict[Wording, float] = {}
            for wording in going:
                scored[wording] = await self._score(wording, subset)
                if part != 2:
                    (self.scores if part == 1 else self.first)[wording] = scored[wording]
            going = sorted(going, key=lambda w: -scored[w])[: max(1, -(-len(going) // share))]

    async def _score(self, wording: Wording, subset: Sequence[Point]) -> float:
        if self.spent():
            raise BudgetExceeded("the search has spent its part of the FLOPs")
        self.evaluated += 1
        subject = self.ctx.subject
        world = subject.prompted(wording.text) if wording.phrases else subject
        return (await _choice.by_decisions(subset)(world))[WHOLE]

    def _filled(self, candidates: Sequence[Wording]) -> list[Wording]:
        """The candidates, with random wordings up to the population's size."""
        found, tries = dict.fromkeys(candidates), 0
        while len(found) < self.options["population"] and tries < 20 * self.options["population"]:
            count = self.rng.randint(1, min(int(self.options["longest"]), len(self.pool)))
            found.setdefault(Wording(tuple(self.rng.sample(self.pool, count))))
            tries += 1
        return list(found)

    def _bred(self, best: Sequence[Wording]) -> list[Wording]:
        """Three quarters of a population from the best few: mutated, or two of them crossed."""
        parents, longest = best[: max(2, self.options["population"] // 4)], int(self.options["longest"])
        found: dict[Wording, None] = {}
        for _ in range(10 * int(self.options["population"])):
            if len(found) >= 3 * int(self.options["population"]) // 4:
                break
            parent = self.rng.choice(parents)
            if self.rng.random() < 0.5 and len(parents) > 1:
                child = crossed(parent, self.rng.choice(parents), longest, self.rng)
            else:
                child = mutated(parent, self.pool, longest, self.rng)
            if child not in self.scores:
                found.setdefault(child)
        return list(found)

    async def _proposals(self) -> list[Wording]:
        """What the proposer writes, as wordings of one phrase; nothing without one. Later rounds may recombine them."""
        options = self.options
        if not options["proposer"]:
            return []
        from fairlead.lm.remote import Remote  # an HTTP client only where one is asked

        key = options["proposer_key_env"] or None
        meter = getattr(self.ctx.subject, "meter", None)
        remote = Remote(options["proposer"], options["proposer_model"], api_key_env=key, meter=meter)
        failures = [p for p in self.found if p.failed]
        shown = self.rng.sample(failures, min(3, len(failures)))
        pages = "\n\n".join(_failure(p) for p in shown) or "(none was seen)"
        lines = "\n".join(f"{self.scores[w]:.2f}  {w.text}" for w in self.best()[:6] if self.scores) or "(none yet)"
        asked = ASKED.format(failures=pages, lines=lines, n=options["proposals"])
        answer = await remote.complete(
            [Message("user", asked)], max_tokens=512, temperature=1.0, seed=self.rng.randrange(2**31)
        )
        written = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", line).strip().strip('"') for line in answer.split("\n")]
        new = [line for line in dict.fromkeys(written) if line][: int(options["proposals"])]
        self.proposed += new
        self.pool += [line for line in new if line not in self.pool]
        return [Wording((line,)) for line in new]


def _failure(point: Point) -> str:
    d = point.decision
    return f"{d.messages[-1].content}\nit chose: {d.chosen}\nright was: {' or '.join(d.right)}"


def plugin(variant: str | None, options: Mapping[str, Any]) -> PromptSearch:
    """`prompt_search`; it has no variants."""
    _options.variant_of(variant, ("",), "prompt_search")
    read = _options.read(options, DEFAULTS, "prompt_search")
    if read["proposer"] and not read["proposer_model"]:
        raise PlanError(
            "prompt_search has a proposer but no model to ask there",
            expected="proposer and proposer_model",
            do='add proposer_model = "..." to [options.prompt_search]',
        )
    return PromptSearch(read)
