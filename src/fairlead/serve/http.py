"""The routes.

    GET  /health                  whether it serves, and how many requests are here
    GET  /metrics                 counters, as Prometheus reads them
    GET  /openapi.json            this interface, described
    GET  /v1/models               the names
    POST /v1/chat/completions     an answer, or a stream of server-sent events
    POST /v1/completions          the same of raw texts
    POST /v1/features/...         what latents do, where there is a dictionary: features_api

Who asks is let go as soon as the connection is: what was at work for it stops after the step.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from fairlead.serve.ask import LIMITS, Refused, read
from fairlead.serve.lanes import Alone, Lanes, Shared
from fairlead.serve.limits import Limits
from fairlead.serve.metrics import KIND, Requests, page
from fairlead.serve.openapi import describe
from fairlead.serve.opened import Served, named
from fairlead.serve.patience import body, while_here
from fairlead.serve.scheduler import Scheduler
from fairlead.serve.shapes import HEADERS, Shape, busy, error_event, no_key, refusal, refused

BODY = LIMITS.body  # bytes
WAITING = 512  # requests here at once; more are sent away for a moment
Leave = Callable[[], None]
log = logging.getLogger("fairlead.serve")


@dataclass
class Desk:
    """What the routes share: the models, the key, and how many requests are here."""

    models: Sequence[Served]
    key: str | None = None
    waiting: int = 0
    most: int = WAITING
    limits: Limits = field(default_factory=Limits)
    schedulers: Sequence[Scheduler] = ()
    dictionaries: Sequence[Any] = ()
    log_prompts: bool = False
    requests: Requests = field(default_factory=Requests)

    def __post_init__(self) -> None:
        self.lanes = Lanes(self.models, self.limits, self.schedulers, self.dictionaries)


def app(desk: Desk, hosts: Sequence[str], routes: Sequence[BaseRoute] = (), shelf: Any = None) -> Starlette:
    """The application. `hosts` are the names it answers to; a page elsewhere cannot reach it under another. No
    Access-Control header is ever sent, so a browser gives no other page what it answers. `routes` are more of them;
    a `shelf` (features_api.Shelf) is what questions about features are answered from."""

    async def health(_request: Request) -> Response:
        dead = any(scheduler.dead for scheduler in desk.schedulers)
        told = {"status": "failed" if dead else "ok", "waiting": desk.waiting}
        return JSONResponse(told, 503 if dead else 200, headers=HEADERS)

    async def models(request: Request) -> Response:
        if not may(request, desk.key):
            return refusal(no_key())
        found = [{"id": m.name, "object": "model", "created": 0, "owned_by": "fairlead"} for m in desk.models]
        return JSONResponse({"object": "list", "data": found}, headers=HEADERS)

    async def metrics(request: Request) -> Response:
        if not may(request, desk.key):
            return refusal(no_key())
        return Response(page(desk.requests, desk.waiting, desk.schedulers), media_type=KIND, headers=HEADERS)

    async def openapi(_request: Request) -> Response:
        names = [] if desk.key else [m.name for m in desk.models]  # who has no key learns no names
        told = describe(names, desk.limits, key=desk.key is not None, features=shelf is not None)
        return JSONResponse(told, headers=HEADERS)

    async def chat(request: Request) -> Response:
        return await _counted(desk, request, lambda leave: _answered(desk, request, leave, text=False))

    async def completions(request: Request) -> Response:
        return await _counted(desk, request, lambda leave: _answered(desk, request, leave, text=True))

    own = [
        Route("/health", health, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        *(_features(desk, shelf) if shelf is not None else ()),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))]
    return Starlette(routes=[*own, *routes], middleware=middleware, exception_handlers={HTTPException: _elsewhere})


async def _elsewhere(_request: Request, error: Exception) -> Response:
    """No such path, or not by that method, in the shape of every other error."""
    assert isinstance(error, HTTPException)
    response = refusal(Refused(error.detail, status=error.status_code))
    response.headers.update(error.headers or {})
    return response


def _features(desk: Desk, shelf: Any) -> list[Route]:
    """The questions about features, each in a place among the requests that are here."""
    from fairlead.serve.features_api import routes  # with what reads stores: not every server has features

    def placed(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def found(request: Request) -> Response:
            return await _counted(desk, request, lambda _: answer(request))

        return found

    return [Route(one.path, placed(one.endpoint), methods=["POST"]) for one in routes(shelf, limits=desk.limits)]


async def _counted(desk: Desk, request: Request, answer: Callable[[Leave], Awaitable[Response]]) -> Response:
    started = time.perf_counter()
    response = await _placed(desk, request, answer)
    desk.requests.count(request.url.path, response.status_code, time.perf_counter() - started)
    return response


async def _placed(desk: Desk, request: Request, answer: Callable[[Leave], Awaitable[Response]]) -> Response:
    """An answer, while there is a place for one more request."""
    if not may(request, desk.key):
        return refusal(no_key())
    if desk.waiting >= desk.most:
        return refusal(busy(1))
    desk.waiting += 1
    left = False

    def leave() -> None:
        nonlocal left
        desk.waiting -= 0 if left else 1
        left = True

    try:
        response = await answer(leave)
    except BaseException:
        leave()
        raise
    if not isinstance(response, StreamingResponse):
        leave()
    return response


async def _answered(desk: Desk, request: Request, leave: Leave, *, text: bool) -> Response:
    """An answer or a refusal; a stream calls `leave` when it ends."""
    try:
        ask = read(await body(request, desk.limits.body, desk.limits.body_seconds), desk.limits, text=text)
        served = named(desk.models, ask.model)
        if desk.log_prompts:
            log.info("asked: %r", ask)
        opened = desk.lanes.open(served, ask)
        try:
            if ask.stream:
                return await _stream(Shape(served, ask), opened, leave)
            answer = await while_here(request, asyncio.wait_for(opened.answer(), desk.limits.seconds))
        except BaseException:
            opened.cancel()
            raise
        return JSONResponse(Shape(served, ask).whole(answer), headers=HEADERS)
    except ClientDisconnect:
        return Response(status_code=400)
    except Exception as error:
        return refusal(refused(error))


async def _stream(shape: Shape, opened: Shared | Alone, leave: Leave) -> Response:
    """A stream whose head is sent once there is something to say: what fails before that has a status of its own."""
    pieces = opened.pieces()
    first = await anext(pieces, None)
    whole = await opened.answer() if first is None else None

    async def events() -> AsyncIterator[str]:
        streamed, answer = first is not None, whole
        try:
            for event in shape.opening():
                yield event
            if first is not None:
                yield shape.piece(first[0], *first[1])
                async for index, (text, tokens) in pieces:
                    yield shape.piece(index, text, tokens)
            try:
                answer = answer or await opened.answer()
            except Exception as error:
                yield error_event(refused(error).message)
                return
            for event in shape.closing(answer, streamed):
                yield event
        finally:
            opened.cancel()
            leave()

    return StreamingResponse(events(), media_type="text/event-stream", headers=HEADERS)


def may(request: Request, key: str | None) -> bool:
    """Whether the request has the key, compared in constant time."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    return key is None or hmac.compare_digest(given.encode("utf-8", "replace"), key.encode("utf-8"))
