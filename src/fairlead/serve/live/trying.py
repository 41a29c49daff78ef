"""An edit tried on a prompt: what is said with it and without, and how shares move with the dose of one latent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from fairlead import steering
from fairlead.core.errors import FairleadError
from fairlead.core.types import Message, Messages
from fairlead.report.replay import softmax
from fairlead.serve.live.episode import Bench, Point
from fairlead.steering import Edit, Latent, Op, Scope

DOSES = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)  # times the latent's largest activation
TEXT_DOSES = (-2.0, -1.0, 0.0, 1.0, 2.0)
CHARS, ACTIONS, TOKENS, LINES = 20_000, 64, 64, 5


async def compare(bench: Bench, line: str, messages: Messages, actions: Sequence[str]) -> dict[str, Any]:
    """One prompt, answered with the edits of a line and without."""
    edits = steering.parse(line)
    steered, legal = bench.steered(edits), tuple(actions) or None
    default = await bench.subject.generate(messages, legal=legal, max_tokens=TOKENS)
    changed = await steered.generate(messages, legal=legal, max_tokens=TOKENS)
    shares = [None if s.legal_logprobs is None else softmax(s.legal_logprobs) for s in (default, changed)]
    return {
        "line": steering.format(edits), "default": default.text, "steered": changed.text, "actions": list(actions),
        "was": shares[0], "is": shares[1], "edits": [asdict(e) for e in changed.edits],
    }  # fmt: skip


async def dose(
    bench: Bench, latent: int, messages: Messages, actions: Sequence[str], *, step: int = 0,
    page: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The shares of the actions while one latent is added at each dose, at every token; all doses in one batch. Without
    actions, what is said at each dose. `page`, where there is one, says which actions are right and a trap."""
    dictionary = next(iter(bench.dictionaries), None)
    if dictionary is None or not 0 <= latent < dictionary.n_features:
        raise FairleadError(f"no latent {latent} here", expected="a latent of the dictionary that is open")
    doses = DOSES if actions else TEXT_DOSES
    found = {"latent": latent, "site": dictionary.site, "doses": list(doses), "unit": "times its largest activation"}
    sets = [_at(dictionary, latent, amount) for amount in doses]
    if not actions:
        said = [await bench.steered(edits).generate(messages, step=step, max_tokens=TOKENS // 2) for edits in sets]
        return {**found, "texts": [one.text for one in said], "lines": []}
    shares = await asyncio.to_thread(_shares, bench, sets, messages, tuple(actions), step)
    best = [max(row[i] for row in shares) for i in range(len(actions))]
    order = sorted(range(len(actions)), key=lambda i: -best[i])[:LINES]
    kinds = {} if page is None else {a: kind for kind in ("right", "trap") for a in page.get(kind, ())}
    lines = [{"name": actions[i], "kind": kinds.get(actions[i]), "values": [r[i] for r in shares]} for i in order]
    return {**found, "texts": [], "lines": lines, "others": max(0, len(actions) - LINES)}


def _shares(
    bench: Bench, sets: Sequence[Sequence[Edit]], messages: Messages, actions: Sequence[str], step: int
) -> list[list[float]]:
    """[dose][action]: every set of edits is one row of a batch."""
    subject, n = bench.subject, len(sets)
    engine = steering.compile_sets(
        sets, list(bench.dictionaries), bench.vectors, d_model=subject.d_model, n_layers=subject.n_layers
    )
    steered = subject.edited(engine.hooks, engine.fingerprint, engine.reports, engine.flops_per_token)
    scores = steered.action_logprobs([messages] * n, [actions] * n, [step] * n, slots=list(range(1, n + 1)))
    return [torch.softmax(one.double(), 0).tolist() for one in scores]


def _at(dictionary: Any, latent: int, amount: float) -> tuple[Edit, ...]:
    """The latent, added at `amount` times its largest activation; in raw units where that is not known."""
    known = getattr(dictionary, "max_activation", None) is not None
    if amount == 0:
        return ()
    return (Edit(Latent(latent), Op.ADD, amount, "max" if known else "raw", dictionary.site, Scope()),)


def asked(value: Mapping[str, Any], point: Point | None) -> tuple[Messages, tuple[str, ...], int]:
    """(messages, actions, agent step) of a request: a prompt, or with `here` the decision that the episode waits at."""
    if value.get("here") is True:
        if point is None:
            raise FairleadError("no episode waits at a decision", do="start one, or give a prompt")
        return point.prompt, point.legal or (), point.step
    prompt, system, actions = value.get("prompt"), value.get("system", ""), value.get("actions", [])
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > CHARS:
        raise FairleadError(f"prompt is a text of 1 to {CHARS} characters")
    if not isinstance(system, str) or len(system) > CHARS:
        raise FairleadError("system is a text")
    good = isinstance(actions, list) and len(actions) <= ACTIONS and all(isinstance(a, str) and a for a in actions)
    if not good or len(set(actions)) != len(actions) or len(actions) == 1 or sum(map(len, actions)) > CHARS:
        raise FairleadError(f"actions is a list of 2 to {ACTIONS} different texts, or none")
    first = (Message("system", system),) if system else ()
    return (*first, Message("user", prompt)), tuple(actions), 0
