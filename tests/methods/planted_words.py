"""A task for scripted subjects: say the word that belongs to a page. Which word it is, a policy may know or not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from fairlead.core.errors import BudgetExceeded
from fairlead.core.fake import FakeSubject
from fairlead.core.protocols import FitContext
from fairlead.core.types import Decision, Item, Message, Messages, Outcome, Score
from fairlead.study.play import rollout

WORDS = ("north", "east", "south", "west")


def number(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0]


def right_of(page: str) -> str:
    """The right word of a page: its code's, a rule that nobody is told."""
    return WORDS[number(page.split("\n")[0].split()[1]) % len(WORDS)]


class WordTask:
    name, needs = "words", "subject"

    def items(self, split: str, n: int = 40) -> list[Item]:
        return [
            Item(f"{split}/{i}", split, f"{split}/{i}", {"trap": ("on", "off")[i % 2]}, {"page": self.page(split, i)})
            for i in range(n)
        ]

    def page(self, split: str, i: int) -> str:
        return f"code k{i % 5}\nnoise {number(f'{split}{i}')}\nnothing here\nend of page"

    async def run(self, item: Item, world: Any) -> Outcome:
        messages = (Message("system", "You say one word."), Message("user", item.data["page"]))
        right = right_of(item.data["page"])
        trap = (next(w for w in WORDS if w != right),) if item.strata["trap"] == "on" else ()
        said = await world.generate(messages, step=0, legal=WORDS)
        seen = Decision(messages, 0, WORDS, said.text, (right,), trap, said.legal_logprobs, said.edits)
        return Outcome({"said": said.text, "ok": said.text == right}, (seen,))

    def score(self, item: Item, outcome: Outcome) -> Score:
        return Score({"strict": outcome.data["ok"]})


class Table:
    """What a fit needs, without a model; `tried` counts its attempts."""

    def __init__(self, subject: Any, cap: int = 20) -> None:
        self.subject, self.cap, self.tried, self.task = subject, cap, 0, WordTask()

    def context(self, **change: Any) -> FitContext[Any]:
        async def roll(world: Any, items: Sequence[Item]) -> Any:
            return await rollout(self.task, items, world, 8)

        def try_one() -> None:
            if self.tried >= self.cap:
                raise BudgetExceeded("cap")
            self.tried += 1

        def no_sibling(name: str) -> Any:
            raise AssertionError(f"asked for {name}")

        settings: dict[str, Any] = {
            "subject": self.subject, "dictionary": None, "train": self.task.items("train"),
            "validation": self.task.items("validation", 24), "seed": 5, "budget": None, "rollout": roll,
            "try_one": try_one, "options": {}, "sibling": no_sibling,
        }  # fmt: skip
        return FitContext(**{**settings, **change})

    async def share(self, world: Any, n: int = 24) -> float:
        """Share of test items that are solved on `world`."""
        episodes = await rollout(self.task, self.task.items("test", n), world, 8)
        return sum(bool(e.score.values["strict"]) for e in episodes) / n


def unsure(messages: Messages, legal: Sequence[str] | None, _step: int) -> str:
    """Right on about half of the pages, for no reason that a prompt could reach."""
    page = messages[-1].content
    right = right_of(page)
    if not legal or page.split()[0] != "code":
        return "hm"
    return right if number(page) % 2 else next(w for w in legal if w != right)


def fake(policy: Any) -> FakeSubject:
    return FakeSubject(policy)
