"""Every method plugin, by one test: fit, save, load, and the loaded one is the fitted one to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.features.planted import PLANTED
from tests.methods.conftest import FEATURE, Bench

from fairlead.core import plugins
from fairlead.core.errors import LoadError, PlanError, UnknownName
from fairlead.core.keys import canonical
from fairlead.steering import parse

ARMS = [
    ("none", None), ("prompt", None), ("feature", None), ("vector", None), ("vector", "prompts"), ("control", "empty"),
    ("vector", "place"), ("vector", "caa"),
    ("control", "wrong_sign"), ("control", "random"), ("control", "noise"), ("winner", None),
    ("lora", None), ("reft", None), ("reft", "relu"), ("few_shot", None), ("few_shot", "reason"),
    ("prompt_search", None), ("refusal", None), ("refusal", "orthogonal"), ("probe", None), ("best_of_n", None),
    ("probe_gated", None), ("probe_gated", "feature"),
    ("best_of_n", "vote"),
    ("reformulate", None), ("reformulate", "self"),
    ("gcg", None), ("control", "dense"), ("stress", "dose_2"),  # the other variants: test_control, test_stress
]  # fmt: skip
CLAIMS = [("texts", "labels")]  # they open another world: test_texts
OPTIONS: dict[str, dict[str, Any]] = {
    "feature": FEATURE, "vector": {"sites": ["resid.0", "resid.2"], "strengths": [1.0]}, "prompt": {},
    "control": {"nearest": 16}, "none": {}, "winner": {"of": ["feature"]},
    "few_shot": {"k": [1, 2]},
    "prompt_search": {"population": 4, "rounds": 1, "n_search": 8, "finalists": 2},
    "refusal": {"contrasts": ["lines"], "positions": 1, "front": 2, "finalists": 2},
    "probe_gated": {"sites": ["resid.1", "resid.2"], "strengths": [2.0], "penalties": [1.0], "finalists": 2},
    "probe": {"sites": ["resid.1", "resid.2"], "penalties": [1.0], "finalists": 2},
    "best_of_n": {"n": [4], "temperatures": [4.0], "sites": ["resid.2"], "verifiers": 1},
    "gcg": {"length": 4, "steps": 4, "width": 8, "top_k": 8, "check": 2, "batch": 4},
    "stress": {},
    "reformulate": {},
    "lora": {"ranks": [4], "lrs": [1e-2], "epochs": 2, "batch": 4},
    "reft": {"sites": ["resid.1"], "ranks": [2], "lrs": [3e-2], "epochs": 4, "batch": 4},
}  # fmt: skip


async def fit(bench: Bench, name: str, variant: str | None, folder: Path) -> tuple[Any, Any]:
    """(method, fitted); the sibling of a control, stress arm, or winner comes from disk, as in a study."""
    feature = plugins.get("methods", "feature")(None, FEATURE)
    if variant == "feature" or name in ("control", "winner", "stress") and not (folder / "feature").exists():
        (folder / "feature").mkdir()
        (await feature.fit(bench.context(FEATURE))).save(folder / "feature")
    method = plugins.get("methods", name)(variant, OPTIONS[name])
    if "reformulate" in getattr(method, "siblings", ()):
        (folder / "reformulate").mkdir()
        feature = plugins.get("methods", "reformulate")(None, {})
        (await feature.fit(bench.context({}))).save(folder / "reformulate")
    return method, await method.fit(bench.context(OPTIONS[name], lambda arm: feature.load(folder / arm)))


def test_every_method_is_tried_here() -> None:
    assert {name for name, _ in [*ARMS, *CLAIMS]} == set(plugins.names("methods"))


@pytest.mark.parametrize(("name", "variant"), ARMS)
async def test_saved_and_loaded_is_the_same(bench: Bench, tmp_path: Path, name: str, variant: str | None) -> None:
    method, fitted = await fit(bench, name, variant, tmp_path)
    assert method.makes == "subject"
    (tmp_path / "saved").mkdir()
    fitted.save(tmp_path / "saved")
    loaded = method.load(tmp_path / "saved")
    assert loaded.fingerprint == fitted.fingerprint
    assert json.loads(canonical(loaded.describe())) == json.loads(canonical(fitted.describe()))
    said = []
    for one in (fitted, loaded):
        with one.open(bench.subject) as world:
            said.append(await bench.play(world))
    assert said[0] == said[1]
    bare = await bench.play(bench.subject)
    assert (said[0] == bare) == (name == "none" or variant == "empty" or idle(fitted.describe()))
    (tmp_path / "saved" / "method.json").write_text('{"method": "other"}')
    with pytest.raises(LoadError):
        method.load(tmp_path / "saved")


def idle(about: dict[str, Any]) -> bool:
    """Whether a method chose to do nothing."""
    kept = {"prompt": [""], "examples": [[]], "n": [1], "edit": ["", "nothing"],
            "annotates": [[]]}  # fmt: skip
    return any(about.get(key, ...) in values for key, values in kept.items())


@pytest.mark.parametrize("name", sorted(plugins.names("methods")))
def test_bad_options_and_variants_are_refused(name: str) -> None:
    good = next(variant for arm, variant in [*ARMS, *CLAIMS] if arm == name)
    with pytest.raises(PlanError):
        plugins.get("methods", name)(good, {"no_such_option": 1})
    with pytest.raises(UnknownName):
        plugins.get("methods", name)("no_such_variant", {})


def written(fitted: Any, edits: Any, vectors: Any) -> float:
    """Mean change per token of the sample, by the hook engine itself."""
    import torch
    from tests.steering.conftest import forward_info

    from fairlead.steering import compile_edits

    n = len(fitted.sample)
    hook = compile_edits(edits, fitted.rows, vectors).hooks[fitted.rows.site]
    x = fitted.sample[None]
    return float((hook(x.clone(), forward_info(n, prompt=n)) - x)[0].norm(dim=1).mean().to(torch.float32))


async def test_controls_match_the_edit_and_differ_by_item(bench: Bench, tmp_path: Path) -> None:
    from fairlead.features.change import change, norm

    for variant in ("random", "noise"):
        _, fitted = await fit(bench, "control", variant, tmp_path)
        draws = {item: fitted.draw(item) for item in ("a", "b", "c", "d", "e", "f")}
        assert len({edits for edits, _ in draws.values()}) > 3
        assert fitted.draw("a")[0] == draws["a"][0]
        for edits, vectors in draws.values():
            if variant == "noise":
                assert written(fitted, edits, vectors) == pytest.approx(fitted.size, rel=1e-4)
            else:
                assert written(fitted, edits, vectors) == pytest.approx(fitted.size, rel=1e-4)
                assert norm(edits, fitted.rows, fitted.sample) == pytest.approx(fitted.size, rel=1e-4)
                assert PLANTED not in {e.direction.index for e in edits}
    feature = plugins.get("methods", "feature")(None, FEATURE).load(tmp_path / "feature")
    _, wrong = await fit(bench, "control", "wrong_sign", tmp_path)
    moved = change(feature.edits, feature.rows, feature.sample)
    back = change(wrong.edits, wrong.rows, feature.sample)
    assert float((moved + back).abs().max()) < 1e-4 * float(moved.abs().max())
    assert fitted.size == pytest.approx(float(moved.norm(dim=1).mean()), rel=1e-5)


async def test_items_in_one_batch_get_what_they_get_alone(bench: Bench, tmp_path: Path) -> None:
    _, fitted = await fit(bench, "control", "random", tmp_path)
    with fitted.open(bench.subject) as world:
        together = await bench.play(world, 3)
        bench.lanes = 1
        alone = await bench.play(world, 3)
    for a, b in zip(together, alone, strict=True):
        assert a["logprobs"] == pytest.approx(b["logprobs"], abs=1e-4)
    bare = await bench.play(bench.subject, 3)
    assert any(abs(a["logprobs"][0] - b["logprobs"][0]) > 1e-3 for a, b in zip(together, bare, strict=True))


def test_a_mirrored_edit_is_the_opposite_change() -> None:
    import torch

    from fairlead.dictionaries.base import SparseDictionary
    from fairlead.features.change import change, mirrored

    g = torch.Generator().manual_seed(0)
    w = torch.randn(6, 9, generator=g)
    d = SparseDictionary("d", "resid.0", w, w.T.contiguous(), torch.zeros(9), torch.zeros(6))
    x = torch.randn(20, 6, generator=g)
    edits = parse("1 += 2; 2 = 0; 3 = 1.5; 4 *= 0.25")
    moved, back = change(edits, d, x), change(mirrored(edits), d, x)
    # a clamp's mirror is two edits of one latent, which compose: 2z - c
    assert mirrored(edits)[1].value == 2.0
    z = d.encode_rows(x, [3])[:, 0]
    expected = -(1.5 - z)
    only = change(mirrored(edits)[2:4], d, x) @ torch.linalg.pinv(w.T[[3]])
    assert torch.allclose(only[:, 0], expected, atol=1e-4)
    assert torch.allclose(moved, -back, atol=1e-4)


@pytest.mark.parametrize("line", ["1 += 2 when 6 > 0.3; 2 = 0", "2 = 0 when 6 > 0.3; 3 -= 1 when 7 > 0.1"])
@pytest.mark.parametrize("kind", ["random", "noise"])
def test_gated_edits_are_matched_in_place(line: str, kind: str) -> None:
    import torch

    from fairlead.dictionaries.base import SparseDictionary
    from fairlead.features.change import norm
    from fairlead.methods._drawn import Drawn

    g = torch.Generator().manual_seed(0)
    w = torch.randn(6, 9, generator=g)
    rows = SparseDictionary("d", "resid.0", w, w.T.contiguous(), torch.zeros(9), torch.zeros(6))
    x, edits = torch.randn(50, 6, generator=g), parse(line)
    fitted = Drawn(kind, edits, rows, ((4, 5, 8),) * 2, x, norm(edits, rows, x), 3)
    for item in ("a", "b"):
        drawn, vectors = fitted.draw(item)
        assert written(fitted, drawn, vectors) == pytest.approx(fitted.size, rel=1e-4)
        assert [e.gate for e in drawn] == [e.gate for e in edits]
