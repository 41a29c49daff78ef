"""Hashes over what a run left, so that a later change of any file can be named.

Each trial's marker holds the sha256 of its Records, of its saved Fitted and of its ledger; the seal is one hash over
all markers, the plan, the trials, the facts, the lock and the sessions. It proves that files are those that were
judged. It does not stop somebody who rewrites them all: for that, leave the seal, or the lock, outside the machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from fairlead.core.keys import content_key

HEADS = ("plan.json", "plan.toml", "trials.json", "facts.json", "lock.jsonl", "sessions.jsonl")


def file_hash(path: Path) -> str | None:
    """sha256 of a file's bytes, read in pieces; None where there is no file."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_hash(folder: Path) -> str | None:
    """One hash over names and bytes of all files below a folder; None where there is no folder."""
    if not folder.is_dir():
        return None
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return content_key([(p.relative_to(folder).as_posix(), file_hash(p)) for p in files])


def trial_hashes(run: Path, key: str) -> dict[str, str | None]:
    """What a trial's marker holds about the files of that trial."""
    return {
        "records_sha256": file_hash(run / "trials" / f"{key}.jsonl"),
        "fitted_sha256": tree_hash(run / "fitted" / key),
        "ledger_sha256": file_hash(run / "ledger" / f"{key}.json"),
    }


def seal(run: Path, keys: Iterable[str]) -> str:
    """The hash over a whole run; `keys` are its trials."""
    marks = {key: file_hash(run / "trials" / f"{key}.done") for key in sorted(keys)}
    return content_key([{name: file_hash(run / name) for name in HEADS}, marks])
