"""How often a test split was opened, as far as this machine can know.

One line in a file of the user's state directory for every trial that was run to its end on its test items. A trial's
key is its content, so the same study in another directory, or again after its Records were deleted, is met again.
What is not counted: another machine or user, a file that was removed, and a trial stopped before its end.
"""

from __future__ import annotations

import os
from pathlib import Path

from fairlead.core.keys import canonical

FILE = "evaluations.jsonl"


def state_folder() -> Path:
    """FAIRLEAD_STATE, or XDG_STATE_HOME/fairlead, or ~/.local/state/fairlead."""
    if own := os.environ.get("FAIRLEAD_STATE"):
        return Path(own)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "fairlead"


def count(trial: str, lock: str | None, records: str | None) -> int | None:
    """Count one complete evaluation of a trial, and say which one it is: 1 for the first. `records` is the hash of its
    Records, seconds included: a trial that was counted and then killed before its marker is not counted again. None
    where this machine cannot keep count."""
    try:
        folder = state_folder()
        folder.mkdir(parents=True, exist_ok=True)
        line = canonical({"lock": lock, "records": records, "trial": trial})
        handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if line not in (folder / FILE).read_text(encoding="utf-8").splitlines():
                os.write(handle, (line + "\n").encode())
        finally:
            os.close(handle)
        return (folder / FILE).read_bytes().count(f'"trial":"{trial}"'.encode())
    except (OSError, RuntimeError, UnicodeDecodeError):  # no home, no room, read-only, damaged
        return None
