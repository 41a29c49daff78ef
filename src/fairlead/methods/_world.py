"""A world whose every answer takes several requests of the subject: candidates, then a scorer; a thought, then an act.

All seats of a lockstep group ask one `answer` function, which gets the whole batch. It may ask the subject in as many
rounds as it likes, each of them one batch, and no seat waits for another in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from fairlead.core.errors import FairleadError
from fairlead.core.keys import content_key
from fairlead.core.types import Generation, Messages
from fairlead.lm.seats import SeatGroup


@dataclass(frozen=True)
class Ask:
    """One request: the arguments of `Subject.generate`."""

    prompt: Messages
    step: int = 0
    legal: tuple[str, ...] | None = None
    max_tokens: int = 32


Answer = Callable[[Sequence[Ask]], Awaitable[Sequence[Generation | Exception]]]
"""One answer an ask, in order; an Exception fails that ask alone."""


async def together(subject: Any, asks: Sequence[Ask]) -> list[Generation | Exception]:
    """The subject's own answers, as one lockstep batch where it has seats. An ask that fails, fails alone."""
    if not hasattr(subject, "seat"):
        return [await _alone(subject, ask) for ask in asks]
    places = [subject.seat(order) for order in range(len(asks))]

    async def one(place: AbstractAsyncContextManager[Any], ask: Ask) -> Generation | Exception:
        async with place as seat:
            return await _alone(seat, ask)

    return list(await asyncio.gather(*(one(place, ask) for place, ask in zip(places, asks, strict=True))))


async def _alone(subject: Any, ask: Ask) -> Generation | Exception:
    try:
        said: Generation = await subject.generate(
            ask.prompt, step=ask.step, legal=ask.legal, max_tokens=ask.max_tokens
        )
        return said
    except Exception as error:
        return error


class World:
    """`subject` as `make(subject)` answers for it. `prompted` tells the subject, and makes anew."""

    def __init__(self, subject: Any, make: Callable[[Any], Answer], fingerprint: str) -> None:
        self.subject, self._make, self._key = subject, make, fingerprint
        self.name, self.meter = subject.name, getattr(subject, "meter", None)
        self.fingerprint = content_key([subject.fingerprint, fingerprint])
        self._answer = make(subject)
        self._group: SeatGroup[Ask] = SeatGroup(self._run)

    async def generate(
        self, prompt: Messages, *, step: int = 0, legal: Sequence[str] | None = None, max_tokens: int = 32
    ) -> Generation:
        (answer,) = await self._answer([_ask(prompt, step, legal, max_tokens)])
        return _told(answer)

    async def logprobs(self, prompt: Messages, continuations: Sequence[str], *, step: int = 0) -> tuple[float, ...]:
        """The subject's own: a scorer chooses, and has no say in what is probable."""
        found: tuple[float, ...] = await self.subject.logprobs(prompt, continuations, step=step)
        return found

    def prompted(self, system: str) -> World:
        return World(self.subject.prompted(system), self._make, self._key)

    def seat(self, order: int) -> AbstractAsyncContextManager[Seat]:
        self._group.take(order)
        return _Place(Seat(self, order))

    async def _run(self, asks: Sequence[Ask]) -> list[Any]:
        return list(await self._answer(asks))


class Seat:
    """A World as one episode of a lockstep group sees it."""

    def __init__(self, world: World, order: int) -> None:
        self._world, self._order = world, order
        self.name, self.fingerprint = world.name, world.fingerprint

    async def generate(
        self, prompt: Messages, *, step: int = 0, legal: Sequence[str] | None = None, max_tokens: int = 32
    ) -> Generation:
        return _told(await self._world._group.ask(self._order, _ask(prompt, step, legal, max_tokens)))

    async def logprobs(self, prompt: Messages, continuations: Sequence[str], *, step: int = 0) -> tuple[float, ...]:
        return await self._world.logprobs(prompt, continuations, step=step)

    def prompted(self, system: str) -> Seat:
        raise FairleadError(f"a seat of this world cannot be told {system!r} alone", do="prompt the world")

    def seat(self, order: int) -> AbstractAsyncContextManager[Any]:
        raise FairleadError(f"seat {self._order} cannot take seat {order}", do="call seat() on the world itself")


class _Place(AbstractAsyncContextManager[Seat]):
    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    async def __aenter__(self) -> Seat:
        return self._seat

    async def __aexit__(self, *_: object) -> None:
        self._seat._world._group.leave(self._seat._order)


def _ask(prompt: Messages, step: int, legal: Sequence[str] | None, max_tokens: int) -> Ask:
    return Ask(tuple(prompt), step, None if legal is None else tuple(legal), max_tokens)


def _told(answer: Any) -> Generation:
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, Generation)
    return answer
