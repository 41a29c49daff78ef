"""How a request is answered: in the shared batch, or in a lane of its own.

The model as it is, with or without a request's edits, and a Fitted that is nothing but edits share one batch. What is
more than edits (a prompt before them, an adapter, several forwards an answer), and a choice among legal answers, is
answered by the Fitted's own world, as a study opens it: one request at a time has the model, and a stream begins when
the answer is whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fairlead import steering
from fairlead.core.errors import EditError
from fairlead.core.keys import content_key
from fairlead.core.types import EditReport, Generation
from fairlead.lm.sampling import Sampling
from fairlead.serve.ask import Ask, Refused
from fairlead.serve.batch import Job, Said, Token
from fairlead.serve.edits import Editor
from fairlead.serve.limits import Limits
from fairlead.serve.opened import Served
from fairlead.serve.scheduler import Piece, Scheduler, Ticket
from fairlead.steering.slots import RowEdits


@dataclass(frozen=True)
class Choice:
    """One answer of a request. `legal` are the log-probabilities of the legal answers, where there were any."""

    text: str
    reason: str
    prompt: int
    new: int
    edits: tuple[EditReport, ...] = ()
    reused: int = 0
    tokens: tuple[Token, ...] | None = None
    legal: tuple[float, ...] | None = None
    cut: bool = False


@dataclass(frozen=True)
class Answer:
    """All choices in order, and the unsteered one where the request asked for a pair. `edits` is the canonical line of
    a request's own edits."""

    choices: tuple[Choice, ...]
    fingerprint: str
    edits: str | None = None
    default: Choice | None = None


class Shared:
    """One request in the shared batch."""

    def __init__(self, tickets: Sequence[Ticket], default: Ticket | None, fingerprint: str, line: str | None) -> None:
        self._tickets, self._default, self._fingerprint, self._line = tickets, default, fingerprint, line

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(choice, piece) as they come, until all choices are whole."""
        merged: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()

        async def pump(index: int, ticket: Ticket) -> None:
            async for piece in ticket.pieces():
                merged.put_nowait((index, piece))
            merged.put_nowait(None)

        pumps = [asyncio.create_task(pump(i, ticket)) for i, ticket in enumerate(self._tickets)]
        try:
            left = len(pumps)
            while left:
                found = await merged.get()
                if found is None:
                    left -= 1
                else:
                    yield found
        finally:
            for task in pumps:
                task.cancel()

    async def answer(self) -> Answer:
        """Waits for all of it. Raises what kept the model from giving one of them."""
        said = [_choice(await ticket.said()) for ticket in self._tickets]
        default = _choice(await self._default.said()) if self._default else None
        return Answer(tuple(said), self._fingerprint, self._line, default)

    def cancel(self) -> None:
        for ticket in (*self._tickets, *([self._default] if self._default else ())):
            ticket.cancel()


class Alone:
    """One request in a lane of its own."""

    def __init__(self, served: Served, ask: Ask, scheduler: Scheduler | None, editor: Editor | None) -> None:
        self._served, self._ask, self._scheduler, self._editor = served, ask, scheduler, editor

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Nothing comes before all of it is there."""
        return
        yield  # pragma: no cover

    async def answer(self) -> Answer:
        ask = self._ask
        if self._scheduler is None:
            return await self._answer(ask)
        with self._scheduler.guest():
            return await self._answer(ask)

    async def _answer(self, ask: Ask) -> Answer:
        served, line, fingerprint = self._served, None, self._served.fingerprint
        if ask.edits is not None:
            assert self._editor is not None
            edits = self._editor.read(ask.edits)
            line = steering.format(edits)
            served = replace(served, subject=steering.apply(served.subject, edits, dict(self._editor.dictionaries)))
            fingerprint = served.subject.fingerprint
        choices = [await _generated(served, ask, ask.seed + i) for i in range(ask.n)]
        default = None
        if ask.paired:
            default = await _generated(replace(self._served, fitted=None), ask, ask.seed)
        return Answer(tuple(choices), fingerprint, line, default)

    def cancel(self) -> None:
        """Its forward cannot be called back; what it says is thrown away."""


