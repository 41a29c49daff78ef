"""`fairlead lock`: a study written down before its test split is opened; and what `run` asks of a lock."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairlead.app.embedders import opener
from fairlead.app.models import open_dictionary
from fairlead.app.run import Job
from fairlead.core import lock as locks
from fairlead.core.errors import LockError
from fairlead.core.lock import LOCK, Lock, Locks
from fairlead.core.plan import Facts, Plan
from fairlead.judge.tables import Question
from fairlead.study import study_facts


@dataclass(frozen=True)
class Locked:
    """What `fairlead lock` leaves: the file, its locks, and whether a line was added."""

    file: str
    locks: Locks
    new: bool


def judging(plan: Plan) -> dict[str, Any]:
    """The question as the judge will ask it, its family and its baselines included."""
    question = Question.of(plan)
    return {**asdict(question), "family": list(question.family), "baselines": list(plan.baseline_arms)}


def make(
    job: Job, *, amend: str | None = None, of: Path | None = None, witness: str | None = None, out: Path | None = None
) -> Locked:
    """Lock a study, in the directory where its run will look. Locking the same study again adds nothing.

    `amend` gives the reason of a change; `of` names the run or the file that held the lock before, where the plan
    and so the directory changed. `witness` notes where the lock's hash was left; `out` gets a copy of the file.
    Raises LockError when the tree has uncommitted changes, or when another lock is there and no reason is given.
    """
    path = job.run_dir / LOCK
    found = locks.read(path)
    if found is None and of is not None:
        found = locks.read(of / LOCK if of.is_dir() else of)
        if found is None:
            raise LockError(f"no lock in {of}", expected=f"a run with {LOCK}, or that file", got=str(of))
    new = None
    if witness is None or amend is not None or found is None:
        new = _next(job, found, amend)
    if new is not None:
        if not path.exists():
            for line in _lines(found):
                locks.append(path, line)
        locks.append(path, new)
    if witness is not None:
        current = locks.read(path)
        if current is None:
            raise LockError(f"no lock in {job.run_dir} to witness", do="lock the study first")
        locks.append(path, locks.witness(witness, current.current))
    final = locks.read(path)
    assert final is not None
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out)
    return Locked(str(path), final, new is not None)


def _next(job: Job, found: Locks | None, amend: str | None) -> Lock | None:
    """The line to append; None when the lock in force holds already."""
    refuse_uncommitted("a lock names a commit")
    facts, _ = study_facts(job.plan, load_model=opener(job.plan), load_dictionary=open_dictionary)
    content = locks.content(job.plan, facts, judging(job.plan))
    if found is None:
        if amend is not None:
            raise LockError("there is no lock to amend", expected=f"{job.run_dir / LOCK}", do="name it with --of RUN")
        return Lock(content)
    changed = locks.differences(_pinned(found.current.content), _pinned(content))
    if not changed and amend is None:
        return None
    if amend is None or not amend.strip():
        raise LockError(
            "the study differs from its lock",
            expected=f"lock {found.current.hash[:12]}",
            got="; ".join(changed[:4]),
            do='restore what was locked, or say why: --amend "REASON"',
        )
    return Lock(content, amends=found.current.hash, reason=amend.strip())


def _pinned(content: Any) -> dict[str, Any]:
    return {k: v for k, v in content.items() if k in ("plan", "facts", "judging", "rooms")}


def _lines(found: Locks | None) -> list[Any]:
    return [] if found is None else [*found.locks, *found.witnesses]


def required(job: Job) -> Lock:
    """The lock in force for a job, before any model is loaded. Raises LockError when there is none, when the judge
    would ask another question, or when the code has uncommitted changes."""
    found = locks.read(job.run_dir / LOCK)
    again = "fairlead run with --exploratory; every output then says so"
    if found is None:
        raise LockError(
            "this study is not locked, and its test split would be opened",
            expected=str(job.run_dir / LOCK),
            got="no lock",
            do=f"fairlead lock, with the same plan and options as this run; or {again}",
        )
    refuse_uncommitted("a locked run names a commit", again)
    changed = locks.differences(found.current.content.get("judging"), judging_json(job.plan))
    if changed:
        raise LockError("the judge would ask another question than the locked one", got="; ".join(changed[:4]))
    return found.current


def described(found: Locked) -> dict[str, Any]:
    """A lock for printing as JSON."""
    return locks.as_dict(found.locks)


def judging_json(plan: Plan) -> Any:
    """`judging` as it is after a trip through the file."""
    return locks.content(plan, Facts(), judging(plan))["judging"]


def refuse_uncommitted(why: str, otherwise: str = "fairlead run with --exploratory, without a lock") -> None:
    """Raise LockError when git knows of changed or new files in the package."""
    changed = locks.uncommitted()
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise LockError(
            f"the code has uncommitted changes, and {why}",
            expected="a clean tree",
            got=", ".join(changed[:3]) + more,
            do=f"commit them; or {otherwise}",
        )
