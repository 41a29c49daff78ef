"""`fairlead steer`: what an edit does to one prompt, or along one shopping episode, beside no edit at all."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead import dictionaries, steering
from fairlead.app.catalogue import entries
from fairlead.app.models import open_model
from fairlead.core.errors import FairleadError, LoadError, UnknownName
from fairlead.core.types import EditReport, Item, Message
from fairlead.tasks.shop import plugin as shop
from fairlead.tasks.shop.spec import CATEGORIES

INSTANCES = 100  # of each category that can be named


@dataclass(frozen=True)
class Option:
    """One possible action, with its share of the probability of all legal ones."""

    action: str
    default: float
    steered: float
    label: str = ""


@dataclass(frozen=True)
class Step:
    """One decision point, asked twice. Without legal actions there are no options, only two texts."""

    step: int
    where: str
    default: str
    steered: str
    options: tuple[Option, ...]
    edits: tuple[EditReport, ...]


@dataclass(frozen=True)
class Comparison:
    """`edits` is the canonical text of the line; its fingerprint is the one in every cache key."""

    model: str
    edits: str
    fingerprint: str
    steps: tuple[Step, ...]


def on_prompt(
    line: str,
    text: str,
    *,
    model: str,
    dictionary: Sequence[str] = (),
    vectors: Path | None = None,
    system: str = "",
    actions: Sequence[str] = (),
    max_tokens: int = 32,
) -> Comparison:
    """One prompt: the distribution over `actions`, or with none given, what is said freely."""
    edits = steering.parse(line)
    subject, steered = _both(edits, model, dictionary, vectors)
    messages = (*((Message("system", system),) if system else ()), Message("user", text))

    async def ask() -> Step:
        legal = tuple(actions) or None
        default = await subject.generate(messages, legal=legal, max_tokens=max_tokens)
        changed = await steered.generate(messages, legal=legal, max_tokens=max_tokens)
        options = _options(actions, default.legal_logprobs, changed.legal_logprobs)
        return Step(0, "prompt", default.text, changed.text, options, changed.edits)

    return _compared(edits, subject, [asyncio.run(ask())])


def on_shop(
    line: str, item: str, *, model: str, dictionary: Sequence[str] = (), vectors: Path | None = None, limit: int = 20
) -> Comparison:
    """One shopping episode as the bare model plays it; at each of its decision points the steered model is
    asked too. `item` is SPLIT/CATEGORY/NUMBER/TRAP, not of the test split: that is opened once, by a study."""
    edits = steering.parse(line)
    found = _find(item)
    task = shop({"n": INSTANCES * len(CATEGORIES), "categories": list(CATEGORIES)})
    subject, steered = _both(edits, model, dictionary, vectors)

    async def play() -> list[Step]:
        outcome = await task.run(found, subject)
        steps = []
        for decision, page in list(zip(outcome.decisions, outcome.trace, strict=True))[:limit]:
            changed = await steered.generate(decision.messages, step=decision.step, legal=decision.legal)
            labels = {a: "right" for a in decision.right} | {a: "trap" for a in decision.trap}
            options = _options(decision.legal, decision.logprobs, changed.legal_logprobs, labels)
            steps.append(Step(decision.step, page["url"], decision.chosen, changed.text, options, changed.edits))
        return steps

    return _compared(edits, subject, asyncio.run(play()))


def _compared(edits: Sequence[steering.Edit], subject: Any, steps: Sequence[Step]) -> Comparison:
    text = steering.format(edits)
    return Comparison(subject.name, text, steering.fingerprint(edits), tuple(steps))


def _both(edits: Sequence[steering.Edit], model: str, refs: Sequence[str], vectors: Path | None) -> tuple[Any, Any]:
    """(the bare Subject, the steered one)."""
    subject = open_model(model)
    return subject, steered(subject, edits, model, refs, vectors)


def steered(
    subject: Any, edits: Sequence[steering.Edit], model: str, refs: Sequence[str] = (), vectors: Path | None = None
) -> Any:
    """`subject`, which is known as `model`, with `edits` applied. Without `refs` and vectors the dictionary is the one
    that comes with the model."""
    stored = {} if vectors is None else read_vectors(vectors)
    opened = [dictionaries.load(ref) for ref in refs]
    if not opened and not stored and edits:
        opened = [dictionaries.load(dictionary_of(model))]
    return steering.apply(subject, edits, opened or None, stored)


def dictionary_of(model: str) -> str:
    """The one dictionary of a pocket model that is no other's revision; else the model, which may have one."""
    found = [e.name for e in entries("dictionaries") if e.name.partition("@")[0] == model and "#" not in e.name]
    return found[0] if len(found) == 1 else model


def read_vectors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise LoadError(f"{path} cannot be read", expected="a safetensors file of vectors", got=str(error)) from error


def _find(name: str) -> Item:
    split, _, rest = name.partition("/")
    if split == "test":
        raise FairleadError(
            "steer does not open the test split",
            expected="an instance of train or validation",
            got=name,
            do="try validation/" + (rest or "promo/0/on"),
        )
    task = shop({"n": INSTANCES * len(CATEGORIES), "categories": list(CATEGORIES)})
    if split in ("train", "validation"):
        for item in task.items(split):
            if item.id == name:
                return item
    raise UnknownName(
        f"no shop instance {name!r}",
        expected=f"validation/CATEGORY/0..{INSTANCES - 1}/on|off|inverse, CATEGORY one of " + ", ".join(CATEGORIES),
        got=name,
    )


def _options(
    actions: Sequence[str],
    default: Sequence[float] | None,
    steered: Sequence[float] | None,
    labels: dict[str, str] | None = None,
) -> tuple[Option, ...]:
    if default is None or steered is None:
        return ()
    pairs = zip(actions, _shares(default), _shares(steered), strict=True)
    return tuple(Option(a, p, q, (labels or {}).get(a, "")) for a, p, q in pairs)


def _shares(logprobs: Sequence[float]) -> list[float]:
    top = max(logprobs)
    weights = [math.exp(x - top) for x in logprobs]
    return [w / sum(weights) for w in weights]