class Lanes:
    """Everything that answers: the models, and a shared batch for each of their subjects that can have one."""

    def __init__(
        self, models: Sequence[Served], limits: Limits, schedulers: Sequence[Scheduler], dictionaries: Sequence[Any]
    ) -> None:
        self.models, self.limits = models, limits
        self.schedulers = tuple(schedulers)
        self._dictionaries = steering.by_site(tuple(dictionaries))
        self._editors = {id(s.batch.subject): self._editor(s) for s in schedulers}

    def _editor(self, scheduler: Scheduler) -> Editor:
        return Editor(scheduler.batch.subject, self._dictionaries, self.limits)

    def open(self, served: Served, ask: Ask) -> Shared | Alone:
        """Begins to answer. Refused or FairleadError where it cannot be answered as asked."""
        scheduler = next((s for s in self.schedulers if s.batch.subject is served.subject), None)
        if ask.edits is not None and served.fitted is not None:
            raise Refused("edits go with the bare model, not with what was fitted on it", param="edits")
        if scheduler is not None and not ask.choices:
            edits = self._edits_of(served, ask, scheduler)
            if edits is not None or served.fitted is None:
                return self._share(served, ask, scheduler, edits)
        self._check_alone(served, ask, scheduler)
        return Alone(served, ask, scheduler, self._editors.get(id(served.subject)))

    def _edits_of(self, served: Served, ask: Ask, scheduler: Scheduler) -> RowEdits | None:
        if served.fitted is None:
            editor = self._editors[id(scheduler.batch.subject)]
            return None if ask.edits is None else _named(lambda: editor.compiled(ask.edits))
        return served.row_edits

    def _check_alone(self, served: Served, ask: Ask, scheduler: Scheduler | None) -> None:
        missing = {
            "prompt": bool(ask.prompts), "logprobs": ask.tops is not None, "top_p": ask.top_p < 1,
            "edits": ask.edits is not None and scheduler is None,
        }  # fmt: skip
        for key, given in missing.items():
            if given:
                what = "with fairlead.choices" if ask.choices else f"with {served.name}"
                raise Refused(f"{key} cannot be used {what}, which answers in a lane of its own", param=key)
        if ask.edits is not None:
            editor = self._editors[id(served.subject)]
            _named(lambda: editor.compiled(ask.edits))  # refused now, not in the middle of an answer

    def _share(self, served: Served, ask: Ask, scheduler: Scheduler, edits: RowEdits | None) -> Shared:
        prompts = _prompts(served.subject, ask)
        if edits is not None and edits.reads_roles and any(roles is None for _, roles in prompts):
            raise Refused("`at role` needs a chat whose turns can be told apart", param="edits")
        for ids, _ in prompts:
            served.subject.checkpoint.fits(len(ids), ask.max_tokens)
        count = ask.n * len(prompts) + ask.paired
        deadline = time.monotonic() + self.limits.seconds
        tickets: list[Ticket] = []

        def submit(ids: Any, roles: Any, own: RowEdits | None, i: int, after: Job | None, stream: bool) -> Ticket:
            sampling = Sampling(ask.temperature, ask.seed + i) if ask.temperature > 0 else None

            def job(**ends: Any) -> Job:
                return Job(
                    ids, roles, ask.max_tokens, edits=own, step=ask.step, sampling=sampling, top_p=ask.top_p,
                    stops=ask.stop, tops=ask.tops, deadline=deadline, after=after, **ends,
                )  # fmt: skip

            return scheduler.submit(job, stream=stream, count=count - len(tickets))

        default = None
        try:
            for ids, roles in prompts:
                first: Job | None = None
                for i in range(ask.n):
                    tickets.append(submit(ids, roles, edits, i, first, ask.stream))
                    first = first or tickets[-1].job
            if ask.paired:
                default = submit(*prompts[0], None, 0, None, False)
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        line = steering.format(edits.edits) if edits is not None and served.fitted is None else None
        own = content_key([served.fingerprint, edits.fingerprint]) if line is not None and edits else served.fingerprint
        return Shared(tickets, default, own, line)


def _prompts(subject: Any, ask: Ask) -> list[tuple[Any, Any]]:
    """(ids, roles) of each prompt."""
    if not ask.prompts:
        prompt = subject.tokens(ask.messages)
        return [(prompt.ids, subject.checkpoint.chat.roles(prompt.messages))]
    found = [np.array(subject.checkpoint.chat.raw(text), dtype=np.int64) for text in ask.prompts]
    if any(len(ids) == 0 for ids in found):
        raise Refused("a prompt of no tokens: this model has no token that begins a text", param="prompt")
    return [(ids, None) for ids in found]


async def _generated(served: Served, ask: Ask, seed: int) -> Choice:
    with served.world(ask.temperature, seed) as world:
        said: Generation = await world.generate(
            ask.messages, step=ask.step, legal=ask.choices or None, max_tokens=ask.max_tokens
        )
    places = [place for stop in ask.stop if (place := said.text.find(stop)) >= 0]
    full = not places and not ask.choices and said.new_tokens >= ask.max_tokens
    text = said.text[: min(places)] if places else said.text
    legal = said.legal_logprobs if ask.choices else None
    return Choice(text, "length" if full else "stop", said.prompt_tokens, said.new_tokens, said.edits, legal=legal)


def _choice(said: Said) -> Choice:
    return Choice(said.text, said.reason, said.prompt, said.new, said.edits, said.reused, said.tokens, cut=said.cut)


def _named(make: Any) -> Any:
    """What `make` gives; an edit that cannot be applied names the key at fault."""
    try:
        return make()
    except EditError as error:
        raise Refused(str(error), param="edits", code="edit_cannot_be_applied") from error

