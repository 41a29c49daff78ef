"""The endpoint over real HTTP: what was judged is what answers, and what cannot be applied is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import httpx2
import pytest
from tests.serve.conftest import EDIT, MODEL

from fairlead.core.errors import FairleadError, LoadError
from fairlead.core.types import Message
from fairlead.methods._world import World, together
from fairlead.serve import http
from fairlead.serve.opened import Served, bare, fitted
from fairlead.serve.server import Endpoint, serve

CHAT = "/v1/chat/completions"
PROMPT = (Message("user", "goal: buy a lamp"),)


async def test_the_names_are_those_of_the_model_and_of_what_was_fitted(client, models):
    assert (await client.get("/health")).json() == {"status": "ok", "waiting": 0}
    names = [m["id"] for m in (await client.get("/v1/models")).json()["data"]]
    assert names == [MODEL, f"{MODEL}+feature@{models[1].fingerprint[:12]}"]


async def test_the_steered_model_says_what_the_fitted_says(client, body, models, subject):
    got = (await client.post(CHAT, json=body())).json()
    with models[1].fitted.open(subject) as world:
        direct = await world.generate(PROMPT, max_tokens=8)
    plain = await subject.generate(PROMPT, max_tokens=8)
    assert got["choices"][0]["message"] == {"role": "assistant", "content": direct.text}
    assert got["model"] == models[1].name and got["fairlead"]["fingerprint"] == models[1].fingerprint
    edit = got["fairlead"]["edits"][0]
    assert edit["edit"].startswith("3 += 40") and edit["fired"] == edit["seen"] > 0
    used = got["usage"]
    assert (
        used["total_tokens"]
        == used["prompt_tokens"] + used["completion_tokens"]
        == direct.prompt_tokens + direct.new_tokens
    )
    base = (await client.post(CHAT, json=body(model=MODEL))).json()
    assert base["choices"][0]["message"]["content"] == plain.text and base["fairlead"]["edits"] == []


async def test_choices_are_decided_as_a_study_decides_them(client, body, models, subject):
    choices = ['click("1")', "done()", "noop()"]
    got = (await client.post(CHAT, json=body(fairlead={"choices": choices, "step": 2}))).json()
    with models[1].fitted.open(subject) as world:
        direct = await world.generate(PROMPT, step=2, legal=choices)
    assert got["choices"][0]["message"]["content"] == direct.text and got["choices"][0]["finish_reason"] == "stop"
    said = {c["text"]: c["logprob"] for c in got["fairlead"]["choices"]}
    assert list(said) == choices and list(said.values()) == pytest.approx(list(direct.legal_logprobs or ()), abs=1e-4)


async def test_a_stream_holds_the_same_text(client, body):
    whole = (await client.post(CHAT, json=body())).json()
    async with client.stream("POST", CHAT, json=body(stream=True, stream_options={"include_usage": True})) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") async for line in got.aiter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    for part in ("prompt_tokens", "completion_tokens", "total_tokens"):  # how many were not read again may differ
        assert events[-1]["usage"][part] == whole["usage"][part]
    for got_edit, edit in zip(events[-2]["fairlead"].pop("edits"), whole["fairlead"].pop("edits"), strict=True):
        for reading in ("before", "after"):  # a token read alone is rounded as such
            assert got_edit.pop(reading) == pytest.approx(edit.pop(reading), rel=1e-5)
        assert got_edit == edit
    assert events[-2]["fairlead"] == whole["fairlead"]
    assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "length"


async def test_a_stop_cuts_the_text(client, body):
    asked = body(max_tokens=24, temperature=1.0)
    said = (await client.post(CHAT, json=asked)).json()["choices"][0]["message"]["content"]
    assert len(said) > 4
    got = (await client.post(CHAT, json={**asked, "stop": [said[3], "never said"]})).json()["choices"][0]
    assert got["message"]["content"] == said[: said.find(said[3])] and got["finish_reason"] == "stop"


async def test_sampling_is_reproducible_and_steered(client, body, subject):
    asked = body(temperature=1.5, seed=7)
    one, two = [(await client.post(CHAT, json=asked)).json() for _ in range(2)]
    assert one["choices"] == two["choices"] and one["fairlead"]["edits"][0]["fired"] > 0
    others = {
        (await client.post(CHAT, json={**asked, "seed": s})).json()["choices"][0]["message"]["content"]
        for s in range(4)
    }
    assert len(others) > 1


async def test_many_at_once_are_answered_as_one_by_one(client, body):
    prompts = [[{"role": "user", "content": f"goal: buy lamp {i}"}] for i in range(12)]
    alone = [(await client.post(CHAT, json=body(messages=p))).json()["choices"] for p in prompts]
    together = await asyncio.gather(*(client.post(CHAT, json=body(messages=p)) for p in prompts))
    assert [got.json()["choices"] for got in together] == alone


class AskTwice:
    """As `best_of_n` does, it asks the subject's own seats for every answer."""

    fingerprint = "2" * 64

    def open(self, subject):
        def make(inner):
            async def answer(asks):
                first = await together(inner, asks)
                await asyncio.sleep(0.01)
                assert [g.text for g in await together(inner, asks)] == [g.text for g in first]
                return first

            return answer

        return nullcontext(World(subject, make, "twice"))


