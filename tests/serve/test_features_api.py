"""The four questions about features, on a store made from a tiny model, and what may be asked."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import httpx2
import pytest
import torch
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from tests.app.conftest import FEATURES, SITE, WIDTH

from fairlead.core.errors import FairleadError
from fairlead.core.keys import canonical
from fairlead.dictionaries import random as random_dictionary
from fairlead.features.detection import Detection
from fairlead.features.harvest import harvest, texts_of
from fairlead.features.index import Index
from fairlead.features.labels import Label
from fairlead.serve.features_api import Shelf, routes
from fairlead.serve.server import Endpoint

TEXTS = [f"{verb} the {colour} lamp {i}" for i, (verb, colour) in enumerate([("buy", "red"), ("sell", "blue")] * 12)]


@pytest.fixture(scope="module")
def dictionary() -> Any:
    rows = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(1))
    return random_dictionary.fit(rows, FEATURES, site=SITE)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, subject: Any, dictionary: Any) -> Shelf:
    root = tmp_path_factory.mktemp("store") / "s"
    harvest(subject, dictionary, texts_of(subject, TEXTS), root)
    held = Detection(0.9, 0.8, 0.95, 0.85, 12, 12)
    said = [
        Label(1, "fires on “red”", "peaks", ("red",), held, {}),
        Label(2, "fires on “Red Lamps”", "peaks", (), None, {}),
        Label(3, "", "", (), None, {}),
    ]
    lines = [canonical({"seed": 0}), *(canonical(asdict(one)) for one in said)]
    (root / "labels.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    async def parts() -> tuple[Any, Any]:
        return subject, dictionary

    card = {"index": 7, "label": "fires on “deal”", "effect": 0.2, "dose_response": [{"strength": 1, "on": 0.5}]}
    return Shelf.of(root, cards={7: card}, parts=parts, now=lambda: (subject, dictionary))


def test_a_search_is_by_number_by_words_of_a_label_and_by_the_token_it_peaks_on(shelf: Shelf) -> None:
    assert [(r["latent"], r["found"]) for r in shelf.search("12")][0] == (12, "number")
    assert [r["latent"] for r in shelf.search("RED")][:2] == [1, 2], "the label that holds comes first"
    assert shelf.search("fires deal")[0]["latent"] == 7
    assert shelf.index is not None and shelf.store is not None

    def peaks(latent: int) -> list[str]:
        assert shelf.index is not None and shelf.store is not None
        places = [int(t) for t in shelf.index.top[latent][:5] if t >= 0]
        return [shelf.store.texts(range(t, t + 1))[0].strip().casefold() for t in places]

    word = next(text for latent in range(FEATURES) for text in peaks(latent) if text.isalpha())
    found = [r["latent"] for r in shelf.search(word.upper(), 200) if r["found"] == "token"]
    wanted = [latent for latent in range(FEATURES) if word in peaks(latent)]
    assert wanted and sorted(found) == [i for i in wanted if i not in (1, 2, 7) or i in found]
    assert shelf.search("") == [] and shelf.search("nowhere at all") == [] and shelf.search("999999") == []
    assert len(shelf.search("lamp", 2)) <= 2


def test_a_label_that_does_not_hold_is_no_label(shelf: Shelf) -> None:
    assert shelf.label(1) == "fires on “red”" and shelf.label(2) is None and shelf.label(7) == "fires on “deal”"
    rows = {r["latent"]: r for r in shelf.search("red")}
    assert rows[1]["holds"] and rows[2]["holds"] is False


def test_the_ranking_is_that_of_the_figures(shelf: Shelf) -> None:
    index = shelf.index
    assert index is not None
    for by, figures in (("density", index.count), ("largest", index.top_values[:, 0]), ("mean", index.mean)):
        found = [float(figures[r["latent"]]) for r in shelf.ranked(by, FEATURES)]
        assert found == sorted(map(float, figures), reverse=True), by
    assert shelf.ranked("auroc")[0]["latent"] == 1
    with pytest.raises(FairleadError, match="no such figure"):
        shelf.ranked("beauty")


async def test_top_and_inspect_read_what_the_dictionary_encodes(shelf: Shelf, subject: Any, dictionary: Any) -> None:
    text = TEXTS[0]
    latents = dictionary.encode(subject.text_activations([text], [SITE])[SITE][0].float())
    top = await shelf.top(text, 3)
    assert [r["value"] for r in top] == pytest.approx(sorted(map(float, latents.max(0).values), reverse=True)[:3])
    assert "".join((await shelf.inspect([1], text))["text"]["tokens"]).strip() == text
    found = await shelf.inspect([1, 7], text)
    assert found["text"]["values"]["7"] == pytest.approx(latents[:, 7].tolist())
    one, seven = found["latents"]
    assert one["held"]["auroc"] == 0.9 and len(one["top"]) > 0 and one["top"][0]["values"]
    assert seven["effect"] == 0.2 and seven["dose_response"] and seven["logit_lens"]["positive"]
    json.dumps(found, allow_nan=False)
    with pytest.raises(FairleadError, match="nothing is known of latent 999"):
        await shelf.inspect([999])


async def test_a_contrast_finds_the_latent_that_was_moved_between_the_texts(shelf: Shelf, dictionary: Any) -> None:
    found = await shelf.contrast(TEXTS[0::2][:6], TEXTS[1::2][:6], FEATURES)
    values = {r["latent"]: r["auroc_a"] for r in found["latents"]}
    assert found["n_a"] == found["n_b"] == 6 and values
    distance = [abs(r["auroc_a"] - 0.5) for r in found["latents"]]
    assert distance == sorted(distance, reverse=True) and all(math.isfinite(v) for v in values.values())
    other = await shelf.contrast(TEXTS[1::2][:6], TEXTS[0::2][:6], FEATURES)
    assert {r["latent"]: 1 - r["auroc_a"] for r in other["latents"]} == pytest.approx(values)
    same = await shelf.contrast([TEXTS[0]], [TEXTS[0]])
    assert same["latents"] == [], "nothing tells a text from itself"


@pytest.fixture
async def client(shelf: Shelf) -> AsyncIterator[httpx2.AsyncClient]:
    app = Starlette(routes=routes(shelf, may_run=lambda request: "key" in request.headers))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://here") as found:
        yield found


async def test_the_routes_answer(client: httpx2.AsyncClient) -> None:
    asked = {
        "search": {"query": "red"}, "top": {"by": "largest", "limit": 3}, "inspect": {"latents": [1, 2]},
    }  # fmt: skip
    for name, body in asked.items():
        got = await client.post(f"/v1/features/{name}", json=body)
        assert got.status_code == 200 and got.json()["latents"], name
        assert got.headers["x-content-type-options"] == "nosniff"
    runs = {"top": {"text": "buy a lamp"}, "contrast": {"a": ["buy"], "b": ["sell it"]},
            "inspect": {"latents": [1], "messages": [{"role": "user", "content": "buy"}]}}  # fmt: skip
    for name, body in runs.items():
        assert (await client.post(f"/v1/features/{name}", json=body)).status_code == 401, "what runs the model, apart"
        got = await client.post(f"/v1/features/{name}", json=body, headers={"key": "1"})
        assert got.status_code == 200, got.text


@pytest.mark.parametrize(("name", "body"), [
    ("search", b""), ("search", b"[]"), ("search", b'{"query": 3}'), ("search", b'{"query": "x", "more": 1}'),
    ("search", b'{"query": "x", "limit": true}'), ("search", b'{"query": "x", "limit": 100000}'),
    ("search", b'{"query": "\\ud800"}'), ("search", b"[" * 50_000),
    ("top", b'{"by": "beauty"}'), ("top", b'{"by": NaN}'), ("top", b'{"text": ""}'),
        ("top", b'{"text": "a", "by": 3}'), ("top", b'{"by": ["density"]}'), ("top", b'{"text": "a", "limit": 0}'),
    ("top", b'{"text": "a", "messages": []}'),
    ("inspect", b'{"latents": []}'), ("inspect", b'{"latents": [-1]}'), ("inspect", b'{"latents": [true]}'),
    ("inspect", b'{"latents": [1e3]}'), ("inspect", b'{"latents": [99999999]}'), ("inspect", b'{"latents": "../../x"}'),
    ("inspect", b'{"latents": [1], "messages": [{"role": "god", "content": "x"}]}'),
    ("contrast", b'{"a": ["x"]}'), ("contrast", b'{"a": [], "b": ["x"]}'), ("contrast", b'{"a": [" "], "b": ["x"]}'),
])  # fmt: skip
async def test_a_bad_request_is_a_400_with_a_reason(client: httpx2.AsyncClient, name: str, body: bytes) -> None:
    got = await client.post(f"/v1/features/{name}", content=body, headers={"key": "1"})
    assert got.status_code == 400 and got.json()["error"]["message"], got.text


async def test_a_body_that_is_too_large_is_a_413(client: httpx2.AsyncClient) -> None:
    got = await client.post("/v1/features/search", content=b'{"query": "' + b"x" * 500_000 + b'"}')
    assert got.status_code == 413 and got.json()["error"]["message"], got.text


async def test_without_a_model_a_text_cannot_be_read(shelf: Shelf) -> None:
    bare = Shelf(shelf.store, shelf.labels)
    with pytest.raises(FairleadError, match="no model is open"):
        await bare.top("x")
    assert (await bare.card(1))["label"] and Index(bare.store).count is not None  # type: ignore[arg-type]
    with pytest.raises(FairleadError, match="nothing is known"):
        await Shelf().card(1)


# ---- as the endpoint serves it

ASKED: list[tuple[str, dict[str, Any]]] = [
    ("search", {"query": "12"}), ("search", {"query": "nowhere", "limit": 3}), ("top", {"by": "density", "limit": 4}),
    ("top", {"text": "buy a lamp"}), ("top", {"messages": [{"role": "user", "content": "buy"}], "text": None}),
    ("inspect", {"latents": [1, 7]}), ("inspect", {"latents": [1], "text": "buy"}),
    ("contrast", {"a": ["buy a lamp"], "b": ["sell", "it"], "limit": 2}),
]  # fmt: skip


async def test_the_endpoint_describes_these_questions_and_their_answers(endpoint: Endpoint) -> None:
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        told = (await client.get("/openapi.json")).json()
        for name, body in ASKED:
            got = await client.post(f"/v1/features/{name}", json=body)
            post = told["paths"][f"/v1/features/{name}"]["post"]
            assert got.status_code == 200 and got.json()["latents"] or name == "search", got.text
            asked, answer = post["requestBody"]["content"], post["responses"]["200"]["content"]
            for content, value in ((asked, body), (answer, got.json())):
                schema = {**content["application/json"]["schema"], "components": told["components"]}
                Draft202012Validator(schema).validate(value)
        told = (await client.get("/metrics")).text
        assert 'fairlead_requests_total{path="/v1/features/top",status="200"} 3' in told


async def test_without_a_dictionary_it_describes_none(models: Any) -> None:
    endpoint = await Endpoint.start(models)
    async with httpx2.AsyncClient(base_url=endpoint.url) as client:
        assert "features" not in (await client.get("/openapi.json")).text
        assert (await client.post("/v1/features/top", json={})).status_code == 404
    await endpoint.stop()


async def test_the_endpoint_asks_for_its_key_before_it_reads_a_body(models: Any) -> None:
    endpoint = await Endpoint.start(models, key="secret", dictionaries=[models[1].fitted.rows])
    async with httpx2.AsyncClient(base_url=endpoint.url) as client:
        assert (await client.post("/v1/features/top", content=b"{")).status_code == 401
        good = {"authorization": "Bearer secret"}
        assert (await client.post("/v1/features/top", json={"text": "a"}, headers=good)).status_code == 200
        assert (await client.get("/openapi.json")).json()["paths"]["/v1/features/top"]["post"]["security"]
    await endpoint.stop()
