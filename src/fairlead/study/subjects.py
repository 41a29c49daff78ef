"""The models of a study, by reference: all of them held, or one at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.core.errors import LoadError
from fairlead.core.ledger import Meter


@dataclass(frozen=True)
class Known:
    """What is remembered of a model that need not be in memory."""

    fingerprint: str
    module: str  # where its class is defined; keys hash that source
    d_model: int | None


class Subjects:
    """Loads every model once to know it. With `one_at_a_time` only the one that is asked for stays in memory, and is
    loaded again when its turn comes: models of 16 GB need not fit side by side. Trials come model by model."""

    def __init__(self, load: Callable[[str], Any], refs: Sequence[str], *, one_at_a_time: bool = False) -> None:
        self._load, self._one, self._held = load, one_at_a_time, dict[str, Any]()
        self.known: dict[str, Known] = {}
        for ref in dict.fromkeys(refs):
            subject = self[ref]
            self.known[ref] = Known(subject.fingerprint, type(subject).__module__, getattr(subject, "d_model", None))
            del subject  # or two would be in memory while the next one loads

    def __getitem__(self, ref: str) -> Any:
        """The model, with a meter. LoadError when its files changed since it was first loaded."""
        if ref not in self._held:
            if self._one and self._held:
                self._held.clear()
                gc.collect()  # a Subject refers to itself; its weights would stay until some later collection
            subject = self._load(ref)
            if getattr(subject, "meter", None) is None:
                subject.meter = Meter()  # a study always counts
            known = self.known.get(ref)
            if known is not None and subject.fingerprint != known.fingerprint:
                raise LoadError(
                    f"model {ref} changed while the study ran",
                    expected=f"fingerprint {known.fingerprint[:16]}",
                    got=subject.fingerprint[:16],
                    do="bring its files back, or run the study again from the start",
                )
            self._held[ref] = subject
        return self._held[ref]
