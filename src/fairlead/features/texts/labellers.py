"""Labels for a latent of texts: words for it *and* a predicate that reads nothing but text.

    log_odds   weighted words that texts where it fires have and others, near misses above all, have not (log-odds with
               an informative Dirichlet prior, Monroe et al. 2008)
    ctfidf     the words most its own (c-TF-IDF), any of them
    rules      "any of these" over n-grams and surface measures, grown while it detects better
    near       phrases whose mean embedding lies nearest to where it fires, of the texts
    concepts   the same, of a bank of the user's phrases, where there is one
    asked      what a language model says, asked again of each text (an `Annotator`)

Each is made on `shown`, the best is chosen on `select` and scored on `held`; that score is the label's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fairlead.core.keys import content_key
from fairlead.core.types import Cost, Message, Messages
from fairlead.features.detection import auroc, interval
from fairlead.features.labellers import Annotator
from fairlead.features.texts.ngrams import STOP, common, grams, words
from fairlead.features.texts.predicates import (
    MEASURES,
    AnyOf,
    Asked,
    Near,
    Predicate,
    Read,
    Surface,
    Terms,
    Tools,
    Weighted,
    describe,
    scores,
)

Array = Any
TERMS, RULE, PHRASES, TRIED, BANK, EXAMPLES = 80, 6, 6, 150, 1500, 10
GAIN = 0.01  # in F1, for which a rule takes another part, and a label another phrase
CHARGED = ("prompt_tokens", "new_tokens", "flops", "forwards", "seconds")  # of an answer that is kept
MOST_READ = 4000  # texts that a label is made on
LEAST, SCORED = 5, 3  # texts where a latent fires that a label is made on, and that choosing and scoring need


class Corpus:
    """Texts [n] with embeddings [n, d], and what labellers need of them, worked out once for all latents."""

    def __init__(self, texts: Sequence[str], rows: Array, tools: Tools, bank: Sequence[str] = ()) -> None:
        self.read, self.rows, self.tools = Read(texts, tools, rows), np.asarray(rows), tools
        sets = [grams(words(text)) for text in texts]
        self.vocabulary = common(sets, least=max(2, min(5, len(texts) // 200)))
        self.matrix = self.vocabulary.of_sets(sets)
        self.surface = _surface_rules(self.read.texts)
        self.given, self._banks = tuple(bank), dict[bool, tuple[tuple[str, ...], Array]]()

    async def bank(self, own: bool = False) -> tuple[tuple[str, ...], Array]:
        """Phrases to name things by, and their embeddings: the user's, or the commonest terms of the texts (`own`, or
        where the user has none)."""
        own = own or not self.given
        if own not in self._banks:
            phrases = self.given
            if own:
                often = np.asarray(self.matrix.sum(0)).ravel()
                plain = [i for i in np.argsort(-often, kind="stable") if self.vocabulary.terms[i] not in STOP]
                phrases = tuple(self.vocabulary.terms[i] for i in plain[:BANK])
            rows = np.asarray(await self.tools.embedder.embed(list(phrases))) if phrases else np.zeros((0, 0))
            self._banks[own] = phrases, rows
        return self._banks[own]


@dataclass(frozen=True)
class Parts:
    """Rows of a Corpus, apart by use; no row is in two."""

    shown: Array
    select: Array
    held: Array


def parts(groups: Sequence[Any], seed: int = 0) -> Parts:
    """Half the groups (rows that belong together) for making, a quarter for choosing, a quarter for scoring."""
    place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    share = np.random.default_rng(seed).permutation(int(place.max()) + 1)[place] / (place.max() + 1)
    return Parts(np.flatnonzero(share < 0.5), np.flatnonzero((share >= 0.5) & (share < 0.75)),
                 np.flatnonzero(share >= 0.75))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Shown:
    """What a labeller sees of one latent: rows of the corpus, its values there, and `hard`, the silent rows whose
    embeddings lie nearest to those where it fires (places in `rows`)."""

    corpus: Corpus
    rows: Array
    values: Array
    hard: Array

    @property
    def fires(self) -> Array:
        return self.values > 0


@dataclass(frozen=True)
class TextLabel:
    """`text` continues "the text ...". `auroc` (with its 95 % interval) and `f1` are measured on held-out texts at the
    natural base rate `prevalence`, None where it fires on too few of them; `tried` has each labeller's F1 on `select`.
    `predicate` is None where no labeller had anything to say, or where there were too few texts to make a label on."""

    text: str
    kind: str
    predicate: Predicate | None
    auroc: float | None = None
    low: float | None = None
    high: float | None = None
    f1: float | None = None
    prevalence: float = 0.0
    tried: dict[str, float] = field(default_factory=dict)


Labeller = Callable[[Shown], Awaitable[Predicate | None]]


async def label(
    corpus: Corpus, values: Array, apart: Parts, labellers: dict[str, Labeller], seed: int = 0
) -> TextLabel:
    """The label of a latent with `values` [n] on the corpus. Ties go to the earlier labeller."""
    values = np.asarray(values, dtype=np.float64)
    counts = [int((values[p] > 0).sum()) for p in (apart.shown, apart.select, apart.held)]
    prevalence = float((values[apart.held] > 0).mean()) if len(apart.held) else 0.0
    if counts[0] < LEAST or counts[0] == len(apart.shown):
        return TextLabel("", "", None, prevalence=prevalence)
    chosen_on = apart.select if counts[1] >= SCORED else apart.shown
    shown = _shown(corpus, values, apart.shown, seed)
    select, held = corpus.read.part(chosen_on), corpus.read.part(apart.held)
    tried: dict[str, float] = {}
    best: tuple[float, str, Predicate] | None = None
    for kind, labeller in labellers.items():
        predicate = await labeller(shown)
        if predicate is None:
            continue
        tried[kind] = f1(await scores(predicate, select) >= 0, values[chosen_on] > 0)
        if best is None or tried[kind] > best[0]:
            best = tried[kind], kind, predicate
    if best is None:
        return TextLabel("", "", None, prevalence=prevalence)
    fires = values[apart.held] > 0
    if counts[2] < SCORED or fires.all():
        return TextLabel(describe(best[2]), best[1], best[2], prevalence=prevalence, tried=tried)
    found = await scores(best[2], held)
    area = _auroc(found, fires)
    low, high = interval(area, int(fires.sum()), int((~fires).sum()))
    return TextLabel(describe(best[2]), best[1], best[2], area, low, high, f1(found >= 0, fires), prevalence, tried)


def standard(corpus: Corpus, annotator: Annotator | None = None, *, near: bool = True) -> dict[str, Labeller]:
    """The labellers that can be used here, the plainest first."""
    found: dict[str, Labeller] = {"rules": rules, "ctfidf": ctfidf, "log_odds": log_odds}
    if near and corpus.tools.embedder is not None:
        found["near"] = near_texts
        if corpus.given:
            found["concepts"] = near_phrases
    if annotator is not None:
        found["asked"] = asked(annotator)
    return found


def f1(said: Array, true: Array) -> float:
    """2·hits / (said + true); 0 where neither is ever so."""
    both = int(said.sum()) + int(true.sum())
    return 2.0 * int((said & true).sum()) / both if both else 0.0


def _auroc(found: Array, fires: Array) -> float:
    if not fires.any() or fires.all():
        return 0.5
    return auroc(found[fires].tolist(), found[~fires].tolist())


def threshold(found: Array, fires: Array) -> float:
    """The value of highest F1 on these: between two scores, so that small errors of arithmetic change nothing."""
    order = np.argsort(-found, kind="stable")
    ranked, hits = found[order], np.cumsum(fires[order])
    value = 2.0 * hits / (np.arange(1, len(found) + 1) + int(fires.sum()))
    last = np.append(ranked[1:] < ranked[:-1], True)  # a threshold does not cut between equal scores
    at = int(np.argmax(np.where(last, value, -1.0)))
    return float((ranked[at] + ranked[at + 1]) / 2) if at + 1 < len(ranked) else float(ranked[at] - 1e-6)


def _shown(corpus: Corpus, values: Array, rows: Array, seed: int) -> Shown:
    if len(rows) > MOST_READ:
        drawn = np.random.default_rng(seed).permutation(rows)[: MOST_READ // 2]
        firing = rows[values[rows] > 0][: MOST_READ // 2] if (values[drawn] > 0).sum() < 50 else drawn[:0]
        rows = np.unique(np.concatenate([drawn, firing]))
    here = values[rows]
    on, off = np.flatnonzero(here > 0), np.flatnonzero(here <= 0)
    strongest = on[np.argsort(-here[on], kind="stable")[:200]]
    nearness = (corpus.rows[rows[off]] @ corpus.rows[rows[strongest]].T).max(1)
    return Shown(corpus, rows, here, off[np.argsort(-nearness, kind="stable")[: len(on)]])


# ---- words


def z_scores(matrix: Any, fires: Array, hard: Array) -> tuple[Array, Array]:
    """(δ, z) [V] of each term: log-odds of texts that fire against those that do not, near misses counted twice."""
    one = np.asarray(matrix[np.flatnonzero(fires)].sum(0)).ravel()
    two = np.asarray(matrix[np.flatnonzero(~fires)].sum(0)).ravel() + np.asarray(matrix[hard].sum(0)).ravel()
    every = one + two
    prior = 0.01 * every + 0.01
    a, b, a0 = one.sum(), two.sum(), prior.sum()
    x, y = one + prior, two + prior
    delta = np.log(x / (a + a0 - x)) - np.log(y / (b + a0 - y))
    return delta, np.where(every > 0, delta / np.sqrt(1 / x + 1 / y), 0.0)


async def log_odds(shown: Shown) -> Predicate | None:
    """Up to `TERMS` weighted words; the threshold comes from scores of texts that the weights were not made on."""
    matrix = shown.corpus.matrix[shown.rows]
    chosen, weights = _weights(matrix, shown.fires, shown.hard)
    if not len(chosen):
        return None
    side = np.arange(len(shown.rows)) % 2 == 0
    out = np.zeros(len(shown.rows))
    for part in (side, ~side):
        if not (shown.fires & ~part).any():
            return None
        keep = np.flatnonzero(~part)
        place = np.full(len(part), -1)
        place[keep] = np.arange(len(keep))
        hard = place[shown.hard]
        columns, values = _weights(matrix[keep], shown.fires[keep], hard[hard >= 0])
        if len(columns):
            out[part] = matrix[np.flatnonzero(part)][:, columns] @ values
    least = max(threshold(out, shown.fires), float(min(weights)) * 0.5)
    return Weighted(tuple(shown.corpus.vocabulary.terms[i] for i in chosen), tuple(float(w) for w in weights), least)


def _weights(matrix: Any, fires: Array, hard: Array) -> tuple[Array, Array]:
    delta, z = z_scores(matrix, fires, hard)
    order = np.argsort(-z, kind="stable")[:TERMS]
    order = order[z[order] > 1.0]
    return order, np.round(np.clip(delta[order], 0.1, 4.0), 3)


async def ctfidf(shown: Shown) -> Predicate | None:
    """Any of the words with the highest c-TF-IDF (Grootendorst 2022); as many as detect best."""
    matrix = shown.corpus.matrix[shown.rows]
    inside = np.asarray(matrix[np.flatnonzero(shown.fires)].sum(0)).ravel()
    every = np.asarray(matrix.sum(0)).ravel()
    average = every.sum() / 2
    weight = inside / max(inside.sum(), 1.0) * np.log(1 + average / np.maximum(every, 1.0))
    weight[inside / np.maximum(every, 1.0) <= shown.fires.mean()] = 0.0
    order = np.argsort(-weight, kind="stable")[: 5 * RULE]
    order = order[weight[order] > 0]
    if not len(order):
        return None
    any_of = np.cumsum(matrix[:, order].toarray() > 0, axis=1) > 0
    values = [f1(any_of[:, i], shown.fires) for i in range(len(order))]
    return Terms(tuple(shown.corpus.vocabulary.terms[i] for i in order[: int(np.argmax(values)) + 1]))


async def rules(shown: Shown) -> Predicate | None:
    """Terms and surface measures joined by "or": grown on two thirds of the texts while the last third gains too."""
    corpus, fires = shown.corpus, shown.fires
    matrix = corpus.matrix[shown.rows]
    _, z = z_scores(matrix, fires, shown.hard)
    order = np.argsort(-z, kind="stable")[:TRIED]
    order = order[z[order] > 1.5]
    names: list[Terms | Surface] = [Terms((corpus.vocabulary.terms[i],)) for i in order]
    names += [rule for rule, _ in corpus.surface]
    held = np.column_stack([matrix[:, order].toarray() > 0, *[on[shown.rows] for _, on in corpus.surface]])
    grow = np.arange(len(fires)) % 3 > 0
    chosen: list[int] = []
    now, inner = np.zeros(len(fires), dtype=bool), 0.0
    while len(chosen) < RULE and held.shape[1]:
        joined = held[grow] | now[grow][:, None]
        value = 2.0 * (joined & fires[grow][:, None]).sum(0) / (joined.sum(0) + int(fires[grow].sum()))
        best = int(np.argmax(value))
        after = now | held[:, best]
        found = f1(after[~grow], fires[~grow])
        if best in chosen or value[best] < f1(now[grow], fires[grow]) + GAIN or found < inner:
            break
        chosen, now, inner = [*chosen, best], after, found
    if not chosen:
        return None
    terms = tuple(t for i in chosen if isinstance(p := names[i], Terms) for t in p.terms)
    surface = [p for i in chosen if isinstance(p := names[i], Surface)]
    joined_up: list[Terms | Surface] = [*([Terms(terms)] if terms else []), *surface]
    return joined_up[0] if len(joined_up) == 1 else AnyOf(tuple(joined_up))


def _surface_rules(texts: Sequence[str]) -> list[tuple[Surface, Array]]:
    """Every surface measure at the thresholds where it tells 5 to 60 % of the texts from the rest."""
    found = []
    for name, measure in MEASURES.items():
        counts = np.array([measure(t) for t in texts])
        for at in np.unique(np.quantile(counts, (0.1, 0.25, 0.5, 0.6, 0.75, 0.9, 0.95)).round()):
            for below in (False, True):
                on = counts < at if below else counts >= at
                if 0.05 <= on.mean() <= 0.6:
                    found.append((Surface(name, float(at), below), on))
    return found


# ---- meaning


async def near_phrases(shown: Shown) -> Predicate | None:
    """Phrases of the corpus' bank, added to a mean embedding while it tells the texts apart better (AUROC)."""
    return _near(shown, *await shown.corpus.bank())


