"""The server: bound to the loopback unless a key is set, stopped by a signal, a call or a clock.

Stopping is graceful: no new connection is taken, and what is at work is answered first, for GRACE seconds at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from fairlead.core.errors import FairleadError
from fairlead.serve.batch import CHUNK, PREFIXES, ROWS, Batch
from fairlead.serve.http import Desk, app
from fairlead.serve.limits import Limits
from fairlead.serve.opened import Served
from fairlead.serve.patience import HEAD, Patient
from fairlead.serve.proof import prove
from fairlead.serve.scheduler import Scheduler

GRACE = 10.0  # seconds that requests at work have when the server stops; then they are returned as far as they got
CONNECTIONS = 1024


@dataclass(frozen=True)
class Settings:
    """What the server was started with. `waiting` requests may wait for one of `rows` places in the batch; a step reads
    at most `chunk` prompt tokens; what was read is kept for later turns, at most `prefixes` bytes of it."""

    rows: int = ROWS
    chunk: int = CHUNK
    waiting: int = 256
    prefixes: int = PREFIXES
    grace: float = GRACE
    limits: Limits = field(default_factory=Limits)
    log_prompts: bool = False
    backend: str | None = None  # torch.compile's: decode steps are then one compiled function


class Endpoint:
    """Serves in the caller's event loop, between `start` and `stop`."""

    def __init__(self, sock: socket.socket, desk: Desk, application: Starlette, settings: Settings) -> None:
        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:  # Ctrl-C belongs to the program, not to its server
                yield

        self._sock, self._desk, self._grace = sock, desk, settings.grace
        self._server = Server(
            uvicorn.Config(
                application,
                http=Patient,
                ws="none",
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=math.ceil(HEAD),  # longer than clients keep a connection that says nothing
                timeout_graceful_shutdown=math.ceil(settings.grace) + 5,
            )  # fmt: skip
        )
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        host, port = self._sock.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @classmethod
    async def start(
        cls,
        models: Sequence[Served],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        key: str | None = None,
        dictionaries: Sequence[Any] = (),
        settings: Settings = Settings(),  # noqa: B008  # a frozen value
        routes: Sequence[BaseRoute] = (),
    ) -> Endpoint:
        """Raises FairleadError when the address cannot be had, or is open to others and there is no key. `dictionaries`
        are those whose latents the edits in requests may name, one a site."""
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
        desk = Desk(
            models, key, limits=settings.limits, schedulers=schedulers(models, settings), dictionaries=dictionaries,
            log_prompts=settings.log_prompts,
        )  # fmt: skip
        application = app(desk, hosts, routes, shelf(models, dictionaries, desk.schedulers))
        endpoint = cls(_bind(host, port), desk, application, settings)
        endpoint._serving = asyncio.create_task(endpoint._server.serve(sockets=[endpoint._sock]))
        while not endpoint._server.started:
            if endpoint._serving.done():
                await endpoint._serving
                raise FairleadError("the server stopped while starting", do="try another port")
            await asyncio.sleep(0.005)
        return endpoint

    async def stop(self) -> None:
        """Answer what is at work, or return it as far as it got; stop, and free the port. Safe to call twice."""
        self._server.should_exit = True
        await asyncio.gather(*(scheduler.drain(self._grace) for scheduler in self._desk.schedulers))
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
    **more: Any,
) -> None:
    """Serve until cancelled (Ctrl-C), or for `stop_after` seconds. `ready` is called once with the URL; `more` is as
    for `Endpoint.start`."""
    endpoint = await Endpoint.start(models, host=host, port=port, key=key, **more)
    try:
        if ready:
            ready(endpoint.url)
        await asyncio.sleep(stop_after) if stop_after is not None else await asyncio.Event().wait()
    finally:
        await endpoint.stop()


def shelf(models: Sequence[Served], dictionaries: Sequence[Any], busy: Sequence[Scheduler]) -> Any:
    """What `/v1/features/...` is answered from: the first model and dictionary; None where there is no dictionary."""
    if not dictionaries or not models:
        return None
    from fairlead.serve.features_api import Shelf

    both = models[0].subject, dictionaries[0]

    async def parts() -> tuple[Any, Any]:
        return both

    guest = next((s.guest for s in busy if s.batch.subject is both[0]), contextlib.nullcontext)
    return Shelf(parts=parts, now=lambda: both, guest=guest)


def schedulers(models: Sequence[Served], settings: Settings) -> list[Scheduler]:
    """A shared batch for each subject that can have one: a model on this machine, as it was loaded."""
    found = {id(m.subject): m.subject for m in models if hasattr(m.subject, "checkpoint")}
    batches = [
        Batch(
            subject, rows=settings.rows, chunk=settings.chunk, prefixes=settings.prefixes, meter=subject.meter,
            backend=settings.backend,
        ) for subject in found.values()
    ]  # fmt: skip
    for batch in batches:
        prove(batch)
    return [Scheduler(batch, most=settings.waiting) for batch in batches]


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
