"""What a report reads: one run directory, as plain values. A report never runs and never re-scores anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fairlead.core.errors import RecordError
from fairlead.core.plan import Plan
from fairlead.core.records import Run
from fairlead.core.types import Record
from fairlead.judge import Question, Verdict, judge

Where = tuple[str, str, str]  # model, decoding, arm
CLAIM, BASELINE = "feature", "none"
FUNNEL = ("emitted", "valid", "grounded", "executed", "effective")  # a column of its own
MEASURES = ("strict", "loose", "fell", "fell_final")  # in reading order; any others follow by name


@dataclass(frozen=True)
class Source:
    """A run and what belongs to it. `described` is keyed by (model, decoding, arm); the first seed
    speaks for the arm."""

    run: Run
    run_id: str
    described: Mapping[Where, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def plan(self) -> Plan | None:
        return self.run.plan

    @property
    def records(self) -> Sequence[Record]:
        return self.run.records

    @property
    def question(self) -> str:
        return self.plan.question if self.plan else self.run_id

    @property
    def arms(self) -> tuple[str, ...]:
        return self.plan.arms if self.plan else tuple(dict.fromkeys(r.arm for r in self.records))

    @property
    def models(self) -> tuple[str, ...]:
        return self.plan.models if self.plan else tuple(dict.fromkeys(r.model for r in self.records))

    @property
    def decodings(self) -> tuple[str, ...]:
        return self.plan.decoding if self.plan else tuple(dict.fromkeys(r.decoding for r in self.records))

    @property
    def claim(self) -> str:
        """The arm that the question is about."""
        return self.plan.claim if self.plan and self.plan.claim else CLAIM

    @cached_property
    def verdict(self) -> Verdict:
        """What the judge makes of these Records, now: a report never shows a verdict that its Records do not give.
        Without a plan there is no pre-registered question; the numbers are then the same, the verdict is not shown."""
        return judge(self.run, None if self.plan else self._bare_question())

    def _bare_question(self) -> Question:
        modes = sorted(self.decodings)  # constrained before free
        traps = {r.strata.get("trap") for r in self.records}
        return Question(self.claim, self.measures[0], 0.0, {"trap": "on"} if "on" in traps else {}, decoding=modes[0])

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of all measures, the plan's primary first."""
        seen = {name for record in self.records if record.score for name in record.score}.difference(FUNNEL)
        known = [name for name in MEASURES if name in seen] + sorted(seen.difference(MEASURES))
        primary = self.plan.primary if self.plan else next(iter(known), MEASURES[0])
        return (primary, *(name for name in known if name != primary))

    @property
    def complete(self) -> int:
        return sum(state.status in ("complete", "not_applicable") for state in self.run.trials)

    def trace(self, digest: str) -> Mapping[str, Any] | None:
        """The trace artifact with this hash; None when it is not on disk (a run copied without its traces)."""
        if not (self.run.path / "traces" / f"{digest}.json.gz").is_file():
            return None
        return self.run.read_trace(digest)


def read(run_dir: str | Path, name: str | None = None) -> Source:
    """Read a run, under another `name` than its directory's if one is given. Raises RecordError when there is
    nothing to report."""
    run = Run.open(run_dir)
    if not run.records:
        raise RecordError(f"no Records yet in {run.path}", expected="trials/*.jsonl", do="run `fairlead run` first")
    path = run.path.resolve()
    described: dict[Where, Mapping[str, Any]] = {}
    for state in run.trials:
        trial = state.trial
        where = (trial.model, trial.decoding, trial.arm)
        if trial.key in run.fitted:
            described.setdefault(where, run.fitted[trial.key])
    return Source(run, name or path.name, described)
