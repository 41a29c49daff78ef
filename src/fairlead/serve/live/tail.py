"""A run directory read while it grows: whole lines only, each once, and nothing that could disturb who writes it.

Rates and intervals are made as the judge makes them (Wilson at the effective n where items of one cluster agree), on
the plan's slice. While a study runs they are provisional, and no test is made of them: looking again and again at a
p value would be a test of another kind.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.core import plugins
from fairlead.core.errors import FairleadError, RecordError
from fairlead.core.lock import LOCK
from fairlead.core.lock import read as read_locks
from fairlead.core.plan import REFERENCE, Plan, plan_from_json
from fairlead.core.reading import Reader
from fairlead.core.records import COMPLETE, FINAL, from_row
from fairlead.core.types import Record, Trial
from fairlead.judge import stats
from fairlead.report.headline import kind_of, organism
from fairlead.study.items import choose

Group = tuple[str, str]  # model, decoding


@dataclass
class _File:
    """One trial's JSONL, and how far it was read."""

    place: int = 0
    records: list[Record] = field(default_factory=list)
    damage: str = ""


@dataclass(frozen=True)
class Rate:
    """A mean on the plan's slice with its 95 % interval; None is not measured."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int


class Tail:
    """A run directory. `refresh` reads what is new and says whether something was; nothing is ever written."""

    def __init__(self, path: str | Path, *, begins: bool = False) -> None:
        """`begins`: the run may not be there yet. RecordError where nothing is, and nothing begins."""
        self.path = Path(path)
        if not begins and not (self.path / "plan.json").is_file() and not any((self.path / "trials").glob("*.jsonl")):
            raise RecordError(f"no run in {self.path}", expected="a run directory", do="run a study first")
        self.version = 0
        self.plan: Plan | None = None
        self.trials: tuple[Trial, ...] = ()
        self.markers: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []
        self._files: dict[str, _File] = {}
        self._reader = Reader(from_row)
        self._rates: dict[tuple[str, ...], tuple[int, Rate]] = {}
        self._planned: dict[tuple[str, str], int] = {}
        self._fitted: set[str] = set()
        self._changed = 0.0

    # ---- reading

    def refresh(self) -> bool:
        """True when something is new since the last call."""
        before, self.notes = self._size(), []
        self._read_plan()
        for trial in self.trials:
            self._read(trial.key)
            if self.markers.get(trial.key, {}).get("status") not in FINAL:
                marker = _json(self.path / "trials" / f"{trial.key}.done")
                if isinstance(marker, dict):
                    self.markers[trial.key] = marker
            if trial.key not in self._fitted and (self.path / "fitted" / trial.key).is_dir():
                self._fitted.add(trial.key)
        if new := self._size() != before:
            self.version += 1
            self._changed = time.time()
        return new

    def _size(self) -> tuple[Any, ...]:
        states = tuple(str(m.get("status")) for m in self.markers.values())
        return self.trials, states, len(self._fitted), sum(len(f.records) for f in self.files)

    @property
    def files(self) -> list[_File]:
        return list(self._files.values())

    def _read_plan(self) -> None:
        if self.plan is None and (found := _json(self.path / "plan.json")):
            try:
                self.plan = plan_from_json(found)
            except (FairleadError, ValueError, TypeError, AttributeError) as error:
                self.notes.append(f"plan.json cannot be read: {error}")
        listed = _json(self.path / "trials.json")
        try:
            trials = tuple(Trial(**row) for row in listed or ())
        except TypeError as error:
            trials = ()
            self.notes.append(f"trials.json cannot be read: {error}")
        if not trials:
            self._read_unlisted()
            firsts = [file.records[0] for file in self.files if file.records]
            trials = tuple(Trial(r.trial, r.arm, r.model, None, r.decoding, r.seed) for r in firsts)
        self.trials = trials

    def _read_unlisted(self) -> None:
        for path in sorted((self.path / "trials").glob("*.jsonl")):
            self._read(path.stem)

    def _read(self, key: str) -> None:
        """Appends the whole lines that are new; a line still being written waits for its end."""
        path, file = self.path / "trials" / f"{key}.jsonl", self._files.setdefault(key, _File())
        if file.damage:
            self.notes.append(file.damage)
            return
        try:
            if path.stat().st_size < file.place:  # cut back: the writer threw away a torn line, or restarted
                file.place, file.records = 0, []
            with path.open("rb") as lines:
                lines.seek(file.place)
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    file.records.append(self._reader.record(json.loads(line)))
                    file.place += len(line)
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError, RecordError) as error:
            file.damage = f"trials/{key}.jsonl is damaged behind Record {len(file.records)}: {str(error)[:200]}"
            self.notes.append(file.damage)

    # ---- what is shown

    def records(self, keys: Sequence[str]) -> list[Record]:
        """All Records of some trials, in their order."""
        return [record for key in keys if key in self._files for record in self._files[key].records]

    @property
    def primary(self) -> str:
        if self.plan is not None:
            return self.plan.primary
        scored = (r.score for f in self.files for r in f.records if r.score)
        return next((name for score in scored for name in score), "strict")

    @property
    def claim(self) -> str:
        return (self.plan.claim if self.plan else "") or "feature"

    @property
    def where(self) -> Mapping[str, str]:
        return self.plan.where if self.plan else {}

    def groups(self) -> dict[Group, dict[str, list[Trial]]]:
        """Trials by (model, decoding) and arm. The reference model's arm is a row of every group, as in the report."""
        found: dict[Group, dict[str, list[Trial]]] = {}
        for trial in self.trials:
            if trial.arm != REFERENCE:
                found.setdefault((trial.model, trial.decoding), {}).setdefault(trial.arm, []).append(trial)
        for trial in self.trials:
            if trial.arm == REFERENCE:
                for (_, decoding), arms in found.items():
                    if decoding == trial.decoding:
                        arms.setdefault(REFERENCE, []).append(trial)
        return found

    def status(self) -> dict[str, Any]:
        """Everything of the study view but the items, as JSON."""
        trials = [(trial, self._state(trial)) for trial in self.trials]
        done = sum(state in FINAL for _, state in trials)
        recorded = sum(len(f.records) for f in self.files)
        return {
            "version": self.version,
            "run": self.path.resolve().name,
            "question": self.plan.question if self.plan else self.path.resolve().name,
            "primary": self.primary,
            "claim": self.claim,
            "where": dict(self.where),
            "lock": self._lock(),
            "complete": bool(trials) and done == len(trials),
            "recording": recording(self.path / "run.lock"),
            "since": max(0.0, time.time() - self._changed),
            "trials": {"done": done, "of": len(trials)},
            "items": {"done": recorded, "of": self._of(trials), "left_seconds": self._left(trials)},
            "groups": [self._group(group, arms, dict(trials)) for group, arms in self.groups().items()],
            "notes": list(dict.fromkeys(self.notes)),
        }

    def _group(self, group: Group, arms: Mapping[str, list[Trial]], states: Mapping[Trial, str]) -> dict[str, Any]:
        rows = []
        for arm, trials in arms.items():
            records = self.records([t.key for t in trials])
            planned = [self.planned(t) for t in trials]
            reasons = [str(self.markers.get(t.key, {}).get("reason", "")) for t in trials]
            rows.append(
                {
                    "arm": arm,
                    "kind": kind_of(arm),
                    "status": _least([states[t] for t in trials]),
                    "reason": next(filter(None, reasons), ""),
                    "done": len(records),
                    "planned": None if None in planned else sum(p for p in planned if p is not None),
                    "errors": sum(r.error is not None for r in records),
                    "said": list(dict.fromkeys(r.error for r in records if r.error is not None))[:3],
                    "rate": vars(self._rate((*group, arm), records)),
                }
            )
        model, decoding = group
        return {"model": model, "organism": organism(model), "decoding": decoding, "arms": rows}

    def _rate(self, where: tuple[str, ...], records: Sequence[Record]) -> Rate:
        known = self._rates.get(where)
        if known is None or known[0] != len(records):
            known = self._rates[where] = (len(records), rate(records, self.primary, self.where))
        return known[1]

    def _state(self, trial: Trial) -> str:
        """complete, not_applicable, over_budget, failed; running, fitting or waiting."""
        marked = self.markers.get(trial.key, {}).get("status")
        if isinstance(marked, str):
            return marked
        if self._files.get(trial.key, _File()).records or trial.key in self._fitted:
            return "running"
        return "waiting"

    def planned(self, trial: Trial) -> int | None:
        """How many items a trial has: as its marker says, or as the plan does; None where neither can."""
        stated = self.markers.get(trial.key, {}).get("planned")
        if isinstance(stated, int):
            return stated
        if self.plan is None:
            return None
        where = (trial.decoding, str(self.plan.n_of(trial.arm)))
        if where not in self._planned:
            try:
                task = plugins.get("tasks", self.plan.task)(self.plan.options_for_task(trial.decoding))
                found = choose(task.items("test"), int(where[1]), self.plan.n_strata, f"task {self.plan.task!r}")
                self._planned[where] = len(found)
            except FairleadError:
                return None
        return self._planned[where]

    def _of(self, trials: Sequence[tuple[Trial, str]]) -> int | None:
        planned = [self.planned(trial) for trial, _ in trials]
        return None if None in planned else sum(p for p in planned if p is not None)

    def _left(self, trials: Sequence[tuple[Trial, str]]) -> float | None:
        """Seconds that the items still to be run will take, at the mean of those that were; fits are not counted.
        None before the first item, and where it is not known how many there are."""
        spent, seen, left = 0.0, 0, 0
        for trial, state in trials:
            records = self._files.get(trial.key, _File()).records
            spent, seen = spent + sum(r.cost.seconds for r in records), seen + len(records)
            if state not in FINAL:
                planned = self.planned(trial)
                if planned is None:
                    return None
                left += max(0, planned - len(records))
        return None if not seen else left * spent / seen

    def _lock(self) -> str:
        """What a reader must be told: locked, or exploratory."""
        try:
            locks = read_locks(self.path / LOCK)
        except FairleadError:
            return "the lock cannot be read"
        known = set(locks.hashes) if locks else set()
        records = (r for f in self.files for r in f.records)
        if locks is None or any(r.lock not in known for r in records):
            return "exploratory: not locked before the test split was opened"
        return f"locked {locks.current.hash[:16]}; witness {locks.witness}"

    def items(self, model: str, decoding: str) -> dict[str, Any]:
        """Each item with one mark an arm: 1 and 0 for the primary measure, e for an error, . for not yet (or not
        measured); the first seed of an arm speaks. `traced` says whether there is something to replay."""
        arms = self.groups().get((model, decoding), {})
        rows: dict[str, dict[str, Any]] = {}
        for place, trials in enumerate(arms.values()):
            for record in self.records([trials[0].key]):
                row = rows.setdefault(record.item, {"id": record.item, "marks": ["."] * len(arms), "traced": False})
                row["marks"][place] = _mark(record, self.primary)
                row["traced"] = row["traced"] or record.trace is not None
        found = [{**row, "marks": "".join(row["marks"])} for row in rows.values()]
        return {"arms": list(arms), "items": found}


