"""Activations as a stream of training batches, shuffled and held out by seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import FairleadError, LoadError

Activations = Tensor | Iterable[Tensor]
_CHECKED = 1 << 16  # numbers checked at once


def harvest(
    subject: Any, prompts: Iterable[Any], site: str, *, tokens: str = "all", limit: int | None = None, batch: int = 16
) -> Iterator[Tensor]:
    """Activations [n, d] of `subject` at `site`, prompt batch by prompt batch, at most `limit` rows in all.

    `tokens` is "all" (every real token of a prompt) or "last" (its decision token).
    """
    seen, waiting = 0, []
    for prompt in prompts:
        waiting.append(prompt)
        if len(waiting) == batch:
            rows = _read(subject, waiting, site, tokens)[: None if limit is None else limit - seen]
            waiting, seen = [], seen + len(rows)
            yield rows
            if limit is not None and seen >= limit:
                return
    if waiting:
        yield _read(subject, waiting, site, tokens)[: None if limit is None else limit - seen]


def _read(subject: Any, prompts: Sequence[Any], site: str, tokens: str) -> Tensor:
    found = subject.activations(prompts, [site], tokens=tokens)[site]
    return found if isinstance(found, Tensor) else torch.cat(list(found))


class Stream:
    """Shuffled batches of `batch` rows, with the first rows held out.

    A tensor is permuted once per epoch and read where it lies, never copied. An iterable is read into a shuffle buffer
    that is drained by half and refilled; when it ends it is iterated again, so a list or a re-iterable source gives
    more epochs, and a generator that has run dry raises FairleadError.
    """

    def __init__(
        self, source: Activations, *, batch: int, held_out: int, buffer: int, generator: torch.Generator
    ) -> None:
        self.batch, self.generator, self._source, self._buffer = batch, generator, source, buffer
        self.held_out = torch.empty(0)
        if isinstance(source, Tensor):
            _check(source)
            order = torch.randperm(len(source), generator=generator)
            held_out = min(held_out, len(source) // 5)
            self.held_out, self._pool, self._places = source[order[:held_out]], source, order[held_out:]
            self._pieces: Iterator[Tensor] | None = None
        else:
            self._pieces = iter(source)
            self._pool = self._filled(torch.empty(0), held_out + buffer)
            held_out = min(held_out, len(self._pool) // 5)
            self.held_out, self._pool = self._pool[:held_out], self._pool[held_out:]
            self._places = torch.arange(len(self._pool))
        if len(self._places) < batch:
            raise FairleadError(
                "too few activations to train a dictionary",
                expected=f"at least {batch} rows beside those held out",
                got=str(len(self._places)),
                do="harvest more prompts, or make the batch smaller",
            )
        self._order = self._shuffled()

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.held_out.shape[1]

    def sample(self, rows: int) -> Tensor:
        """The first `rows` rows waiting for training: what to initialise on."""
        return self._pool[self._places[:rows]]

    def next(self) -> Tensor:
        """[batch, d] rows; the next epoch begins when this one has no full batch left."""
        if self._pieces is not None and len(self._order) < max(self.batch, self._buffer // 2):
            rest = self._pool[self._order]
            self._pool = self._filled(rest, self._buffer)
            self._places = torch.arange(len(self._pool))
            self._order = self._shuffled()
        elif len(self._order) < self.batch:
            self._order = self._shuffled()
        chosen, self._order = self._order[: self.batch], self._order[self.batch :]
        return self._pool[chosen]

    def _shuffled(self) -> Tensor:
        """Places in the pool of what waits for training, in a new order."""
        return self._places[torch.randperm(len(self._places), generator=self.generator)]

    def _filled(self, rows: Tensor, wanted: int) -> Tensor:
        """`rows` with pieces of the source appended until there are `wanted`; held-out rows are never read again."""
        pieces, total, skip, restarted = [rows] if len(rows) else [], len(rows), 0, False
        while total < wanted and self._pieces is not None:
            piece = next(self._pieces, None)
            if piece is None:
                if restarted or total >= self.batch + len(rows):
                    break
                self._pieces, skip, restarted = iter(self._source), len(self.held_out), True
                continue
            _check(piece)
            piece, skip = piece[skip:], max(0, skip - len(piece))
            pieces.append(piece)
            total += len(piece)
        if total < self.batch:
            raise FairleadError(
                "the activations ran out before training was done",
                expected=f"{self.batch} rows a step",
                got=f"{total} rows left",
                do="pass fewer steps, more prompts, or a tensor (which is used for several epochs)",
            )
        return torch.cat(pieces)


def _check(rows: Tensor) -> None:
    if rows.ndim != 2:
        raise LoadError("activations are not a matrix", expected="[rows, d]", got=str(tuple(rows.shape)))
    if not all(bool(part.isfinite().all()) for part in rows.split(max(1, _CHECKED // max(1, rows.shape[1])))):
        raise LoadError("activations hold NaN or infinity", expected="finite numbers", do="check the model's weights")
