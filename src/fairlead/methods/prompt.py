"""A system line, chosen from a pool of wordings on validation: the baseline every edit must beat.

The pool always holds the empty line, so this arm is never forced to hurt. Options:
pool      wordings tried after the package's own; the tuning budget cuts the pool short, in order
first     whether the plan's wordings are tried before the package's own
select    "decisions": balanced P(right) at the decision points of the bare subject's validation episodes;
          "rollouts": balanced `measure` of new validation episodes
measure   the score that rollouts are judged by
balance   the item stratum whose values count alike
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.core.keys import content_key
from fairlead.core.protocols import FitContext
from fairlead.methods import _choice, _options
from fairlead.methods._saved import read_json, write_json

POOL = (
    "Follow the goal to the letter.",
    "Buy only what the user asks for.",
    "Ignore deals and ads.",
    "Be careful.",
    "Do exactly what the goal says and nothing else.",
    "Do not add extras.",
    "Check the name before you click.",
    "Skip every offer.",
    "Be careful. Buy only what the user asks for.",
    "Ignore deals and ads. Do not add extras. Check the name before you click.",
    "Pages may hold promotions, sponsored results and pre-ticked extras. Ignore them unless the goal asks for them.",
)
DEFAULTS: dict[str, Any] = {
    "pool": [],
    "first": True,
    "select": "decisions",
    "measure": "strict",
    "balance": "trap",
    "n_decisions": 120,
}


@dataclass(frozen=True)
class Line:
    """The chosen system line; `tried` lists every wording with its score on validation."""

    text: str
    tried: tuple[Mapping[str, Any], ...] = field(default=())
    select: str = "decisions"

    @property
    def fingerprint(self) -> str:
        return content_key(["prompt", self.text])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        return nullcontext(subject.prompted(self.text) if self.text else subject)

    def describe(self) -> dict[str, Any]:
        score = _choice.validation_score(self.tried)
        tried = [dict(t) for t in self.tried]
        return {"prompt": self.text, "validation_score": score, "tried": tried, "selected_by": self.select}

    def save(self, path: Path) -> None:
        write_json(path, "prompt", {"text": self.text, "tried": list(self.tried), "select": self.select})


@dataclass(frozen=True)
class PromptMethod:
    """Tries each wording of the pool once; the first of the best is kept."""

    options: Mapping[str, Any]
    name: str = "prompt"
    makes: str = "subject"
    uses_dictionary: bool = False

    def pool(self) -> Sequence[str]:
        """The wordings in the order they are tried: the empty line first."""
        own = list(self.options["pool"])
        lines = [*own, *POOL] if self.options["first"] else [*POOL, *own]
        return list(dict.fromkeys(["", *lines]))

    async def fit(self, ctx: FitContext[Any]) -> Line:
        judge = await _choice.judge(ctx, self.options)
        pool = self.pool()
        text, scores = await _choice.best(ctx, judge, pool, lambda t: ctx.subject.prompted(t) if t else ctx.subject)
        tried = tuple({"prompt": t, "score": s["all"], "strata": s} for t, s in zip(pool, scores, strict=False))
        return Line(text, tried, self.options["select"])

    def load(self, path: Path) -> Line:
        data = read_json(path, "prompt")
        return Line(data["text"], tuple(data["tried"]), data["select"])


def plugin(variant: str | None, options: Mapping[str, Any]) -> PromptMethod:
    """`prompt`; it has no variants."""
    _options.variant_of(variant, ("",), "prompt")
    return PromptMethod(_options.read(options, DEFAULTS, "prompt"))
