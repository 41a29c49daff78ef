"""`fairlead serve`: a model, and what was fitted on it, behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.app.models import open_dictionary, open_model, use_threads
from fairlead.core.errors import FairleadError, LoadError
from fairlead.serve.limits import Limits
from fairlead.serve.opened import Served, bare, fitted
from fairlead.serve.server import Settings, is_loopback, serve
from fairlead.steering import by_site

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


def open_dictionaries(refs: Sequence[str], models: Sequence[Served]) -> tuple[Any, ...]:
    """The dictionaries whose latents requests may edit, one a site. Raises where one does not fit the model."""
    found = tuple(open_dictionary(ref) for ref in refs)
    for dictionary in by_site(found).values():
        if dictionary.d_in != models[0].subject.d_model:
            raise LoadError(
                f"dictionary {dictionary.name} does not fit {models[0].name}",
                expected=f"width {models[0].subject.d_model}",
                got=f"width {dictionary.d_in}",
            )
    return found


def settings(
    *, rows: int, waiting: int, max_tokens: int, max_strength: float, timeout: float, log_prompts: bool,
    compiled: bool = False,
) -> Settings:  # fmt: skip
    """What the options of the verb say."""
    limits = Limits(tokens=max_tokens, strength=max_strength, seconds=timeout)
    return Settings(rows=rows, waiting=waiting, limits=limits, log_prompts=log_prompts,
                    backend="inductor" if compiled else None)  # fmt: skip


def execute(
    models: Sequence[Served],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    stop_after: float | None = None,
    ready: Callable[[Up], None] | None = None,
    dictionaries: Sequence[Any] = (),
    settings: Settings = Settings(),  # noqa: B008  # a frozen value
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

    if settings.log_prompts:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    asyncio.run(
        serve(
            models, host=host, port=port, key=key, stop_after=stop_after, ready=say, dictionaries=dictionaries,
            settings=settings,
        )
    )  # fmt: skip
