from __future__ import annotations

import json

from tests.features.planted import PLANTED
from tests.methods.conftest import FEATURE, Bench

from fairlead.core import plugins
from fairlead.core.keys import canonical


async def test_the_planted_feature_is_found_and_helps(bench: Bench) -> None:
    method = plugins.get("methods", "feature")(None, FEATURE)
    fitted = await method.fit(bench.context(FEATURE))
    about = fitted.describe()
    assert about["edit"].startswith(f"{PLANTED} += ")
    assert about["cards"][0]["index"] == PLANTED and about["dose_response"]
    assert json.loads(canonical(about)) == json.loads(json.dumps(about))
    with fitted.open(bench.subject) as world:
        steered = await bench.play(world, 8)
    bare = await bench.play(bench.subject, 8)
    assert sum(d["ok"] for d in steered) > sum(d["ok"] for d in bare)
    assert bench.tried == len(about["tried"]) > 1


async def test_the_budget_cuts_the_attempts(bench: Bench) -> None:
    bench.cap = 1
    fitted = await plugins.get("methods", "feature")(None, FEATURE).fit(bench.context(FEATURE))
    assert len(fitted.describe()["tried"]) == 1 and fitted.edits == ()


async def test_a_prompt_is_never_forced_to_hurt(bench: Bench) -> None:
    fitted = await plugins.get("methods", "prompt")(None, {}).fit(bench.context({}))
    tried = fitted.describe()["tried"]
    assert tried[0]["prompt"] == "" and len(tried) == 12
    assert max(t["score"] for t in tried) == next(t["score"] for t in tried if t["prompt"] == fitted.text)


async def test_prompts_can_be_chosen_by_rollouts(bench: Bench) -> None:
    options = {"pool": ["Say done()."], "select": "rollouts"}
    bench.cap = 2
    fitted = await plugins.get("methods", "prompt")(None, options).fit(bench.context(options))
    assert [t["prompt"] for t in fitted.describe()["tried"]] == ["", "Say done()."]