def rate(records: Sequence[Record], measure: str, where: Mapping[str, str]) -> Rate:
    """The mean of a measure on a slice, as the judge has it."""
    chosen = [r for r in records if r.score and all(r.strata.get(k) == v for k, v in where.items())]
    pairs = [(r.score[measure], r.cluster) for r in chosen if r.score and r.score.get(measure) is not None]
    values = [float(v) for v, _ in pairs if v is not None]
    if not values or not all(map(math.isfinite, values)):
        return Rate(None, None, None, 0, 0)
    codes = {cluster: i for i, cluster in enumerate(dict.fromkeys(c for _, c in pairs))}
    clusters = [codes[c] for _, c in pairs]
    mean = sum(values) / len(values)
    if all(isinstance(v, bool) for v, _ in pairs):
        effective = stats.clustering(values, clusters).effective_n
        interval = stats.wilson(mean * effective, effective)
    else:
        interval = stats.mean_interval(values, clusters)
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Rate(mean, low, high, len(values), len(codes))


def recording(lock: Path) -> bool | None:
    """Whether a process holds the run's lock, from the system's list of locks: taking it to find out could turn the
    writer away. None where the system keeps no such list."""
    try:
        about = lock.stat()
        held = Path("/proc/locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    name = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    return any(name in line.split() and "FLOCK" in line for line in held.splitlines())


def _mark(record: Record, primary: str) -> str:
    if record.error is not None:
        return "e"
    value = (record.score or {}).get(primary)
    return "." if value is None else "1" if value else "0"


def _least(states: Sequence[str]) -> str:
    """What an arm of several seeds is: as far as the seed that is behind, but running when one runs."""
    for state in ("running", "failed", "over_budget", "waiting", "not_applicable", COMPLETE):
        if state in states:
            return "running" if state == "waiting" and COMPLETE in states else state
    return states[0]


def _json(path: Path) -> Any:
    """A small JSON file that may be replaced meanwhile; None where there is none, or none that can be read yet."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None