async def near_texts(shown: Shown) -> Predicate | None:
    """As `near_phrases`, by the texts' own terms."""
    return _near(shown, *await shown.corpus.bank(own=True))


def _near(shown: Shown, phrases: Sequence[str], named: Array) -> Predicate | None:
    if not len(phrases):
        return None
    rows, fires = shown.corpus.rows[shown.rows], shown.fires
    towards = rows[fires].mean(0) - 0.5 * rows[~fires].mean(0) - 0.5 * rows[shown.hard].mean(0)
    likely = [int(i) for i in np.argsort(-(named @ towards), kind="stable")[:40] if named[i].any()]
    chosen: list[int] = []
    total, best = np.zeros(rows.shape[1]), 0.5
    near = rows @ named[likely].T.astype(np.float64)
    now = np.zeros(len(rows))
    while len(chosen) < PHRASES and likely:
        areas = [_rank_auroc(now + near[:, c], fires) for c in range(len(likely))]
        pick = int(np.argmax(areas))
        if likely[pick] in chosen or areas[pick] < best + GAIN / 4:
            break
        best, now = areas[pick], now + near[:, pick]
        chosen, total = [*chosen, likely[pick]], total + named[likely[pick]]
    if not chosen:
        return None
    direction = total / len(chosen)
    least = threshold(rows @ (direction / max(float(np.linalg.norm(direction)), 1e-12)), fires)
    return Near(tuple(phrases[i] for i in chosen), least, shown.corpus.tools.embedder.name)


