"""The seams. Each protocol has a public fake or a tiny implementation, and a conformance test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from fairlead.core.types import Episode, Generation, Item, Messages, Needs, Outcome, Score

W = TypeVar("W")
WIn = TypeVar("WIn", contravariant=True)
Array = Any  # an array of floats; torch fills it in lm and below


@runtime_checkable
class Subject(Protocol):
    """A model that acts. Subjects are values: `prompted` returns a new one and leaves this one alone."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the text a prompt yields could change: weights, system line, edits."""
        ...

    async def generate(
        self, prompt: Messages, *, step: int = 0, legal: Sequence[str] | None = None, max_tokens: int = 32
    ) -> Generation:
        """The next assistant turn. With `legal`, the most probable of those strings and all their
        log-probabilities; without, free greedy decoding. `step` is the agent step, for edit gates."""
        ...

    async def logprobs(self, prompt: Messages, continuations: Sequence[str], *, step: int = 0) -> tuple[float, ...]:
        """log p(continuation | prompt), one per continuation, summed over tokens, in nats."""
        ...

    def prompted(self, system: str) -> Subject:
        """This subject with `system` appended to every prompt's system line."""
        ...

    def seat(self, order: int) -> AbstractAsyncContextManager[Subject]:
        """A seat in the current lockstep group. Requests of all seats run as one batch, sorted by `order`,
        when every taken seat has asked, so results never depend on timing."""
        ...


class Task(Protocol[WIn]):
    """`needs` is what the task's world is: a subject, a predictor or claims."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Needs: ...

    def items(self, split: str) -> Sequence[Item]: ...
    def manifest(self, split: str) -> str:
        """sha256 over the split's items: the data a result belongs to."""
        ...

    async def run(self, item: Item, world: WIn) -> Outcome: ...
    def score(self, item: Item, outcome: Outcome) -> Score: ...


class Fitted(Protocol[W]):
    """A method after fitting. Plain data: safetensors and JSON on disk, never pickle."""

    @property
    def fingerprint(self) -> str: ...

    def open(self, subject: W) -> AbstractContextManager[W]: ...
    def describe(self) -> dict[str, Any]:
        """What was chosen and why, as JSON: prompt, edits, swept values, feature cards."""
        ...

    def save(self, path: Path) -> None: ...


@dataclass(frozen=True)
class FitContext(Generic[W]):
    """All that a Method may use while fitting. There is no test split in here.

    `subject` is charged to this arm's ledger. `rollout` runs and scores items on a world.
    `try_one()` counts one tuning attempt and raises BudgetExceeded when the cap is reached.
    `options` holds the arm's own table from the plan.
    """

    subject: W
    dictionary: Any | None
    train: Sequence[Item]
    validation: Sequence[Item]
    seed: int
    budget: Any
    rollout: Callable[[W, Sequence[Item]], Awaitable[list[Episode]]]
    try_one: Callable[[], None]
    options: dict[str, Any]
    sibling: Callable[[str], Fitted[W]]  # another arm's Fitted in this trial group (controls match `feature`)


class Method(Protocol[W]):
    """One contender, baseline or control."""

    @property
    def name(self) -> str: ...

    @property
    def makes(self) -> Needs: ...

    async def fit(self, ctx: FitContext[W]) -> Fitted[W]: ...
    def load(self, path: Path) -> Fitted[W]: ...


@runtime_checkable
class Dictionary(Protocol):
    """Encodes activations at one site into `n_features` latents and back. Shapes: x is [..., d_in],
    latents are [..., n_features]; `decoder_rows(ids)` is [len(ids), d_in]."""

    @property
    def name(self) -> str: ...

    @property
    def site(self) -> str: ...

    @property
    def d_in(self) -> int: ...

    @property
    def n_features(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, x: Array) -> Array: ...
    def decode(self, f: Array) -> Array: ...
