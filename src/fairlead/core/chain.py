"""Fitted parts of an arm `a+b`, as one Fitted: opened in order, saved side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.core.keys import content_key
from fairlead.core.protocols import Fitted, Method


@dataclass(frozen=True)
class Chain:
    """Fitted parts of `a+b`, opened in order: b's world stands on a's."""

    parts: tuple[Fitted[Any], ...]

    @property
    def fingerprint(self) -> str:
        return content_key([part.fingerprint for part in self.parts])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        return self._open(subject)

    @contextmanager
    def _open(self, subject: Any) -> Iterator[Any]:
        with ExitStack() as stack:
            world = subject
            for part in self.parts:
                world = stack.enter_context(part.open(world))
            yield world

    def describe(self) -> dict[str, Any]:
        return {"parts": [part.describe() for part in self.parts]}

    def save(self, path: Path) -> None:
        for i, part in enumerate(self.parts):
            (path / str(i)).mkdir(parents=True)
            part.save(path / str(i))


def load(methods: Sequence[Method[Any]], path: Path) -> Fitted[Any]:
    """What an arm of these methods saved at `path`: the Fitted of its one method, or a Chain."""
    if len(methods) == 1:
        return methods[0].load(path)
    return Chain(tuple(method.load(path / str(i)) for i, method in enumerate(methods)))
