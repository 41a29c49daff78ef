"""The routes.

    GET  /health                  whether it serves, and how many requests are here
    GET  /metrics                 counters, as Prometheus reads them
    GET  /openapi.json            this interface, described
    GET  /v1/models               the names
    POST /v1/chat/completions     an answer, or a stream of server-sent events
    POST /v1/completions          the same of raw texts

Who asks is let go as soon as the connection is: what was at work for it stops after the step.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from fairlead.core.errors import FairleadError, UnknownName
from fairlead.serve.ask import LIMITS, Refused, read
from fairlead.serve.batch import TookTooLong
from fairlead.serve.lanes import Alone, Answer, Lanes, Shared
from fairlead.serve.limits import Limits
from fairlead.serve.metrics import KIND, Requests, page
from fairlead.serve.openapi import describe
from fairlead.serve.opened import Served, named
from fairlead.serve.scheduler import Busy, Scheduler, Stopping
from fairlead.serve.shapes import HEADERS, Shape, error_event, refusal

BODY = LIMITS.body  # bytes
WAITING = 512  # requests here at once; more are sent away for a moment
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


def app(desk: Desk, hosts: Sequence[str], routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The application. `hosts` are the names it answers to; a page elsewhere cannot reach it under another. No
    Access-Control header is ever sent, so a browser gives no other page what it answers. `routes` are more of them."""

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": desk.waiting}, headers=HEADERS)

    async def models(request: Request) -> Response:
        if not may(request, desk.key):
            return refusal(_no_key())
        found = [{"id": m.name, "object": "model", "created": 0, "owned_by": "fairlead"} for m in desk.models]
        return JSONResponse({"object": "list", "data": found}, headers=HEADERS)

    async def metrics(request: Request) -> Response:
        if not may(request, desk.key):
            return refusal(_no_key())
        return Response(page(desk.requests, desk.waiting, desk.schedulers), media_type=KIND, headers=HEADERS)

    async def openapi(_request: Request) -> Response:
        names = [] if desk.key else [m.name for m in desk.models]  # who has no key learns no names
        return JSONResponse(describe(names, desk.limits, key=desk.key is not None), headers=HEADERS)

    async def chat(request: Request) -> Response:
        return await _counted(desk, request, text=False)

    async def completions(request: Request) -> Response:
        return await _counted(desk, request, text=True)

    own = [
        Route("/health", health, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))]
    return Starlette(routes=[*own, *routes], middleware=middleware, exception_handlers={HTTPException: _elsewhere})


async def _elsewhere(_request: Request, error: Exception) -> Response:
    """No such path, or not by that method, in the shape of every other error."""
    assert isinstance(error, HTTPException)
    response = refusal(Refused(error.detail, status=error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _counted(desk: Desk, request: Request, *, text: bool) -> Response:
    started = time.perf_counter()
    response = await _placed(desk, request, text=text)
    desk.requests.count(request.url.path, response.status_code, time.perf_counter() - started)
    return response


async def _placed(desk: Desk, request: Request, *, text: bool) -> Response:
    """An answer, while there is a place for one more request."""
    if not may(request, desk.key):
        return refusal(_no_key())
    if desk.waiting >= desk.most:
        return refusal(_busy(1))
    desk.waiting += 1
    left = False

    def leave() -> None:
        nonlocal left
        desk.waiting -= 0 if left else 1
        left = True

    try:
        response = await _answered(desk, request, text, leave)
    except BaseException:
        leave()
        raise
    if not isinstance(response, StreamingResponse):
        leave()
    return response


async def _answered(desk: Desk, request: Request, text: bool, leave: Any) -> Response:
    """An answer or a refusal; a stream calls `leave` when it ends."""
    try:
        ask = read(await _body(request, desk.limits), desk.limits, text=text)
        served = named(desk.models, ask.model)
        if desk.log_prompts:
            log.info("asked: %r", ask)
        opened = desk.lanes.open(served, ask)
        try:
            if ask.stream:
                return await _stream(Shape(served, ask), opened, leave)
            answer = await _while_here(request, asyncio.wait_for(opened.answer(), desk.limits.seconds))
        except BaseException:
            opened.cancel()
            raise
        return JSONResponse(Shape(served, ask).whole(answer), headers=HEADERS)
    except ClientDisconnect:
        return Response(status_code=400)
    except Exception as error:
        return refusal(_refused(error))


def _refused(error: Exception) -> Refused:
    """What is told of an error. Of what nobody foresaw, nothing but that: its place is the log."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, UnknownName):
        return Refused(str(error), status=404, param="model", code="model_not_found")
    if isinstance(error, FairleadError):
        return Refused(str(error))
    if isinstance(error, Busy):
        return _busy(error.seconds)
    if isinstance(error, Stopping):
        return Refused("the server is stopping", status=503, after=5)
    if isinstance(error, TimeoutError | TookTooLong):
        return Refused("the answer took too long", status=504)
    log.error("a request failed", exc_info=error)  # the traceback holds no prompt
    return Refused("the server failed; its log says how", status=500)


async def _while_here(request: Request, work: Any) -> Answer:
    """`work`, unless who asks hangs up first: then ClientDisconnect."""
    asked, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise ClientDisconnect
        answer: Answer = asked.result()
        return answer
    finally:
        gone.cancel()
        asked.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(shape: Shape, opened: Shared | Alone, leave: Any) -> Response:
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
                yield error_event(_refused(error).message)
                return
            for event in shape.closing(answer, streamed):
                yield event
        finally:
            opened.cancel()
            leave()

    return StreamingResponse(events(), media_type="text/event-stream", headers=HEADERS)


async def _body(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body:
                    raise Refused(f"the body is larger than {limits.body} bytes", status=413)
    except TimeoutError as error:
        raise Refused(f"the body did not arrive within {limits.body_seconds:g} seconds", status=408) from error
    return bytes(body)


def may(request: Request, key: str | None) -> bool:
    """Whether the request has the key, compared in constant time."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    return key is None or hmac.compare_digest(given.encode("utf-8", "replace"), key.encode("utf-8"))


def _no_key() -> Refused:
    return Refused("a key is needed: Authorization: Bearer ...", status=401, code="invalid_api_key")


def _busy(seconds: int) -> Refused:
    return Refused("too many requests wait", status=429, after=seconds)

