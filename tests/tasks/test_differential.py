"""The text twin against real Chromium: the same observations, errors and states for the same actions."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from tests.tasks import differential as diff

from fairlead.tasks.shop.actions import Action
from fairlead.tasks.shop.browser import Browser
from fairlead.tasks.shop.fronts import TextFront
from fairlead.tasks.shop.spec import CATEGORIES, TRAPS, Instance, instance

pytestmark = pytest.mark.browser
OBSERVATIONS = 2_000
CONTEXTS = 3
Case = tuple[Instance, list[Action]]


async def directed(kinds: diff.Kinds) -> list[Case]:
    """Each script in each trap mode, then 8 steps of what has been done least."""
    out: list[Case] = []
    scripts = {"discount": diff.CONTROLS, "addon": diff.OPTIONS, "upsell": diff.OFFERS, "promo": diff.PLACES}
    for category, named in scripts.items():
        for seed, moves in enumerate(named.values()):
            rng = random.Random(seed)
            for trap in TRAPS:
                ins = instance(category, "test", seed, trap)
                choose = diff.script(moves, diff.least_done(kinds, rng))
                out.append((ins, await diff.plan(ins, choose, len(moves) + 8, kinds)))
    return out


async def at_random(n: int, steps: int, kinds: diff.Kinds) -> list[Case]:
    out: list[Case] = []
    for i in range(n):
        ins = instance(CATEGORIES[i % len(CATEGORIES)], "test", 100 + i, TRAPS[i // len(CATEGORIES) % len(TRAPS)])
        out.append((ins, await diff.plan(ins, diff.at_random(random.Random(i)), steps, kinds)))
    return out


async def run(jobs: list[tuple[Case, diff.Twin, diff.Seen]]) -> None:
    """All jobs in one browser, CONTEXTS at a time; a job whose `Seen` holds a difference is skipped."""
    browser = await Browser.start(contexts=CONTEXTS, seconds=120)
    left = iter(jobs)

    async def worker() -> None:
        for (ins, actions), twin, seen in left:
            if not seen.difference:
                async with browser.front(ins) as real:
                    await diff.compare(ins, twin(ins), real, actions, seen)

    try:
        await asyncio.gather(*(worker() for _ in range(CONTEXTS)))
    finally:
        await browser.stop()


async def test_twin_equals_chromium() -> None:
    kinds: diff.Kinds = Counter()
    cases = await directed(kinds)
    left = OBSERVATIONS - sum(len(actions) + 1 for _, actions in cases)
    cases += await at_random(-(-left // 19), 18, kinds)
    missed = [(page, what) for page, whats in MUST_SEE.items() for what in whats.split(", ") if not kinds[page, what]]
    assert not missed
    seen = diff.Seen()
    await run([(case, TextFront, seen) for case in cases])
    assert not seen.difference, seen.difference
    assert seen.observations >= OBSERVATIONS
    assert seen.errors >= 0.14 * OBSERVATIONS


MUST_SEE = {  # every kind of element on every kind of page, and every way of leaving it
    "/": "click button, click link, fill button, click nothing, goto, go_back, noop",
    "/item": "click button, click checkbox, click link, click text, fill checkbox, goto, go_back, noop",
    "/offer": "click button, goto, go_back, noop",
    "/cart": (
        "click button, click link, fill textbox, select combobox, click textbox, click combobox, click text, "
        "fill nothing, goto, go_back, noop"
    ),
    "/nowhere": "click link, goto, go_back",
}


class SubmitsUnticked(TextFront):
    """A box that was unticked is submitted as ticked."""

    def _fields(self) -> dict[str, str]:
        boxes = {e.field: "on" for e in self._page.elements if e.role == "checkbox"}
        return {**super()._fields(), **boxes}


class LosesTyped(TextFront):
    """What was typed is not submitted."""

    def _fields(self) -> dict[str, str]:
        typed = {e.field: e.value for e in self._page.elements if e.role == "textbox"}
        return {**super()._fields(), **typed}


class SwallowsBadBid(TextFront):
    """A bid that is not on the page is no error."""

    def act_now(self, action: Action) -> str:
        wrong = super().act_now(action)
        return "" if wrong.startswith("no element") else wrong


class StaleSelect(TextFront):
    """A selection is shown, but the one that stood there before is submitted."""

    def _fields(self) -> dict[str, str]:
        stale = {e.field: e.value for e in self._page.elements if e.role == "combobox"}
        return {**super()._fields(), **stale}


class RestoresForms(TextFront):
    """Going back finds the form as it was left, as a browser's back-forward cache would."""

    def act_now(self, action: Action) -> str:
        kept = getattr(self, "kept", {})
        self.kept = {**kept, self._page.path: self._form}
        wrong = super().act_now(action)
        if action.name == "go_back" and not wrong:
            self._form = self.kept.get(self._page.path, {})
        return wrong


class PushesBack(TextFront):
    """Going back adds a page to the history instead of taking one away."""

    def act_now(self, action: Action) -> str:
        wrong = super().act_now(action)
        if action.name == "go_back" and not wrong:
            self._stack.append(self._page.path)
        return wrong


class KeepsLineBreaks(TextFront):
    """A line break survives in a one-line field."""

    def act_now(self, action: Action) -> str:
        wrong = super().act_now(action)
        if action.name == "fill" and not wrong:
            self._form[int(action.args[0]) - 1] = action.args[1]
        return wrong


MUTANTS = (SubmitsUnticked, LosesTyped, SwallowsBadBid, StaleSelect, RestoresForms, PushesBack, KeepsLineBreaks)


async def test_planted_mutants_are_caught() -> None:
    """Each on the first of the cases above that tells it from the twin (which costs no browser)."""
    kinds: diff.Kinds = Counter()
    cases = [*await directed(kinds), *await at_random(22, 18, kinds)]
    jobs = []
    for mutant in MUTANTS:
        telling = [case for case in cases if (await between(case, mutant)).difference]
        assert telling, f"no case tells {mutant.__name__} from the twin"
        jobs.append((telling[0], mutant, diff.Seen()))
    await run(jobs)  # type: ignore[arg-type]
    assert not [mutant.__name__ for _, mutant, seen in jobs if not seen.difference]


async def between(case: Case, mutant: diff.Twin) -> diff.Seen:
    ins, actions = case
    seen = diff.Seen()
    await diff.compare(ins, mutant(ins), TextFront(ins), actions, seen)
    return seen
