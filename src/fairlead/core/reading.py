"""Reading many Records at once, in little memory: equal texts, scores, strata and funnels become one object.

A million Records are read without a million copies of `pocket/shopper-s`. Sharing is safe because Records are
frozen values; whoever needs another score makes another Record. A line that is not plain goes the careful way.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from sys import intern
from typing import Any

from fairlead.core.types import Cost, Record

_FIELDS = frozenset(Record.__dataclass_fields__)
_COSTS = frozenset(Cost.__dataclass_fields__)
_REQUIRED = frozenset(Record.__dataclass_fields__) - {"trace", "lock"}
_NUMBERS: frozenset[type] = frozenset({int, float})
_VALUES: frozenset[type] = frozenset({bool, int, float, type(None)})
_TEXTS: frozenset[type] = frozenset({str})
_WHOLE: frozenset[type] = frozenset({int})
_SHORT = 32  # characters; longer texts are hardly ever equal


class Reader:
    """Turns parsed lines into Records. `careful` is asked where a line is not of the plain kind; it raises."""

    def __init__(self, careful: Callable[[Mapping[str, Any]], Record]) -> None:
        self._careful = careful
        self._shared: dict[Any, dict[str, Any]] = {}

    def record(self, row: Any) -> Record:
        """One Record; raises what `careful` raises."""
        try:
            return self._plain(row) or self._careful(row)
        except (TypeError, KeyError, AttributeError):
            return self._careful(row)

    def _plain(self, row: Any) -> Record | None:
        names = row.keys()
        if not (_REQUIRED <= names <= _FIELDS):
            return None
        cost, score, outcome, error = row["cost"], row["score"], row["outcome"], row["error"]
        trace, lock, seed = row.get("trace"), row.get("lock"), row["seed"]
        kinds = {type(v) for k, v in cost.items() if k != "peak_memory_bytes" or v is not None}
        plain = cost.keys() <= _COSTS and kinds <= _NUMBERS and type(seed) is int
        if not plain or not (type(error) is str or error is None) or not (type(trace) is str or trace is None):
            return None
        if score is not None:
            score = self._share(score, _VALUES)
        if outcome is not None and type(outcome) is not dict:
            return None
        if outcome is not None:
            outcome = {intern(name): self._small(value) for name, value in outcome.items()}
        strata = self._share(row["strata"], _TEXTS)
        if strata is None or (score is None and row["score"] is not None):
            return None
        return Record(
            intern(row["trial"]),
            intern(row["arm"]),
            intern(row["model"]),
            intern(row["decoding"]),
            seed,
            intern(row["item"]),
            intern(row["cluster"]),
            intern(row["split"]),
            strata,
            outcome,
            score,
            error,
            Cost(**cost),
            trace,
            None if lock is None else intern(lock),
        )

    def _small(self, value: Any) -> Any:
        """A short text or a table of counts as the one object of all its equals; anything else as it is."""
        if type(value) is str and len(value) <= _SHORT:
            return intern(value)
        return (type(value) is dict and value and self._share(value, _WHOLE)) or value

    def _share(self, table: dict[str, Any], kinds: frozenset[type]) -> dict[str, Any] | None:
        """The one object of all equal tables (True is not 1 here); None where a value is of another kind."""
        values = tuple(table.values())
        types = tuple(map(type, values))
        if not kinds.issuperset(types):
            return None
        key = (tuple(table), values, types)
        found = self._shared.get(key)
        if found is None:
            found = self._shared[key] = {intern(name): value for name, value in table.items()}
        return found


@contextmanager
def without_collection() -> Iterator[None]:
    """No cyclic garbage collection meanwhile: millions of new values hold no cycles, and scanning them takes long."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
