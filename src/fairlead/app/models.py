"""Models and dictionaries by name, as a study wants them: each model with a meter of its own."""

from __future__ import annotations

from typing import Any

from fairlead.core.ledger import Meter


def use_threads(count: int) -> None:
    """How many threads torch computes with. One beside a browser: two made single forwards many times slower."""
    import torch

    torch.set_num_threads(count)


def open_model(ref: str, *, beside_browser: bool = False) -> Any:
    """A LocalSubject with a fresh meter. Beside a browser its forwards leave the event loop free."""
    from fairlead.lm.load import load

    subject = load(ref, meter=Meter())
    subject.threaded = beside_browser
    return subject


def open_dictionary(ref: str) -> Any:
    """A dictionary by reference; its width is checked against the model by whoever joins the two."""
    from fairlead import dictionaries

    return dictionaries.load(ref)
