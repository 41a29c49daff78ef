"""The lock: what a study is, written down before its test split is opened.

    <run>/lock.jsonl    one line a lock, an amendment or a witness; lines are only ever appended

A lock is canonical JSON; its sha256 is its name, and every Record made under it carries that name. There is no clock
in it, so locking the same study twice gives the same lock. It holds

    plan       every key of the plan: task, arms, options, budget, seeds, primary, family, stopping rule
    facts      manifests of the splits, hashes of weights and dictionaries, source of each arm's code and its task's
    judging    the claim, the family it is tested against, and the corrections, as the judge will apply them
    rooms      source of `study` and `judge`: how items are run, and how they are judged
    code       the commit, where the package lies in a git checkout, and a hash of all its source
    packages   versions of what computes the numbers

An amendment names the lock that it amends and gives its reason. A witness says where a lock's name was left outside
this machine; what it says is recorded and not checked. A lock cannot prove that the test split was never seen:
`core.evaluations` counts what this machine saw.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fairlead.core.errors import LockError
from fairlead.core.keys import PACKAGE, canonical, content_key, sha256, source_hash
from fairlead.core.plan import Facts, Plan

LOCK = "lock.jsonl"
WITNESSES = ("git-remote", "opentimestamps", "rekor")
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")


@dataclass(frozen=True)
class Lock:
    """One lock. `amends` is the hash of the lock it replaces, None for the first one."""

    content: Mapping[str, Any]
    amends: str | None = None
    reason: str = ""

    @property
    def line(self) -> str:
        """The canonical JSON that is hashed and written."""
        return canonical({"lock": self.content, "amends": self.amends, "reason": self.reason})

    @property
    def hash(self) -> str:
        return sha256(self.line)


@dataclass(frozen=True)
class Witness:
    """Where a lock's hash was left: a kind of `WITNESSES`, a reference, and the lock's hash. Never checked here."""

    kind: str
    reference: str
    of: str


@dataclass(frozen=True)
class Locks:
    """A lock file: the first lock and its amendments, in order, and the witnesses."""

    locks: tuple[Lock, ...]
    witnesses: tuple[Witness, ...] = ()

    @property
    def current(self) -> Lock:
        return self.locks[-1]

    @property
    def hashes(self) -> tuple[str, ...]:
        return tuple(lock.hash for lock in self.locks)

    @property
    def witness(self) -> str:
        """`none`, or each witness of the current lock as `kind (reference)`."""
        found = [f"{w.kind} ({w.reference})" for w in self.witnesses if w.of == self.current.hash]
        return ", ".join(found) or "none"

    def amendments(self) -> tuple[str, ...]:
        """One sentence an amendment: its reason, and what it changed."""
        pairs = zip(self.locks, self.locks[1:], strict=False)
        return tuple(
            f"the lock was amended: {new.reason}; changed: {_few(differences(old.content, new.content))}"
            for old, new in pairs
        )


# ---- what a lock holds


def content(plan: Plan, facts: Facts, judging: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All that a lock pins, as JSON values. `judging` comes from the judge, which study cannot import."""
    return {
        "format": 1,
        **checked(plan, facts),
        "judging": json.loads(canonical(judging or {})),
        "code": code(),
        "packages": packages(),
    }


def checked(plan: Plan, facts: Facts) -> dict[str, Any]:
    """The part of a lock that a run must match: plan, facts, and the source of the two rooms that decide."""
    return {
        "plan": json.loads(plan.to_json()),
        "facts": facts.to_json(),
        "rooms": {room: source_hash([f"{PACKAGE}.{room}"]) for room in ("study", "judge")},
    }


