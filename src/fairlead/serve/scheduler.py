"""The thread that turns a Batch, and what an event loop holds of it: tickets.

One thread owns the batch: no row is touched by another. Requests come in under a lock, answers go back to the loop
once a step. Nothing that happens in a step ends the thread: it answers what was at work with the error, and goes on.
What happens outside of one does: then everybody is told, nothing more is taken, and the server says that it failed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fairlead.serve.batch import Batch, Job, Said, Stats, Token

log = logging.getLogger("fairlead.serve")
Piece = tuple[str, tuple[Token, ...]]


class Busy(Exception):
    """The queue is full. `seconds` is when to ask again."""

    def __init__(self, seconds: int) -> None:
        super().__init__("the queue is full")
        self.seconds = seconds


class Stopping(Exception):
    """The server is going away."""


class Dead(Exception):
    """The thread that answers is no more."""


class Ticket:
    """One job, as the event loop that asked for it sees it."""

    def __init__(self, job: Job, events: asyncio.Queue[Piece | None], answer: asyncio.Future[Said]) -> None:
        self.job, self._events, self._answer = job, events, answer

    async def pieces(self) -> AsyncIterator[Piece]:
        """Text and tokens as they come, until there are no more."""
        while (piece := await self._events.get()) is not None:
            yield piece

    async def said(self) -> Said:
        """The whole answer. Raises what kept the model from giving one."""
        return await asyncio.shield(self._answer)

    def cancel(self) -> None:
        """Nobody waits for it any more; its row is free after the step at work."""
        self.job.cancelled = True


class Scheduler:
    """Serves jobs on one batch. `most` may wait; more are sent away."""

    def __init__(self, batch: Batch, *, most: int = 256) -> None:
        self.batch, self.most = batch, most
        self._wake = threading.Condition()
        self._new: list[Job] = []
        self._out: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []
        self._stopping = self._returning = False
        self.dead = False
        self._guests = 0
        self._seconds = 1.0  # a request takes about so long
        self._thread: threading.Thread | None = None

    @property
    def stats(self) -> Stats:
        return self.batch.stats

    @property
    def waiting(self) -> int:
        return len(self.batch.waiting) + len(self._new)

    @property
    def busy(self) -> int:
        return self.batch.busy

    def submit(self, job_of: Callable[..., Job], *, stream: bool = False, count: int = 1) -> Ticket:
        """A ticket for the job that `job_of(done=, told=)` makes. Busy where `count` jobs find no place to wait."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Piece | None] = asyncio.Queue()
        answer: asyncio.Future[Said] = loop.create_future()
        answer.add_done_callback(_looked_at)

        def end(result: Said | Exception) -> None:
            events.put_nowait(None)
            if answer.done():
                return
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        started = time.monotonic()

        def done(result: Said | Exception) -> None:
            if isinstance(result, Said):
                self._seconds += 0.1 * (time.monotonic() - started - self._seconds)
            self._out.append((loop, lambda: end(result)))

        def told(text: str, tokens: tuple[Token, ...]) -> None:
            self._out.append((loop, lambda: events.put_nowait((text, tokens))))

        job = job_of(done=done, told=told if stream else None)
        with self._wake:
            if self.dead:
                raise Dead
            if self._stopping:
                raise Stopping
            if self.waiting + count > self.most:
                raise Busy(max(1, min(60, math.ceil(self._seconds * self.waiting / self.batch.most))))
            self._new.append(job)
            self._start()
            self._wake.notify()
        return Ticket(job, events, answer)

    @contextmanager
    def guest(self) -> Iterator[None]:
        """While somebody else wants the model too: the loop lets go of it for a moment after each step."""
        with self._wake:
            self._guests += 1
        try:
            yield
        finally:
            with self._wake:
                self._guests -= 1

    async def drain(self, seconds: float) -> None:
        """Takes nothing new; what is here is answered, for `seconds` at most, then returned as far as it got."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        thread = self._thread
        if thread is None:
            return
        await asyncio.to_thread(thread.join, seconds)
        if thread.is_alive():
            with self._wake:
                self._returning = True
                self._wake.notify()
            await asyncio.to_thread(thread.join)

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="fairlead-batch", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while self._next():
                try:
                    self.batch.step()
                except BaseException as error:
                    log.exception("a step of the batch failed")  # the traceback holds no prompt
                    self.batch.fail_all(error if isinstance(error, Exception) else RuntimeError(type(error).__name__))
                self._send()
                if self._guests:
                    time.sleep(0.0005)  # a lock that is taken again at once is never had by who waits for it
            self._send()
        except BaseException:
            log.exception("the batch's thread died: nothing more is answered, start the server again")
            self._give_up()

    def _give_up(self) -> None:
        """Tells all who wait, and touches nothing else: what the rows hold is not known."""
        with self._wake:
            self.dead = True
            jobs, self._new = [*self.batch.abandoned(), *self._new], []
        for job in jobs:
            job.done(Dead())
        self._send()

    def _next(self) -> bool:
        """Waits for work; False when the batch is to be left."""
        with self._wake:
            while not self._new and self.batch.idle and not self._stopping:
                self._wake.wait()
            self.batch.waiting.extend(self._new)
            self._new.clear()
            if self._returning:
                self.batch.return_all(Stopping())
            return not self.batch.idle

    def _send(self) -> None:
        """What the step has to say, in one call a loop."""
        out, self._out = self._out, []
        for loop in {id(loop): loop for loop, _ in out}.values():
            mine = [say for where, say in out if where is loop]
            try:
                loop.call_soon_threadsafe(_all, mine)
            except RuntimeError:  # the loop is closed: nobody listens
                continue


def _all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _looked_at(answer: asyncio.Future[Any]) -> None:
    """An answer nobody waits for any more is no error that was never retrieved."""
    if not answer.cancelled():
        answer.exception()

