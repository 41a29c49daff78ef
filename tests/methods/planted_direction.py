"""A tiny model in which one direction mediates a failure.

A cue in the page ("%" or "&") writes u, attention carries it to the decision token, and the head reads it as the lure.
After "%" the lure is wrong, after "&" it is what was asked for, after "+" nothing happens and the model is right.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.lm.conftest import checkpoint
from tests.methods.conftest import Bench

from fairlead.core.types import Decision, Item, Message, Outcome, Score
from fairlead.lm.load import load
from fairlead.lm.subject import LocalSubject
from fairlead.study.play import rollout

LURE, RIGHT = "done()", "noop()"
CUES = {"on": "%", "off": "+", "inverse": "&"}


def directions(width: int = 32) -> tuple[torch.Tensor, ...]:
    """(u, w, q, r): what the cues write; what the assistant's turn always has; what saying the lure writes, and speaks
    against the right action wherever it stands; what "&" writes besides, which the head does not read."""
    basis = torch.linalg.qr(torch.randn(width, 4, generator=torch.Generator().manual_seed(5)))[0]
    return tuple(basis.T)


def subject(folder: Path, planted: bool = True) -> LocalSubject:
    torch.set_num_threads(1)
    made = load(checkpoint(folder, layers=3, width=32, kv_heads=4))
    if planted:
        _plant(made)
    return made


def _plant(made: LocalSubject) -> None:
    (u, w, q, r), chat, model = directions(), made.checkpoint.chat, made.model
    (assistant,) = chat.tokenizer.convert_tokens_to_ids(["<|assistant|>"])
    lure, right = chat.action(LURE)[0], chat.action(RIGHT)[0]
    assert lure != right
    with torch.no_grad():
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            weight -= sum(torch.outer(weight @ x, x) for x in (u, w, q, r))
        for block in model.model.layers:
            for linear in (block.self_attn.o_proj, block.mlp.down_proj):
                weight = linear.weight
                weight *= 0.3
                weight -= sum(torch.outer(x, x @ weight) for x in (u, w, q, r))
        for cue, written in (("%", 12.0 * u), ("&", 12.0 * u + 12.0 * r)):
            (token,) = chat.action(cue)
            model.model.embed_tokens.weight[token] += written
        model.model.embed_tokens.weight[assistant] += 3.0 * w
        for block in model.model.layers[:2]:
            for channel, x in enumerate((u, q, r)):
                block.self_attn.v_proj.weight[channel] = 6.0 * x
                block.self_attn.o_proj.weight[:, channel] = 6.0 * x
        model.model.embed_tokens.weight[lure] += 6.0 * q
        model.lm_head.weight[right] -= 6.0 * q
        model.lm_head.weight[lure] += 6.0 * u
        model.lm_head.weight[right] += 2.0 * w


class CueTask:
    """One decision an episode: lure or not."""

    name, needs = "cue", "subject"

    async def run(self, item: Item, world: Any) -> Outcome:
        kind = item.strata["trap"]
        page = f"page {item.data['i'] % 7}\nnote {item.id.count('/')} {CUES[kind]} ok {item.data['i'] % 3}"
        messages = (Message("system", "You shop."), Message("user", page))
        right = LURE if kind == "inverse" else RIGHT
        trap = (LURE,) if kind == "on" else ()
        said = await world.generate(messages, step=0, legal=(LURE, RIGHT))
        seen = Decision(messages, 0, (LURE, RIGHT), said.text, (right,), trap, said.legal_logprobs, said.edits)
        told = None if said.legal_logprobs is None else list(said.legal_logprobs)
        return Outcome({"said": said.text, "logprobs": told, "ok": said.text == right}, (seen,))

    def score(self, item: Item, outcome: Outcome) -> Score:
        return Score({"strict": outcome.data["ok"]})


class CoinTask(CueTask):
    """Which of the two is right is a coin of the item's."""

    async def run(self, item: Item, world: Any) -> Outcome:
        outcome = await super().run(item, world)
        right = (LURE, RIGHT)[random.Random(item.id).randrange(2)]
        seen = replace(outcome.decisions[0], right=(right,), trap=())
        return Outcome({**outcome.data, "ok": outcome.data["said"] == right}, (seen,))


def items(split: str, n: int, kinds: tuple[str, ...]) -> list[Item]:
    return [Item(f"{split}/{i}/{k}", split, f"{split}/{i}", {"trap": k}, {"i": i}) for i in range(n) for k in kinds]


class CueBench(Bench):
    """A Bench on this world, with the strata named in `kinds`."""

    kinds: tuple[str, ...] = ("on", "off")

    def context(self, options: dict[str, Any], sibling: Any = None, **change: Any) -> Any:
        known = {"train": items("train", 18, self.kinds), "validation": items("validation", 8, self.kinds)}
        return super().context(options, sibling, **{**known, **change})

    async def solved(self, world: Any, n: int = 10) -> dict[str, float]:
        """Share of test items solved, by stratum."""
        found: dict[str, list[float]] = {}
        for e in await rollout(self.task, items("test", n, self.kinds), world, 8):
            found.setdefault(e.item.strata["trap"], []).append(float(bool(e.score.values["strict"])))
        return {k: sum(v) / len(v) for k, v in found.items()}


def bench(made: LocalSubject, kinds: tuple[str, ...] = ("on", "off")) -> CueBench:
    made = made.metered(None)
    found = CueBench(made, CueTask(), None)  # type: ignore[arg-type]
    found.kinds = kinds
    return found
