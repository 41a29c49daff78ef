"""A Ray in this process that dies on cue. What is sent to an actor and what it answers is pickled, as Ray would."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from fairlead.core import crew


class RayError(Exception):
    pass


class RayActorError(RayError):
    pass


class ActorUnavailableError(RayActorError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(eq=False)
class Ref:
    call: Callable[..., Any]
    args: tuple[Any, ...]
    number: int = field(default_factory=count().__next__)


@dataclass(eq=False)
class FakeRay:
    """Answers in the order in which it was asked. `fate(n, step)` is the error of the n-th answer, or None."""

    fate: Callable[[int, Any], Exception | None] = lambda n, step: None
    resources: dict[str, float] = field(default_factory=lambda: {"CPU": 2.0})
    up: bool = True
    asked: list[Any] = field(default_factory=list)
    killed: int = 0
    closed: int = 0
    hired: int = 0
    left: int = 0

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def remote(self, **_how: Any) -> Any:
        def wrap(kind: Any) -> Any:
            def make(*args: Any) -> Any:
                self.hired += 1
                hand = kind(*args)
                methods = {"hello": hand.hello, "do": hand.do}
                called = {name: SimpleNamespace(remote=lambda *a, c=call: Ref(c, a)) for name, call in methods.items()}
                return SimpleNamespace(**called, close=SimpleNamespace(remote=self._close), hand=hand)

            return SimpleNamespace(remote=make)

        return wrap

    def _close(self) -> Ref:
        self.closed += 1
        return Ref(lambda: None, ())

    def wait(self, refs: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
        assert refs, "nothing was asked, and nothing will come"
        refs = sorted(refs, key=lambda ref: ref.number)
        return (refs[:num_returns], refs[num_returns:]) if self.up else ([], refs)

    def get(self, ref: Any) -> Any:
        step = ref.args[0] if ref.args else "hello"
        self.asked.append(step)
        error = self.fate(len(self.asked), step)
        if error is not None:
            raise error
        try:
            return pickle.loads(pickle.dumps(ref.call(*pickle.loads(pickle.dumps(ref.args)))))
        except Exception as cause:
            raise RayTaskError(cause) from cause

    def kill(self, actor: Any, no_restart: bool) -> None:
        self.killed += 1
        if hasattr(actor.hand, "_worker"):
            actor.hand.close()  # a process that ends lets go of its handles

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    available_resources = cluster_resources


def use(ray: FakeRay, patch: pytest.MonkeyPatch) -> FakeRay:
    """Every crew meets `ray` while the patch lasts."""

    def leave() -> None:
        ray.left += 1

    patch.setattr(crew, "join", lambda cluster: (ray, leave))
    return ray
