"""Texts that a user names: one a line, or JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from fairlead.core.errors import LoadError


def read_texts(file: Path) -> list[str]:
    """Texts, one a line; of a .jsonl file, the value under "text". Blank lines are left out. LoadError."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        texts = [str(json.loads(line)["text"]) for line in lines] if file.suffix == ".jsonl" else lines
    except OSError as error:
        raise LoadError(f"{file} cannot be read: {error.strerror}", expected="a text file, one text a line") from error
    except (ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f"{file} cannot be read: {error}",
            expected='UTF-8, one text a line; in .jsonl, objects with "text"',
            do="convert the file",
        ) from error
    texts = [t for t in texts if t.strip()]
    if not texts:
        raise LoadError(f"{file} has no text in it", expected="one text a line")
    return texts
