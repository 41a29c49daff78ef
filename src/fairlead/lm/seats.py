"""Lockstep: many episodes ask one model, and their requests run as one batch.

A batch runs when every taken seat has asked, sorted by seat order. Where all seats are taken before the
first episode starts, what is in a batch depends on the episodes alone and never on timing. A seat that is
given up shrinks the group; an episode that follows another may keep its seat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from fairlead.core.errors import FairleadError

R = TypeVar("R")
Run = Callable[[Sequence[R]], Awaitable[list[Any]]]


class SeatGroup(Generic[R]):
    """The seats of one Subject. `run` answers a batch of requests, in order."""

    def __init__(self, run: Run[R]) -> None:
        self._run = run
        self._taken: set[int] = set()
        self._waiting: dict[int, tuple[R, asyncio.Future[Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, order: int) -> None:
        """Takes the seat `order`; each can be taken once."""
        if order in self._taken:
            raise FairleadError(f"seat {order} is taken", expected="one seat an episode, each with its own order")
        self._taken.add(order)

    def leave(self, order: int) -> None:
        """Gives up a seat, with what it may still have asked."""
        self._taken.discard(order)
        self._waiting.pop(order, None)
        self._run_if_complete()

    async def ask(self, order: int, request: R) -> Any:
        """Waits until all seats have asked, then returns this seat's answer."""
        if order not in self._taken:
            raise FairleadError(f"seat {order} was left", do="ask inside the seat's `async with`")
        if order in self._waiting:
            raise FairleadError(f"seat {order} asked twice at once", do="await one request before the next")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[order] = (request, answer)
        self._run_if_complete()
        try:
            return await answer
        finally:
            if self._waiting.get(order, (None, None))[1] is answer:
                del self._waiting[order]

    def _run_if_complete(self) -> None:
        """Looks once the tasks that are ready now have had their turn: some may be about to take a seat."""
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._run_now)

    def _run_now(self) -> None:
        if self._waiting and len(self._waiting) == len(self._taken):
            batch = [self._waiting[order] for order in sorted(self._waiting)]
            self._waiting.clear()
            task = asyncio.get_running_loop().create_task(self._answer(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, batch: list[tuple[R, asyncio.Future[Any]]]) -> None:
        try:
            results = await self._run([request for request, _ in batch])
        except BaseException as error:
            for _, answer in batch:
                if answer.done():
                    continue
                if isinstance(error, Exception):
                    answer.set_exception(error)
                else:
                    answer.cancel()
            if not isinstance(error, Exception):
                raise
            return
        for (_, answer), result in zip(batch, results, strict=True):
            if not answer.done():
                answer.set_result(result)
