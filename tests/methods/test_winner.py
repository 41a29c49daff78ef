"""The winner is the arm that did best on validation; doing nothing wins ties; what is served is that arm's Fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.methods.conftest import FEATURE, Bench

from fairlead.core import plugins
from fairlead.core.chain import Chain
from fairlead.core.errors import NotApplicable


async def winner(bench: Bench, of: list[str], fitted: dict[str, Any], **change: Any) -> Any:
    def sibling(name: str) -> Any:
        if name not in fitted:
            raise NotApplicable(f"{name} was not fitted")
        return fitted[name]

    options = {"of": of}
    return await plugins.get("methods", "winner")(None, options).fit(bench.context(options, sibling, **change))


@pytest.fixture
async def fits(bench: Bench) -> dict[str, Any]:
    none = await plugins.get("methods", "none")(None, {}).fit(bench.context({}))
    feature = await plugins.get("methods", "feature")(None, FEATURE).fit(bench.context(FEATURE))
    bench.tried = 0
    return {"none": none, "feature": feature, "prompt+feature": Chain((none, feature))}


async def test_the_best_arm_wins_and_keeps_its_fingerprint(bench: Bench, fits: dict[str, Any]):
    won = await winner(bench, ["none", "missing", "feature", "prompt+feature"], fits)
    about = won.describe()
    assert won.arm == "feature" and won.fingerprint == fits["feature"].fingerprint and about["edit"]
    tried = {t["arm"]: t["score"] for t in about["arms_tried"]}
    assert tried["missing"] is None and tried["none"] < tried["feature"] == about["validation_score"]
    assert "was not fitted" in next(t["reason"] for t in about["arms_tried"] if t["arm"] == "missing")


async def test_doing_nothing_wins_a_tie(bench: Bench, fits: dict[str, Any]):
    won = await winner(bench, ["none", "other"], {"none": fits["none"], "other": fits["none"]})
    assert won.arm == "none"


async def test_a_chain_is_saved_and_loaded(bench: Bench, fits: dict[str, Any], tmp_path: Path):
    none, prompt = (plugins.get("methods", name)(None, {}) for name in ("none", "prompt"))
    line = await prompt.fit(bench.context({}))
    bench.tried = 0
    both = Chain((line, fits["feature"]))
    won = await winner(bench, ["prompt+feature"], {"prompt+feature": both})
    won.save(tmp_path)
    loaded = plugins.get("methods", "winner")(None, {}).load(tmp_path)
    assert loaded.fingerprint == won.fingerprint == both.fingerprint and loaded.arm == "prompt+feature"
    with loaded.open(bench.subject) as world, both.open(bench.subject) as direct:
        assert await bench.play(world) == await bench.play(direct)


async def test_the_budget_and_arms_that_are_not_there(bench: Bench, fits: dict[str, Any]):
    bench.cap = 1
    won = await winner(bench, ["none", "feature"], fits)
    assert won.arm == "none" and won.describe()["arms_tried"][1]["reason"] == "the budget"
    with pytest.raises(NotApplicable, match="none of the arms"):
        await winner(bench, ["a", "b"], {})
