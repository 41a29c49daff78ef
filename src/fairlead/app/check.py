"""`fairlead check-dictionary`: L0 and explained variance of a dictionary on a model's own tokens, and what is off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.app.models import open_dictionary, open_model
from fairlead.app.texts import read_texts
from fairlead.app.train import own_prompts
from fairlead.core.errors import FairleadError

EPISODES = 4  # of train, played to see whether a dictionary fits


@dataclass(frozen=True)
class Checked:
    """What was found, as JSON; `ok` is False where something looks wrong."""

    dictionary: str
    model: str
    site: str
    n_features: int
    rows: int
    l0: float
    explained_variance: float
    dead: float
    published: dict[str, Any]
    ok: bool
    warnings: list[str]
    tried: dict[str, dict[str, float]]


def execute(
    model: str,
    ref: str,
    *,
    texts: Path | None = None,
    tokens: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> Checked:
    """Load both, read `tokens` tokens of `texts` (one text a line; default: see `own_prompts`), compare."""
    from fairlead.dictionaries.check import self_check

    read = own_prompts(model, 0) if texts is None else read_texts(texts)
    dictionary, subject = open_dictionary(ref), open_model(model)
    found = self_check(dictionary, subject, read, tokens=tokens, progress=progress)
    tried = {
        label: {"l0": got.l0, "explained_variance": got.explained_variance} for label, got in found.tried.items()
    }
    return Checked(
        ref, model, found.site, dictionary.n_features, found.rows, found.l0, found.explained_variance, found.dead,
        dict(found.published), found.ok, list(found.warnings), tried,
    )  # fmt: skip


def on_episodes(subject: Any, dictionary: Any, episodes: Iterable[Any]) -> list[str]:
    """What looks wrong on the prompts of some episodes of this subject, one line each; [] where nothing does or
    nothing can be measured. Charged to no meter."""
    from fairlead.dictionaries.check import self_check

    prompts = list(dict.fromkeys(d.messages for e in episodes for d in e.outcome.decisions))
    if not hasattr(subject, "activations") or not hasattr(dictionary, "W_enc"):
        return []
    try:
        found = self_check(dictionary, subject.metered(None), prompts)
    except FairleadError:
        return []  # what does not fit at all is refused where it is used, with the reason
    head = f"{dictionary.name} on the train prompts of {subject.name}"
    return [f"{head}: {warning}" for warning in found.warnings]


def on_train(subject: Any, dictionary: Any, task: Any) -> list[str]:
    """As `on_episodes`, on a few train episodes of `task` that are played bare first, charged to no meter."""
    from fairlead.study.play import rollout

    if not hasattr(subject, "activations"):
        return []
    try:
        episodes = asyncio.run(rollout(task, task.items("train")[:EPISODES], subject.metered(None), EPISODES))
    except FairleadError:
        return []
    return on_episodes(subject, dictionary, episodes)
