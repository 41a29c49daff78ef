"""Models and dictionaries by name, as a study wants them: each model with a meter of its own."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from fairlead.core.ledger import Meter


@dataclass(frozen=True)
class Loading:
    """How a verb loads every model: what the options --device, --dtype, --quantize and --max-batch said."""

    device: str | None = None  # None: the CPU
    dtype: str | None = None  # None: float32 on the CPU, as stored elsewhere
    quantize: str | None = None
    max_batch: int | None = None  # None: 32 prompts a forward


_loading: ContextVar[Loading] = ContextVar("loading", default=Loading())  # noqa: B039


def choose_loading(**settings: Any) -> None:
    """Sets some of the settings for the models opened from here on, in this context."""
    _loading.set(replace(_loading.get(), **settings))


def loading() -> Loading:
    """The settings as they stand."""
    return _loading.get()


def use_threads(count: int) -> None:
    """How many threads torch computes with. One beside a browser: two made single forwards many times slower."""
    import torch

    torch.set_num_threads(count)


def open_model(ref: str, *, beside_browser: bool = False) -> Any:
    """A LocalSubject with a fresh meter. Beside a browser its forwards leave the event loop free."""
    from fairlead.lm.load import load

    how = loading()
    subject = load(ref, device=how.device or "cpu", dtype=how.dtype, quantize=how.quantize, meter=Meter())
    subject.threaded = beside_browser
    subject.max_batch = how.max_batch or subject.max_batch
    return subject


def open_dictionary(ref: str) -> Any:
    """A dictionary by reference, on the device of the models; its width is checked against the model by whoever joins
    the two."""
    from fairlead import dictionaries

    found = dictionaries.load(ref)
    device = loading().device
    return found if device in (None, "cpu") or not hasattr(found, "to") else found.to(device)
