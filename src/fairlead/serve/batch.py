"""Continuous batching: requests join and leave one decode loop between steps, each with edits of its own.

Rows that decode stand side by side at the front of the cache, those whose prompts are still being read behind them.
A step reads one chunk of prompts, then one token of every decoding row: a long prompt keeps nobody waiting for more
than a chunk. No thread and no clock of its own: `scheduler` turns the crank.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairlead.core.errors import FairleadError
from fairlead.core.types import EditReport
from fairlead.lm.rows import Piece, Rows
from fairlead.lm.sampling import Sampling
from fairlead.serve.prefixes import Ids, Past, Prefixes, common
from fairlead.serve.speech import Speech
from fairlead.steering.rowwise import RowEngine
from fairlead.steering.slots import RowEdits, signature

ROWS = 32
CHUNK = 512  # prompt tokens read in one step
TOGETHER = 16  # prompts read in one forward
PREFIXES = 256 << 20  # bytes
NEVER = -9999.0  # told as the log-probability of what has none: JSON holds no infinity


class TookTooLong(Exception):
    """A request met its deadline."""


class Overdriven(FairleadError):
    """Edits so strong that the model's numbers were none."""


@dataclass(frozen=True)
class Token:
    """One generated token: its text, log p, and the most probable ones [(text, log p)] where they were asked for."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Said:
    """An answer. `new` counts generated tokens with the one that ended the turn, `reused` prompt tokens that were not
    read again. `reason` is stop or length; `cut` says that the server returned it before it was done."""

    text: str
    ids: tuple[int, ...]
    prompt: int
    new: int
    reason: str
    edits: tuple[EditReport, ...]
    reused: int
    tokens: tuple[Token, ...] | None
    cut: bool = False


@dataclass(eq=False)
class Job:
    """One row's worth of work. `told` gets its text as it comes, where it streams; `done` its Said or its error, once.
    `tops` is how many alternatives each token comes with (None: no log-probabilities at all). `after` is a job with the
    same prompt and edits, whose reading it waits for."""

    ids: Ids
    roles: Ids | None
    limit: int
    done: Callable[[Said | Exception], None]
    told: Callable[[str, tuple[Token, ...]], None] | None = None
    edits: RowEdits | None = None
    step: int = 0
    sampling: Sampling | None = None
    top_p: float = 1.0
    stops: tuple[str, ...] = ()
    tops: int | None = None
    deadline: float | None = None  # time.monotonic()
    after: Job | None = None
    cancelled: bool = False
    read: bool = False  # its prompt was read, or it is over


@dataclass
class Stats:
    """Counts since the start."""

    steps: int = 0
    forwards: int = 0
    failed_forwards: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    edits_fired: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclass(eq=False)
class _Live:
    job: Job
    row: int
    tokens: Ids  # [prompt + limit]
    signatures: Ids
    key: str
    depends: int
    uniforms: Iterator[float] | None
    speech: Speech
    done: int = 0  # tokens in the cache
    reused: int = 0
    said: list[int] = field(default_factory=list)
    told: list[Token] = field(default_factory=list)
    dirty: bool = False  # it left numbers that cannot be trusted

    @property
    def prompt(self) -> int:
        return len(self.job.ids)

    def piece(self, size: int) -> Piece:
        job, stop = self.job, min(self.done + size, self.prompt + len(self.said))
        return Piece(self.tokens[self.done : stop], self.done, self.prompt, job.roles, job.step, job.edits is not None)


class Batch:
    """Up to `rows` requests at work on one subject's weights. `subject` is a LocalSubject as it was loaded."""

    def __init__(
        self, subject: Any, *, rows: int = ROWS, chunk: int = CHUNK, prefixes: int = PREFIXES, meter: Any = None,
        backend: str | None = None,
    ) -> None:  # fmt: skip
        self.subject, self.chunk, self.most = subject, chunk, rows
        self.rows = Rows(subject.checkpoint, rows + 1, meter, backend)  # one more, to swap two
        self.engine = RowEngine(rows + 1, subject.d_model, subject.model.device)
        self.prefixes = Prefixes(prefixes)
        self.stats = Stats()
        self.waiting: deque[Job] = deque()
        self._live: list[_Live] = []  # by row
        self._decoding = 0  # so many first rows decode
        self._ends = frozenset(subject.checkpoint.chat.end_ids)

    @property
    def busy(self) -> int:
        return len(self._live)

    @property
    def idle(self) -> bool:
        return not self._live and not self.waiting

    def step(self) -> None:
        """One chunk of prompts, one token of every row that decodes."""
        self.stats.steps += 1
        self._expire()
        self._admit()
        if len(self._live) > self._decoding:
            self._read_prompts()
        if self._decoding:
            self._decode()

    def return_all(self, refusal: Exception) -> None:
        """What is at work comes back as far as it got; what waits is refused."""
        for job in self._drained():
            self._tell(job, refusal)
        for live in list(self._live):
            if live.said:
                self._finish(live, "length", cut=True)
            else:
                self._fail(live, refusal)

    def fail_all(self, error: Exception) -> None:
        """Everything ends with this error, and no row is trusted any more."""
        for job in self._drained():
            self._tell(job, error)
        for live in list(self._live):
            live.dirty = True
            self._fail(live, error)

    def abandoned(self) -> list[Job]:
        """All jobs that are here, which are here no more. No row is touched; the batch is not to be used again."""
        jobs = [*(live.job for live in self._live), *self.waiting]
        self._live, self._decoding = [], 0
        self.waiting.clear()
        return jobs

    def _drained(self) -> Iterator[Job]:
        while self.waiting:
            yield self.waiting.popleft()

    # who is here

    def _expire(self) -> None:
        now = time.monotonic()
        for live in list(self._live):
            if live.job.cancelled:
                self._fail(live, None)
            elif live.job.deadline is not None and now > live.job.deadline:
                self._fail(live, TookTooLong())
        if any(j.cancelled or (j.deadline is not None and now > j.deadline) for j in self.waiting):
            for job in [self.waiting.popleft() for _ in range(len(self.waiting))]:
                if job.cancelled:
                    self.stats.cancelled += 1
                    job.read = True
                elif job.deadline is not None and now > job.deadline:
                    self._tell(job, TookTooLong())
                else:
                    self.waiting.append(job)

    def _admit(self) -> None:
        held: list[Job] = []
        while self.waiting and len(self._live) < self.most:
            job = self.waiting.popleft()
            if job.after is not None and not job.after.read:
                held.append(job)
                continue
            try:
                self._take_in(job)
            except Exception as error:
                self.engine.clear(len(self._live))
                self.stats.failed += 1
                self._tell(job, error)
        self.waiting.extendleft(reversed(held))

    def _take_in(self, job: Job) -> None:
        row, edits = len(self._live), job.edits
        tokens = np.concatenate([job.ids, np.zeros(job.limit, dtype=np.int64)])
        key = edits.at_step(job.step) if edits is not None else ""
        live = _Live(
            job, row, tokens, signature(len(job.ids), len(tokens), job.roles), key, edits.depends if edits else 0,
            job.sampling.stream(job.ids, job.step) if job.sampling else None,
            Speech(self.subject.checkpoint.chat.decode, job.stops),
        )  # fmt: skip
        if edits is not None:
            self.engine.put(row, edits, job.step)
        self._reuse(live)
        self._live.append(live)

    def _reuse(self, live: _Live) -> None:
        """Copies the longest past that this prompt shares, from what was kept or from a row at work."""
        most = live.prompt - 1  # the decision token is always read: its logits are wanted
        past, size = self.prefixes.find(live.key, live.job.ids, live.signatures[: live.prompt], live.depends)
        here = [
            (min(common(live.job.ids, live.signatures, o.tokens, o.signatures, live.depends), o.done), o.row)
            for o in self._live if o.key == live.key
        ]  # fmt: skip
        near, row = max(here, default=(0, -1))
        size, near = min(size, most), min(near, most)
        if near > size:
            self.rows.move(row, live.row, near)
            self.engine.put_fired(live.row, self.engine.fired(row, near))
        elif past is not None and size > 0:
            self.rows.put(live.row, past.held, size)
            self.engine.put_fired(live.row, past.fired[:size])
        live.done = live.reused = max(size, near, 0)
        self.stats.reused_tokens += live.reused

    # forwards

    def _read_prompts(self) -> None:
        first = self._decoding
        lives = self._live[first : first + TOGETHER]
        width = max(1, self.chunk // len(lives))
        for live, logits in self._forward(lives, [live.piece(width) for live in lives]):
            if live.done == live.prompt:
                live.job.read = True
                self._swap(live.row, self._decoding)
                self._decoding += 1
                self._hear([live], logits[None])

    def _decode(self) -> None:
        lives = self._live[: self._decoding]
        found = self._forward(lives, [live.piece(1) for live in lives])
        if found:
            self._hear([live for live, _ in found], torch.stack([logits for _, logits in found]))

    def _forward(self, lives: Sequence[_Live], pieces: Sequence[Piece]) -> list[tuple[_Live, Tensor]]:
        """(row, its logits [V]) of those whose forward went well. Where one fails, each row is tried alone, so that
        it takes down nobody but who caused it; the others have read nothing twice, as places are positions."""
        try:
            logits = self._run(lives[0].row, pieces)
        except Exception as error:
            self.stats.failed_forwards += 1
            if len(lives) == 1:
                lives[0].dirty = True
                self._fail(lives[0], error)
                return []
            alone = [(live, piece) for live, piece in zip(lives, pieces, strict=True)]
            return [got for live, piece in alone for got in self._forward([live], [piece])]
        for live, piece in zip(lives, pieces, strict=True):
            live.done += len(piece.ids)
        return list(zip(lives, logits, strict=True))

    def _run(self, first: int, pieces: Sequence[Piece]) -> Tensor:
        self.stats.forwards += 1
        flops = self.engine.flops(first, [len(p.ids) for p in pieces])
        with self.subject.checkpoint.lock:
            logits = self.rows.forward(
                first, pieces, lambda span: self.engine.hooks(span, self.rows.room), flops, self.engine.traced
            )
        self.stats.prompt_tokens += sum(len(p.ids) for p in pieces if p.start < p.prompt)
        return logits

    def _hear(self, lives: Sequence[_Live], logits: Tensor) -> None:
        """The next token of each row."""
        with torch.inference_mode():
            largest, best = (t.tolist() for t in logits.max(-1))
            for i, live in enumerate(lives):
                if not np.isfinite(largest[i]):
                    live.dirty = True
                    self._fail(live, _no_numbers(live))
                    continue
                token = best[i] if live.uniforms is None else self._draw(live, logits[i])
                self._say(live, token, logits[i])

    def _draw(self, live: _Live, scores: Tensor) -> int:
        assert live.job.sampling is not None and live.uniforms is not None
        scores = nucleus(scores.float(), live.job.sampling.temperature, live.job.top_p)
        return live.job.sampling.choose(scores, next(live.uniforms))

    def _say(self, live: _Live, token: int, scores: Tensor) -> None:
        job, ended = live.job, token in self._ends
        live.tokens[live.prompt + len(live.said)] = token
        live.said.append(token)
        self.stats.new_tokens += 1
        told: tuple[Token, ...] = ()
        if job.tops is not None and not ended:
            told = (self._token(token, scores, job.tops),)
            live.told += told
        if not ended:
            piece = live.speech.add(token)
            if job.told is not None and (piece or told):
                job.told(piece, told)
        if ended or live.speech.stopped:
            self._finish(live, "stop")
        elif len(live.said) >= job.limit:
            self._finish(live, "length")

    def _token(self, token: int, scores: Tensor, tops: int) -> Token:
        logprobs = scores.float().log_softmax(-1)
        values, ids = logprobs.topk(min(tops, len(logprobs)))
        top = tuple((self._text(i), max(v, NEVER)) for v, i in zip(values.tolist(), ids.tolist(), strict=True))
        return Token(self._text(token), max(float(logprobs[token]), NEVER), top)

    def _text(self, token: int) -> str:
        return str(self.subject.tokenizer.decode([token], clean_up_tokenization_spaces=False))

    # how it ends

    def _finish(self, live: _Live, reason: str, cut: bool = False) -> None:
        rest = live.speech.end()
        if live.job.told is not None and rest:
            live.job.told(rest, ())
        edits = self.engine.reports(live.row, live.signatures[: live.done])
        said = Said(
            live.speech.said, tuple(live.said), live.prompt, len(live.said), "stop" if live.speech.stopped else reason,
            edits, live.reused, tuple(live.told) if live.job.tops is not None else None, cut,
        )  # fmt: skip
        self.stats.finished += 1
        self.stats.edits_fired += sum(edit.fired for edit in edits)
        self._keep(live)
        self._leave(live)
        self._tell(live.job, said)

    def _fail(self, live: _Live, error: Exception | None) -> None:
        """`error` None: nobody waits for it any more."""
        self._leave(live)
        if error is None:
            self.stats.cancelled += 1
            live.job.read = True
            return
        self.stats.failed += 1
        self._tell(live.job, error)

    def _tell(self, job: Job, answer: Said | Exception) -> None:
        job.read = True
        job.done(answer)

    def _keep(self, live: _Live) -> None:
        if live.done * self.rows.bytes_a_token() <= self.prefixes.most:
            held, fired = self.rows.take(live.row, live.done), self.engine.fired(live.row, live.done)
            past = Past(live.key, live.tokens[: live.done].copy(), live.signatures[: live.done], held, fired)
            self.prefixes.keep(past, live.depends)

    def _leave(self, live: _Live) -> None:
        """Frees the row; the last decoding row and the last row of all close the gaps."""
        if live.dirty:
            self.rows.wipe(live.row)
        if live.row < self._decoding:
            self._decoding -= 1
            self._swap(live.row, self._decoding, one_way=True)
        self._swap(live.row, len(self._live) - 1, one_way=True)
        self._live.pop()
        self.engine.clear(live.row)

    def _swap(self, a: int, b: int, *, one_way: bool = False) -> None:
        """Two rows change places; `one_way` where what row `a` holds is needed no more."""
        if a == b:
            return
        left, right = self._live[a], self._live[b]
        if not one_way:
            self._move(a, self.most, left.done)
        self._move(b, a, right.done)
        if not one_way:
            self._move(self.most, b, left.done)
        self._live[a], self._live[b] = right, left
        left.row, right.row = b, a

    def _move(self, source: int, target: int, length: int) -> None:
        self.rows.move(source, target, length)
        self.engine.move(source, target)


def nucleus(scores: Tensor, temperature: float, top_p: float) -> Tensor:
    """scores [V] with all tokens shut out but the most probable, which hold `top_p` of the probability between them."""
    if top_p >= 1:
        return scores
    probabilities, order = (scores.double() / temperature).softmax(-1).sort(descending=True)
    shut = probabilities.cumsum(-1) - probabilities >= top_p
    shut[0] = False
    return scores.masked_fill(torch.zeros_like(shut).scatter(0, order, shut), float("-inf"))


def _no_numbers(live: _Live) -> Exception:
    if live.job.edits is not None and live.job.edits.edits:
        return Overdriven(
            "these edits drive the model out of its numbers",
            expected="finite logits",
            got=f"none after {len(live.said)} tokens",
            do="use smaller strengths",
        )
    return RuntimeError("the model's logits are not finite")