def _rank_auroc(found: Array, fires: Array) -> float:
    from scipy.stats import rankdata

    m = int(fires.sum())
    return float((rankdata(found)[fires].sum() - m * (m + 1) / 2) / (m * (len(found) - m)))


# ---- language models


def asked(annotator: Annotator, name: str = "") -> Labeller:
    """A labeller that shows a language model texts of both kinds and keeps what it says."""

    async def labeller(shown: Shown) -> Predicate | None:
        texts, order = shown.corpus.read.texts, np.argsort(-shown.values, kind="stable")
        lines = ["These texts have something in common:"]
        lines += [f"- {texts[shown.rows[i]][:600]}" for i in order[:EXAMPLES]]
        lines += ["These lack it:"]
        lines += [f"- {texts[shown.rows[i]][:600]}" for i in shown.hard[:EXAMPLES]]
        lines += ["Say what it is, in one short phrase that holds for all of the first and none of the second, such as"
                  " 'mentions a sports team'. Answer with the phrase only."]  # fmt: skip
        said = (await annotator.say((Message("user", "\n".join(lines)),))).strip()
        phrase = said.splitlines()[0].strip(" .\"'“”-")[:200] if said else ""
        return Asked(phrase, 0.0, name or getattr(annotator, "name", "")) if phrase else None

    return labeller


