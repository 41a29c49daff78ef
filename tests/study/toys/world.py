"""The toy study: a subject whose numbers depend on what shares its batch, so that a wrong resume shows."""

import dataclasses

import fairlead.methods
import fairlead.tasks
from fairlead.core.fake import FakeSubject
from fairlead.core.keys import derive_seed

HERE = __file__.rpartition("/")[0]
PLAN = """
question = "Does a line help?"
task = "toy"
model = ["toy/a", "toy/b"]
seeds = [0, 1]
arms = ["toy_line", "toy_line.same", "toy_line.tuned", "toy_line+toy_line.tuned", "toy_line.absent"]
claim = "toy_line.tuned"
beat = ["toy_line"]
primary = "strict"
smallest_effect = 0.1
n = 11
n_train = 2
n_validation = 4
chunk = 5
where = {trap = "on"}
decoding = ["constrained", "free"]
budget = {tuning_trials = 2, flops = 1e9}
[task_options]
broken = 3
"""


def policy(messages, legal, step):
    text = " ".join(m.content for m in messages)
    if "trap on" in text and "careful" not in text:
        return "bait"
    return "buy" if step or legal is None else "look"


class BatchSubject(FakeSubject):
    """Log-probabilities carry a trace of the batch they were computed in."""

    async def generate(self, prompt, *, step=0, legal=None, max_tokens=32):
        said = await super().generate(prompt, step=step, legal=legal, max_tokens=max_tokens)
        if said.legal_logprobs is None or not self.batches:
            return said
        noise = derive_seed(self.batches[-1], [m.content for m in prompt]) % 1000 / 1e6
        return dataclasses.replace(said, legal_logprobs=tuple(x - noise for x in said.legal_logprobs))


def load_model(ref):
    return BatchSubject(policy, name=ref)


def extend():
    """Let the toys be found as plugins."""
    fairlead.tasks.__path__.append(f"{HERE}/tasks")
    fairlead.methods.__path__.append(f"{HERE}/methods")


def outfit(warn):
    """What a worker on Ray loads with."""
    extend()
    return load_model, None
