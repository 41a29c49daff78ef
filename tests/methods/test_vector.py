"""A difference of means turns a planted failure where one direction mediates it, whichever way it is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.features import planted as toy
from tests.methods import planted_direction as planted
from tests.methods.conftest import Bench

from fairlead.core import plugins
from fairlead.core.errors import NotApplicable
from fairlead.methods.vector import at_a_place, between_actions
from fairlead.steering import Scope

LINES = {"careful": ["Say +."], "eager": ["Say %."]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return planted.subject(tmp_path_factory.mktemp("direction"))


@pytest.mark.parametrize(
    ("variant", "options"), [(None, {}), ("prompts", LINES), ("place", {**LINES, "front": 40, "strengths": [4.0, 8.0]})]
)
async def test_the_planted_direction_is_turned(made: Any, variant: str | None, options: Any, tmp_path: Path) -> None:
    bench = planted.bench(made)
    assert await bench.solved(bench.subject) == {"on": 0.0, "off": 1.0}
    method = plugins.get("methods", "vector")(variant, {"sites": ["resid.0", "resid.1"], **options})
    fitted = await method.fit(bench.context({}))
    fitted.save(tmp_path)
    with method.load(tmp_path).open(bench.subject) as world:
        assert await bench.solved(world) == {"on": 1.0, "off": 1.0}
    about = fitted.describe()
    assert about["validation_score"] > about["tried"][0]["score"] + 0.3
    if variant == "place":
        assert fitted.edits[0].scope.kind == "tokens"


async def test_what_answers_write_is_turned_at_the_answer(made: Any) -> None:
    bench, q = planted.bench(made), planted.directions()[2]
    options = {"sites": ["resid.1", "resid.2"], "strengths": [1.0, 2.0, 4.0]}
    fitted = await plugins.get("methods", "vector")("caa", options).fit(bench.context({}))
    with fitted.open(bench.subject) as world:
        assert await bench.solved(world) == {"on": 1.0, "off": 1.0}
    assert [e.scope.kind for e in fitted.edits] == ["last", "generated"]
    (vector,) = fitted.vectors.values()
    assert float(vector @ q) < 0


def test_pairs_are_taken_after_the_same_prompt(bench: Bench) -> None:
    found = toy.points_of(bench.task, toy.items("train", 4))
    vector = between_actions(bench.subject, found, ["resid.1"])["difference_resid_1"]
    prompts, menus = [p.decision.messages for p in found], [p.decision.legal for p in found]
    rows = bench.subject.action_activations(prompts, menus, ["resid.1"])["resid.1"]
    pairs = zip(rows, found, strict=True)
    apart = [x[torch.tensor(p.right)].mean(0) - x[torch.tensor(p.wrong)].mean(0) for x, p in pairs]
    assert torch.allclose(vector, torch.stack(apart).mean(0), atol=1e-4)  # both strata have as many


async def test_coins_are_not_turned(tmp_path: Path) -> None:
    bench = planted.bench(planted.subject(tmp_path, planted=False))
    bench.task = planted.CoinTask()
    fitted = await plugins.get("methods", "vector")(None, {"sites": ["resid.1"]}).fit(bench.context({}))
    with fitted.open(bench.subject) as world:
        assert 0.3 < sum((await bench.solved(world, 40)).values()) / 2 < 0.7


def test_a_place_needs_messages_that_begin_together(bench: Bench) -> None:
    found = toy.points_of(bench.task, toy.items("train", 3))
    _, scope = at_a_place(bench.subject, found, ["resid.0"], ["Be kind."], ["Be rude."], 4)
    start = len(bench.subject.tokens(found[0].decision.messages).ids)
    assert scope.kind == "tokens" and scope.stop - scope.start < 4 and scope.stop < start
    longer = bench.subject.prompted("More words here.")
    _, moved = at_a_place(longer, found, ["resid.0"], ["Be kind."], ["Be rude."], 4)
    assert isinstance(moved, Scope) and moved.start > scope.start
    odd = replace(found[0], decision=replace(found[0].decision, messages=found[0].decision.messages[1:]))
    with pytest.raises(NotApplicable, match="same token"):
        at_a_place(bench.subject, [odd, *found], ["resid.0"], ["Be kind."], ["Be rude."], 4)