@dataclass(frozen=True, eq=False)
class KeptAnnotator:
    """An annotator whose answers are kept (`lm.cache.Cache`) under its model's fingerprint and the whole prompt, one by
    one, so that work goes on where it was killed. `asked` counts what was not kept.

    `spends` is the meter that `inner` charges, `meter` the one that pays: a kept answer is charged what it cost when it
    was made, so that a ledger does not depend on what a cache held. Then one question is asked at a time."""

    inner: Annotator
    cache: Any
    fingerprint: str
    spends: Any = None
    meter: Any = None
    asked: list[int] = field(default_factory=lambda: [0])
    one: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def say(self, messages: Messages) -> str:
        return await self._kept("say", messages)

    async def yes(self, messages: Messages) -> float:
        return float(await self._kept("yes", messages))

    async def _kept(self, what: str, messages: Messages) -> str:
        key = content_key([what, "with cost", self.fingerprint, [[m.role, m.content] for m in messages]])
        async with self.one if self.spends is not None else nullcontext():
            held = self.cache.get([key])
            if key in held:
                found = json.loads(held[key])
            else:
                before = self.spends.snapshot() if self.spends is not None else Cost()
                said = str(await getattr(self.inner, what)(messages))
                cost = self.spends.snapshot() - before if self.spends is not None else before
                found = {"said": said, "cost": {name: getattr(cost, name) for name in CHARGED}}
                self.asked[0] += 1
                self.cache.put({key: json.dumps(found).encode()})
        if self.meter is not None:
            self.meter.charge(**{**found["cost"], "judge_calls": 1})
        return str(found["said"])
