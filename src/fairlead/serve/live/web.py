"""The routes of the live page, and who may use them.

    GET  /                              the page; /static/NAME its scripts and styles, /page/NAME what it frames
    GET  /api/about                     what there is to look at
    GET  /api/study, /api/items         the run as it stands; /api/replay the traces of one item; /api/verdict
    GET  /api/episode                   the episode as it stands
    POST /api/episode/VERB              load, start, step, run, pause, edits, turn, watch: with the token only
    POST /api/try/compare, dose         an edit on a prompt, a latent at several doses: with the token only
    POST /v1/features/...               as in features_api; what reads a text with the token only

Reading needs no token on the loopback; anywhere else everything does. A token is compared in constant time, comes in a
header (no page elsewhere can send one without asking), and never stands in a log. Nothing that a request says becomes a
path of this machine.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fairlead import __version__
from fairlead.core.errors import EditError, FairleadError
from fairlead.core.records import Run
from fairlead.judge import judge
from fairlead.report.html import assets
from fairlead.serve.ask import Refused, json_object
from fairlead.serve.features_api import Shelf
from fairlead.serve.features_api import routes as feature_routes
from fairlead.serve.live import replays, trying
from fairlead.serve.live.episode import Session
from fairlead.serve.live.pages import POLICY, Pages
from fairlead.serve.live.tail import Tail
from fairlead.serve.patience import body

TOKEN = "x-fairlead-token"
BODY = 100_000  # bytes of a request
APP_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
COMMON = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
OPEN = ("/", "/static/", "/page/")  # without a token, anywhere: they hold nothing of a run, or bear a name like a token
log = logging.getLogger("fairlead.live")


@dataclass
class Live:
    """What the routes share."""

    token: str
    tail: Tail | None = None
    session: Session | None = None
    pages: Pages = field(default_factory=Pages)
    shelf: Shelf | None = None  # what the feature browser has; None: there is none
    exposed: bool = False  # reachable from other machines: reading needs the token too
    seen: float = field(default_factory=time.monotonic)  # when somebody last asked for something
    looked: bool = False  # whether anybody ever did
    verdict: dict[str, Any] | None = None

    def knows(self, token: str) -> bool:
        """Whether this is the token, compared in constant time."""
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode("utf-8"))


class Guard:
    """Around everything: headers on every answer, the token where one is needed, and the time of the last request."""

    def __init__(self, app: ASGIApp, live: Live) -> None:
        self.app, self.live = app, live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        live, request = self.live, Request(scope)
        live.seen, live.looked = time.monotonic(), True
        policy = {"/page/": POLICY}.get(scope["path"][:6], APP_POLICY)

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = {**COMMON, "Content-Security-Policy": policy}
                message = {**message, "headers": [*message["headers"], *((k.lower().encode(), v.encode())
                                                                         for k, v in more.items())]}  # fmt: skip
            await send(message)

        path = scope["path"]
        read = request.method in ("GET", "HEAD") or path.startswith("/v1/features/")  # these ask about themselves
        free = path == "/" or path.startswith(OPEN[1:]) or (read and not live.exposed)
        if not free and (refused := _refused(request, live)) is not None:
            await refused(scope, receive, sealed)
            return
        await self.app(scope, receive, sealed)


def _refused(request: Request, live: Live) -> Response | None:
    """Why a request may not pass: it comes from a page of another origin, or has not the token."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        return answer({"error": "a page of another origin"}, 403)
    if not live.knows(request.headers.get(TOKEN, "")):
        return answer({"error": "read only: this needs the token that was printed when the page was started"}, 401)
    return None


def answer(value: Any, status: int = 200) -> Response:
    """JSON; NaN is refused."""
    return JSONResponse(value, status)


def app(live: Live, hosts: Sequence[str]) -> Starlette:
    """The application. `hosts` are the names it answers to."""
    files = static()

    async def page(_request: Request) -> Response:
        return Response(files["index.html"], media_type="text/html; charset=utf-8")

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        kind = KINDS.get("." + name.rpartition(".")[2])
        if kind is None or name not in files:
            return answer({"error": "no such file"}, 404)
        return Response(files[name], headers={"Content-Type": kind})

    async def framed(request: Request) -> Response:
        found = live.pages.get(request.path_params["name"], request.query_params.get("bid", ""))
        if found is None:
            return Response("this page was forgotten: open it again", 404, media_type="text/plain")
        return Response(found[1], headers={"Content-Type": found[0]})

    async def about(request: Request) -> Response:
        return answer(
            {
                "version": __version__,
                "run": live.tail.path.resolve().name if live.tail else None,
                "episode": live.session is not None,
                "features": live.shelf and {**live.shelf.about(), "open": live.shelf.now() is not None},
                "control": live.knows(request.headers.get(TOKEN, "")),
            }
        )

    routes = [
        Route("/", page, methods=["GET"]),
        Route("/static/{name}", asset, methods=["GET"]),
        Route("/page/{name}", framed, methods=["GET"]),
        Route("/api/about", about, methods=["GET"]),
        *(_study(live, live.tail) if live.tail else ()),
        *(_episode(live.session) if live.session else ()),
        *(_features(live, live.shelf) if live.shelf else ()),
    ]
    inside = [Middleware(Guard, live=live), Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))]
    return Starlette(routes=routes, middleware=inside)


