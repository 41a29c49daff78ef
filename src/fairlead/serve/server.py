"""The server: bound to the loopback unless a key is set, stopped by a signal, a call or a clock.

Stopping is graceful: no new connection is taken, and what is at work is answered first, for GRACE seconds at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from fairlead.core.errors import FairleadError
from fairlead.serve.http import Desk, app
from fairlead.serve.opened import Served

GRACE = 10  # seconds that requests at work have when the server stops
CONNECTIONS = 256


class Endpoint:
    """Serves in the caller's event loop, between `start` and `stop`."""

    def __init__(self, sock: socket.socket, desk: Desk, hosts: Sequence[str]) -> None:
        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:  # Ctrl-C belongs to the program, not to its server
                yield

        self._sock = sock
        self._server = Server(
            uvicorn.Config(
                app(desk, hosts),
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=GRACE,
            )  # fmt: skip
        )
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        host, port = self._sock.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @classmethod
    async def start(
        cls, models: Sequence[Served], *, host: str = "127.0.0.1", port: int = 0, key: str | None = None
    ) -> Endpoint:
        """Raises FairleadError when the address cannot be had, or is open to others and there is no key."""
        local = is_loopback(host)
        if not local and not key:
            raise FairleadError(
                f"{host} can be reached from other machines",
                expected="an API key",
                do="set FAIRLEAD_API_KEY, or serve on 127.0.0.1",
            )
        if len({m.name for m in models}) != len(models):
            raise FairleadError("one model is served twice", got=", ".join(m.name for m in models))
        hosts = ("127.0.0.1", "localhost", "[::1]") if local else ("*",)
        endpoint = cls(_bind(host, port), Desk(models, key), hosts)
        endpoint._serving = asyncio.create_task(endpoint._server.serve(sockets=[endpoint._sock]))
        while not endpoint._server.started:
            if endpoint._serving.done():
                await endpoint._serving
                raise FairleadError("the server stopped while starting", do="try another port")
            await asyncio.sleep(0.005)
        return endpoint

    async def stop(self) -> None:
        """Answer what is at work, stop, and free the port. Safe to call twice."""
        self._server.should_exit = True
        if self._serving is not None:
            serving, self._serving = self._serving, None
            await serving
        self._sock.close()


async def serve(
    models: Sequence[Served],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    key: str | None = None,
    stop_after: float | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until cancelled (Ctrl-C), or for `stop_after` seconds. `ready` is called once with the URL."""
    endpoint = await Endpoint.start(models, host=host, port=port, key=key)
    try:
        if ready:
            ready(endpoint.url)
        await asyncio.sleep(stop_after) if stop_after is not None else await asyncio.Event().wait()
    finally:
        await endpoint.stop()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bind(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(128)
    except (OSError, OverflowError) as wrong:
        sock.close()
        raise FairleadError(
            f"port {port} of {host} cannot be used", expected="a free port", got=str(wrong), do="choose another, or 0"
        ) from wrong
    return sock
