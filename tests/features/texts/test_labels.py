"""Labels: what was planted is said, by predicates that are scored on texts nobody used, and silence otherwise."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.features.texts.planted import NAMES, THINGS, Embedder, embedded, world

from fairlead.core.ledger import Meter
from fairlead.core.types import Message
from fairlead.features.texts import labellers
from fairlead.features.texts.labellers import Corpus, KeptAnnotator, Shown, f1, label, parts, standard, threshold
from fairlead.features.texts.predicates import Tools, fires
from fairlead.lm.cache import Cache


@pytest.fixture(scope="module")
def planted() -> tuple[Corpus, Any, Any]:
    texts, gold = world(500)
    return Corpus(texts, embedded(texts), Tools(Embedder())), gold, parts(range(500))


async def test_the_perfect_dictionary_is_recovered_and_the_shuffled_one_is_not(planted: Any) -> None:
    """A latent a thing: every label says it. The latents on other texts: labels at chance, and their score says so."""
    corpus, gold, apart = planted
    fresh, truth = world(300, seed=9)
    shuffled = gold[np.random.default_rng(0).permutation(len(gold))]
    found: dict[str, list[tuple[float, float]]] = {"perfect": [], "shuffled": []}
    for name, latents in (("perfect", gold), ("shuffled", shuffled)):
        for i in range(len(NAMES)):
            made = await label(corpus, latents[:, i].astype(float), apart, standard(corpus))
            if made.predicate is None:
                found[name].append((0.5, 0.0))
                continue
            again = await fires(made.predicate, fresh, corpus.tools)
            found[name].append((made.auroc or 0.0, f1(again, truth[:, i])))
    perfect, chance = np.mean(found["perfect"], axis=0), np.mean(found["shuffled"], axis=0)
    assert perfect[0] > 0.97 and perfect[1] > 0.95
    assert 0.4 < chance[0] < 0.6 and chance[1] < 0.35


@pytest.mark.parametrize("kind", ["rules", "ctfidf", "log_odds", "near"])
async def test_each_labeller_says_what_was_planted(planted: Any, kind: str) -> None:
    corpus, gold, apart = planted
    made = await label(corpus, gold[:, 2].astype(float), apart, {kind: standard(corpus)[kind]})
    assert made.kind == kind and any(word in made.text for word in THINGS["food"].split())
    assert (made.f1 or 0) > 0.8 and made.low is not None and made.low <= (made.auroc or 0) <= (made.high or 1)


async def test_the_score_is_of_texts_that_nothing_was_made_or_chosen_on(planted: Any) -> None:
    corpus, gold, apart = planted
    values = gold[:, 0].astype(float)
    made = await label(corpus, values, apart, standard(corpus))
    said = await fires(made.predicate, corpus.read.part(apart.held))  # type: ignore[arg-type]
    assert made.f1 == f1(said, values[apart.held] > 0)
    changed = values.copy()
    changed[apart.held] = 1 - changed[apart.held]
    other = await label(corpus, changed, apart, standard(corpus))
    assert other.predicate == made.predicate and other.auroc != made.auroc
    everything = np.concatenate([apart.shown, apart.select, apart.held])
    assert sorted(everything) == list(range(500))


async def test_a_bank_of_the_users_names_by_its_phrases() -> None:
    texts, gold = world(400)
    corpus = Corpus(texts, embedded(texts), Tools(Embedder()), bank=["sport", "animals", "weather"])
    made = await label(corpus, gold[:, 5].astype(float), parts(range(400)), {"near": labellers.near_phrases})
    assert made.text == "is close in meaning to “animals”"


async def test_a_users_bank_is_offered_beside_the_texts_own_phrases() -> None:
    texts, gold = world(400)
    corpus = Corpus(texts, embedded(texts), Tools(Embedder()), bank=["animals", "paper"])
    values, apart = gold[:, 2].astype(float), parts(range(400))
    made = await label(corpus, values, apart, standard(corpus))
    assert {"near", "concepts"} <= set(made.tried) and made.tried["concepts"] < 0.5 < made.tried["near"]
    assert "concepts" not in standard(Corpus(texts[:50], embedded(texts[:50]), Tools(Embedder())))


async def test_surface_measures_are_found() -> None:
    rng = np.random.default_rng(0)
    base = world(400)[0]
    asks = rng.random(400) < 0.3
    texts = [f"{text}?" if a else text for text, a in zip(base, asks, strict=True)]
    corpus = Corpus(texts, embedded(texts), Tools())
    made = await label(corpus, asks.astype(float), parts(range(400)), standard(corpus))
    assert made.text == "has question marks" and made.f1 == 1.0


async def test_what_is_too_rare_to_score_has_no_score(planted: Any) -> None:
    corpus, gold, apart = planted
    values = gold[:, 3].astype(float)
    values[apart.held] = 0.0
    made = await label(corpus, values, apart, standard(corpus))
    assert made.predicate is not None and made.auroc is None and made.f1 is None


async def test_too_few_texts_give_no_label(planted: Any) -> None:
    corpus, _, apart = planted
    for values in (np.zeros(500), np.ones(500), (np.arange(500) < 4).astype(float)):
        made = await label(corpus, values, apart, standard(corpus))
        assert made.predicate is None and made.auroc is None and made.text == ""


class Model:
    """A language model that knows food, and counts what it is asked."""

    calls = 0

    async def say(self, messages: Any) -> str:
        self.calls += 1
        return "talks about food.\nBecause ..."

    async def yes(self, messages: Any) -> float:
        self.calls += 1
        text = messages[0].content.partition("Text: ")[2]
        return 1.0 if any(word in text for word in THINGS["food"].split()) else -1.0


async def test_a_language_model_is_asked_once_of_each_text(planted: Any, tmp_path: Path) -> None:
    corpus, gold, apart = planted
    counts = []
    for fingerprint in ("one", "one", "two"):
        model = Model()
        annotator = KeptAnnotator(model, Cache(tmp_path / "kept.sqlite"), fingerprint)
        corpus.read.tools = corpus.tools = Tools(Embedder(), annotator)
        made = await label(corpus, gold[:, 2].astype(float), apart, {"asked": standard(corpus, annotator)["asked"]})
        assert made.text == "talks about food" and made.f1 == 1.0
        counts.append((model.calls, annotator.asked[0]))
    assert counts[0][0] > 100 and counts[0] == counts[2] and counts[1] == (0, 0)


async def test_a_kept_answer_costs_what_it_cost(tmp_path: Path) -> None:
    spends = Meter()

    class Costly(Model):
        async def yes(self, messages: Any) -> float:
            spends.charge(prompt_tokens=10, flops=5.0, forwards=1)
            return await super().yes(messages)

    questions = [(Message("user", f"Text: {text}"),) for text in ("soup", "rain", "soup")]
    for _ in range(2):
        pays, model = Meter(), Costly()
        kept = KeptAnnotator(model, Cache(tmp_path / "kept.sqlite"), "one", spends, pays)
        assert list(await asyncio.gather(*map(kept.yes, questions))) == [1.0, -1.0, 1.0]
        assert (pays.judge_calls, pays.prompt_tokens, pays.flops, pays.forwards) == (3, 30, 15.0, 3)
    assert kept.asked == [0] and spends.prompt_tokens == 20


def test_a_threshold_never_cuts_between_equal_scores() -> None:
    found, true = np.array([3.0, 2, 2, 1, 0]), np.array([True, True, False, False, False])
    at = threshold(found, true)
    assert 1 < at <= 2
    assert threshold(np.zeros(4), np.array([True, False, True, False])) < 0


def test_hard_negatives_are_the_nearest_silent_texts(planted: Any) -> None:
    corpus, gold, apart = planted
    values = (gold[:, 0] & ~gold[:, 1]).astype(float) * 1.0
    shown: Shown = labellers._shown(corpus, values, apart.shown, 0)
    assert not shown.fires[shown.hard].any() and len(shown.hard) == shown.fires.sum()
    near = (corpus.rows[shown.rows] @ corpus.rows[shown.rows[shown.fires]].T).max(1)
    silent = np.setdiff1d(np.flatnonzero(~shown.fires), shown.hard)
    assert near[shown.hard].min() >= near[silent].max() - 1e-6
