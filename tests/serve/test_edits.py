"""Edits in a request's body, over real HTTP: applied and reported, or refused; never passed over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from tests.serve.conftest import MODEL

from fairlead import steering
from fairlead.core.types import Message
from fairlead.serve.limits import Limits
from fairlead.serve.server import Endpoint, Settings

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LINE = "3 += 4 at prompt; 5 = 2 when 3 > 0.1"
PROMPT = (Message("user", "goal: buy a lamp"),)


@pytest.fixture
def rows(models: Any) -> Any:
    return models[1].fitted.rows


@pytest.fixture
async def client(models: Any, rows: Any) -> AsyncIterator[httpx2.AsyncClient]:
    settings = Settings(limits=Limits(strength=1e6))
    endpoint = await Endpoint.start(models, dictionaries=[rows], settings=settings)
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as found:
        yield found
    await endpoint.stop()


def ask(**change: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "goal: buy a lamp"}], "max_tokens": 8, **change}


async def test_a_request_brings_its_own_edits(client: Any, subject: Any, rows: Any) -> None:
    got = (await client.post(CHAT, json=ask(edits=LINE))).json()
    direct = await steering.apply(subject, LINE, rows).generate(PROMPT, max_tokens=8)
    assert got["choices"][0]["message"]["content"] == direct.text
    told = [(e["edit"], e["fired"], e["seen"]) for e in got["fairlead"]["edits"]]
    assert told == [(e.edit, e.fired, e.seen) for e in direct.edits] and told[0][1] > 0
    plain = (await client.post(CHAT, json=ask())).json()
    assert plain["fairlead"]["edits"] == [] and plain["fairlead"]["fingerprint"] != got["fairlead"]["fingerprint"]


async def test_a_line_and_its_json_are_the_same_edits(client: Any) -> None:
    line = (await client.post(CHAT, json=ask(edits=LINE))).json()
    data = (await client.post(CHAT, json=ask(edits=steering.to_json(steering.parse(LINE))))).json()
    assert line["fairlead"] == data["fairlead"] and steering.parse(line["fairlead"]["line"]) == steering.parse(LINE)
    again = (await client.post(CHAT, json=ask(edits=line["fairlead"]["line"]))).json()
    assert again["fairlead"] == line["fairlead"] and again["choices"] == line["choices"]


async def test_a_pair_is_steered_and_default(client: Any) -> None:
    plain = (await client.post(CHAT, json=ask())).json()
    pair = (await client.post(CHAT, json=ask(edits="3 += 40 at prompt", fairlead={"paired": True}))).json()
    assert pair["fairlead"]["default"]["text"] == plain["choices"][0]["message"]["content"]
    assert pair["choices"][0]["message"]["content"] != plain["choices"][0]["message"]["content"]
    assert pair["usage"]["completion_tokens"] == 2 * plain["usage"]["completion_tokens"]


async def test_latents_can_be_asked_about_where_they_can_be_edited(models: Any, rows: Any, client: Any) -> None:
    got = await client.post("/v1/features/top", json={"text": "goal: buy a lamp", "limit": 3})
    assert got.status_code == 200 and len(got.json()["latents"]) <= 3, got.text
    closed = await Endpoint.start(models, dictionaries=[rows], key="secret")
    async with httpx2.AsyncClient(base_url=closed.url) as other:
        assert (await other.post("/v1/features/top", json={"text": "goal"})).status_code == 401
    await closed.stop()


async def test_nothing_is_an_edit_too(client: Any) -> None:
    got = (await client.post(CHAT, json=ask(edits="nothing"))).json()
    assert got["fairlead"]["edits"] == [] and got["fairlead"]["line"] == "nothing"


async def test_choices_are_decided_under_the_edits(client: Any, subject: Any, rows: Any) -> None:
    choices = ['click("1")', "done()"]
    got = (await client.post(CHAT, json=ask(edits=LINE, fairlead={"choices": choices, "paired": True}))).json()
    direct = await steering.apply(subject, LINE, rows).generate(PROMPT, legal=choices)
    assert [c["logprob"] for c in got["fairlead"]["choices"]] == pytest.approx(direct.legal_logprobs, abs=1e-4)
    plain = await subject.generate(PROMPT, legal=choices)
    assert got["fairlead"]["default"]["text"] == plain.text


REFUSED = [
    ({"edits": "3 ? 4"}, "cannot read the edit"),
    ({"edits": ""}, "cannot read the edit"),
    ({"edits": "3 += 4; 4000 = 1"}, "latent 4000 is not in dictionary"),
    ({"edits": "@resid.7: 3 += 4"}, "no site"),
    ({"edits": "@resid.1: 3 += 4"}, "no dictionary at resid.1"),
    ({"edits": "$v += 1"}, "no stored vector"),
    ({"edits": [{"latent": 3}]}, "lacks 'op'"),
    ({"edits": [{"latent": 3, "op": "add", "value": 10**400}]}, "no edits"),
    ({"edits": [{"latent": [], "op": {}, "value": "x"}]}, "no such operation"),
    ({"edits": [3]}, "JSON object"),
    ({"edits": "; ".join(["3 += 1"] * 33)}, "too many edits"),
    ({"edits": "3 += 1e30"}, "too strong"),
    ({"edits": "3 *= 1e30"}, "too strong"),
    ({"edits": "3 += 1 when " + " and ".join(["(1 > 0 or 2 > 0)"] * 9)}, "too long"),
    ({"edits": "3 += " + "1" * 30_000}, "longer than"),
    ({"edits": LINE, "fairlead": {"choices": ["a"]}, "logprobs": True}, "logprobs"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
@pytest.mark.parametrize("stream", [False, True])
async def test_edits_that_cannot_be_applied_are_a_400(client: Any, change: Any, words: str, stream: bool) -> None:
    got = await client.post(CHAT, json=ask(**change, stream=stream))
    assert got.status_code == 400 and words in got.json()["error"]["message"], got.text
    assert got.json()["error"]["param"] in ("edits", "logprobs")


async def test_edits_too_strong_for_the_numbers_are_a_400(client: Any) -> None:
    for stream in (False, True):
        got = await client.post(CHAT, json=ask(edits="3 += 1" + "; 3 *= 1e5" * 9, stream=stream))
        assert got.status_code == 400 and "out of its numbers" in got.json()["error"]["message"], got.text


async def test_raw_texts_are_continued(client: Any, subject: Any) -> None:
    body = {"model": MODEL, "prompt": ["goal: buy", "goal: buy a"], "max_tokens": 4, "n": 2, "logprobs": 2,
            "edits": "3 += 1", "temperature": 1.0, "seed": 3}  # fmt: skip
    got = (await client.post(TEXT, json=body)).json()
    assert got["object"] == "text_completion" and [c["index"] for c in got["choices"]] == [0, 1, 2, 3]
    sizes = [len(subject.checkpoint.chat.raw(text)) for text in body["prompt"]]
    assert got["usage"]["prompt_tokens"] == sum(sizes) and got["fairlead"]["edits"][0]["fired"] > 0
    for choice in got["choices"]:
        told = choice["logprobs"]
        assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["text_offset"]) <= 4
        assert "".join(told["tokens"]) .startswith(choice["text"][:1]) and len(told["top_logprobs"][0]) <= 2
    refused = await client.post(TEXT, json={**body, "edits": "3 += 1 at role user"})
    assert refused.status_code == 400 and "role" in refused.json()["error"]["message"]
    assert (await client.post(TEXT, json={"model": MODEL, "prompt": []})).status_code == 400
    assert (await client.post(TEXT, json={"model": MODEL, "prompt": ["a"] * 9, "n": 2})).status_code == 400


async def test_what_was_fitted_shares_the_batch_only_where_it_is_edits_alone(models: Any) -> None:
    assert models[1].row_edits is not None and models[0].row_edits is None
    assert replace(models[1], row_edits=None).row_edits is None


async def test_a_stream_comes_while_the_model_still_speaks(client: Any) -> None:
    """The first piece arrives when most of the answer is not yet there."""
    sent = ask(max_tokens=400, stream=True, temperature=1.0, edits="3 += 1")
    async with client.stream("POST", CHAT, json=sent) as got:
        lines = got.aiter_lines()
        async for line in lines:
            if '"content": "' in line and '"content": ""' not in line:
                break
        busy = (await client.get("/health")).json()["waiting"]
        rest = [line async for line in lines if line]
    assert busy == 1 and rest[-1] == "data: [DONE]" and len(rest) > 20
    assert json.loads(rest[-2].removeprefix("data: "))["fairlead"]["edits"][0]["fired"] > 0


async def test_who_hangs_up_is_forgotten(models: Any, rows: Any) -> None:
    endpoint = await Endpoint.start(models, dictionaries=[rows])
    (scheduler,) = endpoint._desk.schedulers
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        for stream in (True, False):
            body = ask(max_tokens=900, stream=stream, temperature=1.0, seed=5)
            if stream:
                async with client.stream("POST", CHAT, json=body) as got:
                    await anext(got.aiter_lines())
            else:
                asked = asyncio.create_task(client.post(CHAT, json=body))
                while not scheduler.busy:
                    await asyncio.sleep(0.001)
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
            while scheduler.busy or endpoint._desk.waiting:
                await asyncio.sleep(0.001)
        assert scheduler.stats.cancelled + scheduler.stats.finished == 2 and scheduler.stats.cancelled >= 1
        assert (await client.post(CHAT, json=ask())).status_code == 200
    await endpoint.stop()


async def test_a_crowd_is_told_when_to_come_again(models: Any) -> None:
    endpoint = await Endpoint.start(models, settings=Settings(rows=1, waiting=2))
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        got = await asyncio.gather(*(client.post(CHAT, json=ask(max_tokens=60, seed=i)) for i in range(12)))
    await endpoint.stop()
    codes = [one.status_code for one in got]
    assert set(codes) == {200, 429} and all(1 <= int(g.headers["retry-after"]) <= 60 for g in got if g.is_error)


async def test_stopping_returns_what_is_at_work(models: Any) -> None:
    endpoint = await Endpoint.start(models, settings=Settings(grace=0.05))
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        body = ask(max_tokens=900, temperature=1.5)
        asked = asyncio.create_task(client.post(CHAT, json=body))
        (scheduler,) = endpoint._desk.schedulers
        while not scheduler.stats.new_tokens:
            await asyncio.sleep(0.001)
        await endpoint.stop()
        got = await asked
    cut = got.json()["fairlead"].get("cut")
    assert got.status_code == 200 and (cut is None) == (got.json()["usage"]["completion_tokens"] == 900), got.text


async def test_a_step_that_dies_answers_500_and_the_loop_goes_on(models: Any, monkeypatch: Any) -> None:
    endpoint = await Endpoint.start(models)
    (scheduler,) = endpoint._desk.schedulers
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        real, calls = scheduler.batch.step, iter([1, 1, 0])

        def step() -> None:
            real()
            if not next(calls, 1):
                raise MemoryError("the worker was killed")

        monkeypatch.setattr(scheduler.batch, "step", step)
        lost = await client.post(CHAT, json=ask(max_tokens=100))
        assert lost.status_code == 500 and lost.json()["error"]["type"] == "server_error"
        assert "killed" not in lost.text
        assert (await client.post(CHAT, json=ask())).status_code == 200
    await endpoint.stop()


@pytest.mark.parametrize("place", ["_next", "_send", "fail_all"])
async def test_a_thread_that_dies_leaves_nobody_waiting(models: Any, monkeypatch: Any, place: str) -> None:
    """One request is streaming, others wait for a row: all are told, later ones too, and /health says so."""
    endpoint = await Endpoint.start(models, settings=Settings(rows=1))
    (scheduler,) = endpoint._desk.schedulers
    real, left = scheduler.batch.step, iter(range(30))
    owner, name = (scheduler.batch, "fail_all") if place == "fail_all" else (scheduler, place)
    own = getattr(owner, name)

    def dies(*given: Any) -> Any:
        if scheduler.dead:
            return own(*given)
        raise MemoryError("no room left")

    def step() -> None:
        real()
        if next(left, None) is None:
            monkeypatch.setattr(owner, name, dies)
            if place == "fail_all":
                raise RuntimeError("a worker died")

    monkeypatch.setattr(scheduler.batch, "step", step)
    monkeypatch.setattr(scheduler.batch, "_ends", frozenset())
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        long = ask(max_tokens=300, temperature=1.0)
        asked = [asyncio.create_task(client.post(CHAT, json={**long, "stream": i == 0})) for i in range(3)]
        stream, *others = await asyncio.wait_for(asyncio.gather(*asked), 30)
        last = [line for line in stream.text.splitlines() if line.startswith("data: ")][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        assert [got.status_code for got in others] == [503, 503], [got.text for got in others]
        later, health = await client.post(CHAT, json=ask()), await client.get("/health")
        assert later.status_code == 503 and later.json()["error"]["type"] == "server_error"
        assert (health.status_code, health.json()) == (503, {"status": "failed", "waiting": 0})
    await asyncio.wait_for(endpoint.stop(), 30)


async def test_an_error_in_the_middle_of_a_stream_is_an_event(models: Any, monkeypatch: Any) -> None:
    endpoint = await Endpoint.start(models)
    (scheduler,) = endpoint._desk.schedulers
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        before = await client.post(CHAT, json=ask())
        real, left = scheduler.batch._run, iter(range(40))
        monkeypatch.setattr(scheduler.batch, "_ends", frozenset())

        def forward(first: int, pieces: Any) -> Any:
            if next(left, None) is None:
                raise RuntimeError("a worker died")
            return real(first, pieces)

        monkeypatch.setattr(scheduler.batch, "_run", forward)
        async with client.stream("POST", CHAT, json=ask(max_tokens=300, stream=True, temperature=1.0)) as got:
            lines = [line.removeprefix("data: ") async for line in got.aiter_lines() if line]
        assert got.status_code == 200 and json.loads(lines[-1])["error"]["type"] == "server_error"
        monkeypatch.undo()
        again = await client.post(CHAT, json=ask())
        assert again.status_code == 200 and again.json()["choices"] == before.json()["choices"]
        assert (await client.get("/health")).json() == {"status": "ok", "waiting": 0}
    await endpoint.stop()
