"""`fairlead serve`: a model, and what was fitted on it, behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead.app.models import open_model, use_threads
from fairlead.core.errors import FairleadError
from fairlead.serve.opened import Served, bare, fitted
from fairlead.serve.server import is_loopback, serve

KEY = "FAIRLEAD_API_KEY"


@dataclass(frozen=True)
class Up:
    """What is printed once the server listens."""

    url: str
    models: tuple[str, ...]
    stops_after: float | None


def prepare(model: str, arms: Sequence[Path] = (), *, threads: int = 1) -> tuple[Served, ...]:
    """Load the model and every fitted arm. Raises before anything listens."""
    use_threads(threads)
    subject = open_model(model, beside_browser=True)  # forwards leave the event loop free
    return (bare(subject, model), *(fitted(subject, model, arm) for arm in arms))


def execute(
    models: Sequence[Served],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    stop_after: float | None = None,
    ready: Callable[[Up], None] | None = None,
) -> None:
    """Serve until Ctrl-C, or for `stop_after` seconds. The key, where one is set, comes from the environment."""
    key = os.environ.get(KEY)
    if key is not None and not key.strip():
        raise FairleadError(f"{KEY} is empty", expected="a key, or no such variable")
    if key is None and not is_loopback(host):
        raise FairleadError(
            f"{host} can be reached from other machines", expected=f"a key in {KEY}", do="set it, or leave --host out"
        )
    names = tuple(model.name for model in models)

    def say(url: str) -> None:
        if ready:
            ready(Up(url, names, stop_after))

    asyncio.run(serve(models, host=host, port=port, key=key, stop_after=stop_after, ready=say))