def static() -> dict[str, bytes]:
    """The files of the page, by name: its own, and those that it shares with the report."""
    folder = resources.files("fairlead.serve.live") / "static"
    found = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    shared = assets(("step.js", "replay.js"))
    both = zip(("step.js", "replay.js"), shared["scripts"], strict=True)
    return {**found, "report.css": shared["style"].encode(), **{name: text.encode() for name, text in both}}


def _study(live: Live, tail: Tail) -> list[Route]:
    async def study(request: Request) -> Response:
        await asyncio.to_thread(tail.refresh)
        status = tail.status()
        if request.query_params.get("since") == str(tail.version):
            few = ("version", "since", "recording", "complete")
            return answer({k: status[k] for k in few})
        return answer(status)

    async def items(request: Request) -> Response:
        asked = request.query_params
        return answer(tail.items(asked.get("model", ""), asked.get("decoding", "")))

    async def index(_request: Request) -> Response:
        return answer(await asyncio.to_thread(replays.index, tail))

    async def replay(request: Request) -> Response:
        found = await asyncio.to_thread(replays.replay, tail, request.query_params.get("item", ""), live.pages)
        return answer({"error": "no trace of this item can be read"}, 404) if found is None else answer(found)

    async def verdict(_request: Request) -> Response:
        if not tail.status()["complete"]:
            return answer({"error": "no verdict before every trial is done"}, 409)
        if live.verdict is None:
            try:
                found = await asyncio.to_thread(lambda: judge(Run.open(tail.path)))
            except FairleadError as error:
                return answer({"error": str(error)}, 409)
            live.verdict = {"status": found.status, "reasons": list(found.reasons), "sentence": found.claim_sentence}
        return answer(live.verdict)

    paths: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "study": study, "items": items, "index": index, "replay": replay, "verdict": verdict,
    }  # fmt: skip
    return [Route(f"/api/{name}", call, methods=["GET"]) for name, call in paths.items()]


def _episode(session: Session) -> list[Route]:
    async def state(request: Request) -> Response:
        if request.query_params.get("since") == str(session.version):
            return answer({"version": session.version, "same": True})
        return answer(session.state())

    async def act(request: Request) -> Response:
        try:
            await _act(session, request.path_params["verb"], await asked_of(request))
        except EditError as error:
            return answer({"error": str(error), "edit": True}, 400)
        except Refused as error:
            return answer({"error": str(error)}, error.status)
        except FairleadError as error:
            return answer({"error": str(error)}, 400)
        except Exception:
            log.exception("a request failed")
            return answer({"error": "the server failed; its log says how"}, 500)
        return answer(session.state())

    return [
        Route("/api/episode", state, methods=["GET"]),
        Route("/api/episode/{verb}", act, methods=["POST"]),
    ]


def _features(live: Live, shelf: Shelf) -> list[Route]:
    """The feature browser: what is stored may be read by who may read, what runs the model needs the token."""

    def knows(request: Request) -> bool:
        return live.knows(request.headers.get(TOKEN, ""))

    async def attempt(request: Request) -> Response:
        assert live.session is not None
        try:
            value, bench = await asked_of(request), await live.session.opened()
            messages, actions, step = trying.asked(value, live.session.point)
            match request.path_params["verb"], value:
                case "compare", {"line": str(line)}:
                    return answer(await trying.compare(bench, line, messages, actions))
                case "dose", {"latent": int(latent)}:
                    page = live.session.point.page if value.get("here") and live.session.point else None
                    return answer(await trying.dose(bench, latent, messages, actions, step=step, page=page))
                case _:
                    raise FairleadError("not something that can be tried", expected="compare with a line, or dose")
        except Refused as error:
            return answer({"error": str(error)}, error.status)
        except FairleadError as error:
            return answer({"error": str(error)}, 400)
        except Exception:
            log.exception("a request failed")
            return answer({"error": "the server failed; its log says how"}, 500)

    found = feature_routes(shelf, may=lambda request: not live.exposed or knows(request), may_run=knows)
    return [*found, *([Route("/api/try/{verb}", attempt, methods=["POST"])] if live.session else ())]


async def _act(session: Session, verb: str, asked: Mapping[str, Any]) -> None:
    match verb, dict(asked):
        case "start", {"item": str(item)}:
            await session.start(item)
        case "start", {}:
            await session.start()
        case "load", _:
            await session.opened()
        case "step", _:
            await session.step()
        case "run", _:
            await session.run()
        case "pause", _:
            await session.pause()
        case "edits", {"line": str(line)}:
            await session.change(line)
        case "turn", {"place": int(place), "value": int() | float() as value}:
            await session.turn(place, value)
        case "watch", {"latents": list(latents)}:
            await session.watch(latents)
        case _:
            raise FairleadError("not something an episode can do", got=verb[:40])


async def asked_of(request: Request) -> dict[str, Any]:
    """A small JSON object. Refused for anything else."""
    return json_object(await body(request, BODY) or b"{}")
