"""Controls that stand in for dictionary, layer and latents: matched, charged, saved, or n/a with a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.features import planted
from tests.methods.conftest import Bench
from tests.methods.test_conformance import written

from fairlead import steering
from fairlead.core import plugins
from fairlead.core.errors import NotApplicable
from fairlead.core.fake import FakeSubject
from fairlead.core.ledger import Meter
from fairlead.features.change import norm, watched
from fairlead.features.excerpt import cut
from fairlead.methods._altered import dosed, rescoped, shifted
from fairlead.methods._steered import Steered

TINY = {
    "n_decisions": 8, "n_screen": 4, "shortlist": 2, "places": 0, "hints": [], "kept": 1, "finalists": 1,
    "strengths": [1.0], "k": 1,
}  # fmt: skip
PIPELINES = ("random_dictionary", "shuffled", "pca", "kmeans")


def claim(bench: Bench, line: str, site: str = "resid.1") -> Steered:
    """A fitted feature arm with the edit `line`, on random latents at `site`."""
    d = bench.dictionary.replace(site=site)
    edits = steering.parse(line)
    decisions = [bench.task.messages(i) for i in planted.items("train", 4)]
    sample = torch.cat(bench.subject.activations(decisions, [site], "all")[site])
    return Steered("feature", edits, cut(d, watched(edits)), {}, {"options": TINY}, sample)


async def fit(bench: Bench, variant: str, matched: Any, **change: Any) -> Any:
    method = plugins.get("methods", "control")(variant, {"n_decisions": 12})
    return await method.fit(bench.context({}, lambda _: matched, **change))


@pytest.mark.parametrize("variant", PIPELINES)
async def test_the_pipeline_runs_on_another_dictionary_and_all_of_it_is_charged(
    bench: Bench, tmp_path: Path, variant: str
) -> None:
    subject, calls = bench.subject.metered(Meter()), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    here = replace(bench, subject=subject, task=planted.ToyTask(subject))
    handle = subject.model.register_forward_hook(count)
    try:
        fitted = await fit(here, variant, Steered("feature", (), None, {}, {"options": TINY}))
    finally:
        handle.remove()
    assert calls == subject.meter.forwards > 0
    about = fitted.describe()
    assert about["dictionary"]["name"] != bench.dictionary.name and about["options"] == TINY | dict(about["options"])
    assert about["validation_score"] >= about["tried"][0]["score"]
    if variant in ("pca", "kmeans"):
        assert about["dictionary"]["training_flops"] > 0
    fitted.save(tmp_path)
    loaded = plugins.get("methods", "control")(variant, {}).load(tmp_path)
    assert loaded.fingerprint == fitted.fingerprint
    said = []
    for one in (fitted, loaded):
        with one.open(bench.subject) as world:
            said.append(await bench.play(world))
    assert said[0] == said[1]


@pytest.mark.parametrize("line", ["3 += 2", "3 += 2 when 6 > 0.3; 7 -= 1", "3 = 0; 4 += 1"])
async def test_the_dense_vector_has_the_norm_and_the_gates_of_the_edit(bench: Bench, line: str) -> None:
    matched = claim(bench, line)
    fitted = await fit(bench, "dense", matched)
    assert [e.gate for e in fitted.edits] == [e.gate for e in matched.edits]
    size = norm(matched.edits, matched.rows, matched.sample)
    assert written(replace(fitted, sample=matched.sample), fitted.edits, fitted.vectors) == pytest.approx(
        size, rel=1e-4
    )
    first, *rest = fitted.vectors.values()
    assert all(torch.allclose(first / first.norm(), v / v.norm(), atol=1e-5) for v in rest)


async def test_another_layer_gets_the_same_directions_and_keeps_the_gate(bench: Bench) -> None:
    matched = claim(bench, "3 += 2 when 6 > 0.3")
    fitted = await fit(bench, "other_layer", matched)
    assert fitted.describe()["moved"] == {"from": ["resid.1"], "to": ["resid.2"]}
    assert fitted.edits[0].gate.when.left.site == "resid.1"
    decisions = [bench.task.messages(i) for i in planted.items("train", 3)]
    with fitted.open(bench.subject) as world:
        after = world.activations(decisions, ["resid.2"], "all")["resid.2"]
    before = bench.subject.activations(decisions, ["resid.1", "resid.2"], "all")
    for row, (old, new) in enumerate(zip(before["resid.2"], after, strict=True)):
        open_ = matched.rows.encode_rows(before["resid.1"][row], [6])[:, 0] > 0.3
        expected = open_[:, None] * 2.0 * matched.rows.decoder_rows([3])[0]
        assert torch.allclose(new - old, expected, atol=1e-4)
    top = await fit(bench, "other_layer", claim(bench, "3 += 2", "resid.2"))
    assert top.describe()["moved"] == {"from": ["resid.2"], "to": ["resid.1"]}


async def test_what_does_not_apply_says_why(bench: Bench) -> None:
    nothing = Steered("feature", ())
    for variant in ("dense", "other_layer"):
        with pytest.raises(NotApplicable, match="no edit"):
            await fit(bench, variant, nothing)
    for variant in PIPELINES:
        with pytest.raises(NotApplicable, match="needs a dictionary"):
            await fit(bench, variant, nothing, dictionary=None)
        with pytest.raises(NotApplicable, match="cannot be read"):
            await fit(bench, variant, nothing, subject=FakeSubject())


@pytest.mark.parametrize("line", ["1 += 2", "2 = 0", "3 = 1.5", "4 *= 0.25", "1 += 2; 2 = 0 when 6 > 0.1"])
@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_a_dose_is_that_much_of_the_change(bench: Bench, line: str, factor: float) -> None:
    from tests.steering.conftest import forward_info

    from fairlead.steering import compile_edits

    matched = claim(bench, line)
    assert matched.sample is not None
    n, x = len(matched.sample), matched.sample[None]

    def moved(edits: Any) -> torch.Tensor:
        return compile_edits(edits, matched.rows).hooks["resid.1"](x.clone(), forward_info(n, prompt=n)) - x

    assert torch.allclose(moved(dosed(matched.edits, factor)), factor * moved(matched.edits), atol=1e-4)


def test_alterations_that_make_no_sense_are_not_applicable(bench: Bench) -> None:
    matched = claim(bench, "3 += 2 at last")
    with pytest.raises(NotApplicable, match="own scope"):
        rescoped(matched.edits, "last")
    with pytest.raises(NotApplicable, match="no layer"):
        shifted(matched, 5, 3, "control")
    with pytest.raises(NotApplicable, match="no dose"):
        dosed(steering.parse("3 <= 2"), 2.0)
