"""The probe as a policy wins where activations hold what the model does not act on; with coins for labels, not."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.features import planted
from tests.methods.conftest import Bench
from tests.methods.planted_words import Table, fake, unsure

from fairlead.core import plugins
from fairlead.core.errors import NotApplicable
from fairlead.core.keys import canonical, derive_seed
from fairlead.core.types import Message
from fairlead.methods import _logistic
from fairlead.methods._probe import named

OPTIONS = {"sites": ["resid.1", "resid.2"], "penalties": [1.0], "finalists": 2, "n_decisions": 40}


class ByChance(planted.ToyTask):
    """Which action is right is a coin of the item's: no activation knows it."""

    def decision(self, item, said):
        found = super().decision(item, said)
        coin = random.Random(f"{item.id}").randrange(2)
        return replace(found, right=(found.legal[coin],), trap=())


def solved(data) -> float:
    return sum(d["ok"] for d in data) / len(data)


async def test_it_wins_where_the_right_action_can_be_read_off(bench: Bench, tmp_path: Path) -> None:
    method = plugins.get("methods", "probe")(None, OPTIONS)
    fitted = await method.fit(bench.context(OPTIONS))
    with fitted.open(bench.subject) as world:
        said = await bench.play(world, 8)
        bench.lanes = 1
        alone = await bench.play(world, 8)
    bare = await bench.play(bench.subject, 8)
    assert solved(said) == 1.0 > 0.7 > solved(bare)
    assert [d["said"] for d in said] == [d["said"] for d in alone]
    about = fitted.describe()
    assert about["probe"] and about["validation_score"] > about["tried"][0]["score"]
    assert bench.tried == len(about["tried"]) == 3
    fitted.save(tmp_path)
    again = method.load(tmp_path)
    assert again.fingerprint == fitted.fingerprint
    assert json.loads(canonical(again.describe())) == json.loads(canonical(about))


async def test_it_gains_nothing_where_the_labels_are_coins(bench: Bench) -> None:
    bench = replace(bench, task=ByChance(bench.subject))
    many = {"train": planted.items("train", 24), "validation": planted.items("validation", 24)}
    fitted = await plugins.get("methods", "probe")(None, OPTIONS).fit(bench.context(OPTIONS, **many))
    with fitted.open(bench.subject) as world:
        said = await bench.play(world, 60)
    assert 0.3 < solved(said) < 0.7
    assert fitted.describe()["train"][0]["held_out"] < 0.7


async def test_in_free_decoding_it_chooses_among_samples(bench: Bench) -> None:
    fitted = await plugins.get("methods", "probe")(None, OPTIONS).fit(bench.context(OPTIONS))
    prompt = (Message("system", "You shop."), Message("user", "buy the red lamp 3 [1] link"))
    with fitted.open(bench.subject) as world:
        said = await world.generate(prompt, max_tokens=6)
        assert said == await world.generate(prompt, max_tokens=6)
    seen = {(await bench.subject.generate(prompt, max_tokens=6)).text}
    for i in range(1, 4):
        drawn = bench.subject.sampled(1.0, derive_seed(7, "sample", i))
        seen.add((await drawn.generate(prompt, max_tokens=6)).text)
    assert said.text in seen and said.legal_logprobs is None
    assert said.prompt_tokens == 4 * len(bench.subject.tokens(prompt).ids)


async def test_a_subject_without_activations_is_not_applicable() -> None:
    table = Table(fake(unsure))
    for name in ("probe", "best_of_n", "probe_gated", "refusal"):
        with pytest.raises(NotApplicable, match="activations"):
            await plugins.get("methods", name)(None, {}).fit(table.context())


def test_an_action_s_object_is_found_in_the_page(bench: Bench) -> None:
    page = "goal: 12 cups\n[1] link 'Cart 2'\n[12] button 'Cup'\n[2] box 'Gift'\npast: none"
    prompt = (Message("system", "You shop [2]."), Message("user", page))
    rendered = bench.subject.tokens(prompt)

    def until(action: str) -> str:
        place = named(bench.subject, prompt, action)
        assert place is not None
        return rendered.text[: rendered.offsets[place][1]]

    assert until('click("12")').endswith("[12] button 'Cup'") and until('click("2")').endswith("[2] box 'Gift'")
    assert until('say("cups")').endswith("goal: 12 cups")
    assert named(bench.subject, prompt, "done()") is None and named(bench.subject, prompt, 'click("7")') is None


def test_the_readouts_are_the_penalised_ones() -> None:
    g = torch.Generator().manual_seed(0)
    x, truth = torch.randn(400, 5, generator=g), torch.tensor([2.0, -1.0, 0.0, 0.0, 0.5])
    y = torch.rand(400, generator=g) < (x @ truth + 0.7).sigmoid()
    found = _logistic.binary(x, y, 1e4)
    assert torch.allclose(found.weight, truth, atol=0.6) and abs(found.bias - 0.7) < 0.4
    tight = _logistic.binary(x, y, 1e-3)
    assert tight.weight.norm() < 0.25 * found.weight.norm()
    menus = [torch.randn(4, 5, generator=g) for _ in range(300)]
    right = [torch.arange(4) == torch.multinomial((m @ truth).softmax(0), 1, generator=g) for m in menus]
    chosen = _logistic.choice(menus, right, 1e4)
    assert torch.allclose(chosen.weight, truth, atol=0.5)
    shifted = _logistic.choice([m + 3.0 for m in menus], right, 1e4)
    assert torch.allclose(shifted.weight, chosen.weight, atol=1e-3)  # only differences within a menu count
    constant = torch.cat([x, torch.ones(400, 1)], 1)
    assert float(_logistic.binary(constant, y, 1.0).weight[-1]) == 0.0
    assert torch.equal(_logistic.binary(x, y, 1.0).weight, _logistic.binary(x, y, 1.0).weight)


def test_folds_keep_clusters_whole() -> None:
    clusters = [f"c{i // 3}" for i in range(30)]
    parts = _logistic.folds(clusters, 4, 0)
    assert sorted(i for part in parts for i in part) == list(range(30))
    assert all(not {clusters[i] for i in a} & {clusters[i] for i in b} for a in parts for b in parts if a is not b)
    assert _logistic.folds(["one"] * 5, 4, 0) == [[0, 1, 2, 3, 4]]
    assert _logistic.even(["a", "a", "a", "b"]).tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
