"""The differential driver: the same actions on two fronts, compared at every observation.

Sequences are random (with bids that are not there, and actions of the wrong type) or directed: short
scripts of what browsers and imitations of browsers disagree about, followed by whatever kind of step has
been taken least.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from fairlead.tasks.shop.actions import Action
from fairlead.tasks.shop.episode import observe
from fairlead.tasks.shop.fronts import Front, TextFront
from fairlead.tasks.shop.observe import Observation, describe, legal_actions
from fairlead.tasks.shop.spec import Instance

Choose = Callable[[Observation], Action]
Twin = Callable[[Instance], TextFront]
Kinds = Counter[tuple[str, str]]  # (page, what was done there)
TEXTS = (
    "",
    "SAVE10",
    "save10",
    " SAVE10 ",
    'O\'Neil "quoted" \\ back',
    "<b>&amp;</b>",
    "a+b=c&d=%41;#",
    "two\nlines",
    "日本語 🛒 é",
    "\u202ertl\u200b\xa0end\u2028",
    "x" * 300,
)
PATHS = (
    "/",
    "/cart",
    "/item",
    "/offer",
    "/act",
    "/nowhere",
    "/e/abc/cart",
    "//",
    "/cart/",
    "cart",
    "http://example.org/",
)


@dataclass
class Seen:
    """What was compared so far, and the first difference, if there was one."""

    observations: int = 0
    errors: int = 0
    difference: str = ""


async def plan(ins: Instance, choose: Choose, steps: int, kinds: Kinds) -> list[Action]:
    """The actions that `choose` takes, found on the text twin alone, so that they never depend on timing."""
    twin, actions = TextFront(ins), []
    for step in range(steps):
        obs = await observe(ins, twin, step, (), "")
        actions.append(choose(obs))
        kinds[obs.url, kind(actions[-1], obs)] += 1
        await twin.act(actions[-1])
    return actions


async def compare(ins: Instance, left: Front, right: Front, actions: list[Action], seen: Seen) -> None:
    """Act on both until the end or the first difference in text, error, legal actions or server state."""
    past: tuple[str, ...] = ()
    errors = ("", "")
    for step, action in enumerate([*actions, Action("noop")]):
        a = await observe(ins, left, step, past, errors[0])
        b = await observe(ins, right, step, past, errors[1])
        seen.observations += 1
        if a.text() != b.text() or a != b or legal_actions(a) != legal_actions(b) or left.state != right.state:
            seen.difference = f"{ins.category}/{ins.seed}/{ins.trap} {past}\n{a.text()}\n--\n{b.text()}"
            return
        errors = await left.act(action), await right.act(action)
        if errors[0]:
            seen.errors += 1
        else:
            past = (*past, describe(action, a.elements))[-2:]


def kind(action: Action, obs: Observation) -> str:
    """The action and what it was done to."""
    if action.name not in ("click", "fill", "select"):
        return action.name
    role = next((e.role for e in obs.elements if e.bid == action.args[0]), "nothing")
    return f"{action.name} {role}"


def possible(obs: Observation, rng: random.Random) -> list[Action]:
    """Every kind of step the page allows, the endings left out, typed text hostile."""
    out = [Action("go_back"), Action("noop"), Action("send_msg_to_user", ("hello",))]
    out += [Action("goto", (p,)) for p in PATHS]
    for e in obs.elements:
        if e.role in ("link", "button", "checkbox"):
            out.append(Action("click", (e.bid,)))
        elif e.role == "textbox":
            out += [Action("fill", (e.bid, t)) for t in rng.sample(TEXTS, 2)]
        elif e.role == "combobox":
            out += [Action("select", (e.bid, o)) for o in e.options]
    return out


def wrong_bid(rng: random.Random) -> Action:
    bid = rng.choice(["0", "99", "-1", "01", "", '"]', "x' or 1", "１"])
    return rng.choice([Action("click", (bid,)), Action("fill", (bid, "x")), Action("select", (bid, "x"))])


def wrong_type(obs: Observation, rng: random.Random) -> Action:
    e = rng.choice(obs.elements)
    takes = {"textbox": "fill", "combobox": "select", "text": ""}.get(e.role, "click")
    name = rng.choice([n for n in ("click", "fill", "select") if n != takes or n == "select"])
    return Action(name, (e.bid,) if name == "click" else (e.bid, "no such option"))


def at_random(rng: random.Random) -> Choose:
    """7 % wrong bids, 7 % wrong types, 10 % addresses, else an element of the page."""

    def choose(obs: Observation) -> Action:
        draw = rng.random()
        if draw < 0.07:
            return wrong_bid(rng)
        if draw < 0.14:
            return wrong_type(obs, rng)
        steps = possible(obs, rng)
        away = [a for a in steps if a.name in ("goto", "go_back")]
        return rng.choice(away if draw < 0.24 else [a for a in steps if a not in away])

    return choose


def least_done(kinds: Kinds, rng: random.Random) -> Choose:
    """Whatever kind of step has been taken least on this page, wrong ones included."""

    def choose(obs: Observation) -> Action:
        wrong = [Action("click", (e.bid,)) for e in obs.elements] + [Action("fill", (e.bid, "x")) for e in obs.elements]
        steps = [*possible(obs, rng), *wrong, wrong_bid(rng)]
        rng.shuffle(steps)
        return min(steps, key=lambda a: kinds[obs.url, kind(a, obs)])

    return choose


def find(obs: Observation, role: str, starts: str = "") -> str:
    """The bid of the first such element, or one that is not there."""
    return next((e.bid for e in obs.elements if e.role == role and e.name.startswith(starts)), "77")


def click(role: str, starts: str = "") -> Choose:
    return lambda obs: Action("click", (find(obs, role, starts),))


def fill(text: str) -> Choose:
    return lambda obs: Action("fill", (find(obs, "textbox"), text))


def select(option: str) -> Choose:
    return lambda obs: Action("select", (find(obs, "combobox"), option))


def fill_code(obs: Observation) -> Action:
    """The code that the goal asks for."""
    return Action("fill", (find(obs, "textbox"), obs.goal.rsplit(" ", 1)[1]))


def goto(path: str) -> Choose:
    return lambda obs: Action("goto", (path,))


def back(obs: Observation) -> Action:
    return Action("go_back")


CONTROLS: dict[str, list[Choose]] = {  # written for the cart of `discount`
    "fill, leave, return": [goto("/cart"), fill("SAVE10"), click("link", "Shop"), goto("/cart")],
    "fill, leave, back": [goto("/cart"), fill("SAVE10"), click("link", "Shop"), back],
    "fill, reload": [goto("/cart"), fill("SAVE10"), goto("/cart")],
    "fill twice, apply": [goto("/cart"), fill("long text first"), fill("x"), click("button", "Apply")],
    "wrong code, again": [goto("/cart"), fill("WRONG1"), click("button", "Apply"), fill(""), click("button", "Apply")],
    "select, remove": [click("button"), select("express"), click("button", "Remove"), back],
    "select, leave, return": [goto("/cart"), select("express"), click("link", "Shop"), goto("/cart")],
    "select, back, forth": [goto("/cart"), select("express"), back, goto("/cart"), select("standard")],
    "select, apply": [goto("/cart"), select("express"), fill("WRONG1"), click("button", "Apply"), select("standard")],
    "right code": [click("button"), fill_code, select("express"), click("button", "Apply"), back, goto("/cart")],
    "line break": [goto("/cart"), fill("two\nlines"), click("button", "Apply"), fill_code, click("button", "Apply")],
    "push": [goto("/cart"), fill("WRONG1"), select("express"), click("button", "Use best"), back, back, back],
    "two of one": [click("button"), click("link", "Shop"), click("button"), click("button", "Remove"), back],
}
OPTIONS: dict[str, list[Choose]] = {  # written for the options page of `addon`
    "untick, confirm": [click("button"), click("checkbox"), click("button", "Confirm"), back],
    "tick twice": [click("button"), click("checkbox"), click("checkbox"), click("button", "Confirm")],
    "untick, back": [click("button"), click("checkbox"), back, goto("/item")],
    "untick, leave, return": [click("button"), click("checkbox"), click("link", "Shop"), goto("/item")],
    "untick, reload": [click("button"), click("checkbox"), goto("/item"), click("button", "Confirm")],
    "confirm as it stands": [click("button"), click("button", "Confirm"), back, back, back],
    "another item": [click("button"), goto("/"), click("button"), click("checkbox"), click("button", "Confirm")],
}
OFFERS: dict[str, list[Choose]] = {  # written for the offer of `upsell`
    "accept, back": [click("button"), click("button"), back, back],
    "leave, return, decline": [click("button"), goto("/"), goto("/offer"), click("button", ""), goto("/offer")],
    "back, add again": [click("button"), back, click("button"), back, goto("/offer")],
}
PLACES: dict[str, list[Choose]] = {  # for any shop
    "nowhere": [goto("/nowhere"), back, goto("/nowhere"), click("link"), back],
    "closed doors": [goto("/item"), goto("/offer"), back, back, back, back],
}


def script(moves: list[Choose], then: Choose) -> Choose:
    left = iter(moves)

    def choose(obs: Observation) -> Action:
        move = next(left, None)
        return move(obs) if move is not None else then(obs)

    return choose
