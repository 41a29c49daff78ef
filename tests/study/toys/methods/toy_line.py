"""Toy methods that add a system line: `toy_line` (bare), `.tuned` (chosen by rollout), `.same` (a sibling's),
`.broken` (fit raises), `.absent` (not applicable), `.greedy` and `.stubborn` (ignore the cap)."""

import json
from contextlib import nullcontext

from fairlead.core.errors import BudgetExceeded, LoadError, NotApplicable
from fairlead.core.types import Message


class Line:
    def __init__(self, text):
        self.text, self.fingerprint = text, f"line:{text}"

    def open(self, subject):
        return nullcontext(subject.prompted(self.text) if self.text else subject)

    def describe(self):
        return {"line": self.text}

    def save(self, path):
        (path / "line.json").write_text(json.dumps(self.text))


class ToyLine:
    name = "toy_line"
    makes = "subject"
    uses_dictionary = False

    def __init__(self, variant, options):
        self.variant, self.pool = variant, options.get("pool", ["hurry", "careful", "slow"])
        self.siblings = ("toy_line.tuned",) if variant == "same" else ()

    async def fit(self, ctx):
        if self.variant == "broken":
            raise ValueError("no fit today")
        if self.variant == "absent":
            raise NotApplicable("needs a cloud")
        if self.variant == "same":
            return Line(ctx.sibling("toy_line.tuned").text + "!")
        if self.variant in ("greedy", "stubborn"):  # neither ever asks what is left
            while True:
                try:
                    await ctx.subject.generate((Message("user", "once more"),))
                except Exception:
                    if self.variant == "greedy":
                        raise
        if self.variant != "tuned":
            return Line("")
        best = (-1.0, "")
        for text in self.pool:
            try:
                ctx.try_one()
                episodes = await ctx.rollout(ctx.subject.prompted(text), ctx.validation)
            except BudgetExceeded:
                break
            best = max(best, (sum(e.score.values["strict"] for e in episodes) / len(episodes), text))
        return Line(best[1])

    def load(self, path):
        file = path / "line.json"
        if not file.exists():
            raise LoadError(f"no {file}")
        return Line(json.loads(file.read_text()))


def plugin(variant, options):
    return ToyLine(variant, options)
