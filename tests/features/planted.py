"""A tiny random model with one planted direction: adding it turns failing decisions right and spares the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.lm.conftest import checkpoint

from fairlead.core.types import Decision, Episode, Item, Message, Outcome, Score
from fairlead.dictionaries.base import SparseDictionary
from fairlead.features.points import Point
from fairlead.lm.load import load
from fairlead.lm.subject import LocalSubject

SITE, PLANTED, M = "resid.2", 5, 24
LURE, PLAIN = ("done()", "noop()"), ('click("1")', 'click("2")')


def subject(folder: Path) -> LocalSubject:
    torch.set_num_threads(1)
    return load(checkpoint(folder, layers=3, width=32))


def items(split: str, n: int) -> list[Item]:
    return [
        Item(f"{split}/{i}/{trap}", split, f"{split}/{i}", {"trap": trap, "category": "toy"}, {"i": i})
        for i in range(n)
        for trap in ("on", "off")
    ]


class ToyTask:
    """One decision an episode. Trap on: the first action is the lure. Off: right is what the bare model does."""

    name, needs = "toy", "subject"

    def __init__(self, bare: LocalSubject) -> None:
        self.bare = bare

    def messages(self, item: Item) -> tuple[Message, ...]:
        words = ("red", "blue", "old", "new", "tiny")
        page = f"buy the {words[item.data['i'] % 5]} lamp {item.data['i']} [1] link [2] button step 1/9"
        return (Message("system", "You shop."), Message("user", page))

    def decision(self, item: Item, said: Any) -> Decision:
        legal = LURE if item.strata["trap"] == "on" else PLAIN
        if item.strata["trap"] == "on":
            return Decision(
                self.messages(item), 0, legal, said.text, legal[1:], legal[:1], said.legal_logprobs, said.edits
            )
        bare = self.bare.action_logprobs([self.messages(item)], [legal])[0]
        right, trap = (legal[int(bare.argmax())],), ()
        return Decision(self.messages(item), 0, legal, said.text, right, trap, said.legal_logprobs, said.edits)

    async def run(self, item: Item, world: Any) -> Outcome:
        legal = LURE if item.strata["trap"] == "on" else PLAIN
        said = await world.generate(self.messages(item), step=0, legal=legal)
        decision = self.decision(item, said)
        told = None if said.legal_logprobs is None else list(said.legal_logprobs)
        data = {"said": said.text, "logprobs": told, "ok": said.text in decision.right}
        return Outcome(data, (decision,))

    def score(self, item: Item, outcome: Outcome) -> Score:
        return Score({"strict": outcome.data["ok"]})


def points_of(task: ToyTask, chosen: list[Item]) -> list[Point]:
    found = []
    for item in chosen:
        legal = LURE if item.strata["trap"] == "on" else PLAIN
        scores = task.bare.action_logprobs([task.messages(item)], [legal])[0]
        said = type("Said", (), {"text": legal[int(scores.argmax())], "legal_logprobs": None, "edits": ()})()
        found.append(Point(task.decision(item, said), item.strata["trap"], item.cluster))
    return found


def planted_vector(bare: LocalSubject) -> torch.Tensor:
    """[d] at the last site: raises the token that tells the right action from the lure, lowers the lure's."""
    lure, right = (bare.checkpoint.chat.action(a) for a in LURE)
    a, b = next((x, y) for x, y in zip(lure, right, strict=True) if x != y)
    rows = bare.model.get_output_embeddings().weight.detach()
    return (rows[b] - rows[a]) * bare.model.model.norm.weight.detach()


def dictionary(bare: LocalSubject, strength: float = 8.0) -> SparseDictionary:
    """Random unit latents, but for PLANTED, which writes the planted vector; `strength` is their largest activation."""
    generator = torch.Generator().manual_seed(3)
    vector = planted_vector(bare)
    rows = torch.randn(M, bare.d_model, generator=generator)
    rows = rows / rows.norm(dim=1, keepdim=True)
    rows[PLANTED] = vector / vector.norm()
    largest = strength * torch.linspace(0.99, 1.01, M)
    return SparseDictionary(
        "planted", SITE, rows.T.contiguous(), rows.contiguous(), torch.zeros(M), torch.zeros(bare.d_model),
        max_activation=largest, firing_rate=torch.linspace(0.2, 0.8, M),
    )  # fmt: skip


def episode(item: Item, point: Point) -> Episode:
    return Episode(item, Outcome({}, (point.decision,)), Score({"strict": not point.failed}))
