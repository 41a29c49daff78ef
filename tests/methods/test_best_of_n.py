"""Sampling helps where a verifier knows better, or where most samples are right; else the bare model is kept."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.methods.conftest import Bench
from tests.methods.planted_words import WORDS, Table, fake, number, right_of, unsure

from fairlead.core import plugins
from fairlead.core.fake import FakeSubject
from fairlead.core.types import Message

OPTIONS = {"n": [8], "temperatures": [4.0, 30.0], "sites": ["resid.2"], "penalties": [1.0], "verifiers": 1}


class Rambling(FakeSubject):
    """Its most probable answer is wrong on odd pages, but seven in ten of its samples are right."""

    def sampled(self, temperature: float, seed: int) -> Any:
        def policy(messages: Any, legal: Any, _step: int) -> str:
            page = messages[-1].content
            rng = random.Random(f"{seed}/{page}")
            return right_of(page) if rng.random() < 0.7 else rng.choice(WORDS)

        return FakeSubject(policy, meter=self.meter)


async def test_a_verifier_finds_the_right_answer_among_samples(bench: Bench, tmp_path: Path) -> None:
    method = plugins.get("methods", "best_of_n")(None, OPTIONS)
    fitted = await method.fit(bench.context(OPTIONS))
    about = fitted.describe()
    assert about["n"] == 8 and about["verifier"] == {"site": "resid.2", "penalty": 1.0}
    with fitted.open(bench.subject) as world:
        said = await bench.play(world, 8)
        bench.lanes = 1
        assert [d["said"] for d in await bench.play(world, 8)] == [d["said"] for d in said]
    bare = await bench.play(bench.subject, 8)
    assert sum(d["ok"] for d in said) > sum(d["ok"] for d in bare) + 2
    assert bench.tried == len(about["tried"]) == 3
    fitted.save(tmp_path)
    assert method.load(tmp_path).fingerprint == fitted.fingerprint


async def test_a_vote_wins_where_most_samples_are_right() -> None:
    table = Table(Rambling(unsure))
    options = {"n": [9], "temperatures": [1.0]}
    fitted = await plugins.get("methods", "best_of_n")("vote", options).fit(table.context())
    with fitted.open(table.subject) as world:
        share, bare = await table.share(world), await table.share(table.subject)
        before = table.subject.meter.snapshot()
        said = await world.generate((Message("user", "code k1\nx"),), legal=WORDS)
        spent = table.subject.meter.snapshot() - before
    assert share > 0.8 > bare
    assert spent.forwards == 9 and (said.prompt_tokens, said.new_tokens) == (spent.prompt_tokens, spent.new_tokens)
    assert said.legal_logprobs is None


async def test_where_samples_are_no_better_the_model_stays_as_it_is() -> None:
    def stubborn(messages: Any, legal: Any, _step: int) -> str:
        wrong = [w for w in WORDS if w != right_of(messages[-1].content)]
        return wrong[number(messages[-1].content) % 3] if legal else ""

    table = Table(fake(stubborn))
    options = {"n": [4], "temperatures": [0.5]}
    fitted = await plugins.get("methods", "best_of_n")("vote", options).fit(table.context())
    assert fitted.n == 1 and fitted.describe()["verifier"] is None
    with fitted.open(table.subject) as world:
        assert world is table.subject
