"""The models and dictionaries of a study, by reference: all models held, or one at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.core.errors import LoadError
from fairlead.core.ledger import Meter
from fairlead.core.plan import Plan

LoadModel = Callable[[str], Any]
LoadDictionary = Callable[[str], Any]


@dataclass(frozen=True)
class Known:
    """What is remembered of a model that need not be in memory."""

    fingerprint: str
    module: str  # where its class is defined; keys hash that source
    d_model: int | None


@dataclass(frozen=True)
class KnownDictionary:
    """What keys and ledgers need of a dictionary that may lie on another machine."""

    fingerprint: str
    module: str
    training_flops: float | None


@dataclass(frozen=True)
class Survey:
    """What a plan's references stand for, where they were loaded."""

    models: Mapping[str, Known]
    dictionaries: Mapping[str, KnownDictionary] = field(default_factory=dict)


class Subjects:
    """Loads every model once to know it. With `one_at_a_time` only the one that is asked for stays in memory, and is
    loaded again when its turn comes: models of 16 GB need not fit side by side. Trials come model by model."""

    def __init__(self, load: LoadModel, refs: Sequence[str], *, one_at_a_time: bool = False) -> None:
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


@dataclass(frozen=True)
class Holdings:
    """What a worker holds: the plan's models, and its dictionaries where an arm uses one."""

    subjects: Subjects
    dictionaries: Mapping[str, Any]

    @classmethod
    def load(
        cls,
        plan: Plan,
        load_model: LoadModel,
        load_dictionary: LoadDictionary | None,
        *,
        with_dictionaries: bool,
        one_at_a_time: bool,
    ) -> Holdings:
        """Load all models once, and the dictionaries. Raises LoadError where they do not fit one another."""
        refs = (*plan.models, *filter(None, [plan.reference]))
        subjects = Subjects(load_model, refs, one_at_a_time=one_at_a_time)
        dictionaries: dict[str, Any] = {}
        if with_dictionaries and load_dictionary is not None:
            for model, ref in zip(plan.models, plan.dictionaries, strict=True):
                if ref is not None:
                    dictionaries[ref] = load_dictionary(ref)
                    _check_width(ref, dictionaries[ref], model, subjects.known[model].d_model)
        return cls(subjects, dictionaries)

    @property
    def survey(self) -> Survey:
        """What is known of them."""
        found = {
            ref: KnownDictionary(d.fingerprint, type(d).__module__, getattr(d, "training_flops", None))
            for ref, d in self.dictionaries.items()
        }
        return Survey(dict(self.subjects.known), found)


def _check_width(ref: str, dictionary: Any, model: str, needed: int | None) -> None:
    width = getattr(dictionary, "d_in", None)
    if width is not None and needed is not None and width != needed:
        raise LoadError(
            f"dictionary {ref} does not fit model {model}",
            expected=f"d_in = {needed}",
            got=f"d_in = {width}",
            do="name a dictionary that was trained on this model's activations",
        )
