"""Where an edit helps some decisions and harms others, a probe that tells them apart wins; the gate is exact."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods import planted_direction as planted

from fairlead import steering
from fairlead.core import plugins
from fairlead.core.errors import NotApplicable, PlanError
from fairlead.core.keys import canonical
from fairlead.features.points import points
from fairlead.methods import probe_gated
from fairlead.methods._steered import Steered
from fairlead.methods.probe_gated import Gated, Watch, world

KINDS = ("on", "off", "inverse")
OPTIONS: dict[str, Any] = {
    "sites": ["resid.1"], "penalties": [10.0], "sources": ["outcomes"], "strengths": [2.0, 4.0], "fprs": [0.1],
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return planted.subject(tmp_path_factory.mktemp("direction"))


@pytest.mark.parametrize("kind", ["prompt", "token"])
async def test_a_gate_spares_what_the_edit_would_harm(made: Any, kind: str, tmp_path: Path) -> None:
    bench = planted.bench(made, KINDS)
    assert await bench.solved(bench.subject) == {"on": 0.0, "off": 1.0, "inverse": 1.0}
    method = plugins.get("methods", "probe_gated")(None, {**OPTIONS, "gates": [kind]})
    fitted = await method.fit(bench.context({}))
    about = fitted.describe()
    assert about["gate"]["kind"] == kind and about["probes"][0]["auc"] > 0.95
    with fitted.open(bench.subject) as opened:
        assert await bench.solved(opened) == {"on": 1.0, "off": 1.0, "inverse": 1.0}
    ungated = steering.apply(
        bench.subject, [replace(e, gate=steering.Gate()) for e in fitted.steered.edits], None, fitted.steered.vectors
    )
    assert (await bench.solved(ungated))["inverse"] < 0.5
    fitted.save(tmp_path)
    loaded = method.load(tmp_path)
    assert loaded.fingerprint == fitted.fingerprint
    assert json.loads(canonical(loaded.describe())) == json.loads(canonical(about))
    with loaded.open(bench.subject) as opened:
        assert await bench.solved(opened) == {"on": 1.0, "off": 1.0, "inverse": 1.0}


def decisions(made: Any) -> list[tuple[Any, tuple[str, ...]]]:
    pages = [f"page {i}\nnote 2 {planted.CUES[kind]} ok 1" for i in range(3) for kind in KINDS]
    system = planted.Message("system", "You shop.")
    return [((system, planted.Message("user", page)), (planted.LURE, planted.RIGHT)) for page in pages]


async def test_both_gates_open_where_the_probe_says_and_report_it(made: Any) -> None:
    g = torch.Generator().manual_seed(2)
    weight, v = torch.randn(32, generator=g), torch.randn(32, generator=g)
    asked = decisions(made)
    x = made.activations([p for p, _ in asked], ["resid.1"])["resid.1"]
    scores = x @ weight + 0.5
    middle = scores.sort().values[len(scores) // 2 - 1 : len(scores) // 2 + 1].mean()  # no score: rounding decides none
    watch = Watch("resid.1", weight, 0.5, float(middle), 0.1)
    edits = steering.parse("@resid.1: $v += 3 at last")
    always = steering.apply(made, edits, None, {"v": v})
    by_prompt = world(made, Gated(Steered("probe_gated", edits, None, {"v": v}), watch))
    rows = tuple(replace(e, gate=watch.row()) for e in edits)
    by_token = world(made, Gated(Steered("probe_gated", rows, None, {"v": v}), replace(watch, kind="token")))
    opened = (scores > watch.threshold).tolist()
    assert 0 < sum(opened) < len(opened)
    for (prompt, legal), is_open, score in zip(asked, opened, scores.tolist(), strict=True):
        want = await (always if is_open else made).generate(prompt, legal=legal)
        one, two = [await w.generate(prompt, legal=legal) for w in (by_prompt, by_token)]
        assert one.legal_logprobs == want.legal_logprobs
        assert two.legal_logprobs == pytest.approx(want.legal_logprobs, abs=1e-4)
        assert (one.edits[0].fired, one.edits[0].seen) == (int(is_open), 1)
        assert one.edits[0].before == pytest.approx(score, abs=1e-3)
        assert (two.edits[0].fired, two.edits[0].seen) == (int(is_open), 1)


async def test_the_threshold_keeps_its_false_positive_rate(made: Any) -> None:
    bench = planted.bench(made, KINDS)
    bench.task = planted.CoinTask()  # nothing to learn: scores of both kinds are alike
    episodes = await bench.context({}).rollout(made, planted.items("train", 120, ("on", "off")))
    options = {**probe_gated.DEFAULTS, **OPTIONS, "fprs": [0.1, 0.3]}
    watches, told = probe_gated.watched(made, points(episodes), ["resid.1"], options, 0)
    assert abs(told[0]["auc"] - 0.5) < 0.12
    fresh = [
        p
        for p in points(await bench.context({}).rollout(made, planted.items("test", 120, ("on", "off"))))
        if not p.failed
    ]
    for watch in watches:
        readings = watch.readings(made, [p.decision.messages for p in fresh], [0] * len(fresh))
        assert abs(float((readings > watch.threshold).float().mean()) - watch.fpr) < 0.12


async def test_coins_are_not_turned(made: Any) -> None:
    bench = planted.bench(made, ("on", "off"))
    bench.task = planted.CoinTask()
    fitted = await plugins.get("methods", "probe_gated")(None, OPTIONS).fit(bench.context({}))
    with fitted.open(bench.subject) as opened:
        assert 0.3 < sum((await bench.solved(opened, 40)).values()) / 2 < 0.7


async def test_it_gates_the_feature_arm_s_edit(made: Any) -> None:
    cue = planted.bench(made, KINDS)
    edit = Steered("feature", steering.parse("@resid.1: $v += -40"), None, {"v": planted.directions()[0]})
    method = plugins.get("methods", "probe_gated")("feature", OPTIONS)
    assert method.siblings == ("feature",) and method.uses_dictionary
    fitted = await method.fit(cue.context({}, lambda _: edit))
    with fitted.open(made) as opened:
        assert await cue.solved(opened) == {"on": 1.0, "off": 1.0, "inverse": 1.0}
    with pytest.raises(NotApplicable, match="no edit"):
        await method.fit(cue.context({}, lambda _: Steered("feature", ())))


async def test_it_stands_on_another_arm_s_edit(made: Any) -> None:
    """In a+b the closed gate leaves a's edit at work."""
    below = steering.apply(made, "@resid.0: $v += 2", None, {"v": torch.ones(32)})
    shut = Watch("resid.1", torch.ones(32), 0.0, 1e9, 0.1)
    edits = steering.parse("@resid.1: $v += 50")
    opened = world(below, Gated(Steered("probe_gated", edits, None, {"v": torch.ones(32)}), shut))
    prompt, legal = decisions(made)[0]
    got, want = [(await w.generate(prompt, legal=legal)).legal_logprobs for w in (opened, below)]
    assert got == want != (await made.generate(prompt, legal=legal)).legal_logprobs


@pytest.mark.parametrize("bad", [{"gates": ["door"]}, {"sources": []}, {"fprs": [0.0]}, {"fprs": []}])
def test_bad_options(bad: Any) -> None:
    with pytest.raises(PlanError):
        plugins.get("methods", "probe_gated")(None, bad)
