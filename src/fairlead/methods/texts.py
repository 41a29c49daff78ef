"""Hypotheses about a label of texts: an arm for each kind of evidence, all with as many claims and the same model.

    texts.labels     latents of a dictionary of embeddings, said as predicates that read nothing but text
    texts.latents    the same latents themselves
    texts.matryoshka, .kmeans, .pca, .ica, .random, .topics   latents of other dictionaries, and of a topic model
    texts.residual   latents of a dictionary that knows the label
    texts.ngrams     words and phrases
    texts.dense      the whole embedding: a ceiling, and no claim

The dictionary sees the texts of train, never a label; latents are selected by the labels of all of train. `residual`
alone sees labels, those of train's part `train` (of half the groups where items name no parts): its latents are
selected and weighed on the other rows only. Words are made on train, chosen on its part `label` (a quarter where items
name no parts), and scored on validation. The penalty of the last model is chosen on validation, each value one tuning
attempt. Options:
k            claims at most
how          lasso, stability, knockoffs, correlation, separation (features.texts.select)
rate         above 0: the stated error rate; a claim is made only if it keeps it, so there may be none
dictionary   of texts.labels and texts.latents: levels, residual, matryoshka, kmeans, pca, ica
n_features   0: from the number of texts
bank         phrases to name things by; default: those of the texts
penalties    C, the inverse of the L2 penalty
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from fairlead.core.claims import Hypothesis
from fairlead.core.errors import NotApplicable
from fairlead.core.protocols import FitContext
from fairlead.features.texts import dictionary, residual, topics
from fairlead.features.texts import labellers as naming
from fairlead.features.texts.ngrams import common, grams, words
from fairlead.features.texts.predicates import Predicate, Read, Terms, Tools, describe, to_json
from fairlead.features.texts.select import select
from fairlead.methods import _options
from fairlead.methods._claims import FittedClaims, Model, Rows, Source, load, loss, model, rows

VARIANTS = ("labels", "latents", "residual", "matryoshka", "kmeans", "pca", "ica", "random", "topics", "ngrams",
            "dense")  # fmt: skip
DEFAULTS: dict[str, Any] = {
    "k": 20, "how": "lasso", "rate": 0.0, "dictionary": "levels", "n_features": 0, "bank": [],
    "penalties": [0.001, 0.01, 0.1, 1.0],
}  # fmt: skip
Array = Any


@dataclass(frozen=True)
class Texts:
    """One arm; `variant` says which."""

    variant: str
    options: Mapping[str, Any]
    name: str = "texts"
    makes: str = "claims"
    uses_dictionary: bool = False

    async def fit(self, ctx: FitContext[Any]) -> FittedClaims:
        train = rows(ctx.train)
        held = rows(ctx.validation, train.classes)
        embedder = getattr(ctx.subject, "embedder", ctx.subject)
        tools = Tools(embedder, getattr(ctx.subject, "annotator", None))
        read, after = Read(train.texts, tools), Read(held.texts, tools)
        fresh = _unseen(train, ctx.seed) if self._kind() == "residual" else np.arange(train.n)
        source, hypotheses, about = await self._found(ctx, train, held, read, after, fresh)
        x = np.hstack([train.differ(await source.features(read)), train.covariates])[fresh]
        v = np.hstack([held.differ(await source.features(after)), held.covariates])
        made = _tuned(ctx, x, train.part(fresh), v, held, self.options["penalties"])
        weights = np.abs(made.weights).max(1) if train.kind == "multiclass" else made.weights[:, 0]
        hypotheses = tuple(replace(h, weight=float(w)) for h, w in zip(hypotheses, weights, strict=False))
        return FittedClaims(self.variant, source, made, train.classes, hypotheses, about)

    def load(self, path: Path) -> FittedClaims:
        return load(path)

    def _kind(self) -> str:
        return self.options["dictionary"] if self.variant in ("labels", "latents") else self.variant

    async def _found(
        self, ctx: FitContext[Any], train: Rows, held: Rows, read: Read, after: Read, fresh: Array
    ) -> tuple[Source, tuple[Hypothesis, ...], dict[str, Any]]:
        """Where the features come from, and what is claimed of each. Labels of the rows `fresh` alone select."""
        if self.variant == "dense":
            return Source(dense=True), (), {"width": int((await read.rows()).shape[1])}
        if self.variant == "ngrams":
            return self._ngrams(train, ctx.seed)
        about: dict[str, Any] = {}
        if self.variant == "topics":
            held_topics = topics.fit(train.texts, self._size(len(train.texts)), ctx.seed)
            source, z = Source(topics=held_topics), held_topics.encode(train.texts)
        else:
            levels = self._fitted(await read.rows(), train, fresh, ctx.seed)
            _charge(ctx, levels.training_flops)
            source, z = Source(levels=levels), dictionary.encode(levels, await read.rows())
            about = {"dictionary": self._kind(), "n_features": levels.n_features, "selected_on": len(fresh)}
        chosen = self._selected(train.part(fresh), train.differ(z)[fresh], ctx.seed)
        about |= {"selected": len(chosen), "how": self.options["how"], "rate": self.options["rate"] or None}
        if self.variant == "labels":
            return await self._named(train, held, read, after, source, z, chosen, about, ctx.seed)
        hypotheses = _hinted(train.texts, z, chosen, self.variant)
        return replace(source, columns=chosen), hypotheses, about

    def _size(self, n: int) -> int:
        return int(self.options["n_features"] or dictionary.sizes(n)[0])

    def _fitted(self, x: Array, train: Rows, fresh: Array, seed: int) -> dictionary.Levels:
        size = self.options["n_features"] or None
        if self._kind() != "residual":
            return dictionary.fit(self._kind(), x, seed, n_features=size)
        seen = np.setdiff1d(np.arange(train.n), fresh)
        part = train.part(seen)
        return residual.fit(x, seen, part.y, seed, pairs=train.pairs, covariates=_given(part), n_features=size)

    def _selected(self, rows: Rows, z: Any, seed: int) -> tuple[int, ...]:
        """Columns of z, which has one row an item of `rows`."""
        found = select(
            z, rows.y, self.options["k"], self.options["how"], covariates=_given(rows), pairs=rows.pairs,
            groups=rows.groups if len(set(rows.groups)) < rows.n else None,
            rate=self.options["rate"] or None, seed=seed,
        )  # fmt: skip
        return found.columns

    def _ngrams(self, train: Rows, seed: int) -> tuple[Source, tuple[Hypothesis, ...], dict[str, Any]]:
        sets = [grams(words(text)) for text in train.texts]
        terms = common(sets, least=max(3, len(train.texts) // 500), most=0.9)
        if not terms.terms:
            raise NotApplicable("no word is in three texts or more", expected="texts that share words")
        chosen = self._selected(train, train.differ(terms.of_sets(sets)), seed)
        said = [Terms((terms.terms[j],)) for j in chosen]
        hypotheses = tuple(Hypothesis(describe(p), "ngram", 0.0, to_json(p)) for p in said)
        return Source(predicates=tuple(said)), hypotheses, {"terms": len(terms.terms), "selected": len(chosen)}

    async def _named(
        self, train: Rows, held: Rows, read: Read, after: Read, source: Source, z: Any, chosen: Sequence[int],
        about: dict[str, Any], seed: int,
    ) -> tuple[Source, tuple[Hypothesis, ...], dict[str, Any]]:  # fmt: skip
        """The chosen latents in words; those that nothing could be said of are left out, and counted."""
        if not chosen:
            return Source(), (), {**about, "unnamed": 0}
        rest, levels = await after.rows(), source.levels
        assert levels is not None
        corpus = naming.Corpus([*train.texts, *held.texts], np.vstack([await read.rows(), rest]), read.tools,
                               tuple(self.options["bank"]))  # fmt: skip
        values = np.vstack([z[:, list(chosen)].toarray(), dictionary.encode(levels, rest)[:, list(chosen)].toarray()])
        apart = _apart(train, held, seed)
        labellers = naming.standard(corpus, read.tools.annotator)
        said: dict[Predicate, Hypothesis] = {}
        for i, column in enumerate(chosen):
            found = await naming.label(corpus, values[:, i], apart, labellers, seed)
            if found.predicate is None or found.predicate in said:
                continue
            said[found.predicate] = Hypothesis(
                found.text, found.kind, 0.0, to_json(found.predicate), f"latent {column}", found.auroc, found.tried,
                found.low, found.high, found.f1,
            )  # fmt: skip
        about |= {"unnamed": len(chosen) - len(said)}
        return Source(predicates=tuple(said)), tuple(said.values()), about


def _given(rows: Rows) -> Array | None:
    return rows.covariates if rows.covariates.shape[1] else None


def _unseen(train: Rows, seed: int) -> Array:
    """Rows whose labels a label-aware dictionary does not see: those outside the part `train`, or half the groups."""
    parts = np.array(train.parts)
    if len({*train.parts}) > 1 and (parts == "train").any():
        return np.flatnonzero(parts != "train")
    place = np.unique(np.asarray(train.groups), return_inverse=True)[1]
    return np.flatnonzero(np.random.default_rng([seed, 1]).permutation(int(place.max()) + 1)[place] % 2 == 0)


def _apart(train: Rows, held: Rows, seed: int) -> naming.Parts:
    """Places of a corpus of train's texts, then validation's: made on, chosen on, scored on."""
    if "label" in train.parts:
        chooses = np.array([p == "label" for p in train.parts])
    else:
        place = np.unique(np.asarray(train.groups), return_inverse=True)[1]
        chooses = (np.random.default_rng(seed).permutation(int(place.max()) + 1)[place] % 4) == 0
    both = np.tile(chooses, 2 if train.pairs else 1)
    scored = np.arange(len(held.texts)) + len(train.texts)
    return naming.Parts(np.flatnonzero(~both), np.flatnonzero(both), scored)


def _hinted(texts: Sequence[str], z: Any, chosen: Sequence[int], kind: str) -> tuple[Hypothesis, ...]:
    """Latents with the words that stand out where they fire: a hint for the reader, not a predicate."""
    if not chosen:
        return ()
    sets = [grams(words(text), 2) for text in texts]
    terms = common(sets, least=2, most=0.3, limit=5000)
    matrix, nothing = terms.of_sets(sets), np.zeros(0, dtype=np.int64)
    found = []
    for j in chosen:
        fires = np.asarray(csr_matrix(z)[:, [j]].todense()).ravel() > 0
        best: Array = np.argsort(-naming.z_scores(matrix, fires, nothing)[1], kind="stable")[:4] if terms.terms else []
        text = ", ".join(f"“{terms.terms[i]}”" for i in best)
        found.append(Hypothesis(f"latent {j}: texts with {text}", kind, 0.0, {}, f"latent {j}"))
    return tuple(found)


def _tuned(ctx: FitContext[Any], x: Array, train: Rows, v: Array, held: Rows, penalties: Sequence[float]) -> Model:
    """The model of the penalty that is best on validation."""
    best: tuple[float, Model] | None = None
    for c in penalties if x.shape[1] else penalties[:1]:
        ctx.try_one()
        made = model(x, train.y, train.kind, float(c))
        _charge(ctx, made.flops)
        value = loss(made, v, held.y) if held.n else 0.0
        if best is None or value < best[0]:
            best = value, made
    assert best is not None
    return best[1]


def _charge(ctx: FitContext[Any], flops: float) -> None:
    meter = getattr(ctx.subject, "meter", None)
    if meter is not None:
        meter.charge(flops=flops)


def plugin(variant: str | None, options: Mapping[str, Any]) -> Texts:
    """`texts.VARIANT`."""
    return Texts(_options.variant_of(variant, VARIANTS, "texts"), _options.read(options, DEFAULTS, "texts"))
