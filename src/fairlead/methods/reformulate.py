"""Find what the model misreads by its latents, and rewrite the prompt: a note behind the line says what a word means.

After "Discovering misunderstanding with sparse autoencoders" (arXiv 2507.06427; its text was not available to us, so
this is our own construction of what its abstract says, and no claim to its numbers). On train ("discover"):
1. The bare subject answers; the latents of its prompts are read, sparse.
2. Outcome contrast: which latents tell wrong items from right ones, by a clustered rank test beside length and
   difficulty, Benjamini-Hochberg over all that fire.
3. Triggers: a latent, or a latent beside another, that fires on wrong items and hardly on right ones (`precision`).
4. Senses: at the word it fires on, what the misreading has too much of and what it lacks, against a paraphrase in the
   intended sense where the item has one (data["paraphrase"]), else against right answers. Patched in, they have to move
   P(right) by `effect`.
5. Labels for those latents, scored on held-out windows; without one that holds the trigger is dropped, and counted.
On validation ("select") the triggers that repair more than they break and are right often enough are kept, and
annotating is chosen over doing nothing only where it does better. On test nothing is chosen, and no answer is known:
what fires, fires. A prompt on which nothing fires is not touched.

    Note: here "bats" means owl or wolf, not hammer.

Variants (controls and ceilings; where they need what `reformulate` found, they ask for it):
generic         the same items, at the same place, with as many tokens that say only to read with care
shuffled_label  the same triggers, each with the words of another one
random_latent   the same triggers, with the words of live latents drawn by lot
edit            the same triggers; the senses are patched in instead of being said
probe           a linear probe of the bare activations says which items; where and what is said as before
self            no dictionary: the same model is asked which word may be misread, and what it means
pca, kmeans     the whole pipeline on another dictionary of the site, fitted here
oracle          the gold gloss of every item that has one (data["gloss"]): the ceiling
wrong_gloss     the same with the senses the wrong way round: has to do harm, or the note is not read

Options: precision, support, q, levels, pairs (see `features.misread.triggers`); confirm (the least share of wrong
items among those a trigger annotates on validation); effect (least gain in P(right) of the
patch); label (least held-out AUROC of a label); cap (tokens of a note); measure (the score that validation compares);
labels (a JSON-lines file of labels that `fairlead features label` made, instead of making them here).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairlead.core.errors import BudgetExceeded, NotApplicable, PlanError
from fairlead.core.keys import derive_seed
from fairlead.core.protocols import FitContext, Fitted
from fairlead.core.types import Episode
from fairlead.features import labels as labelling
from fairlead.features.excerpt import cut
from fairlead.features.misread.find import Findings, find
from fairlead.features.misread.naming import Gloss, name_latents, words_for
from fairlead.features.misread.senses import Case, Settings
from fairlead.features.misread.spans import swapped
from fairlead.features.misread.triggers import Search
from fairlead.features.points import points
from fairlead.methods import _glossed, _noted, _options
from fairlead.methods._noted import Entry, Noted
from fairlead.methods._other import other_dictionary
from fairlead.methods._saved import read_json
from fairlead.methods.probe_gated import watched

MATCHED = ("generic", "shuffled_label", "random_latent", "edit", "probe")  # to what `reformulate` found
PIPELINES = ("pca", "kmeans")
ASKED = ("self", "oracle", "wrong_gloss")
VARIANTS = ("", *MATCHED, *PIPELINES, *ASKED)
_SEARCH = Search()
DEFAULTS: dict[str, Any] = {
    "precision": _SEARCH.precision,
    "support": _SEARCH.support,
    "q": _SEARCH.q,
    "levels": list(_SEARCH.levels),
    "pairs": True,
    "confirm": 0.8,
    "effect": 0.1,
    "label": 0.7,
    "cap": 48,
    "measure": "strict",
    "labels": "",
}
ROUNDS = 3  # of confirmation
POOL = 48  # latents drawn by lot, of which those with a label that holds may stand for others
PROBE = {"penalties": [0.1, 1.0, 10.0], "fprs": [0.05]}


@dataclass(frozen=True)
class Reformulate:
    """See the module."""

    variant: str
    options: Mapping[str, Any]
    name: str = "reformulate"
    makes: str = "subject"

    @property
    def uses_dictionary(self) -> bool:
        return self.variant not in ASKED

    @property
    def siblings(self) -> tuple[str, ...]:
        return ("reformulate",) if self.variant in MATCHED else ()

    async def fit(self, ctx: FitContext[Any]) -> Fitted[Any]:
        if self.variant in ASKED:
            return _glossed.Glossed(self.variant, self.options["cap"])
        if not hasattr(ctx.subject, "attribution"):
            raise NotApplicable("this subject's activations cannot be read", expected="a local model")
        if ctx.dictionary is None:
            raise NotApplicable(f"{self._said} needs a dictionary", do='name one in the plan: dictionary = "..."')
        if self.variant in MATCHED:
            return await self._matched(ctx)
        train = await ctx.rollout(ctx.subject, ctx.train)
        cases = cases_of(train)
        dictionary = ctx.dictionary
        if self.variant in PIPELINES:
            dictionary = other_dictionary(self.variant, ctx, [c.messages for c in cases])
        found = await self._found(ctx, dictionary, cases, train)
        entries = tuple(Entry(m.trigger, m.gloss, m.edits, m.word) for m in found.misreadings)
        fitted = Noted(entries, _rows(dictionary, entries), cap=self.options["cap"])
        return await self._selected(ctx, fitted, found)

    def load(self, path: Path) -> Fitted[Any]:
        return _glossed.load(path) if read_json(path, "reformulate")["kind"] == "glossed" else _noted.load(path)

    @property
    def _said(self) -> str:
        return self.name + (f".{self.variant}" if self.variant else "")

    async def _found(
        self, ctx: FitContext[Any], dictionary: Any, cases: Sequence[Case], train: Sequence[Episode]
    ) -> Findings:
        options = self.options
        known = labelling.read(Path(options["labels"]))[1] if options["labels"] else None
        hard = {e.item.cluster: e.item.data.get("difficulty") for e in train}
        difficulty = [hard.get(case.point.cluster) for case in cases]
        settings = Search(
            precision=options["precision"], support=options["support"], q=options["q"],
            levels=tuple(float(x) for x in options["levels"]), pairs=options["pairs"],
        )  # fmt: skip
        return await find(
            ctx.subject, dictionary, cases, triggers=settings, patching=Settings(least=options["effect"]),
            difficulty=None if None in difficulty else [float(d or 0) for d in difficulty],
            label=options["label"], known=known, seed=ctx.seed,
        )  # fmt: skip

    async def _selected(self, ctx: FitContext[Any], fitted: Noted, found: Findings) -> Noted:
        """Of the entries, those that validation confirms; none where annotating does not do better than nothing."""
        measured = self.options["measure"]
        bare = await ctx.rollout(ctx.subject, ctx.validation)
        tried = [{"annotate": 0, "score": _mean(bare, measured)}]
        kept: tuple[Entry, ...] = ()
        checked: dict[str, dict[str, int]] = {}
        try:
            ctx.try_one()
            kept = await self._confirmed(ctx, fitted, bare, checked)
            if kept:
                ctx.try_one()
                again = await self._played(ctx, replace(fitted, entries=kept))
                tried.append({"annotate": len(kept), "score": _mean(again, measured)})
        except BudgetExceeded:
            pass
        chosen = kept if len(tried) > 1 and tried[-1]["score"] > tried[0]["score"] else ()
        about = {
            **found.to_json(), "validation": checked, "kept": [e.by for e in chosen], "tried": tried,
            "validation_score": tried[-1]["score"] if chosen else tried[0]["score"],
        }  # fmt: skip
        return replace(fitted, entries=chosen, rows=_rows(fitted.rows, chosen), about=about)

    async def _confirmed(
        self, ctx: FitContext[Any], fitted: Noted, bare: Sequence[Episode], checked: dict[str, dict[str, int]]
    ) -> tuple[Entry, ...]:
        """The entries that validation confirms. Of those that want one prompt the first has it; where it is not
        confirmed the next gets its turn in another round, which is another attempt. Another sign of a word's
        misreading that validation confirmed, and that fired on nothing there, is kept behind it."""
        kept: tuple[Entry, ...] = ()
        waiting = fitted.entries
        for _ in range(ROUNDS):
            if not waiting:
                break
            ctx.try_one()
            entries = tuple(e for e in fitted.entries if e in kept or e in waiting)
            seen = _checked(bare, await self._played(ctx, replace(fitted, entries=entries)), self.options["measure"])
            checked |= seen
            good = tuple(e for e in waiting if _is_confirmed(seen.get(e.by), self.options["confirm"]))
            failed = [e for e in waiting if e.by in seen and e not in good]
            kept = tuple(e for e in fitted.entries if e in kept or e in good)
            waiting = tuple(e for e in waiting if e.by not in seen) if failed else ()
        words = {e.word for e in kept if e.word}
        return tuple(e for e in fitted.entries if e in kept or (e.word in words and e.by not in checked))

    async def _played(self, ctx: FitContext[Any], fitted: Noted) -> list[Episode]:
        with fitted.open(ctx.subject) as world:
            return await ctx.rollout(world, ctx.validation)

    # ---- controls matched to what was found

    async def _matched(self, ctx: FitContext[Any]) -> Noted:
        matched = ctx.sibling("reformulate")
        if not isinstance(matched, Noted) or not matched.entries:
            raise NotApplicable("the reformulate arm annotates nothing, so there is nothing to match")
        about = {"matched_to": matched.fingerprint}
        if self.variant in ("generic", "edit"):
            return replace(matched, style=self.variant, about=about)
        if self.variant == "shuffled_label":
            return replace(matched, entries=_shuffled(matched.entries, ctx.seed), about=about)
        if self.variant == "probe":
            found = [case.point for case in cases_of(await ctx.rollout(ctx.subject, ctx.train))]
            sites = [matched.rows.site]
            (watch,), told = watched(ctx.subject, found, sites, PROBE, ctx.seed)
            return replace(matched, watch=watch, about={**about, "probe": told})
        return await self._random(ctx, matched, about)

    async def _random(self, ctx: FitContext[Any], matched: Noted, about: Mapping[str, Any]) -> Noted:
        """Every entry with the words of two live latents drawn by lot, not its own."""
        cases = cases_of(await ctx.rollout(ctx.subject, ctx.train))
        dictionary: Any = ctx.dictionary
        own = {i for e in matched.entries for i in e.trigger.latents}
        rates = dictionary.firing_rate
        live = [i for i in range(dictionary.n_features) if i not in own and (rates is None or float(rates[i]) > 0)]
        rng = random.Random(ctx.seed)
        drawn = rng.sample(live, min(POOL, len(live)))
        avoid = frozenset(w.lower() for c in cases for a in c.point.decision.legal for w in a.split())
        texts = [m for case in cases for m in (case.messages, case.other) if m is not None]
        labels = await name_latents(ctx.subject, dictionary, texts, drawn, avoid=avoid, seed=ctx.seed)
        named = {i: words for i in drawn if (words := words_for([i], labels, avoid, self.options["label"])[0])}
        if len(set(named.values())) < 2:
            raise NotApplicable("too few latents drawn by lot have a label", expected="two", got=str(len(named)))
        entries = []
        for entry in matched.entries:
            others = [w for w in named.values() if w not in (entry.gloss.meant, entry.gloss.taken)]
            meant, taken = rng.sample(sorted(set(others)), 2) if len(set(others)) > 1 else ("", "")
            if meant:
                entries.append(replace(entry, gloss=Gloss(meant, taken)))
        return replace(matched, entries=tuple(entries), about={**about, "drawn": {str(i): w for i, w in named.items()}})


def cases_of(episodes: Sequence[Episode]) -> list[Case]:
    """The decision points of episodes, each with the prompt in the intended sense where the item has a paraphrase."""
    found = []
    for episode in episodes:
        text, other = episode.item.data.get("text"), episode.item.data.get("paraphrase")
        for point in points([episode]):
            said = swapped(point.decision.messages, str(text), str(other)) if text and other else None
            found.append(Case(point, said if said != point.decision.messages else None))
    if not found:
        raise NotApplicable("no decision points on train", expected="items whose answers are known")
    return found


def _rows(dictionary: Any, entries: Sequence[Entry]) -> Any:
    """The rows that the entries read, or patch."""
    latents = [i for e in entries for i in (*e.trigger.latents, *(_latent(x) for x in e.edits))]
    if not latents or not hasattr(dictionary, "encode"):  # an excerpt is not cut again: it holds more than is needed
        return dictionary if latents else None
    return cut(dictionary, latents)


def _latent(edit: Any) -> int:
    return int(edit.direction.index)


def _mean(episodes: Sequence[Episode], measured: str) -> float:
    values = [e.score.values.get(measured) for e in episodes]
    held = [float(v) for v in values if v is not None]
    if not held:
        raise PlanError(f"no episode measures {measured!r}", expected="a score the task gives", got=measured)
    return sum(held) / len(held)


def _checked(bare: Sequence[Episode], again: Sequence[Episode], measured: str) -> dict[str, dict[str, int]]:
    """What each entry did on validation: items it annotated that were wrong and right without it, fixed and broken."""
    found: dict[str, dict[str, int]] = {}
    for before, after in zip(bare, again, strict=True):
        rewrite = after.outcome.data.get("rewrite")
        was, now = before.score.values.get(measured), after.score.values.get(measured)
        if not rewrite or was is None or now is None:
            continue
        row = found.setdefault(str(rewrite["by"]), {"wrong": 0, "right": 0, "fixed": 0, "broken": 0})
        row["right" if was else "wrong"] += 1
        row["fixed"] += int(bool(now) and not was)
        row["broken"] += int(bool(was) and not now)
    return found


def _is_confirmed(row: Mapping[str, int] | None, precision: float) -> bool:
    """Whether what an entry annotated was wrong often enough, and repaired more often than broken."""
    if row is None:
        return False
    return row["wrong"] >= precision * (row["wrong"] + row["right"]) and row["fixed"] > row["broken"]


def _shuffled(entries: Sequence[Entry], seed: int) -> tuple[Entry, ...]:
    """Each entry with the gloss of another that says something else. NotApplicable where all say the same."""
    glosses = sorted({(e.gloss.meant, e.gloss.taken) for e in entries})
    if len(glosses) < 2:
        raise NotApplicable("all triggers have one label, so there is nothing to shuffle", got=str(glosses[0]))
    turn = random.Random(derive_seed("shuffled", seed)).randrange(1, len(glosses))
    other = {gloss: glosses[(i + turn) % len(glosses)] for i, gloss in enumerate(glosses)}
    return tuple(replace(e, gloss=Gloss(*other[e.gloss.meant, e.gloss.taken])) for e in entries)


def plugin(variant: str | None, options: Mapping[str, Any]) -> Reformulate:
    """`reformulate` and its controls."""
    known = _options.variant_of(variant, VARIANTS, "reformulate")
    return Reformulate(known, _options.read(options, DEFAULTS, "reformulate"))