async def test_arms_that_ask_in_lockstep_do_not_meet_each_other(subject, body):
    endpoint = await Endpoint.start([bare(subject, MODEL), Served("twice", AskTwice.fingerprint, subject, AskTwice())])
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        asked = [client.post(CHAT, json=body(model=name)) for name in ("twice", MODEL) for _ in range(6)]
        got = [one.json() for one in await asyncio.gather(*asked)]
    await endpoint.stop()
    assert len({g["choices"][0]["message"]["content"] for g in got}) == 1, got


REFUSALS = [
    (b"{", "not JSON"),
    (b"[]", "no JSON object"),
    (b"[" * 50_000, "not JSON"),
    (b'{"a": NaN}', "not JSON"),
    (b'{"model": "\\ud800", "messages": []}', "not JSON"),
    ({"model": None}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": 3}]}, "content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "something else than text"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "nothing to answer"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_completion_tokens": "x"}, "max_completion_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_p": "most"}, "top_p"),
    ({"n": 17}, "n is"),
    ({"n": True}, "n is"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs needs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": 3}, "stream_options"),
    ({"seed": 2**70}, "seed"),
    ({"edits": ["1 = 0"]}, "edits go with the bare model"),
    ({"edits": 3}, "a line of the edit language"),
    ({"echo": True}, "unknown or unsupported"),
    ({"fairlead": {"choices": ["a"]}, "n": 2}, "n has no meaning"),
    ({"fairlead": {"paired": 1}}, "paired"),
    ({"fairlead": {"edits": "1 = 0"}}, "fairlead"),
    ({"fairlead": {"choices": ["a", "a"]}}, "choices"),
    ({"fairlead": {"choices": ["a"]}, "stop": "b"}, "stop"),
    ({"fairlead": {"step": -1}}, "step"),
    ({"messages": [{"role": "user", "content": "long " * 3000}]}, "longer than the model's context"),
]


@pytest.mark.parametrize(("change", "words"), REFUSALS, ids=[str(i) for i in range(len(REFUSALS))])
async def test_what_cannot_be_applied_is_refused(client, body, change, words):
    sent = {"content": change} if isinstance(change, bytes) else {"json": body(**change)}
    got = await client.post(CHAT, **sent)
    assert got.status_code == 400 and words in got.json()["error"]["message"], got.text


async def test_other_refusals(client, body):
    missing = await client.post(CHAT, json=body(model="gpt"))
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
    large = await client.post(CHAT, content=b" " * (http.BODY + 1))
    assert large.status_code == 413
    assert (await client.get(CHAT)).status_code == 405 and (await client.get("/../etc/passwd")).status_code == 404
    elsewhere = await client.get("/v1/models", headers={"host": "evil.example"})
    assert elsewhere.status_code == 400


async def test_an_edit_that_cannot_be_applied_is_never_unsteered_text(subject, body):
    class Broken:
        fingerprint = "0" * 64

        def open(self, subject):
            raise FairleadError("this edit cannot be applied")

    endpoint = await Endpoint.start([Served("broken", "0" * 64, subject, Broken())])
    async with httpx2.AsyncClient(base_url=endpoint.url) as client:
        got = await client.post(CHAT, json=body(model="broken"))
    await endpoint.stop()
    assert got.status_code == 400 and "cannot be applied" in got.json()["error"]["message"]


async def test_a_crowd_is_sent_away_for_a_moment(models, body, monkeypatch):
    monkeypatch.setattr(http.Desk, "most", 0)
    desk = http.Desk(models, most=1)
    desk.waiting = 1
    app = http.app(desk, ["127.0.0.1"])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://127.0.0.1") as client:
        got = await client.post(CHAT, json=body())
    assert got.status_code == 429 and got.headers["retry-after"] == "1"


async def test_another_address_needs_a_key(models, body):
    with pytest.raises(FairleadError, match="can be reached from other machines"):
        await Endpoint.start(models, host="0.0.0.0")
    endpoint = await Endpoint.start(models, host="0.0.0.0", key="secret")
    url = endpoint.url.replace("0.0.0.0", "127.0.0.1")
    async with httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/v1/models")).status_code == 401
        for wrong in ("Bearer secre", "secret\xff", "Bearer", "Bearer secrets"):
            assert (
                await client.post(CHAT, json=body(), headers={"authorization": wrong.encode("latin-1")})
            ).status_code == 401
        good = {"authorization": "Bearer secret"}
        assert (await client.post(CHAT, json=body(), headers=good)).status_code == 200
    await endpoint.stop()


async def test_stopping_answers_what_is_at_work(models, body):
    endpoint = await Endpoint.start(models)
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        asked = asyncio.create_task(client.post(CHAT, json=body(max_tokens=200)))
        await asyncio.sleep(0.05)
        await endpoint.stop()
        assert (await asked).status_code == 200
        with pytest.raises(httpx2.ConnectError):
            await client.get("/health")


async def test_it_stops_by_itself(models):
    seen: list[str] = []
    await asyncio.wait_for(serve(models, stop_after=0.1, ready=seen.append), 10)
    assert seen[0].startswith("http://127.0.0.1:")


async def test_a_port_that_is_taken(models):
    endpoint = await Endpoint.start(models)
    port = int(endpoint.url.rpartition(":")[2])
    with pytest.raises(FairleadError, match="cannot be used"):
        await Endpoint.start(models, port=port)
    await endpoint.stop()


class TestWhatWasFitted:
    def test_by_arm_and_by_key(self, subject, run: Path):
        key = next((run / "fitted").iterdir())
        assert fitted(subject, MODEL, key).name == fitted(subject, MODEL, run / "feature").name

    def test_a_run_alone_is_its_claim(self, subject, run: Path):
        with pytest.raises(LoadError, match="no fitted arm 'prompt'"):
            fitted(subject, MODEL, run)

    def test_the_edit_is_the_one_that_was_saved(self, subject, run: Path):
        key = next((run / "fitted").iterdir())
        assert str(fitted(subject, MODEL, key).fitted.describe()["edit"]).startswith(EDIT[:7])

    @pytest.mark.parametrize("name", ["none", "prompt", "nothing", "../x"])
    def test_an_arm_that_is_not_there(self, subject, run: Path, name: str):
        with pytest.raises(LoadError):
            fitted(subject, MODEL, run / name)

    def test_another_model_is_refused(self, subject, run: Path):
        with pytest.raises(LoadError, match="fitted on another model"):
            fitted(subject, "pocket/other", run / "feature")

    def test_files_that_were_changed_are_refused(self, subject, run: Path, tmp_path: Path):
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        file = next((copy / "fitted").iterdir()) / "method.json"
        text = file.read_text()
        file.write_text(text.replace("40", "41"))
        assert file.read_text() != text
        with pytest.raises(LoadError, match="not what was judged"):
            fitted(subject, MODEL, copy / "feature")

    async def test_one_name_is_served_once(self, subject):
        with pytest.raises(FairleadError, match="twice"):
            await Endpoint.start([bare(subject, MODEL), bare(subject, MODEL)])
