"""Embedding by workers on Ray: batches are made here as an inline embedder makes them, so the bytes are the same.

Plain actors, not Ray Data: a text's low bits depend on what shares its batch, and Ray Data batches by its own measure.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fairlead.core.crew import Cluster, Crew, refuse_given_up
from fairlead.core.errors import WorkerError
from fairlead.lm.embed import Pooled, Progress, Sentences, groups
from fairlead.lm.remote import Vectors

AT_ONCE = 4  # batches that are sent in one message

Made = tuple[Sentences | Pooled, int]  # an embedder, and the parameters that its forwards are charged for


@dataclass(frozen=True)
class About:
    """What is known of an embedder whose weights lie elsewhere."""

    name: str
    fingerprint: str
    width: int
    batch: int
    by_length: bool
    parameters: int


class _Hand:
    """An embedder on its machine."""

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make

    def hello(self) -> About:
        self._embedder, parameters = self._make()
        e = self._embedder
        return About(e.name, e.fingerprint, e.width, e.batch, e.by_length, parameters)

    def do(self, batches: Sequence[Sequence[str]]) -> list[Vectors]:
        return [self._embedder.embed_now(texts) for texts in batches]

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _Part:
    texts: Sequence[str]
    places: Sequence[Sequence[int]]
    keep: Callable[[Sequence[int], Vectors], None]
    likes: str = ""

    @property
    def key(self) -> str:
        return f"texts from {self.places[0][0]}"

    name = key

    def waits(self, unsettled: frozenset[str]) -> bool:  # noqa: ARG002
        return False

    def steps(self) -> Generator[list[list[str]], list[Vectors], None]:
        found = yield [[self.texts[i] for i in part] for part in self.places]
        for part, rows in zip(self.places, found, strict=True):
            self.keep(part, rows)


class OnRay:
    """An Embedder whose model `make` loads on every worker (it is pickled). Workers stay until `close`."""

    def __init__(self, make: Callable[[], Made], cluster: Cluster) -> None:
        self._stack = ExitStack()
        self._crew = self._stack.enter_context(Crew(partial(_Hand, make), cluster))
        try:
            self.about: About = self._crew.hello()
        except BaseException:
            self.close()
            raise
        self._crew.accept = self._accept

    @property
    def name(self) -> str:
        return self.about.name

    @property
    def fingerprint(self) -> str:
        return self.about.fingerprint

    async def embed(self, texts: Sequence[str], *, progress: Progress | None = None) -> Vectors:
        """Unit rows [n, d]. Holds the event loop up: whoever waits for workers has nothing else to do."""
        out, done = np.zeros((len(texts), self.about.width), dtype=np.float32), 0
        batches = groups(texts, self.about.batch, by_length=self.about.by_length)

        def keep(part: Sequence[int], rows: Vectors) -> None:
            nonlocal done
            out[list(part)] = rows
            done += len(part)
            if progress:
                progress(done, sum(map(len, batches)))

        parts = [_Part(texts, batches[i : i + AT_ONCE], keep) for i in range(0, len(batches), AT_ONCE)]
        refuse_given_up(self._crew.work(parts), "parts of the texts")
        return out

    def close(self) -> None:
        """Send the workers home."""
        self._stack.close()

    def _accept(self, other: Any) -> None:
        if other != self.about:
            raise WorkerError("a worker would embed otherwise", expected=str(self.about), got=str(other),
                              do="bring the same model to every machine")  # fmt: skip
