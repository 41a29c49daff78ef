"""Answers and embeddings kept on disk under the hash of what was asked: a table in one SQLite file.

SQLite, because a kill in the middle of a write leaves the file whole, several processes may share it, and a
hundred thousand small entries are one file. Values are plain bytes; nothing in it is executed when it is read.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fairlead.core.errors import LoadError

_ASKED_AT_ONCE = 500  # SQLite allows 999 variables in a query in its oldest builds


def default_file(name: str) -> Path:
    """NAME.sqlite in FAIRLEAD_CACHE, else in the user's cache directory."""
    home = os.environ.get("FAIRLEAD_CACHE")
    root = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairlead"
    return root / f"{name}.sqlite"


class Cache:
    """Bytes under hexadecimal keys (see core.keys.content_key). Safe to share among threads and processes."""

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def get(self, keys: Sequence[str]) -> dict[str, bytes]:
        """What is kept of `keys`."""
        found: dict[str, bytes] = {}
        with self._lock:
            for start in range(0, len(keys), _ASKED_AT_ONCE):
                part = keys[start : start + _ASKED_AT_ONCE]
                marks = ",".join("?" * len(part))
                found.update(self._query(f"SELECT key, value FROM kept WHERE key IN ({marks})", part))
        return found

    def put(self, entries: Mapping[str, bytes]) -> None:
        """Keep `entries`, all or none; what is there already stays."""
        with self._lock:
            self._query("INSERT OR IGNORE INTO kept VALUES (?, ?)", entries.items(), many=True)

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _query(self, text: str, values: Iterable[object], many: bool = False) -> list[tuple[str, bytes]]:
        try:
            connection = self._opened()
            with connection:
                if many:
                    connection.executemany(text, values)  # type: ignore[arg-type]
                    return []
                return connection.execute(text, tuple(values)).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise LoadError(
                f"the cache {self.file} cannot be used: {error}",
                expected="an SQLite file that can be written, or none yet",
                do="remove the file, or name another place with FAIRLEAD_CACHE",
            ) from error

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.file, timeout=60.0, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            with self._connection:
                self._connection.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
        return self._connection

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()
