"""The claim with one factor changed: what a result owes to its exact dose, layer, place, wording or dictionary.

dose_0_25, dose_0_5, dose_2, dose_4    every edit's change times that
layer_minus_1, layer_minus_2, layer_plus_1, layer_plus_2    the same directions at another layer
scope_all, scope_prompt, scope_last    at other tokens
paraphrase_1 ... paraphrase_5          one more system line, neutral to the task, before anything the claim adds
dictionary_2                           found again in a second dictionary, with the claim's own options and budget
seed_1, seed_2, seed_3                 found again from other draws of train and validation decisions

Nothing is chosen here: the arm takes the claim's Fitted as it is and alters it. Judged for brittleness only, each on
few instances (`n_arms = {stress = 60}` in the plan); seeds are the plan's. A variant that does not apply says why.
Options:
of           the arm whose claim is tested (default: feature); `prompt+feature` is altered in its feature part
paraphrases  the five lines
dictionary   reference of the second dictionary, or a table model -> reference
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fairlead import dictionaries
from fairlead.core import chain, plugins
from fairlead.core.chain import Chain
from fairlead.core.errors import NotApplicable, PlanError
from fairlead.core.keys import content_key, derive_seed
from fairlead.core.ledger import DICTIONARY_SHARE
from fairlead.core.plan import components
from fairlead.core.protocols import FitContext, Fitted
from fairlead.methods import _options, feature
from fairlead.methods._altered import dosed, rescoped, shifted
from fairlead.methods._saved import read_json, write_json
from fairlead.methods._steered import Steered

DOSES = {"dose_0_25": 0.25, "dose_0_5": 0.5, "dose_2": 2.0, "dose_4": 4.0}
LAYERS = {"layer_minus_2": -2, "layer_minus_1": -1, "layer_plus_1": 1, "layer_plus_2": 2}
SCOPES = {"scope_all": "all", "scope_prompt": "prompt", "scope_last": "last"}
LINES = (
    "A session begins here.",
    "You will see one page at a time.",
    "Answer in the usual form.",
    "What follows was written by the site.",
    "This is a routine request.",
)
PARAPHRASES = {f"paraphrase_{i}": i - 1 for i in range(1, len(LINES) + 1)}
SEEDS = {f"seed_{i}": i for i in (1, 2, 3)}
VARIANTS = (*DOSES, *LAYERS, *SCOPES, *PARAPHRASES, "dictionary_2", *SEEDS)
DEFAULTS: dict[str, Any] = {"of": "feature", "paraphrases": list(LINES), "dictionary": None}
INSIDE = "claim"  # the folder of the altered claim


@dataclass(frozen=True)
class Stressed:
    """The claim's Fitted, altered; `line` is a system line it is put under ("": none)."""

    variant: str
    of: str
    fitted: Fitted[Any]
    line: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return content_key(["stress", self.variant, self.line, self.fitted.fingerprint])

    def open(self, subject: Any) -> Any:
        return self._open(subject)

    @contextmanager
    def _open(self, subject: Any) -> Iterator[Any]:
        with self.fitted.open(subject.prompted(self.line) if self.line else subject) as world:
            yield world

    def describe(self) -> dict[str, Any]:
        told = {k: v for k, v in self.fitted.describe().items() if k in ("edit", "prompt", "parts", "moved")}
        return {
            **told,
            "of": self.of,
            "changed": self.variant,
            **({"line": self.line} if self.line else {}),
            **self.about,
        }

    def save(self, path: Path) -> None:
        (path / INSIDE).mkdir(parents=True)
        self.fitted.save(path / INSIDE)
        data = {"variant": self.variant, "of": self.of, "line": self.line, "about": dict(self.about)}
        write_json(path, "stress", data)


