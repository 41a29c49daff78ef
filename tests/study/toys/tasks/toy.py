"""A toy task: say `buy` on the third look, never `bait`. Every instance is rendered on and off."""

from fairlead.core.keys import content_key
from fairlead.core.types import Decision, Item, Message, Outcome, Score

LEGAL = ("look", "buy", "bait")


class ToyTask:
    name = "toy"
    needs = "subject"

    def __init__(self, options):
        self.n, self.free = options["n"], options["decoding"] == "free"
        self.broken = options.get("broken", -1)
        self.log = []

    def items(self, split):
        return [
            Item(f"{split}/{i}/{trap}", split, f"{split}/{i}", {"trap": trap}, {"i": i})
            for i in range(self.n)
            for trap in ("on", "off")
        ]

    def manifest(self, split):
        return content_key([item.id for item in self.items(split)])

    async def open(self):
        self.log.append("open")

    async def aclose(self):
        self.log.append("aclose")

    async def run(self, item, world):
        i, trap = item.data["i"], item.strata["trap"]
        if i == self.broken and trap == "on" and item.split == "test":
            raise RuntimeError("this instance is broken")
        decisions, said = [], ""
        for step in range(2 + i % 3):  # episodes end at different steps, so the lockstep group shrinks
            messages = (Message("system", "shop"), Message("user", f"item {i} trap {trap} step {step}"))
            answer = await world.generate(messages, step=step, legal=None if self.free else LEGAL)
            said = answer.text
            decisions.append(
                Decision(messages, step, LEGAL, said, ("buy",), ("bait",), answer.legal_logprobs, answer.edits)
            )
            if said in ("buy", "bait"):
                break
        data = {"steps": len(decisions), "said": said}
        return Outcome(data, tuple(decisions), tuple({"i": d.step, "observation": "a page"} for d in decisions))

    def score(self, item, outcome):
        said = outcome.data["said"]
        return Score({"strict": said == "buy", "loose": said == "buy", "fell": said == "bait", "unmeasured": None})


plugin = ToyTask
