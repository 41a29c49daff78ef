"""How long a client is waited for: whoever sends a head or a body a byte at a time holds no place for long, and who
has hung up is not worked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from fairlead.serve.ask import Refused
from fairlead.serve.limits import Limits

HEAD = 10.0  # seconds for the head of a request to arrive
T = TypeVar("T")


class Patient(H11Protocol):
    """uvicorn's protocol, with a clock that runs while the head of a request is awaited."""

    head_seconds = HEAD

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = None
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._stop()
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


async def body(request: Request, most: int, seconds: float = Limits.body_seconds) -> bytes:
    """A request's body. Refused where it is larger than `most` bytes (413) or not there in `seconds` (408)."""
    found = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                found += chunk
                if len(found) > most:
                    raise Refused(f"the body is larger than {most} bytes", status=413)
    except TimeoutError as error:
        raise Refused(f"the body did not arrive within {seconds:g} seconds", status=408) from error
    return bytes(found)


async def while_here(request: Request, work: Awaitable[T]) -> T:
    """`work`, once the body was read; unless who asks hangs up first: then ClientDisconnect."""
    asked, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise ClientDisconnect
        return asked.result()
    finally:
        gone.cancel()
        asked.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
