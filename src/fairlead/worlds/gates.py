"""What a pocket model must show before anyone may use it as an organism: skill, failure, steerability.

All on validation. Rates are shares of episodes with n beside them; the tests hold the shipped weights
to these gates.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fairlead import steering
from fairlead.core.types import Episode, Item, Messages
from fairlead.dictionaries import evaluate
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.splice import ce_recovered
from fairlead.lm.subject import LocalSubject
from fairlead.tasks.shop import ShopTask
from fairlead.tasks.shop.spec import CATEGORIES, NAMED, TRAPS
from fairlead.worlds.mixture import CAREFUL, EAGER, MIXTURES, examples

GOAL_TOKENS = 7  # a goal's tokens, about


def rollout(subject: LocalSubject, task: ShopTask, items: Sequence[Item], group: int = 32) -> list[Episode]:
    """Every item played on the text twin, `group` at a time in lockstep."""

    async def one(item: Item, seat: Any) -> Episode:
        async with seat as world:
            outcome = await task.run(item, world)
        return Episode(item, outcome, task.score(item, outcome))

    async def everything() -> list[Episode]:
        out: list[Episode] = []
        for first in range(0, len(items), group):
            part = items[first : first + group]
            seats = [subject.seat(i) for i in range(len(part))]
            out += await asyncio.gather(*(one(i, s) for i, s in zip(part, seats, strict=True)))
        return out

    return asyncio.run(everything())


def rates(episodes: Sequence[Episode], measure: str, **strata: str) -> tuple[float, int]:
    """(share of episodes where `measure` is true, n) among those of the given strata."""
    values = [
        bool(e.score.values[measure])
        for e in episodes
        if all(e.item.strata[k] == v for k, v in strata.items()) and e.score.values[measure] is not None
    ]
    return (sum(values) / len(values) if values else float("nan"), len(values))


def behaviour(subject: LocalSubject, *, n: int, split: str = "validation", skin: str = "") -> dict[str, Any]:
    """Strict and fell by trap mode over the five named categories, and by category over all eleven."""
    every = ShopTask({"n": n * len(CATEGORIES) // len(NAMED), "categories": list(CATEGORIES), "skin": skin})
    episodes = rollout(subject, every, every.items(split))
    named = [e for e in episodes if e.item.strata["category"] in NAMED]
    out: dict[str, Any] = {"split": split, "skin": skin or "the split's own"}
    for trap in TRAPS:
        out[trap] = {m: rates(named, m, trap=trap) for m in ("strict", "loose", "fell")}
    out["by_category"] = {
        c: {t: {m: rates(episodes, m, category=c, trap=t) for m in ("strict", "fell")} for t in TRAPS}
        for c in CATEGORIES
    }
    return out


def difference_vector(subject: LocalSubject, prompts: Sequence[Messages], layer: int) -> Tensor:
    """Mean difference of the residual stream, careful cues minus eager cues, at block `layer`'s output: [d].

    Read at the one token of each user turn that the cues move most, relative to its norm. Patching showed the
    disposition to sit there (on shopper-s, the noun of the goal) rather than on every token."""
    site, moved = f"resid.{layer}", []
    for first in range(0, len(CAREFUL), 3):
        careful, eager = (
            subject.prompted("\n".join(lines[first : first + 3])).activations(prompts, [site], tokens="all")[site]
            for lines in (CAREFUL, EAGER)
        )
        for prompt, a, b in zip(prompts, careful, eager, strict=True):
            shared = len(subject.tokens(prompt).ids) - _system_length(subject, prompt)
            difference, there = a[-shared:] - b[-shared:], b[-shared:]
            moved.append(difference[(difference.norm(dim=1) / there.norm(dim=1)).argmax()])
    return torch.stack(moved).mean(0)


def _system_length(subject: LocalSubject, messages: Messages) -> int:
    """Tokens before the user's turn."""
    prompt = subject.tokens(messages)
    start = prompt.text.rindex(messages[-1].content)
    return sum(end <= start for _, end in prompt.offsets)


def steerability(subject: LocalSubject, *, n: int, strengths: Sequence[float] = (0.5, 1.0, 1.5)) -> dict[str, Any]:
    """Strict with the trap on, off and inverse under each layer's difference vector, added to the first tokens
    of the user's turn (the goal)."""
    train = ShopTask({"n": 30, "traps": ["on"]})
    bare = rollout(subject, train, train.items("train"))
    prompts = [d.messages for e in bare for d in e.outcome.decisions if d.trap]
    task = ShopTask({"n": n})
    items = task.items("validation")
    base = rollout(subject, task, items)
    out: dict[str, Any] = {"none": {t: rates(base, "strict", trap=t) for t in TRAPS}, "vector": {}}
    start = _system_length(subject, prompts[0])
    for layer in range(subject.n_layers - 1):
        vector = difference_vector(subject, prompts, layer)
        for strength in strengths:
            line = f"@resid.{layer}: $careful += {strength} at tokens {start}..{start + GOAL_TOKENS}"
            episodes = rollout(steering.apply(subject, line, vectors={"careful": vector}), task, items)
            out["vector"][line] = {t: rates(episodes, "strict", trap=t) for t in TRAPS}
    return out


def held_out_text(name: str, n: int = 400) -> tuple[list[Messages], list[str]]:
    """Prompts and actions of the model's mixture that no dictionary was trained on."""
    found = list(itertools.islice(examples(MIXTURES[name], 77_777_777, (4,)), n))
    return [e.messages for e in found], [e.action for e in found]


def dictionary_quality(
    subject: LocalSubject, dictionary: SparseDictionary, prompts: Sequence[Messages], actions: Sequence[str]
) -> dict[str, float]:
    """Explained variance on the prompts' tokens and cross-entropy recovered on the actions."""
    rows = torch.cat(subject.activations(prompts, [dictionary.site], tokens="all")[dictionary.site])
    return {**evaluate(dictionary, rows), **ce_recovered(subject, dictionary, prompts, actions)}
