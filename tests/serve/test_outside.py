"""The server as strangers meet it: the official client, a crowd, slow and vanishing connections, a scraper."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
from typing import Any

import httpx2
import openai
import pytest
import torch
from tests.serve.conftest import MODEL

from fairlead.serve.limits import Limits
from fairlead.serve.patience import Patient
from fairlead.serve.server import Endpoint, Settings

CHAT = "/v1/chat/completions"


def ask(**change: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "goal: buy a lamp"}], "max_tokens": 4, **change}


async def test_the_official_client(endpoint: Endpoint) -> None:
    async with openai.AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key="none", max_retries=0) as client:
        assert [m.id async for m in await client.models.list()][0] == MODEL
        whole = await client.chat.completions.create(**ask(n=2, logprobs=True, top_logprobs=2, seed=1))
        assert len(whole.choices) == 2 and whole.usage and whole.usage.prompt_tokens > 0
        told = whole.choices[0].logprobs
        assert told and told.content and len(told.content[0].top_logprobs) == 2
        edits = {"edits": "3 += 4 at prompt", "fairlead": {"paired": True}}
        stream = await client.chat.completions.create(
            **ask(stream=True, stream_options={"include_usage": True}), extra_body=edits
        )
        events = [event async for event in stream]
        said = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
        last = next(e for e in reversed(events) if e.choices)
        about: Any = last.model_extra
        assert last.choices[0].finish_reason in ("stop", "length") and events[-1].usage
        assert about["fairlead"]["edits"][0]["fired"] > 0 and "default" in about["fairlead"]
        assert (events[-1].model_extra or {})["fairlead"] == about["fairlead"]  # who keeps the last event has all of it
        again = await client.chat.completions.create(**ask(), extra_body={"edits": "3 += 4 at prompt"})
        assert again.choices[0].message.content == said
        text = await client.completions.create(model=MODEL, prompt="goal: buy", max_tokens=3, logprobs=1)
        assert text.choices[0].logprobs and text.usage
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**ask(), extra_body={"edits": "3 ? 4"})
        assert refused.value.param == "edits" and refused.value.code == "edit_cannot_be_applied"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**{**ask(), "model": "gpt"})


async def test_counters(endpoint: Endpoint) -> None:
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        await client.post(CHAT, json=ask(edits="3 += 4"))
        await client.post(CHAT, json=ask(edits="?"))
        got = await client.get("/metrics")
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
    told = dict(line.rsplit(" ", 1) for line in got.text.splitlines() if not line.startswith("#"))
    assert told['fairlead_requests_total{path="/v1/chat/completions",status="200"}'] == "1"
    assert told['fairlead_requests_total{path="/v1/chat/completions",status="400"}'] == "1"
    assert float(told["fairlead_edits_fired_total"]) > 0 and told["fairlead_request_seconds_count"] == "2"
    assert told['fairlead_request_seconds_bucket{le="+Inf"}'] == "2" and "lamp" not in got.text


async def test_with_a_key_strangers_learn_nothing(models: Any) -> None:
    endpoint = await Endpoint.start(models, key="secret")
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        for path in ("/metrics", "/v1/models"):
            assert (await client.get(path)).status_code == 401
        for path in (CHAT, "/v1/completions"):
            assert (await client.post(path, content=b"{")).status_code == 401
        told = (await client.get("/openapi.json")).json()
        assert MODEL not in json.dumps(told) and told["paths"][CHAT]["post"]["security"]
        for headers in ({"origin": "http://evil.example"}, {}):
            got = await client.options(CHAT, headers=headers)
            assert got.status_code == 405 and not [h for h in got.headers if h.startswith("access-control")]
    await endpoint.stop()


async def test_logs_hold_no_prompt_unless_asked(models: Any, caplog: Any, monkeypatch: Any) -> None:
    caplog.set_level("DEBUG", "fairlead")
    for told in (False, True):
        endpoint = await Endpoint.start(models, settings=Settings(log_prompts=told))
        (scheduler,) = endpoint._desk.schedulers
        async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
            await client.post(CHAT, json=ask())
            with monkeypatch.context() as broken:
                broken.setattr(scheduler.batch, "_run", lambda *_: 1 / 0)
                assert (await client.post(CHAT, json=ask())).status_code == 500
        await endpoint.stop()
        assert ("buy a lamp" in caplog.text) == told and "ZeroDivisionError" in caplog.text
        caplog.clear()


async def test_slow_and_oversized_clients_hold_nothing_up(endpoint: Endpoint, monkeypatch: Any) -> None:
    monkeypatch.setattr(Patient, "head_seconds", 0.2)
    host, port = endpoint.url.removeprefix("http://").split(":")
    heads = [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-", b"\x16\x03\x01" * 40] * 20
    waits = [await asyncio.open_connection(host, int(port)) for _ in heads]
    for (_, writer), head in zip(waits, heads, strict=True):
        writer.write(head)
    bodies = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
    for (_, writer), path in zip(bodies, (CHAT, "/v1/features/top") * 10, strict=True):
        writer.write(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{{".encode())
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        assert (await client.post(CHAT, json=ask())).status_code == 200
        huge = await client.post(CHAT, content=b"[" * 30_000)
        assert huge.status_code == 413 and huge.json()["error"]["type"] == "invalid_request_error"
        for reader, writer in bodies:
            assert b" 408 " in await asyncio.wait_for(reader.readline(), 30)
            writer.close()
        for reader, writer in waits:  # closed by the server, each of them
            await asyncio.wait_for(reader.read(), 30)
            writer.close()
        assert (await client.get("/health")).json() == {"status": "ok", "waiting": 0}


async def test_a_connection_that_asks_twice_is_kept(endpoint: Endpoint) -> None:
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        for _ in range(3):
            assert (await client.post(CHAT, json=ask())).status_code == 200


def crowd_line(i: int) -> str:
    ops = f"+= {1 + i % 5}", f"= {1 + i % 4} at generated", f"*= 2 when {(i + 1) % 24} > 0"
    shapes = [f"{i % 24} {op}" for op in ops]
    return f"{shapes[i % 3]}; {(7 * i + 1) % 24} -= 0.{i + 10}"


async def crowd(models: Any, requests: int, alone_too: int, clients: int = 64) -> dict[str, Any]:
    """`clients` at once, each with edits of its own, until `requests` are answered; greedy answers to `alone_too` of
    them beside those of a batch of one."""
    settings = Settings(rows=16, waiting=24, limits=Limits(strength=1e6))
    endpoint = await Endpoint.start(models, dictionaries=[models[1].fitted.rows], settings=settings)
    (scheduler,) = endpoint._desk.schedulers
    answers: dict[int, Any] = {}
    every = requests // alone_too
    seen = {"busy": 0, "least": 1e9}
    memory: list[int] = []
    freed = asyncio.Condition()
    pool = httpx2.Limits(max_connections=clients, keepalive_expiry=2)  # before the server closes what says nothing
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=600, limits=pool) as c:

        async def client(me: int) -> None:
            for i in range(me, requests, clients):
                content = f"goal: buy {i} lamp" + " red" * (i % 9)
                body = ask(messages=[{"role": "user", "content": content}], edits=crowd_line(me), max_tokens=8,
                           logprobs=True, top_logprobs=2)  # fmt: skip
                before = len(answers)
                while (got := await c.post(CHAT, json=body)).status_code == 429:
                    seen["busy"] += 1
                    seen["least"] = min(seen["least"], int(got.headers["retry-after"]))
                    async with freed:  # it stays away, on a clock that is no test's: until somebody was answered
                        await freed.wait_for(lambda before=before: len(answers) > before)
                    before = len(answers)
                assert got.status_code == 200, got.text
                async with freed:
                    answers[i] = (body, got.json()) if i % every == 0 else None  # what is kept is not the server's
                    freed.notify_all()
                if len(answers) % 100 == 0:
                    gc.collect()
                    memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

        await asyncio.gather(*(client(me) for me in range(clients)))
        equal, near, differ = 0, 0, []
        batched = scheduler.stats.new_tokens / scheduler.stats.forwards
        for i in sorted(answers)[::every]:
            body, got = answers[i]
            alone = (await c.post(CHAT, json=body)).json()
            one, two = got["choices"][0], alone["choices"][0]
            if one["message"] == two["message"]:
                equal += 1
            elif _first_margin(one, two) <= 1e-3:
                near += 1
            else:
                differ.append((i, one["message"], two["message"]))
            assert [e["edit"] for e in got["fairlead"]["edits"]] == [e["edit"] for e in alone["fairlead"]["edits"]]
    await endpoint.stop()
    return {"answers": len(answers), "equal": equal, "near": near, "differ": differ, "memory": memory, **seen,
            "batched": batched}  # fmt: skip


def _first_margin(one: Any, two: Any) -> float:
    """Between the two most probable tokens at the first place where two answers part."""
    for a, b in zip(one["logprobs"]["content"], two["logprobs"]["content"], strict=False):
        if a["token"] != b["token"]:
            top = a["top_logprobs"]
            return float(top[0]["logprob"] - top[1]["logprob"])
    return 0.0


async def test_a_crowd_with_edits_of_their_own_misses_no_answer(models: Any) -> None:
    torch.set_num_threads(1)
    got = await crowd(models, 200, 20)
    assert got["answers"] == 200 and not got["differ"] and got["equal"] + got["near"] == 20
    assert got["batched"] > 4 and got["busy"] > 0 and got["least"] >= 1


@pytest.mark.soak
async def test_a_larger_crowd_in_flat_memory(models: Any) -> None:
    got = await crowd(models, 2000, 200)
    print(got)  # noqa: T201  # for who runs it with -s
    assert got["answers"] == 2000 and not got["differ"], got
    assert got["memory"][-1] < got["memory"][9] * 1.01, got["memory"]  # what is kept of answers has reached its bound
