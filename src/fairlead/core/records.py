"""Records on disk: append-only, readable by anyone, never half-written.

    <run>/plan.toml            the plan as given        plan.json      canonical; its sha256 is the plan's hash
          trials.json          coordinates of the trials of this plan and this source
          facts.json           what their keys hash           lock.jsonl  core.lock: the lock, amendments, witnesses
          sessions.jsonl       one line each time work was begun: lock or why none, code, packages
          run.lock             who is recording here; empty when nobody is
          trials/<key>.jsonl   one Record a line        <key>.done     written last: status, counts, reason
          fitted/<key>/        what the method saved    describe.json  what was chosen; cost.json: what it cost
          traces/<sha256>.json.gz                       ledger/<key>.json

A line that a kill cut short is dropped when the run resumes; the item it belonged to is run again.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import shutil
import socket
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairlead.core.errors import PlanChanged, PlanError, RecordError
from fairlead.core.keys import canonical, sha256
from fairlead.core.lock import LOCK, Locks
from fairlead.core.lock import read as read_locks
from fairlead.core.plan import Facts, Plan, plan_from_json
from fairlead.core.reading import Reader, without_collection
from fairlead.core.seal import file_hash, seal, trial_hashes
from fairlead.core.types import Cost, Record, Trial

COMPLETE, FAILED, NOT_APPLICABLE, OVER_BUDGET = "complete", "failed", "not_applicable", "over_budget"
FINAL = (COMPLETE, NOT_APPLICABLE, OVER_BUDGET)  # a failed fit is tried again; nothing of the test split was seen


@dataclass(frozen=True)
class TrialState:
    """A trial and how far it is. `status` is complete, failed, not_applicable, partial or pending."""

    trial: Trial
    status: str
    reason: str = ""
    records: int = 0
    planned: int | None = None
    evaluations: int | None = None  # how often this machine saw it run to its end; None where nobody counted


class Store:
    """The writing side; one process at a time. Use as a context manager, so that the lock is let go.

    The kernel keeps two processes apart, and lets go of the lock when its holder dies. Some network disks do not, and a
    lock file can be removed: so the holder also leaves its name in the file, and looks before it appends or finishes.
    Whoever came last goes on, and the other one stops."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: int | None = None
        self._owner = ""
        self._torn: set[str] = set()

    def __enter__(self) -> Store:
        with _recording(self.path):
            for name in ("trials", "fitted", "traces", "ledger"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise RecordError(
                f"another process is recording in {self.path}", do="wait for it to end, or use another run directory"
            ) from error
        self._owner = canonical({"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex})
        with _recording(self.path):
            os.ftruncate(self._lock, 0)
            _write_all(self._lock, self._owner.encode())
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            if self._named() == self._owner:
                os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def begin(self, plan: Plan, trials: Sequence[Trial], *, text: str = "", facts: Facts | None = None) -> None:
        """Pin the plan. Raises PlanChanged when Records of another plan are here; nothing is then written."""
        check_unchanged(self.path, plan)
        if text:
            self._write(self.path / "plan.toml", text)
        self._write(self.path / "plan.json", plan.to_json())
        self._write(self.path / "trials.json", canonical([asdict(t) for t in trials]))
        if facts is not None:
            self._write(self.path / "facts.json", canonical(facts.to_json()))

    def session(self, line: Mapping[str, Any]) -> None:
        """Note under which lock, code and packages work begins here."""
        with _recording(self.path), (self.path / "sessions.jsonl").open("ab") as file:
            file.write(canonical(line).encode() + b"\n")

    def records(self, key: str) -> list[Record]:
        """The Records of one trial so far. A torn last line is cut off here, so that it is met only once."""
        path = self._jsonl(key)
        found, good = _read_lines(path)
        if path.exists() and path.stat().st_size > good:
            self._torn.add(key)
            os.truncate(path, good)
        return found

    @property
    def torn(self) -> frozenset[str]:
        """Trials whose last line had been cut short by a kill; the items are run again."""
        return frozenset(self._torn)

    def append(self, records: Sequence[Record]) -> None:
        """Append Records of one trial and fsync. All lines land, or none: on a full disk the file is cut back."""
        if not records:
            return
        self._check_owner()
        key = records[0].trial
        lines = "".join(to_line(record) for record in records).encode()
        with _recording(self.path):
            handle = os.open(self._jsonl(key), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                before = os.fstat(handle).st_size
                try:
                    _write_all(handle, lines)
                    os.fsync(handle)
                except OSError:
                    os.ftruncate(handle, before)
                    raise
            finally:
                os.close(handle)

    def save_trace(self, trace: Mapping[str, Any]) -> str:
        """Write a trace artifact; returns its address, the sha256 of its uncompressed canonical JSON."""
        text = canonical(trace)
        digest = sha256(text)
        path = self.path / "traces" / f"{digest}.json.gz"
        if not path.exists():
            self._write(path, gzip.compress(text.encode(), compresslevel=6, mtime=0), sync=False)
        return digest

    def status(self, key: str) -> dict[str, Any]:
        """The completion marker, or an empty dict."""
        return _json(self.path / "trials" / f"{key}.done")

    def finish(
        self, key: str, status: str, *, planned: int, reason: str = "", evaluations: int | None = None
    ) -> None:
        """The completion marker; written last, so its presence means that the Records are all there. It holds the
        hashes of the trial's files."""
        self._check_owner()
        records, good = _read_lines(self._jsonl(key))
        marker = {
            "status": status,
            "reason": reason,
            "planned": planned,
            "records": len(records),
            "errors": sum(r.error is not None for r in records),
            "bytes": good,
            "evaluations": evaluations,
            **trial_hashes(self.path, key),
        }
        self._write(self.path / "trials" / f"{key}.done", canonical(marker))

    def records_hash(self, key: str) -> str | None:
        """sha256 of a trial's Records as they lie on disk; None where there are none."""
        return file_hash(self._jsonl(key))

    def fitted_dir(self, key: str) -> Path | None:
        """Where a trial's finished Fitted lies; None while there is none."""
        path = self.path / "fitted" / key
        return path if path.is_dir() else None

    def save_fitted(
        self, key: str, save: Callable[[Path], None], describe: Mapping[str, Any], cost: Mapping[str, Any]
    ) -> Path:
        """Save a Fitted beside its description; the folder appears whole or not at all."""
        self._check_owner()
        draft, final = self.path / "fitted" / f"{key}.tmp", self.path / "fitted" / key
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        with _recording(self.path):
            draft.mkdir(parents=True)
            save(draft)
            (draft / "describe.json").write_text(canonical(describe), encoding="utf-8")
            (draft / "cost.json").write_text(canonical(cost), encoding="utf-8")
            os.replace(draft, final)
        return final

    def share_fitted(self, source: str, key: str) -> Path:
        """Give trial `key` a copy of the Fitted of trial `source` (the same fit under another decoding)."""
        self._copy_fitted(self.path / "fitted" / source, key)
        return self.path / "fitted" / key

    def fit_cost(self, key: str) -> dict[str, Any]:
        """What the fit of a trial cost, as saved with it."""
        return _json(self.path / "fitted" / key / "cost.json")

    def write_ledger(self, key: str, ledger: Mapping[str, Any]) -> None:
        self._write(self.path / "ledger" / f"{key}.json", canonical(ledger))

    def adopt(self, other: Path, key: str) -> bool:
        """Copy a complete trial with the same key from another run. True when there was one."""
        marker = _json(other / "trials" / f"{key}.done")
        if marker.get("status") != COMPLETE or self.status(key) or self._jsonl(key).exists():
            return False
        with _recording(self.path):
            for record in _read_lines(other / "trials" / f"{key}.jsonl")[0]:
                if record.trace is not None:
                    name = f"{record.trace}.json.gz"
                    shutil.copyfile(other / "traces" / name, self.path / "traces" / name)
            if (other / "fitted" / key).is_dir():
                self._copy_fitted(other / "fitted" / key, key)
            for name in (f"ledger/{key}.json", f"trials/{key}.jsonl"):
                shutil.copyfile(other / name, self.path / name)
        self._write(self.path / "trials" / f"{key}.done", canonical(marker))
        return True

    def _check_owner(self) -> None:
        """Raise RecordError when another process has taken the run directory over. Without a lock (a reader, a test)
        there is nothing to lose."""
        if self._lock is not None and (found := self._named()) != self._owner:
            raise RecordError(
                f"another process has taken over {self.path}",
                expected=self._owner,
                got=found or "no name in run.lock",
                do="let that one go on; nothing more was recorded by this one",
            )

    def _named(self) -> str:
        """Who holds the run directory, by the lock file that is there now."""
        try:
            return (self.path / "run.lock").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _jsonl(self, key: str) -> Path:
        return self.path / "trials" / f"{key}.jsonl"

    def _copy_fitted(self, source: Path, key: str) -> None:
        draft, final = self.path / "fitted" / f"{key}.tmp", self.path / "fitted" / key
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        with _recording(self.path):
            shutil.copytree(source, draft)
            os.replace(draft, final)

    def _write(self, path: Path, content: str | bytes, *, sync: bool = True) -> None:
        draft = path.with_name(path.name + ".tmp")
        with _recording(self.path):
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                _write_all(handle, content.encode() if isinstance(content, str) else content)
                if sync:
                    os.fsync(handle)
            except OSError:
                draft.unlink(missing_ok=True)
                raise
            finally:
                os.close(handle)
            os.replace(draft, path)


def check_unchanged(path: Path, plan: Plan) -> None:
    """Raise PlanChanged when `path` holds a test Record of another plan. Reads only."""
    stored = Path(path) / "plan.json"
    if not stored.exists() or sha256(stored.read_bytes()) == plan.hash:
        return
    if any(file.stat().st_size for file in (Path(path) / "trials").glob("*.jsonl")):
        raise PlanChanged(
            f"the plan differs from the one recorded in {path}",
            expected=f"plan {sha256(stored.read_bytes())[:12]}",
            got=f"plan {plan.hash[:12]}",
            do="restore the plan, or run the changed one as a new study in a new run directory",
        )


def to_line(record: Record) -> str:
    """One Record as a JSON line. Refuses NaN, and a Record with both or neither of score and error."""
    if (record.score is None) == (record.error is None):
        raise RecordError("a Record holds a score or an error, exactly one", got=f"item {record.item}")
    return canonical(asdict(record)) + "\n"


_TEXTS = ("trial", "arm", "model", "decoding", "item", "cluster", "split")


def from_row(row: Mapping[str, Any]) -> Record:
    """A Record from a parsed line. Raises RecordError on missing or unknown fields, and on values of another kind."""
    try:
        found = Record(**{**row, "cost": Cost(**row.get("cost", {}))})
    except (TypeError, AttributeError) as error:
        raise RecordError("a line that is no Record", expected="the fields of Record", got=str(error)) from error
    wrong = [name for name in _TEXTS if not isinstance(getattr(found, name), str)]
    wrong += [name for name in ("error", "trace", "lock") if not isinstance(getattr(found, name), str | None)]
    wrong += [name for name in ("outcome", "score") if not isinstance(getattr(found, name), dict | None)]
    numbers = {k: v for k, v in asdict(found.cost).items() if (k, v) != ("peak_memory_bytes", None)}
    wrong += [f"cost.{name}" for name, value in numbers.items() if not isinstance(value, int | float)]
    if not isinstance(found.seed, int):
        wrong.append("seed")
    if not isinstance(found.strata, dict) or not all(isinstance(v, str) for v in found.strata.values()):
        wrong.append("strata")
    if isinstance(found.score, dict) and not all(isinstance(v, int | float | None) for v in found.score.values()):
        wrong.append("a value of score")
    if wrong:
        raise RecordError("a line that is no Record", expected="the fields of Record", got=", ".join(wrong))
    return found


@dataclass(frozen=True)
class Run:
    """A run as it lies on disk, or Records from anywhere: `plan` is then None. Opening never writes.

    `records` holds the trials of trials.json (all, when there is none); `stale` counts Records left by
    earlier source or data, which are never judged. `fitted` and `ledgers` are keyed by trial key.
    """

    path: Path
    plan: Plan | None
    trials: tuple[TrialState, ...]
    records: tuple[Record, ...]
    ledgers: Mapping[str, Mapping[str, Any]]
    fitted: Mapping[str, Mapping[str, Any]]
    stale: int = 0
    locks: Locks | None = None
    sessions: tuple[Mapping[str, Any], ...] = ()

    @property
    def lock(self) -> str | None:
        """The hash of the lock in force; None without one."""
        return None if self.locks is None else self.locks.current.hash

    @property
    def exploratory(self) -> bool:
        """True unless every Record was made under a lock of this run."""
        known = self.locks.hashes if self.locks else ()
        return not self.records or not {r.lock for r in self.records} <= set(known)

    @property
    def deviations(self) -> tuple[str, ...]:
        """What a reader of a pre-registered study must be told."""
        return deviations(self)

    @property
    def provenance(self) -> dict[str, Any]:
        """How these Records came to be, for every output: exploratory or locked, witnessed or not, and the seal."""
        return {
            "exploratory": self.exploratory,
            "lock": self.lock,
            "witness": self.locks.witness if self.locks else "none",
            "deviations": list(self.deviations),
            "seal": self.seal,
        }

    @property
    def seal(self) -> str | None:
        """One hash over the run as it lies on disk; None for Records from elsewhere."""
        on_disk = (self.path / "plan.json").is_file() and self.plan is not None
        return seal(self.path, [state.trial.key for state in self.trials]) if on_disk else None

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read a run directory. Raises RecordError when there is nothing to read or a line is damaged."""
        path = Path(path)
        files = sorted((path / "trials").glob("*.jsonl"))
        if not files and not (path / "plan.json").exists():
            raise RecordError(f"no run in {path}", expected="plan.json or trials/*.jsonl", do="run a study first")
        plan = None
        if (path / "plan.json").exists():
            try:
                plan = plan_from_json(json.loads((path / "plan.json").read_text(encoding="utf-8")))
            except (PlanError, ValueError, TypeError, AttributeError, RecursionError) as error:
                raise RecordError(f"{path / 'plan.json'} cannot be read", got=str(error)) from error
        by_key: dict[str, list[Record]] = {}
        reader = Reader(from_row)
        for record in (r for file in files for r in _read_lines(file, reader)[0]):
            by_key.setdefault(record.trial, []).append(record)
        listed = path / "trials.json"
        if listed.exists():
            try:
                trials = [Trial(**row) for row in json.loads(listed.read_text(encoding="utf-8"))]
            except (ValueError, TypeError, RecursionError) as error:
                raise RecordError(f"{listed} is damaged", expected="a list of trials", got=str(error)) from error
        else:
            trials = [_coordinates(found[0]) for found in by_key.values()]
        keys = {trial.key for trial in trials}
        return cls(
            path=path,
            plan=plan,
            trials=tuple(_state(path, trial, by_key.get(trial.key, [])) for trial in trials),
            records=tuple(r for trial in trials for r in by_key.get(trial.key, [])),
            ledgers={k: _json(path / "ledger" / f"{k}.json") for k in keys if (path / "ledger" / f"{k}.json").exists()},
            fitted={k: _json(path / "fitted" / k / "describe.json") for k in keys if (path / "fitted" / k).is_dir()},
            stale=sum(len(found) for key, found in by_key.items() if key not in keys),
            locks=read_locks(path / LOCK),
            sessions=_sessions(path / "sessions.jsonl"),
        )

    @classmethod
    def of(cls, records: Sequence[Record], plan: Plan | None = None) -> Run:
        """A run in memory, from pure Records (an importer's, or a test's)."""
        first = {r.trial: r for r in reversed(records)}
        counts = Counter(r.trial for r in records)
        states = [TrialState(_coordinates(r), COMPLETE, "", counts[k], counts[k]) for k, r in sorted(first.items())]
        return cls(Path(), plan, tuple(states), tuple(records), {}, {})

    def fitted_dir(self, key: str) -> Path:
        """The saved Fitted of a trial: what was judged is what is served."""
        return self.path / "fitted" / key

    def read_trace(self, digest: str) -> dict[str, Any]:
        """A trace artifact by its address; its content is checked against the address."""
        path = self.path / "traces" / f"{digest}.json.gz"
        try:
            text = gzip.decompress(path.read_bytes())
        except (OSError, EOFError, zlib.error) as error:  # a damaged gzip is an OSError, its content zlib's own
            raise RecordError(f"trace {digest[:12]} cannot be read", expected=str(path), got=str(error)) from error
        if sha256(text) != digest:
            raise RecordError(f"trace {digest[:12]} was altered", expected=digest, got=sha256(text))
        found: dict[str, Any] = json.loads(text)
        return found


def _state(path: Path, trial: Trial, records: Sequence[Record]) -> TrialState:
    marker = _json(path / "trials" / f"{trial.key}.done")
    status = str(marker.get("status", "partial" if records else "pending"))
    times = marker.get("evaluations")
    return TrialState(trial, status, str(marker.get("reason", "")), len(records), marker.get("planned"), times)


def _sessions(path: Path) -> tuple[dict[str, Any], ...]:
    """The whole lines of sessions.jsonl; one that a kill cut short is not there."""
    if not path.exists():
        return ()
    whole = path.read_bytes().rpartition(b"\n")[0]
    try:
        return tuple(json.loads(line) for line in whole.splitlines())
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is damaged", expected="one JSON object a line", got=str(error)) from error


def deviations(run: Run) -> tuple[str, ...]:
    """Everything in which a run departs from its lock, as sentences; without a lock, that it has none."""
    if run.locks is None:
        return ("nothing was locked before the test split was opened",)
    found = list(run.locks.amendments())
    known, current = set(run.locks.hashes), run.lock  # hashed once, not once a Record
    outside = sum(r.lock not in known for r in run.records)
    if outside:
        whys = dict.fromkeys(str(s["why"]) for s in run.sessions if s.get("why"))
        said = f" ({'; '.join(whys)})" if whys else ""
        found.append(f"{outside} of {len(run.records)} Records were made outside the lock{said}")
    older = sum(r.lock != current and r.lock in known for r in run.records)
    if older:
        found.append(f"{older} of {len(run.records)} Records were made under a lock that was amended later")
    if run.stale:
        found.append(f"{run.stale} test Records of earlier source or data lie in this run and are not judged")
    times = max((s.evaluations or 0 for s in run.trials), default=0)
    if times > 1:
        found.append(f"the test split was evaluated {times} times (counted on the machine it ran on); one is allowed")
    locked = run.locks.current.content.get("packages", {})
    for session in run.sessions:
        for name, version in session.get("packages", {}).items():
            if locked.get(name) != version:
                found.append(f"run with {name} {version}, locked with {locked.get(name, 'none')}")
    return tuple(dict.fromkeys(found))


def _coordinates(record: Record) -> Trial:
    return Trial(record.trial, record.arm, record.model, None, record.decoding, record.seed)


def _read_lines(path: Path, reader: Reader | None = None) -> tuple[list[Record], int]:
    """The Records of a file, and how many of its bytes are whole lines. Only the last line may be torn. Files read
    with one reader share what is equal in them."""
    if not path.exists():
        return [], 0
    reader = reader or Reader(from_row)
    found, good = [], 0
    with without_collection(), path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break  # torn
            good += len(line)
            try:
                found.append(reader.record(json.loads(line)))
            except (ValueError, RecursionError, RecordError) as error:
                raise RecordError(
                    f"{path}, line {number} is damaged",
                    expected="one Record as JSON",
                    got=str(error),
                    do="restore the file from a copy; Fairlead never drops a whole line",
                ) from error
    return found, good


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is damaged", expected="JSON", got=str(error)) from error
    if not isinstance(found, dict):
        raise RecordError(f"{path} is damaged", expected="a JSON object", got=type(found).__name__)
    return found


def _write_all(handle: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


@contextmanager
def _recording(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise RecordError(
            "the disk is full while recording" if full else "cannot record",
            expected=f"room to write in {path}",
            got=error.strerror or str(error),
            do="free some space and run the same command again: finished items are kept"
            if full
            else "check the run directory's permissions",
        ) from error
