"""The planted toy as a study would hand it to a method: a small model, a dictionary, items, a rollout, a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tests.features import planted

from fairlead.core.errors import BudgetExceeded
from fairlead.core.protocols import FitContext
from fairlead.study.play import rollout

FEATURE = {"n_decisions": 16, "n_screen": 8, "shortlist": 4, "kept": 2, "strengths": [0.5, 1.0], "k": 2}


@dataclass
class Bench:
    """Everything a fit needs, and the attempts it made."""

    subject: Any
    task: planted.ToyTask
    dictionary: Any
    cap: int = 20
    tried: int = 0
    lanes: int = 4

    def context(self, options: dict[str, Any], sibling: Callable[[str], Any] | None = None, **change: Any) -> Any:
        async def roll(world: Any, items: Any) -> Any:
            return await rollout(self.task, items, world, 8)

        def try_one() -> None:
            if self.tried >= self.cap:
                raise BudgetExceeded("cap")
            self.tried += 1

        def no_sibling(name: str) -> Any:
            raise AssertionError(f"asked for {name}")

        settings: dict[str, Any] = {
            "subject": self.subject, "dictionary": self.dictionary, "train": planted.items("train", 8),
            "validation": planted.items("validation", 6), "seed": 7, "budget": None, "rollout": roll,
            "try_one": try_one, "options": options, "sibling": sibling or no_sibling,
        }  # fmt: skip
        return FitContext(**{**settings, **change})

    async def play(self, world: Any, n: int = 3) -> list[Any]:
        """Outcome data of some test episodes: what was said, with every log-probability."""
        return [e.outcome.data for e in await rollout(self.task, planted.items("test", n), world, self.lanes)]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return planted.subject(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def bench(model: Any) -> Bench:
    subject = model.metered(None)
    return Bench(subject, planted.ToyTask(subject), planted.dictionary(subject))
