"""`fairlead train-dictionary`: a sparse dictionary fitted on a model's own activations, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from fairlead.app.models import open_model
from fairlead.app.texts import read_texts
from fairlead.core.errors import FairleadError, LoadError
from fairlead.core.types import Message, Messages
from fairlead.dictionaries import TrainConfig
from fairlead.dictionaries.stream import harvest
from fairlead.dictionaries.train import steps_flops

ROWS_PER_PROMPT = 300  # tokens a shop prompt has, for the preview only


@dataclass(frozen=True)
class Training:
    """What to train, checked, and where the result goes."""

    model: str
    config: TrainConfig
    rows: int
    out: Path
    texts: Path | None
    flops: float


@dataclass(frozen=True)
class Trained:
    """What came out: quality on held-out rows, and what it cost."""

    path: str
    statistics: dict[str, Any]
    training_flops: float | None


def prepare(model: str, site: str, config: TrainConfig, *, rows: int, out: Path, texts: Path | None = None) -> Training:
    """Check everything that can be checked without training. Raises before anything is written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FairleadError(f"{out} is there already", expected="a new directory", do="remove it, or choose another")
    if texts is not None and not texts.is_file():
        raise LoadError(f"no file {texts}", expected="a text file, one prompt a line", got=str(texts))
    subject = open_model(model)
    if site not in subject.sites:
        raise FairleadError(f"{model} has no site {site!r}", expected=", ".join(subject.sites), got=site)
    config = replace(config, site=site, name=config.name or f"{model.rpartition('/')[2]}@{site}")
    checkpoint = subject.checkpoint
    reading = checkpoint.shape.flops(rows, ROWS_PER_PROMPT, 0, checkpoint.sites.depth(site))
    flops = steps_flops(config, subject.d_model, config.steps * config.batch) + reading
    return Training(model, config, rows, out, texts, flops)


def execute(job: Training, *, progress: Callable[[str, int, int], None] | None = None) -> Trained:
    """Harvest activations, train, measure, save. The directory appears whole or not at all."""
    import torch

    from fairlead import dictionaries
    from fairlead.dictionaries.train import train

    say = progress or (lambda _phase, _done, _total: None)
    subject = open_model(job.model)
    got: list[torch.Tensor] = []
    seen = 0
    for part in harvest(subject, _prompts(job), job.config.site, limit=job.rows):
        got.append(part)
        seen += len(part)
        say("activations", min(seen, job.rows), job.rows)
    rows = torch.cat(got)
    cost = subject.meter.snapshot().flops
    dictionary = train(rows, job.config, lambda i, n, _measures: say("training", i, n), harvest_flops=cost)
    dictionaries.save(dictionary, job.out)
    statistics = dict(dictionary.metadata.get("statistics", {}))
    return Trained(str(job.out), statistics, dictionary.training_flops)


def _prompts(job: Training) -> Iterable[Messages]:
    if job.texts is not None:
        return [(Message("user", text),) for text in read_texts(job.texts)]
    return islice(own_prompts(job.model, job.config.seed), 2 * job.rows)


def own_prompts(model: str, seed: int) -> Iterator[Messages]:
    """What a pocket model was trained on; for any other model the shop's even mixture."""
    from fairlead.worlds import mixture, readers

    name = model.rpartition("/")[2]
    if name in readers.MIXTURES:
        stream: Iterator[Any] = readers.MIXTURES[name].examples(seed, readers.WHOLE)
    else:
        stream = mixture.examples(mixture.MIXTURES.get(name, mixture.TRUNK), seed)
    for example in stream:
        yield example.messages
