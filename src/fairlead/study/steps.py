"""What a study asks of a worker and what comes back: plain values, so that a worker may sit on another machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.core.errors import NotApplicable, PlanError
from fairlead.core.records import NOT_APPLICABLE
from fairlead.core.types import Record, Trial


@dataclass(frozen=True)
class Absent:
    """Why another trial's fit is not there: its status, and the reason it gave."""

    status: str
    reason: str

    def error(self, message: str) -> NotApplicable | PlanError:
        """What asking for it raises: it does not apply here either, or the plan is wrong."""
        return (NotApplicable if self.status == NOT_APPLICABLE else PlanError)(message, got=self.reason)


@dataclass(frozen=True)
class Fit:
    """Fit this trial's arm. `siblings`: where the fits of other arms lie, on the same model and seed."""

    trial: Trial
    siblings: Mapping[str, Path | Absent]


@dataclass(frozen=True)
class Play:
    """Run the chunk of test items that begins at `start`, and record those of its items that are `missing`."""

    trial: Trial
    fitted: Path
    start: int
    missing: frozenset[str]


@dataclass(frozen=True)
class Fitted:
    """The answer to Fit: how to save what was fitted, what was chosen, what it cost."""

    save: Callable[[Path], None]
    describe: Mapping[str, Any]
    cost: Mapping[str, Any]


@dataclass(frozen=True)
class Recorded:
    """The answer to Play: a Record without its trace's address, and the trace where one is kept."""

    record: Record
    trace: Mapping[str, Any] | None


@dataclass(frozen=True)
class Ended:
    """An answer that ends a trial: it does not apply, crashed, or was stopped. `unfinished` is what a fit cost that
    came to no end."""

    status: str
    reason: str
    unfinished: Mapping[str, Any] | None = None


Step = Fit | Play
Answer = Fitted | tuple[Recorded, ...] | Ended
