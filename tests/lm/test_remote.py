"""The OpenAI-compatible client against a loopback server: what it sends, keeps, counts, retries and hides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.lm.endpoint import Answer, chat, embeddings, serving

from fairlead.core.errors import FairleadError, LoadError, RemoteError
from fairlead.core.types import Message
from fairlead.lm.cache import Cache
from fairlead.lm.remote import Remote

ASK = (Message("system", "Be short."), Message("user", "Say red."))


class Meter:
    def __init__(self) -> None:
        self.charges: list[dict[str, Any]] = []

    def charge(self, **what: Any) -> None:
        self.charges.append({k: v for k, v in what.items() if k != "seconds"})


def scripted(*answers: Answer) -> Callable[[str, Any], Answer]:
    """Each answer once, in order; the last one ever after."""
    left = list(answers)
    return lambda _path, _body: left.pop(0) if len(left) > 1 else left[0]


async def test_a_question_is_sent_answered_kept_and_charged(tmp_path: Path) -> None:
    with serving(scripted(chat("red"))) as server:
        meter = Meter()
        remote = Remote(server.url, "m", cache=tmp_path / "c.sqlite", meter=meter)
        assert await remote.complete(ASK, max_tokens=5, temperature=0.5, seed=3) == "red"
        again = Remote(server.url + "/", "m", cache=tmp_path / "c.sqlite", meter=meter)
        assert await again.complete(ASK, max_tokens=5, temperature=0.5, seed=3) == "red"
    assert len(server.asked) == 1
    path, body, headers = server.asked[0]
    assert path == "chat/completions" and "Authorization" not in headers
    assert body == {
        "model": "m", "max_tokens": 5, "temperature": 0.5, "seed": 3,
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say red."}],
    }  # fmt: skip
    # a kept answer costs what it cost
    assert meter.charges == [{"judge_calls": 1, "prompt_tokens": 7, "new_tokens": 3}] * 2
    assert (again.usage.calls, again.usage.cached, again.usage.new_tokens) == (1, 1, 3)


@pytest.mark.parametrize("change", [{"seed": 1}, {"temperature": 1.0}, {"max_tokens": 9}, {"model": "n"}, {"extra": 1}])
async def test_whatever_changes_the_answer_changes_the_key(tmp_path: Path, change: dict[str, Any]) -> None:
    with serving(scripted(chat("a"), chat("b"))) as server:
        cache = tmp_path / "c.sqlite"
        extra = {"top_p": 0.5} if "extra" in change else {}
        first = await Remote(server.url, "m", cache=cache).complete(ASK)
        other = Remote(server.url, change.get("model", "m"), cache=cache, extra=extra)
        second = await other.complete(ASK, **{k: v for k, v in change.items() if k not in ("model", "extra")})
    assert (first, second) == ("a", "b")


async def test_a_field_can_be_replaced(tmp_path: Path) -> None:
    with serving(scripted(chat("x"))) as server:
        extra = {"max_tokens": None, "max_completion_tokens": 99}
        await Remote(server.url, "m", cache=None, extra=extra).complete(ASK)
    body = server.asked[0][1]
    assert "max_tokens" not in body and body["max_completion_tokens"] == 99 and not list(tmp_path.iterdir())


async def test_busy_servers_are_asked_again_and_the_rest_is_not(tmp_path: Path) -> None:
    busy: Answer = (429, {"error": "slow down"}, {"Retry-After": "0"})
    with serving(scripted(busy, (503, "", {}), chat("ok"))) as server:
        remote = Remote(server.url, "m", cache=None, backoff=0.001)
        assert await remote.complete(ASK) == "ok"
        assert remote.usage.retries == 2 and len(server.asked) == 3
    with serving(scripted(busy)) as server:
        with pytest.raises(RemoteError, match=r"429, after 3 attempts[\s\S]*slow down"):
            await Remote(server.url, "m", cache=None, backoff=0.001, retries=2).complete(ASK)
        assert len(server.asked) == 3
    with serving(scripted((400, "no such field", {}))) as server:
        with pytest.raises(RemoteError, match="no such field"):
            await Remote(server.url, "m", cache=None).complete(ASK)
        assert len(server.asked) == 1


async def test_no_server_is_said() -> None:
    with serving(scripted(chat(""))) as server:
        gone = server.url
    with pytest.raises(RemoteError, match=r"no answer from http://127.0.0.1:\d+/v1/chat/completions[\s\S]*2 times"):
        await Remote(gone, "m", cache=None, retries=1, backoff=0.001).complete(ASK)


async def test_silence_is_an_error_and_ends() -> None:
    def slow(_path: str, _body: Any) -> Answer:
        import time

        time.sleep(0.3)
        return chat("late")

    with serving(slow) as server, pytest.raises(RemoteError, match="no answer within 0.05 s"):
        await Remote(server.url, "m", cache=None, timeout=0.05, retries=0).complete(ASK)


@pytest.mark.parametrize("body", ["<html>", {}, {"choices": []}, {"choices": [{"message": {"content": None}}]}, []])
async def test_another_kind_of_answer_is_an_error_and_is_not_kept(tmp_path: Path, body: Any) -> None:
    with serving(scripted((200, body, {}), chat("fine"))) as server:
        remote = Remote(server.url, "m", cache=tmp_path / "c.sqlite")
        with pytest.raises(RemoteError, match="answered something else"):
            await remote.complete(ASK)
        assert await remote.complete(ASK) == "fine" and remote.usage.calls == 1


async def test_the_key_is_sent_and_shown_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-1234567890"
    monkeypatch.setenv("A_KEY", secret)
    echo: Answer = (401, {"error": f"bad key {secret}"}, {})
    with serving(scripted(chat("x"), echo, (302, "", {"Location": "http://127.0.0.1:1/v1"}))) as server:
        remote = Remote(server.url, "m", api_key_env="A_KEY", cache=tmp_path / "c.sqlite", retries=0)
        await remote.complete(ASK)
        assert server.asked[0][2]["Authorization"] == f"Bearer {secret}"
        with pytest.raises(RemoteError, match=r"401[\s\S]*bad key \*\*\*[\s\S]*A_KEY") as caught:
            await remote.complete(ASK, seed=1)
        with pytest.raises(RemoteError, match="302"):  # not followed
            await remote.complete(ASK, seed=2)
    assert secret not in str(caught.value) + repr(remote)
    assert secret.encode() not in b"".join(f.read_bytes() for f in tmp_path.iterdir())
    monkeypatch.delenv("A_KEY")
    with pytest.raises(RemoteError, match="no API key in the environment variable A_KEY"):
        await remote.complete(ASK, seed=3)


@pytest.mark.parametrize("url", ["ftp://x/v1", "x/v1", "", "https://user:secret@x/v1", "https://x/v1?key=secret"])
def test_odd_urls_are_refused(url: str) -> None:
    with pytest.raises(FairleadError) as caught:
        Remote(url, "m")
    assert "secret" not in str(caught.value)


def test_a_key_does_not_travel_unencrypted() -> None:
    with pytest.raises(FairleadError, match="unencrypted"):
        Remote("http://models.example/v1", "m", api_key_env="A_KEY")
    Remote("http://models.example/v1", "m")
    Remote("http://localhost:8000/v1", "m", api_key_env="A_KEY")


def test_many_at_once_in_order_and_a_failure_ends_them(tmp_path: Path) -> None:
    prompts = [(Message("user", str(i)),) for i in range(20)]
    seen: list[int] = []

    def answer(_path: str, body: Any) -> Answer:
        said = body["messages"][0]["content"]
        return (400, "no", {}) if said == "13" and failing else chat(said * 2)

    failing = True
    with serving(answer) as server:
        remote = Remote(server.url, "m", cache=tmp_path / "c.sqlite", concurrency=1)
        with pytest.raises(RemoteError, match="400"):
            asyncio.run(remote.complete_all(prompts))
        failing, before = False, len(server.asked)
        got = asyncio.run(remote.complete_all(prompts, progress=lambda done, _: seen.append(done)))
    assert got == [str(i) * 2 for i in range(20)] and seen == list(range(1, 21))
    assert before == 14 and len(server.asked) == 21  # what was answered before the failure was kept
    assert not remote._lines


async def test_embeddings_come_in_order_once_each(tmp_path: Path) -> None:
    def answer(_path: str, body: Any) -> Answer:
        return embeddings([[float(len(text)), 0.5] for text in body["input"]])

    with serving(answer) as server:
        remote = Remote(server.url, "e", cache=tmp_path / "c.sqlite")
        got = await remote.embed(["a", "bbb", "a", "cc"], batch=2)
        again = await Remote(server.url, "e", cache=tmp_path / "c.sqlite").embed(["cc", "dddd"])
    assert got.dtype == np.float32 and got[:, 0].tolist() == [1.0, 3.0, 1.0, 2.0]
    assert again[:, 0].tolist() == [2.0, 4.0]
    assert [body["input"] for path, body, _ in server.asked if path == "embeddings"][-1] == ["dddd"]
    assert sorted(t for _, body, _ in server.asked for t in body["input"]) == ["a", "bbb", "cc", "dddd"]
    assert (await remote.embed([])).shape == (0, 0)


@pytest.mark.parametrize(
    "body",
    [{"data": []}, {"data": [{"index": 1, "embedding": [1.0]}]}, {"data": [{"index": 0, "embedding": ["x"]}]},
     '{"data": [{"index": 0, "embedding": [NaN]}]}', {"rows": 1}],
)  # fmt: skip
async def test_odd_embeddings_are_refused(body: Any) -> None:
    with serving(scripted((200, body, {}))) as server, pytest.raises(RemoteError, match="answered something else"):
        await Remote(server.url, "e", cache=None).embed(["a"])


def test_a_cache_that_is_no_cache_is_said(tmp_path: Path) -> None:
    (tmp_path / "c.sqlite").write_bytes(b"not a database, but a text of some length" * 50)
    with pytest.raises(LoadError, match="cannot be used"):
        Cache(tmp_path / "c.sqlite").get(["a"])


def test_a_cache_keeps_the_first_of_two(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "deep" / "c.sqlite")
    cache.put({"a": b"1"})
    cache.put({"a": b"2", "b": b"3"})
    cache.close()
    many = [str(i) for i in range(1200)]
    assert Cache(tmp_path / "deep" / "c.sqlite").get([*many, "a", "b"]) == {"a": b"1", "b": b"3"}
