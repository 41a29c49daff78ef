"""Items played in lockstep on one world, with what each of them cost.

A chunk is fixed by the plan, so a batch holds the same rows however often a study was interrupted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from fairlead.core.keys import canonical
from fairlead.core.ledger import Meter
from fairlead.core.protocols import Subject, Task
from fairlead.core.types import Cost, Episode, Generation, Item, Messages, Outcome, Score
from fairlead.study import memory


@dataclass(frozen=True)
class Played:
    """One item after its run. Exactly one of `score` and `error` is set; `error` names its boundary."""

    item: Item
    outcome: Outcome | None
    score: Score | None
    error: str | None
    cost: Cost
    cause: Exception | None = None


@dataclass
class _Count:
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass
class CountedSeat:
    """A seat that counts its own tokens; everything else is the seat's."""

    seat_of: Any
    count: _Count = field(default_factory=_Count)

    @property
    def name(self) -> str:
        return str(self.seat_of.name)

    @property
    def fingerprint(self) -> str:
        return str(self.seat_of.fingerprint)

    async def generate(
        self, prompt: Messages, *, step: int = 0, legal: Sequence[str] | None = None, max_tokens: int = 32
    ) -> Generation:
        said: Generation = await self.seat_of.generate(prompt, step=step, legal=legal, max_tokens=max_tokens)
        self.count.prompt_tokens += said.prompt_tokens
        self.count.new_tokens += said.new_tokens
        return said

    async def logprobs(self, prompt: Messages, continuations: Sequence[str], *, step: int = 0) -> tuple[float, ...]:
        found: tuple[float, ...] = await self.seat_of.logprobs(prompt, continuations, step=step)
        return found

    def prompted(self, system: str) -> Subject:
        return CountedSeat(self.seat_of.prompted(system), self.count)

    def seat(self, order: int) -> AbstractAsyncContextManager[Subject]:
        raise RuntimeError(f"a seat has no seats (asked for {order})")


async def play(task: Task[Any], items: Sequence[Item], world: Any, meter: Meter | None) -> list[Played]:
    """Run and score one chunk. Errors of one item stay with that item.

    A world that differs from item to item (a control drawn per item) offers `for_items(items)`: the world of
    this chunk, whose seat `i` is item i's."""
    world = world.for_items(items) if hasattr(world, "for_items") else world
    start, clock = (meter or Meter()).snapshot(), time.perf_counter()
    measured = memory.begin() if meter is not None else False
    if hasattr(world, "seat"):
        found = await _in_lockstep(task, items, world)
    else:
        found = [(await _one(task, item, world), _Count()) for item in items]
    spent = (meter.snapshot() - start) if meter is not None else Cost()
    spent = replace(spent, seconds=time.perf_counter() - clock, peak_memory_bytes=memory.peak() if measured else None)
    costs = _apportion([count for _, count in found], spent)
    return [
        Played(item, outcome, score, error, cost, cause)
        for item, ((outcome, score, error, cause), _), cost in zip(items, found, costs, strict=True)
    ]


async def rollout(task: Task[Any], items: Sequence[Item], world: Any, chunk: int) -> list[Episode]:
    """Run and score items for a Method that is being fitted. An error in one of them is raised."""
    episodes = []
    for i in range(0, len(items), chunk):
        for played in await play(task, items[i : i + chunk], world, None):
            if played.cause is not None:
                raise played.cause
            assert played.outcome is not None and played.score is not None
            episodes.append(Episode(played.item, played.outcome, played.score))
    return episodes


_Result = tuple[Outcome | None, Score | None, str | None, Exception | None]


async def _one(task: Task[Any], item: Item, world: Any) -> _Result:
    boundary, outcome = "run", None
    try:
        outcome = await task.run(item, world)
        canonical(outcome.data)
        boundary = "score"
        score = task.score(item, outcome)
        canonical(score.values)
        return outcome, score, None, None
    except Exception as error:
        return outcome, None, f"{boundary}: {type(error).__name__}: {error}", error


async def _in_lockstep(task: Task[Any], items: Sequence[Item], world: Any) -> list[tuple[_Result, _Count]]:
    async with AsyncExitStack() as leftovers:
        seats = []
        for order in range(len(items)):
            stack = await leftovers.enter_async_context(AsyncExitStack())
            seats.append((stack, CountedSeat(await stack.enter_async_context(world.seat(order)))))

        async def sit(item: Item, stack: AsyncExitStack, seat: CountedSeat) -> tuple[_Result, _Count]:
            try:
                return await _one(task, item, seat), seat.count
            finally:
                await stack.aclose()  # the others go on without this seat

        pairs = zip(items, seats, strict=True)
        return list(await asyncio.gather(*(sit(item, stack, seat) for item, (stack, seat) in pairs)))


def _apportion(counts: Sequence[_Count], spent: Cost) -> list[Cost]:
    """Each item's own tokens; FLOPs, forwards, requests and seconds of the chunk in proportion to its tokens; the
    chunk's peak memory for each.

    Whole numbers are cut at rounded cumulative shares, so that the Records of a chunk sum to the meter.
    """
    tokens = [c.prompt_tokens + c.new_tokens for c in counts]
    weights = tokens if sum(tokens) else [1] * len(counts)
    total, seen, costs = sum(weights), 0, []
    for count, weight in zip(counts, weights, strict=True):
        share, before, seen = weight / total, seen, seen + weight

        def cut(whole: int, before: int = before, after: int = seen) -> int:
            return round(whole * after / total) - round(whole * before / total)

        costs.append(
            Cost(
                prompt_tokens=count.prompt_tokens,
                new_tokens=count.new_tokens,
                flops=spent.flops * share,
                seconds=spent.seconds * share,
                forwards=cut(spent.forwards),
                judge_calls=cut(spent.judge_calls),
                peak_memory_bytes=spent.peak_memory_bytes,
            )
        )
    return costs
