"""The routes, in OpenAI's shapes.

    GET  /health                  whether it serves, and how many requests wait
    GET  /v1/models               the names
    POST /v1/chat/completions     an answer, or a stream of server-sent events

Every answer has a part `fairlead`: the fingerprint of what answered, and for each edit on how many tokens it fired. A
stream begins when the answer is whole: its pieces are the answer's words, not the model's tokens as they come.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fairlead.core.errors import FairleadError, UnknownName
from fairlead.core.types import Generation
from fairlead.serve.ask import Ask, Refused, read
from fairlead.serve.opened import Served, named

BODY = 2_000_000  # bytes
WAITING = 64  # requests at work or in the queue; more are sent away for a moment
SECONDS = 300.0  # for one answer
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
log = logging.getLogger("fairlead.serve")


@dataclass
class Desk:
    """What the routes share: the models, the key, and how many requests are here."""

    models: Sequence[Served]
    key: str | None = None
    waiting: int = 0
    most: int = WAITING
    seconds: float = SECONDS


def app(desk: Desk, hosts: Sequence[str]) -> Starlette:
    """The application. `hosts` are the names it answers to; a page elsewhere cannot reach it under another."""

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": desk.waiting}, headers=HEADERS)

    async def models(request: Request) -> Response:
        if not _may(request, desk.key):
            return _no_key()
        found = [{"id": m.name, "object": "model", "created": 0, "owned_by": "fairlead"} for m in desk.models]
        return JSONResponse({"object": "list", "data": found}, headers=HEADERS)

    async def chat(request: Request) -> Response:
        if not _may(request, desk.key):
            return _no_key()
        if desk.waiting >= desk.most:
            return _error("too many requests wait", 429, kind="rate_limit_error", headers={"Retry-After": "1"})
        desk.waiting += 1
        try:
            return await _chat(desk, request)
        finally:
            desk.waiting -= 1

    routes = [
        Route("/health", health, methods=["GET"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))])


async def _chat(desk: Desk, request: Request) -> Response:
    try:
        ask = read(await _body(request))
        served = named(desk.models, ask.model)
        said = await asyncio.wait_for(_answer(served, ask), desk.seconds)
    except Refused as refused:
        return _error(refused.message, refused.status, param=refused.param, code=refused.code)
    except UnknownName as error:
        return _error(str(error), 404, param="model", code="model_not_found")
    except FairleadError as error:
        return _error(str(error), 400)
    except TimeoutError:
        return _error("the answer took too long", 504, kind="server_error")
    except ClientDisconnect:
        return Response(status_code=400)
    except Exception:
        log.exception("a request failed")  # the traceback holds no prompt
        return _error("the server failed; its log says how", 500, kind="server_error")
    if ask.stream:
        return StreamingResponse(_events(served, ask, said), media_type="text/event-stream", headers=HEADERS)
    return JSONResponse(_completion(served, ask, said), headers=HEADERS)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY:
            raise Refused(f"the body is larger than {BODY} bytes", status=413)
    return bytes(body)


async def _answer(served: Served, ask: Ask) -> Generation:
    with served.world(ask.temperature, ask.seed) as world:
        said: Generation = await world.generate(
            ask.messages, step=ask.step, legal=ask.choices or None, max_tokens=ask.max_tokens
        )
    return said


def _completion(served: Served, ask: Ask, said: Generation) -> dict[str, Any]:
    text, reason = _cut(ask, said)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason, "logprobs": None}
    head = _head(served, "chat.completion")
    return {**head, "choices": [choice], "usage": _usage(said), "fairlead": _about(served, ask, said)}


async def _events(served: Served, ask: Ask, said: Generation) -> AsyncIterator[str]:
    text, reason = _cut(ask, said)
    head = _head(served, "chat.completion.chunk")

    def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _line({**head, "choices": [choice], **more})

    yield event({"role": "assistant", "content": ""})
    for piece in _pieces(text):
        yield event({"content": piece})
    yield event({}, reason, fairlead=_about(served, ask, said))
    if ask.usage:
        yield _line({**head, "choices": [], "usage": _usage(said)})
    yield "data: [DONE]\n\n"


def _line(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"


def _pieces(text: str) -> Iterator[str]:
    yield from re.findall(r"\s*\S+|\s+\Z", text)


def _head(served: Served, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": served.fingerprint[:12],
    }


def _cut(ask: Ask, said: Generation) -> tuple[str, str]:
    """(the text before the first stop, why it ended)."""
    places = [place for stop in ask.stop if (place := said.text.find(stop)) >= 0]
    if places:
        return said.text[: min(places)], "stop"
    full = not ask.choices and said.new_tokens >= ask.max_tokens
    return said.text, "length" if full else "stop"


def _usage(said: Generation) -> dict[str, int]:
    total = said.prompt_tokens + said.new_tokens
    return {"prompt_tokens": said.prompt_tokens, "completion_tokens": said.new_tokens, "total_tokens": total}


def _about(served: Served, ask: Ask, said: Generation) -> dict[str, Any]:
    about: dict[str, Any] = {"fingerprint": served.fingerprint, "edits": [asdict(edit) for edit in said.edits]}
    if ask.choices and said.legal_logprobs is not None:
        about["choices"] = [{"text": t, "logprob": p} for t, p in zip(ask.choices, said.legal_logprobs, strict=True)]
    return about


def _may(request: Request, key: str | None) -> bool:
    """Whether the request has the key, compared in constant time."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    return key is None or hmac.compare_digest(given.encode("utf-8", "replace"), key.encode("utf-8"))


def _no_key() -> Response:
    return _error("a key is needed: Authorization: Bearer ...", 401, code="invalid_api_key")


def _error(
    message: str,
    status: int,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, headers={**HEADERS, **(headers or {})})
