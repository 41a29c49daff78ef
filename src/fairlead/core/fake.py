"""`FakeSubject`: a scripted Subject, so that every task and every loop is testable in milliseconds."""

from __future__ import annotations

import asyncio
import copy
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from fairlead.core.keys import content_key
from fairlead.core.ledger import Meter
from fairlead.core.types import Generation, Message, Messages

Policy = Callable[[Messages, Sequence[str] | None, int], str]
"""(messages, legal actions or None, agent step) -> the text to say. Must be a pure function."""

SURE = 0.9  # probability the fake puts on the action its policy picks


def first_legal(_messages: Messages, legal: Sequence[str] | None, _step: int) -> str:
    """The default policy: the first legal action, or nothing when decoding is free."""
    return legal[0] if legal else ""


@dataclass
class _Group:
    """Seats that run in lockstep: a batch starts when every taken seat has asked."""

    taken: set[int] = field(default_factory=set)
    asked: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    batches: list[tuple[int, ...]] = field(default_factory=list)

    async def turn(self, order: int) -> None:
        self.asked[order] = asyncio.get_running_loop().create_future()
        mine = self.asked[order]
        self.release()
        await mine

    def release(self) -> None:
        if self.asked and set(self.asked) == self.taken:
            batch = tuple(sorted(self.asked))
            self.batches.append(batch)
            for order in batch:
                self.asked.pop(order).set_result(None)


class FakeSubject:
    """A Subject that says what `policy` says. Tokens are whitespace-separated words; a forward of n words
    costs 2·`n_matmul`·n FLOPs. `batches` lists the seat orders that ran together."""

    def __init__(
        self,
        policy: Policy = first_legal,
        *,
        name: str = "fake",
        meter: Meter | None = None,
        n_matmul: float = 1000.0,
        system: str = "",
        fingerprint: str | None = None,
    ) -> None:
        self.policy, self.name, self.meter, self.n_matmul = policy, name, meter or Meter(), n_matmul
        self._system, self._base = system, fingerprint or content_key(["fake", name])
        self.fingerprint = self._base if not system else content_key([self._base, system])
        self._shown: tuple[Message, ...] = ()
        self._sampling: tuple[float, int] | None = None
        self._group = _Group()
        self._order: int | None = None

    @property
    def batches(self) -> list[tuple[int, ...]]:
        """Seat orders of every batch so far."""
        return self._group.batches

    async def generate(
        self, prompt: Messages, *, step: int = 0, legal: Sequence[str] | None = None, max_tokens: int = 32
    ) -> Generation:
        await self._turn()
        messages = self._with_system(prompt)
        text = self.policy(messages, legal, step)
        if legal is None:
            text = " ".join(text.split()[:max_tokens])
            scores = None
        else:
            if text not in legal:
                text = legal[0]
            scores = _scores(text, legal)
            text = self._drawn(legal, scores, content_key([[m.content for m in messages], step]), text)
        words, new = _words(messages), max(1, len(text.split()))
        self.meter.charge(prompt_tokens=words, new_tokens=new, flops=2 * self.n_matmul * (words + new), forwards=1)
        return Generation(text=text, prompt_tokens=words, new_tokens=new, legal_logprobs=scores)

    async def logprobs(self, prompt: Messages, continuations: Sequence[str], *, step: int = 0) -> tuple[float, ...]:
        await self._turn()
        messages = self._with_system(prompt)
        words = _words(messages)
        self.meter.charge(prompt_tokens=words, flops=2 * self.n_matmul * words, forwards=1)
        return _scores(self.policy(messages, continuations, step), continuations)

    def prompted(self, system: str) -> FakeSubject:
        """This subject with one more system line; the meter is shared."""
        other = copy.copy(self)
        other._system = f"{self._system}\n{system}" if self._system else system
        other.fingerprint = content_key([self._base, other._system])
        if self._order is None:
            other._group = _Group()  # a seat keeps its place when it is prompted
        return other

    def shown(self, examples: Sequence[Messages]) -> FakeSubject:
        """This subject with worked examples between every prompt's system line and the rest."""
        return self._copy(_shown=(*self._shown, *(turn for example in examples for turn in example)))

    def sampled(self, temperature: float, seed: int) -> FakeSubject:
        """This subject drawing its legal choice from its own scores, by seed, prompt and step alone."""
        return self._copy(_sampling=(temperature, seed))

    def _copy(self, **change: object) -> FakeSubject:
        other = copy.copy(self)
        other.__dict__.update(change)
        parts = [self.fingerprint, [[m.role, m.content] for m in other._shown], list(other._sampling or ())]
        other._base = other.fingerprint = content_key(parts)
        other._group = _Group()
        return other

    def _drawn(self, legal: Sequence[str], scores: Sequence[float], key: str, text: str) -> str:
        if self._sampling is None:
            return text
        temperature, seed = self._sampling
        weights = [math.exp(score / temperature) for score in scores]
        return random.Random(f"{seed}/{key}").choices(list(legal), weights)[0]

    def seat(self, order: int) -> AbstractAsyncContextManager[FakeSubject]:
        """See `Subject.seat`. Orders must be distinct among the taken seats."""
        return self._seat(order)

    @asynccontextmanager
    async def _seat(self, order: int) -> AsyncIterator[FakeSubject]:
        group = self._group
        if order in group.taken:
            raise ValueError(f"seat {order} is taken")
        seated = copy.copy(self)
        seated._order = order
        group.taken.add(order)
        try:
            yield seated
        finally:
            group.taken.discard(order)
            group.asked.pop(order, None)
            group.release()

    async def _turn(self) -> None:
        if self._order is not None:
            await self._group.turn(self._order)

    def _with_system(self, prompt: Messages) -> Messages:
        first = int(bool(prompt) and prompt[0].role == "system")
        prompt = (*prompt[:first], *self._shown, *prompt[first:])
        if not self._system:
            return prompt
        if prompt and prompt[0].role == "system":
            text = f"{prompt[0].content}\n{self._system}" if prompt[0].content else self._system
            return (Message("system", text), *prompt[1:])
        return (Message("system", self._system), *prompt)


def _words(messages: Messages) -> int:
    return sum(len(m.content.split()) for m in messages)


def _scores(chosen: str, options: Sequence[str]) -> tuple[float, ...]:
    if chosen not in options:
        return tuple(-math.log(len(options)) for _ in options)
    if len(options) == 1:
        return (0.0,)
    rest = math.log((1 - SURE) / (len(options) - 1))
    return tuple(math.log(SURE) if option == chosen else rest for option in options)
