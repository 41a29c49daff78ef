"""A model on this machine as a Subject: it acts, scores, and lets its activations be read and edited."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fairlead.core.errors import FairleadError
from fairlead.core.types import EditReport, Generation, Messages
from fairlead.lm.chat import Prompt, with_system
from fairlead.lm.checkpoint import Checkpoint
from fairlead.lm.forwards import Forwards, Packed, Reports, Row
from fairlead.lm.hooks import SiteHook
from fairlead.lm.sampling import Sampling
from fairlead.lm.seats import SeatGroup
from fairlead.lm.tree import Tree, grow

Metric = Callable[[Tensor], Tensor] | Sequence[float]
Context = Callable[[], AbstractContextManager[None]]
CHARACTERS = 256  # of a raw text for each token that is wanted of it; no token spells more
ROOM = 48  # tokens kept for the answer where examples compete with the prompt for the context


@dataclass(frozen=True, eq=False)
class Request:
    """One thing asked of a Subject, rendered. `tree` is None for free decoding."""

    prompt: Prompt
    step: int
    max_tokens: int
    options: tuple[str, ...] = ()
    tree: Tree | None = None
    acts: bool = True  # an action is chosen; False when continuations are only scored
    slot: int = 1  # which set of edits the row gets, where the hooks hold several


@dataclass(frozen=True, eq=False)
class Attribution:
    """What `attribution` returns, one entry a prompt: activations and gradients [P, d] of its prompt tokens,
    the continuations' log-probabilities [a], and the metric's value."""

    activations: list[Tensor]
    gradients: list[Tensor]
    logprobs: list[Tensor]
    metric: list[float]


class LocalSubject:
    """A Subject whose weights are in this process. A value but for its settings: `prompted` and `edited`
    return new Subjects that share the weights.

    Settings, inherited by derived Subjects: `meter` is charged with every forward (None: not at all);
    `threaded` runs forwards beside the event loop, for when a browser shares it; `max_batch` splits larger
    batches, in order; `stop_at_newline` ends free decoding at the first line.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        meter: Any = None,
        system: tuple[str, ...] = (),
        hooks: tuple[tuple[str, SiteHook], ...] = (),
        edits: tuple[str, ...] = (),
        reports: tuple[Reports, ...] = (),
        hook_flops: float = 0.0,
        contexts: tuple[Context, ...] = (),
        threaded: bool = False,
        max_batch: int = 32,
        stop_at_newline: bool = False,
        sampling: Sampling | None = None,
        shown: tuple[Messages, ...] = (),
    ) -> None:
        self.checkpoint, self.meter = checkpoint, meter
        self._sampling, self._shown = sampling, shown
        self.threaded, self.max_batch, self.stop_at_newline = threaded, max_batch, stop_at_newline
        self._system, self._hooks, self._edits, self._reports = system, hooks, edits, reports
        self._hook_flops, self._contexts = hook_flops, contexts
        self.name = checkpoint.name
        self.model, self.tokenizer = checkpoint.model, checkpoint.chat.tokenizer
        self.d_model, self.n_layers = checkpoint.shape.d_model, checkpoint.shape.n_layers
        self._group: SeatGroup[Request] = SeatGroup(self._answer)
        self._newlines: frozenset[int] | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of weights, tokenizer, system lines, edits and stopping: all that changes what comes out."""
        parts = _identity(self.checkpoint.fingerprint, self._system, self._edits, self.stop_at_newline)
        parts += [repr(extra) for extra in (self._sampling, self._shown) if extra]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def sites(self) -> list[str]:
        """Every site that can be read or edited."""
        return self.checkpoint.sites.names()

    # ---- derived Subjects

    def prompted(self, system: str) -> LocalSubject:
        """This Subject with `system` appended to every prompt's system line, on a line of its own."""
        return self._derive(system=(*self._system, system))

    def shown(self, examples: Sequence[Messages]) -> LocalSubject:
        """This Subject with worked examples (each some whole turns) between every prompt's system line and the rest.
        Where prompt, examples and `ROOM` tokens for the answer exceed the context, the first examples go first."""
        return self._derive(shown=(*self._shown, *map(tuple, examples)))

    def sampled(self, temperature: float, seed: int) -> LocalSubject:
        """This Subject answering by chance: free decoding and the legal choice are drawn at `temperature`. The same
        seed, prompt and step give the same answer in any batch and any seat; scores and activations are as before."""
        return self._derive(sampling=Sampling(temperature, seed))

    def edited(
        self,
        hooks: Mapping[str, SiteHook] | Sequence[tuple[str, SiteHook]],
        fingerprint: str,
        reports: Reports,
        flops_per_token: float = 0.0,
    ) -> LocalSubject:
        """This Subject with hooks at sites, after those it has. `reports()` is called once after each batch,
        gives one tuple of EditReports a request, and starts counting afresh. `flops_per_token` is what the
        hooks add to a forward; it goes to the meter."""
        pairs = tuple(hooks.items()) if isinstance(hooks, Mapping) else tuple(hooks)
        for site, _ in pairs:
            self.checkpoint.sites.place(site)
        return self._derive(
            hooks=(*self._hooks, *pairs),
            edits=(*self._edits, fingerprint),
            reports=(*self._reports, reports),
            hook_flops=self._hook_flops + flops_per_token,
        )

    def within(self, context: Context, fingerprint: str, flops_per_token: float = 0.0) -> LocalSubject:
        """This Subject with every batch run inside `context()`, after the contexts it has: an adapter enabled, a
        weight swapped. It is entered while this Subject alone has the model, and left after the batch, failed or
        not. The context must put back what it changed, to the bit: the other Subjects share the weights.
        `flops_per_token` is what it adds to a forward; it goes to the meter."""
        return self._derive(
            contexts=(*self._contexts, context),
            edits=(*self._edits, fingerprint),
            hook_flops=self._hook_flops + flops_per_token,
        )

    def metered(self, meter: Any) -> LocalSubject:
        """This Subject, charging another meter."""
        return self._derive(meter=meter)

    def _derive(self, **change: Any) -> LocalSubject:
        kept = {
            "meter": self.meter, "system": self._system, "hooks": self._hooks, "edits": self._edits,
            "reports": self._reports, "hook_flops": self._hook_flops, "contexts": self._contexts,
            "threaded": self.threaded, "max_batch": self.max_batch, "stop_at_newline": self.stop_at_newline,
            "sampling": self._sampling, "shown": self._shown,
        }  # fmt: skip
        return LocalSubject(self.checkpoint, **{**kept, **change})

    # ---- the Subject protocol

    async def generate(
        self, prompt: Messages, *, step: int = 0, legal: Sequence[str] | None = None, max_tokens: int = 32
    ) -> Generation:
        """The next assistant turn: with `legal`, the most probable of those strings, each followed by the
        token that ends a turn; without, greedy decoding up to `max_tokens` or the end of the turn."""
        answer: Generation = (await self._answer([self._request(prompt, step, legal, max_tokens)]))[0]
        return answer

    async def logprobs(self, prompt: Messages, continuations: Sequence[str], *, step: int = 0) -> tuple[float, ...]:
        """log p(continuation | prompt), one each, summed over tokens, in nats; the turn is not ended."""
        answer: tuple[float, ...] = (await self._answer([self._scoring(prompt, step, continuations)]))[0]
        return answer

    def seat(self, order: int, slot: int = 1) -> AbstractAsyncContextManager[Seat]:
        """A seat in this Subject's lockstep group, taken by this call and given up when its context is left.
        Make all seats before the first episode starts, and no batch depends on timing. A seat that is
        never entered keeps the others waiting. `slot` says which set of edits its rows get, where the hooks
        hold several; every seat of a group may have another."""
        self._group.take(order)
        return _Place(Seat(self, order, slot=slot))

    # ---- batches, without an event loop

    def action_logprobs(
        self,
        prompts: Sequence[Messages],
        legal: Sequence[Sequence[str]],
        steps: Sequence[int] | None = None,
        *,
        slots: Sequence[int] | None = None,
        end_turn: bool = True,
    ) -> list[Tensor]:
        """log p of every legal action of every prompt, as `generate` has them: a tensor [n_legal] a prompt."""
        rows, trees = self._rows(prompts, steps, slots), self._trees(prompts, legal, end_turn)
        out: list[Tensor] = []
        with self._alone(), torch.inference_mode():
            for part in _parts(len(rows), self.max_batch):
                out += self._forwards().score(rows[part], trees[part], lambda _: 0)
                self._collect(len(rows[part]))
        return [scores.clone() for scores in out]

    def activations(
        self,
        prompts: Sequence[Messages],
        sites: Sequence[str],
        tokens: Literal["last", "all"] = "last",
        steps: Sequence[int] | None = None,
        *,
        slots: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Activations at `sites`, after this Subject's own edits: at the decision token ("last") a tensor
        [N, d] a site, at "all" prompt tokens a list of N tensors [P, d]. A prompt that ends with the
        assistant's turn is read as a finished transcript."""
        rows = self._rows(prompts, steps, slots)
        self.checkpoint.fits(max((len(row.ids) for row in rows), default=0))
        out: dict[str, list[Tensor]] = {site: [] for site in sites}
        with self._alone():
            for part in _parts(len(rows), self.max_batch):
                with torch.inference_mode():
                    found, packed = self._forwards().read(rows[part], sites)
                for site in out:
                    out[site] += [found[site][:, -1].clone()] if tokens == "last" else _cut(found[site], packed)
                self._collect(len(rows[part]))
        return {site: torch.cat(got) if tokens == "last" else got for site, got in out.items()}

    def action_activations(
        self,
        prompts: Sequence[Messages],
        legal: Sequence[Sequence[str]],
        sites: Sequence[str],
        steps: Sequence[int] | None = None,
        *,
        slots: Sequence[int] | None = None,
        places: Sequence[Sequence[int | None]] | None = None,
    ) -> dict[str, list[Tensor]]:
        """Activations at `sites` at the last token of every legal action, as if it alone followed its prompt: a
        tensor [n_legal, d] a prompt. One forward reads a prompt with all its actions. With `places`, one prompt token
        an action (None: zeros), it is [n_legal, 2 d]: the place's activation, then the end's."""
        rows, trees = self._rows(prompts, steps, slots), self._trees(prompts, legal, end_turn=True, whole=True)
        out: dict[str, list[Tensor]] = {site: [] for site in sites}
        with self._alone(), torch.inference_mode():
            for part in _parts(len(rows), self.max_batch):
                found, packed = self._forwards().read(rows[part], sites, trees[part])
                for site, got in out.items():
                    for i, tree in enumerate(trees[part]):
                        values, first = found[site][i], packed.width - packed.lengths[i]
                        ends = values[tree.ends().to(values.device) + packed.width - 1]
                        if places is not None:
                            at = places[part.start + i]
                            here = [values[first + p] if p is not None else torch.zeros_like(values[0]) for p in at]
                            ends = torch.cat([torch.stack(here), ends], dim=1)
                        got.append(ends)
                self._collect(len(rows[part]))
        return {site: [values.clone() for values in got] for site, got in out.items()}

    def text_activations(
        self, texts: Sequence[str], sites: Sequence[str], *, max_tokens: int | None = None
    ) -> dict[str, list[Tensor]]:
        """Activations at `sites` of raw texts, with no chat template and no system line: N tensors [T, d] a site,
        one row for each token of `text_tokens`. The forward stops behind the last block that is needed."""
        rows = [Row(np.array(ids, dtype=np.int64), None, 0, 1) for ids in self.text_tokens(texts, max_tokens)]
        out: dict[str, list[Tensor]] = {site: [] for site in sites}
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        with self._alone(), torch.inference_mode():
            for part in _parts(len(rows), self.max_batch):
                batch = [rows[i] for i in order[part]]
                found, packed = self._forwards().read(batch, sites)
                for site in out:
                    out[site] += _cut(found[site], packed)
                self._collect(len(batch))
        place = {i: at for at, i in enumerate(order)}
        return {site: [got[place[i]] for i in range(len(rows))] for site, got in out.items()}

    def text_tokens(self, texts: Sequence[str], max_tokens: int | None = None) -> list[tuple[int, ...]]:
        """The token ids of raw texts, each cut to `max_tokens` and to the context (what is far behind the cut, 256
        characters for each token, is not even tokenized). They begin with the BOS where
        this tokenizer puts one before a text; it never comes twice. An empty text without BOS is an error."""
        longest = min(max_tokens or self.checkpoint.shape.context, self.checkpoint.shape.context)
        found = [self.checkpoint.chat.raw(text[: CHARACTERS * longest])[:longest] for text in texts]
        if empty := [i for i, ids in enumerate(found) if not ids]:
            raise FairleadError("a text of no tokens", expected="some text", got=f"text {empty[0]} is empty")
        return found

    def attribution(
        self,
        prompts: Sequence[Messages],
        legal: Sequence[Sequence[str]],
        metrics: Sequence[Metric],
        site: str,
        steps: Sequence[int] | None = None,
        *,
        end_turn: bool = True,
    ) -> Attribution:
        """Gradients of a metric over the actions' log-probabilities with respect to the activations at `site`.

        A metric is a function of a prompt's log-probabilities [n_legal], or weights for their sum. The
        gradient is exact for an edit of the prompt tokens at `site`; it is charged as two forwards' FLOPs.
        """
        rows, trees = self._rows(prompts, steps, None), self._trees(prompts, legal, end_turn)
        result = Attribution([], [], [], [])
        with self._alone():
            for part in _parts(len(rows), self.max_batch):
                values: list[Tensor] = []

                def total(scores: list[Tensor], part: slice = part, values: list[Tensor] = values) -> Tensor:
                    values += [_value(m, s) for m, s in zip(metrics[part], scores, strict=True)]
                    return torch.stack(values).sum()

                acts, grads, scores, packed = self._forwards().differentiate(rows[part], trees[part], total, site)
                result.activations.extend(_cut(acts, packed))
                result.gradients.extend(_cut(grads, packed))
                result.logprobs.extend(scores)
                result.metric.extend(float(v.detach()) for v in values)
                self._collect(len(rows[part]))
        return result

    def tokens(self, prompt: Messages) -> Prompt:
        """The prompt as this Subject reads it, its own system lines and examples included: text, ids and offsets."""
        for line in self._system:
            prompt = with_system(prompt, line)
        chat, first = self.checkpoint.chat, int(bool(prompt) and prompt[0].role == "system")
        for left_out in range(len(self._shown)):
            turns = (turn for example in self._shown[left_out:] for turn in example)
            whole = chat.prompt((*prompt[:first], *turns, *prompt[first:]))
            if len(whole.ids) + ROOM <= self.checkpoint.shape.context:
                return whole
        return chat.prompt(tuple(prompt))

    # ---- inside

    def _request(self, prompt: Messages, step: int, legal: Sequence[str] | None, max_tokens: int) -> Request:
        if legal is None:
            if max_tokens < 1:
                raise FairleadError("nothing to generate", expected="max_tokens of at least 1", got=f"{max_tokens}")
            request = Request(self.tokens(prompt), step, max_tokens)
            self.checkpoint.fits(len(request.prompt.ids), max_tokens)
            return request
        return self._scoring(prompt, step, legal, acts=True)

    def _scoring(self, prompt: Messages, step: int, options: Sequence[str], acts: bool = False) -> Request:
        tree = self._tree(tuple(options), acts)
        request = Request(self.tokens(prompt), step, 0, tuple(options), tree, acts)
        self.checkpoint.fits(len(request.prompt.ids), max(tree.lengths))
        return request

    def _tree(self, options: tuple[str, ...], end_turn: bool, whole: bool = False) -> Tree:
        """`whole`: the last token of an action is read too, even where no token of the template ends a turn."""
        if not options:
            raise FairleadError("no action to choose from", expected="at least one legal action")
        chat = self.checkpoint.chat
        end = (chat.end_id,) if end_turn and chat.end_id is not None else (0,) if whole else ()
        return grow([(*chat.action(text), *end) for text in options])

    def _trees(
        self, prompts: Sequence[Messages], legal: Sequence[Sequence[str]], end_turn: bool, whole: bool = False
    ) -> list[Tree]:
        trees = [self._tree(tuple(options), end_turn, whole) for options in legal]
        for prompt, tree in zip(prompts, trees, strict=True):
            self.checkpoint.fits(len(self.tokens(prompt).ids), max(tree.lengths))
        return trees

    async def _answer(self, requests: Sequence[Request]) -> list[Any]:
        if self.threaded:
            return await asyncio.to_thread(self._run, requests)
        return self._run(requests)

    def _run(self, requests: Sequence[Request]) -> list[Any]:
        """Answers scored requests and free ones in batches of `max_batch`, in order."""
        answers: list[Any] = [None] * len(requests)
        scored = [i for i, r in enumerate(requests) if r.tree is not None]
        free = [i for i, r in enumerate(requests) if r.tree is None]
        with self._alone(), torch.inference_mode():
            for run, indices in ((self._score, scored), (self._decode, free)):
                for part in _parts(len(indices), self.max_batch):
                    chosen = indices[part]
                    for index, answer in zip(chosen, run([requests[i] for i in chosen]), strict=True):
                        answers[index] = answer
        return answers

    def _score(self, requests: Sequence[Request]) -> list[Any]:
        trees = [r.tree for r in requests if r.tree is not None]

        def spent(scores: list[Tensor]) -> int:
            pairs = zip(requests, trees, scores, strict=True)
            return sum(t.lengths[self._pick(r, s.tolist())] for r, t, s in pairs if r.acts)

        scores = self._forwards().score([self._row(r) for r in requests], trees, spent)
        answers: list[Any] = []
        for request, tree, values, edits in zip(requests, trees, scores, self._collect(len(requests)), strict=True):
            logprobs = tuple(values.tolist())
            if not request.acts:
                answers.append(logprobs)
                continue
            best = self._pick(request, logprobs)
            size = len(request.prompt.ids)
            answers.append(Generation(request.options[best], size, tree.lengths[best], logprobs, edits))
        return answers

    def _pick(self, request: Request, logprobs: Sequence[float]) -> int:
        if self._sampling is None:
            return max(range(len(logprobs)), key=logprobs.__getitem__)
        return self._sampling.choose(logprobs, next(self._sampling.stream(request.prompt.ids, request.step)))

    def _decode(self, requests: Sequence[Request]) -> list[Any]:
        chat = self.checkpoint.chat
        stops = frozenset(chat.end_ids) | (self._newline_ids() if self.stop_at_newline else frozenset())
        rows = [self._row(r) for r in requests]
        said = self._forwards().decode(rows, [r.max_tokens for r in requests], stops, self._sampling)
        answers: list[Any] = []
        for request, ids, edits in zip(requests, said, self._collect(len(requests)), strict=True):
            text = chat.decode(ids)
            text = text.split("\n", 1)[0] if self.stop_at_newline else text
            answers.append(Generation(text, len(request.prompt.ids), len(ids), None, edits))
        return answers

    def _forwards(self) -> Forwards:
        return Forwards(self.checkpoint, self._hooks, self.meter, self._hook_flops)

    def _row(self, request: Request) -> Row:
        return self._as_row(request.prompt, request.step, request.slot)

    def _as_row(self, prompt: Prompt, step: int, slot: int) -> Row:
        if not self._hooks:
            return Row(prompt.ids, None, step, 0)
        return Row(prompt.ids, self.checkpoint.chat.roles(prompt.messages), step, slot)

    def _rows(self, prompts: Sequence[Messages], steps: Sequence[int] | None, slots: Sequence[int] | None) -> list[Row]:
        steps = [0] * len(prompts) if steps is None else steps
        slots = [1] * len(prompts) if slots is None else slots
        return [self._as_row(self.tokens(p), s, k) for p, s, k in zip(prompts, steps, slots, strict=True)]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One batch at a time on a model, inside this Subject's contexts. After a failure the edits' counts are
        thrown away, not kept for the next."""
        with self.checkpoint.lock, ExitStack() as stack:
            try:
                for context in self._contexts:
                    stack.enter_context(context())
                yield
            except BaseException:
                for reports in self._reports:
                    reports()
                raise

    def _collect(self, count: int) -> list[tuple[EditReport, ...]]:
        rows: list[tuple[EditReport, ...]] = [()] * count
        for reports in self._reports:
            rows = [(*a, *b) for a, b in zip(rows, reports(), strict=True)]
        return rows

    def _newline_ids(self) -> frozenset[int]:
        if self._newlines is None:
            decode = self.checkpoint.chat.decode
            self._newlines = frozenset(i for i in range(len(self.tokenizer)) if "\n" in decode([i]))
        return self._newlines


class Seat:
    """A Subject as one episode of a lockstep group sees it."""

    def __init__(self, subject: LocalSubject, order: int, system: tuple[str, ...] = (), slot: int = 1) -> None:
        self._subject, self._order, self._system, self._slot = subject, order, system, slot
        self.name = subject.name
        self.fingerprint = _with_lines(subject, system).fingerprint

    async def generate(
        self, prompt: Messages, *, step: int = 0, legal: Sequence[str] | None = None, max_tokens: int = 32
    ) -> Generation:
        """As LocalSubject.generate, together with the other seats."""
        request = self._subject._request(self._told(prompt), step, legal, max_tokens)
        answer: Generation = await self._subject._group.ask(self._order, replace(request, slot=self._slot))
        return answer

    async def logprobs(self, prompt: Messages, continuations: Sequence[str], *, step: int = 0) -> tuple[float, ...]:
        """As LocalSubject.logprobs, together with the other seats."""
        request = self._subject._scoring(self._told(prompt), step, continuations)
        answer: tuple[float, ...] = await self._subject._group.ask(self._order, replace(request, slot=self._slot))
        return answer

    def prompted(self, system: str) -> Seat:
        """The same seat, with a system line of its own."""
        return Seat(self._subject, self._order, (*self._system, system), self._slot)

    def seat(self, order: int) -> AbstractAsyncContextManager[Seat]:
        """Refused: an episode has one seat."""
        raise FairleadError(f"seat {self._order} cannot take seat {order}", do="call seat() on the Subject itself")

    def _told(self, prompt: Messages) -> Messages:
        for line in self._system:
            prompt = with_system(prompt, line)
        return prompt


class _Place(AbstractAsyncContextManager[Seat]):
    """Leaves a taken seat when the episode ends."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    async def __aenter__(self) -> Seat:
        return self._seat

    async def __aexit__(self, *_: object) -> None:
        self._seat._subject._group.leave(self._seat._order)


def bare_fingerprint(checkpoint: str) -> str:
    """The fingerprint of the Subject that `load` returns, from its checkpoint's: to check weights without loading."""
    return hashlib.sha256("\n".join(_identity(checkpoint)).encode()).hexdigest()


def _identity(
    checkpoint: str, system: tuple[str, ...] = (), edits: tuple[str, ...] = (), stop_at_newline: bool = False
) -> list[str]:
    return [checkpoint, repr(system), repr(edits), repr(stop_at_newline)]


def _with_lines(subject: LocalSubject, lines: tuple[str, ...]) -> LocalSubject:
    for line in lines:
        subject = subject.prompted(line)
    return subject


def _value(metric: Metric, scores: Tensor) -> Tensor:
    if callable(metric):
        return metric(scores)
    return (scores * torch.as_tensor(metric, dtype=scores.dtype, device=scores.device)).sum()


def _cut(values: Tensor, packed: Packed) -> list[Tensor]:
    """Each row's real prompt tokens, [P, d]."""
    return [values[i, packed.width - n : packed.width].clone() for i, n in enumerate(packed.lengths)]


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
