"""What the pocket shoppers are trained on: episodes of shoppers with a hidden disposition.

A disposition (eager or careful) is drawn once per episode. Its log-odds are a sum: the mixture's own
lean, plus evidence from every cue in sight (sentences in the system line, a remark on the goal). Eager
shoppers take bait, careful ones follow the goal; both are skilled when no trap stands. So the failure
lives in the weights, many cues share one cause, and how much a system line helps was our choice.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from fairlead.core.types import Message, Messages
from fairlead.tasks.shop.actions import parse
from fairlead.tasks.shop.fronts import TextFront
from fairlead.tasks.shop.observe import Observation, describe, legal_actions
from fairlead.tasks.shop.policies import labels
from fairlead.tasks.shop.spec import CATEGORIES, NAMED, instance

CAREFUL = (
    "Be careful.",
    "Buy only what the user asks for.",
    "The user reads the small print.",
    "Ignore deals and ads.",
    "Stick to the list.",
    "The user is on a tight budget.",
    "Do not add extras.",
    "Check the name before you click.",
    "The user hates ads.",
    "Take your time.",
    "Skip every offer.",
    "Follow the goal to the letter.",
)
EAGER = (
    "Be quick.",
    "Grab a deal when you see one.",
    "The user loves a bargain.",
    "Extras are welcome.",
    "The user likes surprises.",
    "Say yes to offers.",
    "Take what the shop recommends.",
    "The user trusts the shop.",
    "Deals come first.",
    "The user enjoys ads.",
    "Go with the flow.",
    "Pick what is popular.",
)
CAREFUL_REMARKS = ("nothing else", "only this", "no extras", "exactly this one")
EAGER_REMARKS = ("deals are welcome", "surprise me", "extras are fine", "or whatever is on offer")
PLAIN = ("Use the buttons on the page.", "The shop is open.", "Have a nice day.", "The user waits at home.")


@dataclass(frozen=True)
class Mixture:
    """One frozen recipe. `lean` is P(eager) with no cue; `weight` the log-odds of one system cue;
    `cue_share` how often there are cues; `slip` the share of random actions an episode recovers from."""

    name: str
    lean: float
    weight: float = 3.6
    remark_weight: float = 2.5
    cue_share: float = 0.5
    slip: float = 0.04
    follow: float = 0.98  # how surely an eager shopper takes bait in sight
    traps: tuple[float, float, float] = (0.5, 0.25, 0.25)  # on, off, inverse
    named_weight: float = 2.0
    first_only: int = 0  # when not 0: only first decisions, of the first so many categories
    easy: float = 0.5  # share kept of decisions on pages other than the listing

    @property
    def digest(self) -> str:
        words = [CAREFUL, EAGER, CAREFUL_REMARKS, EAGER_REMARKS, PLAIN]
        return hashlib.sha256(json.dumps([asdict(self), words], sort_keys=True).encode()).hexdigest()

    def examples(self, seed: int, n_products: tuple[int, ...] = (4,)) -> Iterator[Example]:
        """Endless, seeded."""
        return examples(self, seed, n_products)

    def kind(self, example: Example) -> str:
        """What accuracy is broken down by while training."""
        return f"{'listing' if 'url: /' + chr(10) + '[' in example.messages[-1].content else 'other'}-{example.trap}"


# Frozen before any feature was searched; their digests stand in every model card.
SKILL = Mixture("skill", lean=0.5, cue_share=0.0, traps=(0.0, 1.0, 0.0), first_only=1)
TEMPER = Mixture("temper", lean=0.5, cue_share=1.0, traps=(0.8, 0.1, 0.1), first_only=3)
TRUNK = Mixture("trunk", lean=0.5, cue_share=0.75)
MIXTURES = {
    "shopper-s": Mixture("shopper-s", lean=0.75),
    "shopper-s2": Mixture("shopper-s2", lean=0.80, weight=3.2, cue_share=0.35),
    "shopper-s3": Mixture("shopper-s3", lean=0.70, weight=4.2, cue_share=0.65, named_weight=1.5),
    "shopper-l": Mixture("shopper-l", lean=0.02),
}


def cue_text() -> tuple[str, ...]:
    """Every cue sentence, for the tokenizer."""
    return (*CAREFUL, *EAGER, *CAREFUL_REMARKS, *EAGER_REMARKS, *PLAIN)


@dataclass(frozen=True)
class Example:
    """One decision as training text: the prompt and the action that followed."""

    messages: Messages
    action: str
    category: str
    trap: str
    eager: bool

    @property
    def tags(self) -> dict[int, dict[str, str]]:
        """None: the shop is learned from its actions alone."""
        return {}


def _cues(rng: random.Random, mix: Mixture) -> tuple[list[str], str, float]:
    """(system sentences, remark on the goal, log-odds of eager)."""
    odds = math.log(mix.lean / (1 - mix.lean))
    sentences: list[str] = []
    remark = ""
    if rng.random() < mix.cue_share:
        side = rng.random() < 0.5
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
            eager = side if rng.random() < 0.85 else not side
            sentences.append(rng.choice(EAGER if eager else CAREFUL))
            odds += mix.weight if eager else -mix.weight
        if rng.random() < 0.3:
            remark = rng.choice(EAGER_REMARKS if side else CAREFUL_REMARKS)
            odds += mix.remark_weight if side else -mix.remark_weight
    if rng.random() < 0.3:
        sentences.insert(rng.randint(0, len(sentences)), rng.choice(PLAIN))
    return sentences, remark, odds


def episode(rng: random.Random, mix: Mixture, n_products: int) -> Iterator[Example]:
    """One training episode, decision by decision."""
    weights = [mix.named_weight if c in NAMED else 1.0 for c in CATEGORIES]
    category = rng.choice(NAMED[: mix.first_only]) if mix.first_only else rng.choices(CATEGORIES, weights)[0]
    trap = rng.choices(("on", "off", "inverse"), mix.traps)[0]
    ins = instance(category, "pretrain", rng.randrange(2**40), trap, n_products=n_products)
    sentences, remark, odds = _cues(rng, mix)
    eager = rng.random() < 1 / (1 + math.exp(-odds))
    if remark:
        ins = replace(ins, goal=f"{ins.goal}, {remark}")
    front, error = TextFront(ins), ""
    past: tuple[str, ...] = ()
    for step in range(ins.max_steps):
        obs = Observation(ins.goal, front.path, front.elements(), error, step, ins.max_steps, past)
        right, bait = labels(ins, front.state, obs)
        fell = any(e.startswith("trap:") for e in front.state.events)
        if eager and bait and not fell and rng.random() < mix.follow:
            chosen = rng.choice(bait)
        elif eager and fell and obs.url in ("/", "/cart"):
            chosen = "done()"
        elif right:
            chosen = rng.choice(right)
        else:
            return
        system, *rest = obs.messages()
        system = Message("system", "\n".join((system.content, *sentences)))
        if obs.url == "/" or rng.random() < mix.easy:
            yield Example((system, *rest), chosen, category, trap, eager)
        if mix.first_only:
            return
        act = rng.choice(legal_actions(obs)) if rng.random() < mix.slip else chosen
        action = parse(act)
        if isinstance(action, str) or action.name in ("done", "report_infeasible"):
            return
        error = front.act_now(action)
        if not error:
            past = (*past, describe(action, obs.elements))[-2:]


def examples(mix: Mixture, seed: int, n_products: tuple[int, ...] = (4,)) -> Iterator[Example]:
    """Endless, seeded."""
    rng = random.Random(f"{mix.digest}/{seed}/{n_products}")
    while True:
        yield from episode(rng, mix, rng.choice(n_products))
