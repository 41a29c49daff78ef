"""The arms of hypotheses: each fits, saves, loads to the last bit, claims no more than asked, and sees no test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.features.texts.planted import Embedder, world

from fairlead.core.errors import LoadError
from fairlead.core.keys import canonical
from fairlead.core.protocols import FitContext
from fairlead.core.types import Item
from fairlead.features.detection import auroc
from fairlead.features.texts.predicates import Tools, fires
from fairlead.methods.texts import VARIANTS, plugin

PARTS = ("train", "train", "train", "select", "label", "label", "validate", "validate")
KINDS = ("binary", "numeric", "multiclass", "pairwise")


def items(kind: str, n: int = 320, seed: int = 0) -> list[Item]:
    """Food makes the label likelier, sport less likely; classes are what is mentioned."""
    texts, gold = world(2 * n, seed)
    rng = np.random.default_rng(seed)
    force = 2.5 * gold[:, 2] - 2.5 * gold[:, 0]
    found = []
    for i in range(n):
        data: dict[str, Any] = {"text": texts[i], "part": PARTS[i % len(PARTS)]}
        if kind == "numeric":
            data["label"] = float(force[i] + 0.3 * rng.standard_normal())
        elif kind == "multiclass":
            data["label"] = "food" if gold[i, 2] else "sport" if gold[i, 0] else "other"
        else:
            score = force[i] - (force[n + i] if kind == "pairwise" else 0.0)
            data["label"] = bool(rng.random() < 1 / (1 + np.exp(-score)))
        if kind == "pairwise":
            data |= {"texts": [data.pop("text"), texts[n + i]]}
        found.append(Item(f"{seed}-{i}", "validation" if data["part"] == "validate" else "train", str(i), {}, data))
    return found


async def fit(variant: str, given: Sequence[Item], **options: Any) -> Any:
    async def roll(*_: Any) -> list[Any]:
        raise AssertionError("no claim needs a rollout")

    def sibling(name: str) -> Any:
        raise KeyError(name)

    split = {s: [i for i in given if i.split == s] for s in ("train", "validation")}
    embedder = Embedder()
    context = FitContext(embedder, None, split["train"], split["validation"], 0, None, roll, lambda: None, {}, sibling)
    return await plugin(variant, options).fit(context)


async def right(fitted: Any, kind: str) -> float:
    """How well it predicts items it has not seen: AUROC, accuracy of classes, R² of numbers."""
    fresh = items(kind, seed=7)
    with fitted.open(Embedder()) as world:
        said = await world.predict_all(fresh)
    labels = [item.data["label"] for item in fresh]
    if kind == "numeric":
        values = np.array([s.value for s in said])
        return 1 - float(((values - labels) ** 2).mean() / np.var(labels))
    if kind == "multiclass":
        return float(np.mean([max(s.classes, key=s.classes.get) == y for s, y in zip(said, labels, strict=True)]))
    true, false = ([s.p for s, y in zip(said, labels, strict=True) if y == side] for side in (True, False))
    return auroc(true, false)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_saved_and_loaded_is_the_same(tmp_path: Path, variant: str) -> None:
    given = items("binary")
    fitted = await fit(variant, given, k=4)
    fitted.save(tmp_path)
    loaded = plugin(variant, {}).load(tmp_path)
    assert loaded.fingerprint == fitted.fingerprint
    assert json.loads(canonical(loaded.describe())) == json.loads(canonical(fitted.describe()))
    said = []
    for one in (fitted, loaded):
        with one.open(Embedder()) as opened:
            assert len(opened.claims()) <= 4
            said.append([await opened.predict(item) for item in given[:10]])
    assert said[0] == said[1]
    assert all(len(p.fired) == len(fitted.hypotheses) for p in said[0])
    (tmp_path / "method.json").write_text('{"method": "other"}')
    with pytest.raises(LoadError):
        plugin(variant, {}).load(tmp_path)


LEAST = {"binary": 0.57, "numeric": 0.6, "multiclass": 0.9, "pairwise": 0.6}


@pytest.mark.parametrize(("kind", "least"), LEAST.items())
async def test_labels_explain_every_kind_of_label(kind: str, least: float) -> None:
    fitted = await fit("labels", items(kind, 480), k=5)
    assert await right(fitted, kind) > least
    claims = fitted.hypotheses
    assert any("soup" in h.text or "bread" in h.text or "butter" in h.text or "recipe" in h.text for h in claims)
    assert all(h.predicate and (h.fidelity is None or h.low <= h.fidelity <= h.high) for h in claims)
    texts = world(40, seed=3)[0]
    for h in claims:  # executable from the JSON alone
        assert (await fires(h.predicate, texts, Tools(Embedder()))).shape == (40,)


async def test_a_swapped_pair_is_predicted_the_other_way_round() -> None:
    fitted = await fit("latents", items("pairwise"), k=4)
    item = items("pairwise", 20, seed=5)[3]
    swapped = Item("s", "test", "s", {}, {"texts": item.data["texts"][::-1], "label": True})
    with fitted.open(Embedder()) as opened:
        one, two = await opened.predict(item), await opened.predict(swapped)
    assert one.p is not None and two.p is not None and one.p + two.p == pytest.approx(1.0)
    assert one.fired == tuple(-f for f in two.fired)


async def test_shuffled_labels_give_no_claim_at_a_stated_error_rate() -> None:
    given = items("binary")
    labels = np.random.default_rng(2).permutation([item.data["label"] for item in given])
    null = [Item(i.id, i.split, i.cluster, {}, {**i.data, "label": bool(y)})
            for i, y in zip(given, labels, strict=True)]  # fmt: skip
    for variant in ("labels", "ngrams"):
        assert (await fit(variant, given, rate=0.05)).hypotheses
        fitted = await fit(variant, null, rate=0.05)
        assert fitted.hypotheses == ()
        with fitted.open(Embedder()) as opened:
            assert 0 < (await opened.predict(given[0])).p < 1


async def test_a_label_aware_dictionary_is_selected_and_weighed_on_labels_it_has_not_seen() -> None:
    """Its latents move with the labels of part train; selection and weights with the others' alone."""
    given = items("binary", 200)
    fitted = await fit("residual", given, k=4, n_features=8)
    rest = sum(i.split == "train" and i.data["part"] != "train" for i in given)
    assert fitted.about["dictionary"] == "residual" and fitted.about["selected_on"] == rest
    flipped = [Item(i.id, i.split, i.cluster, {}, {**i.data, "label": not i.data["label"]})
               if i.data["part"] in ("select", "label") else i for i in given]  # fmt: skip
    other = await fit("residual", flipped, k=4, n_features=8)
    assert [p.fingerprint for p in other.source.levels.parts] == [p.fingerprint for p in fitted.source.levels.parts]
    assert other.source.columns == fitted.source.columns  # the same correlations, with the other sign
    said = await fit("labels", given, k=4, n_features=8, dictionary="residual", how="knockoffs")
    assert said.about["how"] == "knockoffs"


async def test_covariates_explain_first() -> None:
    """A covariate that is the label leaves nothing for the texts to explain."""
    given = [Item(i.id, i.split, i.cluster, {}, {**i.data, "covariates": {"x": float(i.data["label"])}})
             for i in items("binary")]  # fmt: skip
    assert (await fit("latents", given, rate=0.05)).hypotheses == ()
