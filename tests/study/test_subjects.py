"""Models of a study in memory: all, or one at a time."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest

from fairlead.core.errors import LoadError
from fairlead.study.subjects import Subjects


class Model(SimpleNamespace):
    __hash__ = object.__hash__


def loader(prints: dict[str, str]):
    alive: list[weakref.ref] = []
    most = 0

    def load(ref: str) -> Model:
        nonlocal most
        model = Model(fingerprint=prints[ref], d_model=8)
        model.itself = model  # as a LocalSubject refers to itself
        alive.append(weakref.ref(model))
        most = max(most, sum(r() is not None for r in alive))
        return model

    return load, alive, lambda: most


def test_one_at_a_time_never_holds_two():
    load, loaded, most = loader({"a": "1", "b": "2", "c": "3"})
    subjects = Subjects(load, ["a", "b", "c", "a"], one_at_a_time=True)
    assert most() == 1 and [subjects.known[r].fingerprint for r in "abc"] == ["1", "2", "3"]
    for ref in "aabbc":
        assert subjects[ref].fingerprint == subjects.known[ref].fingerprint and subjects[ref].meter is not None
    assert most() == 1 and len(loaded) == 6


def test_otherwise_each_is_loaded_once():
    load, loaded, _ = loader({"a": "1", "b": "2"})
    subjects = Subjects(load, ["a", "b"])
    assert subjects["a"] is subjects["a"] and subjects["b"] is subjects["b"] and len(loaded) == 2
    alone, loaded, _ = loader({"a": "1"})
    assert Subjects(alone, ["a"], one_at_a_time=True)["a"] and len(loaded) == 1


def test_a_model_that_changed_between_its_turns_is_refused():
    prints = {"a": "1", "b": "2"}
    subjects = Subjects(loader(prints)[0], ["a", "b"], one_at_a_time=True)
    prints["a"] = "other"
    with pytest.raises(LoadError, match="changed while the study ran"):
        subjects["a"]
