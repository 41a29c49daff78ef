"""The direction that mediates a failure is found and taken out, in activations or in weights, with the same effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods import planted_direction as planted

from fairlead import steering
from fairlead.core import plugins
from fairlead.core.errors import NotApplicable
from fairlead.core.keys import canonical
from fairlead.methods._orthogonal import orthogonalised
from fairlead.methods.refusal import ablation

OPTIONS: dict[str, Any] = {"contrasts": ["outcomes"], "positions": 2, "front": 2, "finalists": 2, "n_decisions": 40}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return planted.subject(tmp_path_factory.mktemp("direction"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return planted.subject(tmp_path_factory.mktemp("plain"), planted=False)


async def test_the_planted_direction_is_found_and_taken_out(made: Any, tmp_path: Path) -> None:
    u, found, worlds = planted.directions()[0], [], []
    for variant in (None, "orthogonal"):
        bench = planted.bench(made)
        assert await bench.solved(bench.subject) == {"on": 0.0, "off": 1.0}
        method = plugins.get("methods", "refusal")(variant, OPTIONS)
        fitted = await method.fit(bench.context(OPTIONS))
        about = fitted.describe()
        assert about["passed"] > 0 and about["chosen"]["kl"] <= 0.1 and about["chosen"]["layer"] < 0.8 * 3
        assert about["validation_score"] > about["tried"][0]["score"] + 0.3
        with fitted.open(bench.subject) as world:
            assert await bench.solved(world) == {"on": 1.0, "off": 1.0}
        direction = fitted.direction if variant else fitted.vectors["refusal"]
        assert abs(float(torch.nn.functional.cosine_similarity(direction, u, dim=0))) > 0.9
        folder = tmp_path / str(variant)
        folder.mkdir()
        fitted.save(folder)
        loaded = method.load(folder)
        assert loaded.fingerprint == fitted.fingerprint
        assert json.loads(canonical(loaded.describe())) == json.loads(canonical(about))
        found.append(loaded)
        worlds.append(bench.subject)
    assert found[0].fingerprint != found[1].fingerprint


def test_orthogonal_weights_do_what_ablation_does_and_leave_no_trace(made: Any, plain: Any) -> None:
    g = torch.Generator().manual_seed(0)
    for model in (made, plain):
        prompts = [(planted.Message("system", "You shop."), planted.Message("user", f"page {i} %")) for i in range(4)]
        legal = [(planted.LURE, planted.RIGHT, 'click("1")')] * 4
        before = {name: p.clone() for name, p in model.model.state_dict().items()}
        objects = {name: id(p) for name, p in model.model.named_parameters()}
        bare = model.action_logprobs(prompts, legal)
        for _ in range(3):
            r = torch.randn(32, generator=g)
            ablated = steering.apply(model, ablation(model), None, {"refusal": r}).action_logprobs(prompts, legal)
            swapped = model.within(orthogonalised(model, r), "r")
            for a, b, c in zip(ablated, swapped.action_logprobs(prompts, legal), bare, strict=True):
                assert torch.allclose(a, b, atol=2e-4)
                assert (a - c).abs().max() > 1e-3
        assert all(torch.equal(p, before[name]) for name, p in model.model.state_dict().items())
        assert {name: id(p) for name, p in model.model.named_parameters()} == objects
        assert all(torch.equal(a, b) for a, b in zip(bare, model.action_logprobs(prompts, legal), strict=True))


def test_a_tied_head_keeps_its_own_weights(tmp_path: Path) -> None:
    made = planted.subject(tmp_path, planted=False)
    made.model.lm_head.weight = made.model.model.embed_tokens.weight
    r = torch.randn(32, generator=torch.Generator().manual_seed(1))
    prompts, legal = [(planted.Message("user", "page 3 %"),)], [(planted.LURE, planted.RIGHT)]
    ablated = steering.apply(made, ablation(made), None, {"refusal": r}).action_logprobs(prompts, legal)[0]
    swapped = made.within(orthogonalised(made, r), "r").action_logprobs(prompts, legal)[0]
    assert torch.allclose(ablated, swapped, atol=2e-4)
    assert made.model.lm_head.weight is made.model.model.embed_tokens.weight


async def test_nothing_is_won_where_failing_is_a_coin(plain: Any) -> None:
    bench = planted.bench(plain)
    bench.task = planted.CoinTask()
    fitted = await plugins.get("methods", "refusal")(None, OPTIONS).fit(bench.context(OPTIONS))
    with fitted.open(bench.subject) as world:
        shares = await bench.solved(world, 40)
    assert 0.3 < sum(shares.values()) / 2 < 0.7


async def test_one_sided_decisions_are_not_applicable(made: Any) -> None:
    bench = planted.bench(made, ("off",))
    with pytest.raises(NotApplicable, match="one way"):
        await plugins.get("methods", "refusal")(None, OPTIONS).fit(bench.context(OPTIONS))
