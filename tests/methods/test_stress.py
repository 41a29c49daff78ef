"""The claim with one factor changed: each variant changes that factor and nothing else, and is saved whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.features import planted
from tests.methods.conftest import Bench
from tests.methods.test_control import TINY, claim

from fairlead import dictionaries
from fairlead.core import plugins
from fairlead.core.chain import Chain
from fairlead.core.errors import NotApplicable, PlanError
from fairlead.core.ledger import Meter
from fairlead.methods.prompt import Line
from fairlead.methods.stress import SEEDS, VARIANTS

LINE = "3 += 2 when 6 > 0.3"


async def fit(bench: Bench, variant: str, matched: Any, options: Any = None, **change: Any) -> Any:
    method = plugins.get("methods", "stress")(variant, options or {})
    assert method.siblings == ((options or {}).get("of", "feature"),)
    return await method.fit(bench.context({}, lambda _: matched, **change))


AGAIN = ("dictionary_2", *SEEDS)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in (*AGAIN, "scope_all")])
async def test_every_variant_is_another_world_and_comes_back_from_disk(
    bench: Bench, tmp_path: Path, variant: str
) -> None:
    matched = claim(bench, LINE)
    if variant in ("layer_plus_2", "layer_minus_2"):
        with pytest.raises(NotApplicable, match="no layer"):
            await fit(bench, variant, matched)
        return
    fitted = await fit(bench, variant, matched)
    assert fitted.describe()["changed"] == variant and fitted.fingerprint != matched.fingerprint
    fitted.save(tmp_path)
    loaded = plugins.get("methods", "stress")(variant, {}).load(tmp_path)
    assert loaded.fingerprint == fitted.fingerprint and loaded.describe() == fitted.describe()
    said = []
    for one in (matched, fitted, loaded):
        with one.open(bench.subject) as world:
            said.append(await bench.play(world))
    assert said[1] == said[2] != said[0]


async def test_a_paraphrase_stands_before_what_the_claim_adds(bench: Bench) -> None:
    fitted = await fit(bench, "paraphrase_2", Line("Be careful."), {"of": "prompt"})
    with fitted.open(bench.subject) as world:
        text = world.tokens(bench.task.messages(planted.items("train", 1)[0])).text
    assert "You shop.\nYou will see one page at a time.\nBe careful." in text


async def test_a_chain_is_altered_in_its_edit_and_nowhere_else(bench: Bench, tmp_path: Path) -> None:
    both = Chain((Line("Be careful."), claim(bench, LINE)))
    fitted = await fit(bench, "dose_2", both, {"of": "prompt+feature"})
    assert fitted.describe()["parts"][0]["prompt"] == "Be careful."
    assert fitted.describe()["parts"][1]["edit"].startswith("3 += 4")
    fitted.save(tmp_path)
    assert plugins.get("methods", "stress")("dose_2", {}).load(tmp_path).fingerprint == fitted.fingerprint


async def test_a_second_dictionary_is_searched_anew_and_charged(bench: Bench, tmp_path: Path) -> None:
    second = bench.dictionary.replace(name="second", training_flops=1e12, W_dec=bench.dictionary.W_dec.flip(0).clone())
    dictionaries.save(second, tmp_path / "second")
    for options in ({}, {"dictionary": {"another model": "x"}}):
        with pytest.raises(NotApplicable, match="no second dictionary"):
            await fit(bench, "dictionary_2", claim(bench, LINE), options)
    subject = bench.subject.metered(Meter())
    options = {"dictionary": str(tmp_path / "second")}
    fitted = await fit(bench, "dictionary_2", claim(bench, LINE), options, subject=subject)
    assert subject.meter.flops > 1e11 and fitted.fitted.about["options"]["k"] == TINY["k"]
    for steered in (fitted.fitted.rows,):
        assert steered is None or torch.equal(steered.decoder, second.decoder_rows(steered.ids))


async def test_another_seed_finds_the_claim_anew_in_its_own_dictionary(bench: Bench, tmp_path: Path) -> None:
    fits = [await fit(bench, variant, claim(bench, LINE)) for variant in ("seed_1", "seed_1", "seed_2")]
    assert all(one.fitted.edits and one.about["found"] is not None for one in fits)
    assert fits[0].fingerprint == fits[1].fingerprint and fits[2].fingerprint != fits[0].fingerprint
    assert [plugins.get("methods", "stress")(v, {}).uses_dictionary for v in ("seed_1", "dose_2")] == [True, False]
    with pytest.raises(NotApplicable, match="holds no edit"):
        await fit(bench, "seed_1", Line("Be careful."), {"of": "prompt"})


async def test_what_cannot_be_stressed_says_why(bench: Bench) -> None:
    with pytest.raises(NotApplicable, match="holds no edit"):
        await fit(bench, "dose_2", Line("Be careful."), {"of": "prompt"})
    with pytest.raises(NotApplicable, match="own scope"):
        await fit(bench, "scope_all", claim(bench, LINE))
    with pytest.raises(PlanError, match="five"):
        plugins.get("methods", "stress")("paraphrase_1", {"paraphrases": ["one"]})
