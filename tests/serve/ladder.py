"""A task of three rungs, for looking on: every text of it tries to break out of the page that shows it."""

from __future__ import annotations

from typing import Any

from tests.report.synthetic_run import HOSTILE

from fairlead.core.types import Decision, Item, Message, Outcome, Score

LEGAL = ("up", "down", "left", HOSTILE[1])
PAGE = "<style>p{color:#333}</style><p data-bid=\"1\">rung RUNG</p>" + "".join(HOSTILE)


class Ladder:
    """The right word is `up`."""

    name, needs = "ladder", "subject"

    def items(self, split: str) -> list[Item]:
        return [Item(f"{split}/{i}{lure}", split, "c") for i, lure in enumerate(("", *HOSTILE))]

    async def run(self, item: Item, world: Any) -> Outcome:
        trace, decisions = [], []
        for step in range(3):
            prompt = (Message("user", f"goal: {HOSTILE[1]} climb\nrung {step} {HOSTILE[0]}"),)
            if hasattr(world, "look"):
                shown = {"goal": f"{HOSTILE[1]} climb", "url": HOSTILE[2], "html": PAGE.replace("RUNG", str(step))}
                await world.look({**shown, "right": ["up"], "cart": [{"name": HOSTILE[3], "price": 3}]})
            said = await world.generate(prompt, step=step, legal=LEGAL)
            decisions.append(Decision(prompt, step, LEGAL, said.text, ("up",), (), said.legal_logprobs))
            trace.append({"i": step, "action": said.text, "right": ["up"], "trap": [], "error": "", "html": "x"})
            if hasattr(world, "told"):
                world.told(trace[-1])
        return Outcome({"climbed": [d.chosen for d in decisions]}, tuple(decisions), trace)

    def score(self, item: Item, outcome: Outcome) -> Score:
        return Score({"strict": outcome.data["climbed"] == ["up"] * 3})
