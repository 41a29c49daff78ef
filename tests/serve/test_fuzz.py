"""A fuzzer against the server's own description of itself: no request ends in a 5xx, nothing that breaks the
description is answered, and what is answered fits it."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections import Counter
from typing import Any

import httpx2
import pytest
import torch
from jsonschema import Draft202012Validator
from tests.serve.conftest import MODEL
from tests.serve.mutants import Drawn, drawn, mutants

from fairlead.serve.server import Endpoint

CHAT = "/v1/chat/completions"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "goal: buy a lamp"}], "max_tokens": 4}


class Judge:
    """What /openapi.json says of each operation, and how the answers kept to it."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told, self.seen = told, Counter[tuple[str, int]]()
        of = {path: both["post"] for path, both in told["paths"].items() if "post" in both}
        self.asked = {path: self._valid(one["requestBody"]["content"]) for path, one in of.items()}
        self.answer = {path: self._valid(one["responses"]["200"]["content"]) for path, one in of.items()}
        self.error = self._valid(of[CHAT]["responses"]["400"]["content"])
        self.codes = {path: set(one["responses"]) for path, one in of.items()}

    def _valid(self, content: Any) -> Draft202012Validator:
        return Draft202012Validator({**content["application/json"]["schema"], "components": self.told["components"]})

    def look(self, path: str, body: bytes, got: httpx2.Response) -> None:
        self.seen[path, got.status_code] += 1
        assert got.status_code < 500 and str(got.status_code) in self.codes[path], (path, body[:2000], got.text)
        if got.status_code != 200:
            self.error.validate(got.json())
            return
        assert self.asked[path].is_valid(json.loads(body)), ("malformed, and answered", path, body)
        if got.headers["content-type"].startswith("application/json"):
            self.answer[path].validate(got.json())
        else:
            events = [json.loads(line[6:]) for line in got.text.splitlines() if line.startswith("data: {")]
            assert events and not any("error" in event for event in events), (body, got.text)

    @property
    def refused(self) -> int:
        return sum(n for (_, status), n in self.seen.items() if status != 200)


async def fuzz(endpoint: Endpoint, each: int, refused: int, clients: int = 8) -> Judge:
    """`each` bodies a schema and a kind, then changed ones, until `refused` requests were sent away. Afterwards the
    server says what it said before."""
    torch.set_num_threads(1)
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:

        async def send(path: str, body: bytes) -> None:
            judge.look(path, body, await client.post(path, content=body, headers={"content-type": "application/json"}))

        async def worker(bodies: Any) -> None:
            for path, body in bodies:
                await send(path, body)
                if judge.refused >= refused:
                    return

        judge = Judge((await client.get("/openapi.json")).json())
        before = (await client.post(CHAT, json=ASKED)).json()
        pool: Drawn = drawn(judge.told, each)
        assert {path for path, _ in pool} == set(judge.asked) and len(pool) >= 2 * each * len(judge.asked)
        bodies = itertools.chain(pool, mutants(pool, 1))
        await asyncio.gather(*(worker(bodies) for _ in range(clients)))
        after = (await client.post(CHAT, json=ASKED)).json()
        assert after["choices"] == before["choices"]
        assert (await client.get("/health")).json() == {"status": "ok", "waiting": 0}
    return judge


async def test_no_request_of_a_fuzzer_ends_in_a_5xx(endpoint: Endpoint) -> None:
    judge = await fuzz(endpoint, 6, 300)
    answered = {path for path, status in judge.seen if status == 200}
    assert judge.refused >= 300 and answered == set(judge.asked), judge.seen


@pytest.mark.soak
async def test_ten_thousand_malformed_requests(endpoint: Endpoint) -> None:
    judge = await fuzz(endpoint, 25, 10_000)
    print(sorted(judge.seen.items()))  # noqa: T201  # for who runs it with -s
    assert judge.refused >= 10_000


POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
HEADS = [
    b"\r\n\r\n", b"GET\r\n\r\n", b"\x00" * 400 + b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/models\r\n\r\n",
    POST + b"Content-Length: -1\r\n\r\n{}", POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n{}",
    POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    b"POST /v1/features/%00/../top HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: \xff\x00\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"TRACE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
]  # fmt: skip


async def test_heads_that_are_no_http_end_in_no_5xx_and_the_server_serves(endpoint: Endpoint) -> None:
    host, port = endpoint.url.removeprefix("http://").split(":")
    for head in HEADS:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head)
        writer.write_eof()
        said = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        assert not said or said.split(b" ", 2)[1][:1] in b"24", (head[:100], said)
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as client:
        assert (await client.post(CHAT, json=ASKED)).status_code == 200


async def test_the_port_is_free_afterwards(models: Any) -> None:
    endpoint = await Endpoint.start(models)
    port = int(endpoint.url.rpartition(":")[2])
    await endpoint.stop()
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
