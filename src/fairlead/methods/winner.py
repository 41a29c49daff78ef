"""Whichever arm did best on validation: the contender of `fairlead fix`.

The arms of `of` are opened one after another on whole validation items; the first of the best is kept, so the order
of `of` says which is preferred among equals (doing nothing first, then what is cheapest to serve). The plan names this
arm as its claim before anything is fitted: what it is, is found without the test split. Options:
of        arms of the same plan, in the order of preference
measure   the score they are chosen by
balance   the item stratum whose values count alike
An arm that does not apply, or could not be fitted, is left out, with the reason. What it cost to fit the arm that
won is in that arm's own ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.core import chain, plugins
from fairlead.core.errors import FairleadError, NotApplicable
from fairlead.core.plan import components
from fairlead.core.protocols import FitContext, Fitted
from fairlead.methods import _choice, _options
from fairlead.methods._saved import read_json, write_json

DEFAULTS: dict[str, Any] = {"of": ["none"], "measure": "strict", "balance": "trap"}
INSIDE = "arm"  # the folder of the arm that won


@dataclass(frozen=True)
class Won:
    """The Fitted of the arm that won, under that arm's fingerprint: what is served is what was judged."""

    arm: str
    fitted: Fitted[Any]
    tried: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        return self.fitted.fingerprint

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        return self.fitted.open(subject)

    def as_edits(self) -> Any:
        """As the arm that won has it; None where it is more than edits."""
        return self.fitted.as_edits() if hasattr(self.fitted, "as_edits") else None

    def describe(self) -> dict[str, Any]:
        scores = [float(t["score"]) for t in self.tried if t["score"] is not None]
        own = {
            "arm": self.arm,
            "arms_tried": [dict(t) for t in self.tried],
            "validation_score": max(scores, default=None),
        }
        return {**self.fitted.describe(), **own}

    def save(self, path: Path) -> None:
        (path / INSIDE).mkdir(parents=True)
        self.fitted.save(path / INSIDE)
        write_json(path, "winner", {"arm": self.arm, "tried": [dict(t) for t in self.tried]})


@dataclass(frozen=True)
class WinnerMethod:
    """See the module."""

    options: Mapping[str, Any]
    name: str = "winner"
    makes: str = "subject"
    uses_dictionary: bool = False

    @property
    def siblings(self) -> tuple[str, ...]:
        return tuple(self.options["of"])

    async def fit(self, ctx: FitContext[Any]) -> Won:
        judge = await _choice.judge(ctx, {**self.options, "select": "rollouts"})
        fitted: list[tuple[str, Fitted[Any]]] = []
        left_out: list[dict[str, Any]] = []
        for arm in self.siblings:
            try:
                fitted.append((arm, ctx.sibling(arm)))
            except FairleadError as error:
                left_out.append({"arm": arm, "score": None, "strata": {}, "reason": str(error)})
        if not fitted:
            raise NotApplicable("none of the arms could be fitted", got="; ".join(t["reason"] for t in left_out))

        async def score(one: tuple[str, Fitted[Any]]) -> dict[str, float]:
            with one[1].open(ctx.subject) as world:
                return await judge(world)

        (arm, chosen), scores = await _choice.best(ctx, score, fitted, lambda one: one)
        tried = [{"arm": name, "score": s["all"], "strata": s} for (name, _), s in zip(fitted, scores, strict=False)]
        left_out += [{"arm": n, "score": None, "strata": {}, "reason": "the budget"} for n, _ in fitted[len(scores) :]]
        return Won(arm, chosen, (*tried, *left_out))

    def load(self, path: Path) -> Won:
        data = read_json(path, "winner")
        methods = [plugins.get("methods", c.name)(c.variant, {}) for c in components(data["arm"])]
        return Won(data["arm"], chain.load(methods, path / INSIDE), tuple(data["tried"]))


def plugin(variant: str | None, options: Mapping[str, Any]) -> WinnerMethod:
    """`winner`; it has no variants."""
    _options.variant_of(variant, ("",), "winner")
    return WinnerMethod(_options.read(options, DEFAULTS, "winner"))