@dataclass(frozen=True)
class StressMethod:
    """See the module."""

    variant: str
    options: Mapping[str, Any]
    makes: str = "subject"

    @property
    def name(self) -> str:
        return f"stress.{self.variant}"

    @property
    def uses_dictionary(self) -> bool:
        return self.variant in SEEDS

    @property
    def siblings(self) -> tuple[str, ...]:
        return (self.options["of"],)

    async def fit(self, ctx: FitContext[Any]) -> Stressed:
        claim, of = ctx.sibling(self.options["of"]), self.options["of"]
        if self.variant in PARAPHRASES:
            return Stressed(self.variant, of, claim, self.options["paraphrases"][PARAPHRASES[self.variant]])
        parts = list(claim.parts) if isinstance(claim, Chain) else [claim]
        places = [i for i, part in enumerate(parts) if isinstance(part, Steered) and part.edits]
        if not places:
            raise NotApplicable(
                f"{of} holds no edit, so its {self.variant.partition('_')[0]} cannot be changed",
                expected="an arm that was fitted to an edit of activations",
            )
        about: dict[str, Any] = {}
        for place in places:
            part = parts[place]
            assert isinstance(part, Steered)
            again = self.variant == "dictionary_2" or self.variant in SEEDS
            parts[place] = await self._again(ctx, part, about) if again else self._alter(ctx, part)
        return Stressed(self.variant, of, Chain(tuple(parts)) if isinstance(claim, Chain) else parts[0], "", about)

    def _alter(self, ctx: FitContext[Any], part: Steered) -> Steered:
        if self.variant in LAYERS:
            return shifted(part, LAYERS[self.variant], ctx.subject.n_layers, part.method)
        if self.variant in SCOPES:
            return replace(part, edits=rescoped(part.edits, SCOPES[self.variant]))
        return replace(part, edits=dosed(part.edits, DOSES[self.variant]))

    async def _again(self, ctx: FitContext[Any], part: Steered, about: dict[str, Any]) -> Steered:
        """The feature arm, fitted anew: from another seed, or with the second dictionary."""
        if part.method != "feature":
            raise NotApplicable(f"{part.method} was not found in a dictionary, so it is not found again")
        if self.variant in SEEDS:
            again = replace(ctx, seed=derive_seed("stress", ctx.seed, self.variant))
        else:
            again = replace(ctx, dictionary=self._second(ctx, about))
        options = dict(part.about.get("options", {}))
        found = await feature.plugin(None, options).fit(replace(again, options=options))
        about["found"] = found.about.get("validation_score")
        return found

    def _second(self, ctx: FitContext[Any], about: dict[str, Any]) -> Any:
        """The second dictionary; its share of that dictionary's training is charged here."""
        named = self.options["dictionary"]
        ref = named.get(ctx.subject.name) if isinstance(named, Mapping) else named
        if not ref:
            raise NotApplicable("no second dictionary was named", do='[options.stress] dictionary = "model@site#seed1"')
        second = dictionaries.load(ref)
        if ctx.subject.meter is not None and second.training_flops:
            ctx.subject.meter.charge(flops=DICTIONARY_SHARE * second.training_flops)
        about["dictionary"] = str(ref)
        return second

    def load(self, path: Path) -> Stressed:
        data = read_json(path, "stress")
        methods = [plugins.get("methods", c.name)(c.variant, {}) for c in components(data["of"])]
        return Stressed(
            data["variant"], data["of"], chain.load(methods, path / INSIDE), data["line"], data["about"]
        )  # fmt: skip


def plugin(variant: str | None, options: Mapping[str, Any]) -> StressMethod:
    """`stress.dose_2`, `stress.layer_plus_1` and the others of the module."""
    read = _options.read(options, DEFAULTS, "stress")
    if len(read["paraphrases"]) != len(LINES) or not all(isinstance(p, str) and p for p in read["paraphrases"]):
        raise PlanError("stress needs five paraphrases", expected="five lines", got=repr(read["paraphrases"]))
    return StressMethod(_options.variant_of(variant, VARIANTS, "stress"), read)