def check(lock: Lock, plan: Plan, facts: Facts) -> None:
    """Raise LockError when the study that is about to run is not the one that was locked."""
    now = checked(plan, facts)
    changed = differences({key: lock.content.get(key) for key in now}, now)
    if changed:
        raise LockError(
            "the study differs from its lock",
            expected=f"lock {lock.hash[:12]}",
            got=_few(changed),
            do='restore what was locked, or say why: fairlead lock PLAN --amend "REASON"; '
            "or run with --exploratory, which every output then says",
        )


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Where two JSON values differ: `plan.n: 200 -> 100`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}):
            place = f"{at}.{key}" if at else str(key)
            if key not in old or key not in new:
                found.append(f"{place}: {_short(old.get(key))} -> {_short(new.get(key))}")
            else:
                found += differences(old[key], new[key], place)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{at}[{i}]")]
    same = old == new and type(old) is type(new)
    return [] if same else [f"{at}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]
    return text if len(text) <= 80 else text[:77] + "..."


def _few(found: Sequence[str], limit: int = 4) -> str:
    more = f"; and {len(found) - limit} more" if len(found) > limit else ""
    return "; ".join(found[:limit]) + more if found else "nothing"


def packages() -> dict[str, str]:
    """Versions of the installed packages that compute the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code() -> dict[str, Any]:
    """The source this process runs: a hash of every file of the package and, in a git checkout, its commit."""
    folder = package_folder()
    return {"commit": _commit(folder), "sources": _sources(folder)}


def uncommitted() -> list[str]:
    """Files of the package that git knows to be changed or new; empty outside a checkout, where only hashes speak."""
    folder = package_folder()
    if _commit(folder) is None:
        return []
    return [line[3:] for line in (_git(folder, "status", "--porcelain", "--", ".") or "").splitlines()]


def package_folder() -> Path:
    """Where the package's source lies."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _commit(folder: Path) -> str | None:
    """HEAD, when `folder` is tracked in a git checkout. An installed copy inside somebody's repository is not."""
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    found = _git(folder, "rev-parse", "HEAD")
    return found.strip() if found else None


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where there is no git, no repository, or one that git will not read."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


@lru_cache(maxsize=4)
def _sources(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".j2", ".js", ".css") and p.is_file())
    return content_key([(str(p.relative_to(folder).as_posix()), sha256(p.read_bytes())) for p in files])


# ---- the file


def read(path: Path) -> Locks | None:
    """A lock file; None when there is none. Raises LockError when a line was altered, removed or reordered."""
    if not path.exists():
        return None
    locks: list[Lock] = []
    witnesses: list[Witness] = []
    for number, row in enumerate(_rows(path), start=1):
        if "lock" in row:
            found = Lock(row["lock"], row.get("amends"), str(row.get("reason", "")))
            if found.amends != (locks[-1].hash if locks else None):
                raise LockError(
                    f"{path}, line {number} does not amend the lock before it",
                    expected=locks[-1].hash[:12] if locks else "a first lock",
                    got=str(found.amends)[:12],
                    do="restore the file from a copy; a lock is never edited, only amended",
                )
            locks.append(found)
        else:
            witnesses.append(Witness(str(row["witness"]), str(row["reference"]), str(row["of"])))
    if not locks:
        raise LockError(f"{path} holds no lock", do="remove it and lock the study again")
    return Locks(tuple(locks), tuple(witnesses))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines, start=1):
        try:
            row = json.loads(line)
            known = isinstance(row, dict) and ("lock" in row or {"witness", "reference", "of"} <= {*row})
            if not known or canonical(row).encode() != line:
                raise ValueError("not a line that Fairlead wrote")
        except (ValueError, RecursionError) as error:
            raise LockError(
                f"{path}, line {number} is damaged",
                expected="a lock, an amendment or a witness as canonical JSON",
                got=str(error),
                do="restore the file from a copy",
            ) from error
        yield row


def append(path: Path, line: Mapping[str, Any] | Lock | Witness) -> None:
    """Append one line and fsync it."""
    if isinstance(line, Lock):
        text = line.line
    elif isinstance(line, Witness):
        text = canonical({"witness": line.kind, "reference": line.reference, "of": line.of})
    else:
        text = canonical(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def witness(text: str, lock: Lock) -> Witness:
    """`git-remote=https://...` as a Witness of a lock."""
    kind, _, reference = text.partition("=")
    if kind not in WITNESSES or not reference.strip():
        raise LockError(
            "a witness that cannot be read", expected=" or ".join(f"{k}=REFERENCE" for k in WITNESSES), got=repr(text)
        )
    return Witness(kind, reference.strip(), lock.hash)


def as_dict(locks: Locks) -> dict[str, Any]:
    """A lock file for printing."""
    return {
        "hash": locks.current.hash,
        "locks": list(locks.hashes),
        "witness": locks.witness,
        "witnesses": [asdict(w) for w in locks.witnesses],
        "amendments": list(locks.amendments()),
        "covers": locks.current.content,
    }
