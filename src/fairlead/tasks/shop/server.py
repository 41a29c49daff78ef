"""The shop over HTTP, for a real browser: loopback only, episodes in memory, no client JavaScript.

    GET  /e/<id>/<path>   the page, or a redirect, as `respond` says
    POST /e/<id>/act      a submitted form; always 303 (post, redirect, get)

Nothing is cached (`no-store`), so a page that is seen again is a page that was asked for again. Every
page carries a serial number (`data-page`), by which the front tells the page it asked for from the one
that stood there before.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from fairlead.core.errors import BrowserError
from fairlead.tasks.shop.site import Redirect, Request, State, respond, to_html
from fairlead.tasks.shop.spec import Instance

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

HOST = "127.0.0.1"
MAX_BODY = 16_384  # bytes; the longest text an action may type needs 6,000
MAX_FIELDS = 20
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass
class Served:
    """One episode on the server. `pages` counts the pages sent so far, `path` is the last one's."""

    id: str
    instance: Instance
    state: State
    pages: int = 0
    path: str = ""

    @property
    def prefix(self) -> str:
        return f"/e/{self.id}"


class ShopServer:
    """`start` binds 127.0.0.1; port 0 lets the system choose a free one. Runs in the caller's event loop."""

    def __init__(self, sock: socket.socket) -> None:
        import uvicorn

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:  # Ctrl-C belongs to the program, not to its server
                yield

        self._episodes: dict[str, Served] = {}
        self._sock = sock
        config = uvicorn.Config(
            _app(self._episodes), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = Server(config)
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @classmethod
    async def start(cls, port: int = 0) -> ShopServer:
        """Raises BrowserError when `port` is taken."""
        server = cls(_bind(port))
        server._serving = asyncio.create_task(server._server.serve(sockets=[server._sock]))
        while not server._server.started:
            if server._serving.done():
                await server._serving
                raise BrowserError("the shop's server stopped while starting", do="run it again with a free port")
            await asyncio.sleep(0.005)
        return server

    def open(self, instance: Instance) -> Served:
        episode = Served(secrets.token_hex(6), instance, State())
        self._episodes[episode.id] = episode
        return episode

    def close(self, episode: Served) -> None:
        self._episodes.pop(episode.id, None)

    async def stop(self) -> None:
        """Stop serving and free the port. Safe to call twice."""
        self._server.should_exit = True
        if self._serving is not None:
            serving, self._serving = self._serving, None
            await serving
        self._sock.close()


def _bind(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
        sock.listen(128)
    except (OSError, OverflowError) as wrong:
        sock.close()
        raise BrowserError(
            f"port {port} of {HOST} cannot be used",
            expected="a free port",
            got=str(wrong),
            do="choose another port, or 0 to let the system choose",
        ) from wrong
    return sock


def _app(episodes: dict[str, Served]) -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse
    from starlette.routing import Route

    async def get(request: HttpRequest) -> Response:
        episode = episodes.get(request.path_params["id"])
        if episode is None:
            return PlainTextResponse("no such episode", 404, HEADERS)
        path = "/" + request.path_params["path"]
        episode.state, reply = respond(episode.instance, episode.state, Request("GET", path))
        if isinstance(reply, Redirect):
            return RedirectResponse(episode.prefix + reply.path, 303, HEADERS)
        episode.pages, episode.path = episode.pages + 1, reply.path
        status = 404 if reply.title == "Not found" else 200
        return HTMLResponse(to_html(reply, episode.instance, episode.prefix, episode.pages), status, HEADERS)

    async def act(request: HttpRequest) -> Response:
        episode = episodes.get(request.path_params["id"])
        if episode is None:
            return PlainTextResponse("no such episode", 404, HEADERS)
        form = await _form(request)
        if form is None:
            return PlainTextResponse("this form is too large", 413, {**HEADERS, "Connection": "close"})
        episode.state, reply = respond(episode.instance, episode.state, Request("POST", "/act", form))
        assert isinstance(reply, Redirect)
        return RedirectResponse(episode.prefix + reply.path, 303, HEADERS)

    routes = [Route("/e/{id}/act", act, methods=["POST"]), Route("/e/{id}/{path:path}", get, methods=["GET"])]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST])])


async def _form(request: HttpRequest) -> dict[str, str] | None:
    """The urlencoded form, or None when it is larger than any page of the shop can send."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    try:
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        return None
