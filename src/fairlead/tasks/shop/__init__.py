"""Shopping in a web shop full of traps: the browser agent's task.

`plugin(options)` builds the task. Options: front ("text" or "chromium"), fit_front (the front of train and
validation episodes, while methods are fitted; "" is the same as front), decoding ("constrained" or
"free"), categories, traps, n (instances per split), n_products, html (keep page HTML in traces), skin,
contexts (episodes that run at a time in the browser), port (0: the system chooses).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fairlead.core.errors import PlanError
from fairlead.core.types import Generation, Item, Outcome, Score
from fairlead.tasks.shop.episode import FUNNEL, play, shown
from fairlead.tasks.shop.fronts import Front, TextFront
from fairlead.tasks.shop.observe import Observation
from fairlead.tasks.shop.site import State, bait_in, falls
from fairlead.tasks.shop.spec import CATEGORIES, NAMED, TRAPS, Instance, instance

DEFAULTS: dict[str, Any] = {
    "front": "text",
    "fit_front": "",
    "decoding": "constrained",
    "categories": list(NAMED),
    "traps": list(TRAPS),
    "n": 40,
    "n_products": 4,
    "html": False,
    "skin": "",
    "contexts": 4,
    "port": 0,
}
MOST = 100_000


class ShopTask:
    """`needs` a subject. Items are instances × on, off, inverse; the three share a cluster."""

    name = "shop"
    needs = "subject"

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        options = dict(options or {})
        unknown = sorted(set(options) - set(DEFAULTS))
        if unknown:
            raise PlanError("unknown shop option", expected=", ".join(sorted(DEFAULTS)), got=", ".join(unknown))
        self.options: dict[str, Any] = {**DEFAULTS, **options}
        for key, value in options.items():
            if type(value) is not type(DEFAULTS[key]) or (type(value) is int and value < (key != "port")):
                raise PlanError(f"shop option {key}", expected=f"a value like {DEFAULTS[key]!r}", got=repr(value))
            if type(value) is int and value > MOST:
                raise PlanError(f"shop option {key} is too large", expected=f"at most {MOST}", got=str(value))
        fronts = ("text", "chromium")
        for key, allowed in (("front", fronts), ("fit_front", ("", *fronts)), ("decoding", ("constrained", "free"))):
            if self.options[key] not in allowed:
                raise PlanError(f"shop option {key}", expected=" or ".join(allowed), got=repr(self.options[key]))
        for key, every in (("categories", CATEGORIES), ("traps", TRAPS)):
            wrong = [c for c in self.options[key] if c not in every]
            if wrong:
                raise PlanError(f"shop option {key}", expected=", ".join(every), got=", ".join(wrong))
        self._browser: Any = None
        self._opening = asyncio.Lock()

    @property
    def lanes(self) -> int | None:
        """How many episodes can run at a time: the browser's contexts. None on the text twin: any number."""
        return int(self.options["contexts"]) if self.options["front"] == "chromium" else None

    def items(self, split: str) -> Sequence[Item]:
        """`n` instances per split, spread evenly over the categories, each in every trap mode."""
        out = []
        categories = self.options["categories"]
        for i in range(self.options["n"]):
            category, seed = categories[i % len(categories)], i // len(categories)
            for trap in self.options["traps"]:
                cluster = f"{split}/{category}/{seed}"
                strata = {"category": category, "trap": trap}
                out.append(Item(f"{cluster}/{trap}", split, cluster, strata, {"seed": seed}))
        return out

    def manifest(self, split: str) -> str:
        digest = hashlib.sha256()
        for item in self.items(split):
            digest.update(f"{item.id}\n{self.instance(item)!r}\n".encode())
        return digest.hexdigest()

    def instance(self, item: Item) -> Instance:
        return instance(
            item.strata["category"],
            item.split,
            int(item.data["seed"]),
            item.strata["trap"],
            n_products=self.options["n_products"],
            skin=self.options["skin"],
        )

    async def open(self) -> None:
        """Start what the front needs; the text twin needs nothing."""
        async with self._opening:  # episodes run side by side; one browser serves them all
            if self.options["front"] == "chromium" and self._browser is None:
                from fairlead.tasks.shop.browser import Browser

                self._browser = await Browser.start(contexts=self.options["contexts"], port=self.options["port"])

    async def aclose(self) -> None:
        if self._browser is not None:
            browser, self._browser, self._opening = self._browser, None, asyncio.Lock()
            await browser.stop()

    async def run(self, item: Item, world: Any) -> Outcome:
        """Play the episode. A world that has them is told of each page before it is asked (`look`), and of each step
        that was taken (`told`): so somebody can look on, and nothing else changes."""
        ins = self.instance(item)
        free, look = self.options["decoding"] == "free", getattr(world, "look", None)
        async with self._front(item, ins) as front:

            async def ask(obs: Observation, legal: tuple[str, ...]) -> Generation:
                if look is not None:
                    await look(await shown(ins, front, obs))
                return await world.generate(obs.messages(), step=obs.step, legal=None if free else legal)

            return await play(ins, front, ask, keep_html=self.options["html"], told=getattr(world, "told", None))

    @asynccontextmanager
    async def _front(self, item: Item, ins: Instance) -> AsyncIterator[Front]:
        """A fresh episode on the front that this item is played on."""
        fitting = item.split in ("train", "validation") and self.options["fit_front"]
        if (fitting or self.options["front"]) == "text":
            yield TextFront(ins)
            return
        await self.open()
        async with self._browser.front(ins) as front:
            yield front

    def score(self, item: Item, outcome: Outcome) -> Score:
        """strict: the agent ended with exactly the wanted cart, code and budget kept. loose: the wanted
        things are there, whatever else is. fell: any bait ever taken; fell_final: bait in the final
        state. Rates of the funnel are shares of steps. Strict implies loose, by assertion."""
        return Score(score_outcome(self.instance(item), outcome.data))


def score_outcome(ins: Instance, data: Mapping[str, Any]) -> dict[str, bool | float | None]:
    """The scores of one finished episode, from its Record alone."""
    cart, code = tuple(sorted(data["cart"])), data["code"]
    state = State(cart=tuple(data["cart"]), applied_code=code, events=tuple(data["events"]))
    values: dict[str, bool | float | None]
    if ins.want is None:
        strict = data["ended"] == "infeasible" and not cart
        values = {"strict": strict, "loose": None}
    else:
        has = all(cart.count(s) >= ins.want.count(s) for s in ins.want) and (not ins.code or code == ins.code)
        spent = sum(ins.price(s) for s in cart)
        kept = ins.limit is None or spent <= ins.limit
        strict = data["ended"] == "done" and cart == ins.want and (not ins.code or code == ins.code) and kept
        assert has or not strict, "strict must imply loose"
        values = {"strict": strict, "loose": has}
    values["fell"], values["fell_final"] = falls(ins, state), bait_in(ins, state)
    steps = data["steps"]
    for name in FUNNEL:
        values[name] = data["funnel"][name] / steps if steps else None
    return values


plugin = ShopTask
