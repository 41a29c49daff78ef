"""The live page's server: on the loopback, stopped by a signal, a clock, or because nobody looks any more."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import uvicorn

from fairlead.core.errors import FairleadError
from fairlead.serve.live.web import Live, app
from fairlead.serve.patience import Patient
from fairlead.serve.server import is_loopback

LOOK = 0.5  # seconds between two looks at the clock
AWAY = 75.0  # seconds without a request after which nobody looks: a hidden tab asks once a minute


def token() -> str:
    """A fresh one."""
    return secrets.token_urlsafe(24)


async def serve(
    live: Live,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    stop_after: float | None = None,
    idle: float | None = None,
    ready: Callable[[str], None] | None = None,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Serve until cancelled, for `stop_after` seconds, until nobody has asked for anything for `idle` seconds, or
    until `until()` says so. `ready` is called once with the URL, the token behind its #."""
    local = is_loopback(host)
    live.exposed = not local
    server = _Server(uvicorn.Config(
        app(live, ("127.0.0.1", "localhost", "[::1]") if local else ("*",)), host=host, port=port, log_config=None,
        access_log=False, lifespan="off", server_header=False, limit_concurrency=128, timeout_keep_alive=5,
        timeout_graceful_shutdown=3, http=Patient,
    ))  # fmt: skip
    serving = asyncio.create_task(_bound(server, host, port))
    try:
        while not server.started:
            if serving.done():
                await serving
                raise FairleadError("the page stopped while starting", do="try another port")
            await asyncio.sleep(0.01)
        if ready:
            ready(_url(server, live))
        await _watch(live, serving, stop_after, idle, until)
    finally:
        server.should_exit = True
        if live.session is not None:
            await live.session.close()
            await _closed(live.session.bench)
        await serving


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # Ctrl-C belongs to the program, not to its server
        yield


async def _bound(server: _Server, host: str, port: int) -> None:
    try:
        await server.serve()
    except SystemExit as wrong:  # how uvicorn says that it cannot bind
        what = f"port {port} of {host} cannot be used"
        raise FairleadError(what, expected="a free port", do="choose another") from wrong


async def _watch(
    live: Live, serving: asyncio.Task[None], stop_after: float | None, idle: float | None, until: Callable[[], bool]
) -> None:
    begun = time.monotonic()
    while not serving.done() and not until():
        now = time.monotonic()
        left = [LOOK]
        if stop_after is not None:
            left.append(begun + stop_after - now)
        if idle is not None:
            left.append(live.seen + idle - now)
        if min(left) <= 0:
            return
        await asyncio.wait([serving], timeout=min(left))


def _url(server: _Server, live: Live) -> str:
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    where = f"[{host}]" if ":" in host else host
    return f"http://{where}:{port}/#token={quote(live.token)}"


async def _closed(bench: Any) -> None:
    task = getattr(bench, "task", None)
    if task is not None and hasattr(task, "aclose"):
        await task.aclose()


@contextlib.contextmanager
def beside(live: Live, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The page in a thread of its own while something else runs in this one. Yields its URL. When the block ends, the
    page stays while somebody looks at it (AWAY seconds after the last request, or Ctrl-C); if nobody ever did, it ends
    at once."""
    up, over, found = threading.Event(), threading.Event(), {}

    def ready(url: str) -> None:
        found["url"] = url
        up.set()

    def work() -> None:
        try:
            asyncio.run(serve(live, host=host, port=port, ready=ready, until=over.is_set))
        except BaseException as error:  # handed to the thread that waits
            found["error"] = error  # type: ignore[assignment]
        finally:
            up.set()

    thread = threading.Thread(target=work, name="fairlead-live", daemon=True)
    thread.start()
    up.wait()
    if "error" in found:
        raise found["error"]  # type: ignore[misc]
    try:
        yield found["url"]
        with contextlib.suppress(KeyboardInterrupt):  # the work is done: this ends the page, and loses nothing
            while live.looked and thread.is_alive() and time.monotonic() - live.seen < AWAY:
                thread.join(LOOK)
    finally:
        over.set()
        thread.join(10)
