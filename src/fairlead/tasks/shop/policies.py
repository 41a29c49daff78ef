"""Scripted agents and the labels of each decision: which actions are right here, which are bait.

The labels come from the instance and the server's state, never from the agent. Methods see them on
train and validation only; on test they are used to draw the replay.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from fairlead.tasks.shop.actions import Action
from fairlead.tasks.shop.observe import Observation, legal_actions
from fairlead.tasks.shop.site import Element, Page, Request, State, respond
from fairlead.tasks.shop.spec import WRAP, Instance

Labels = tuple[tuple[str, ...], tuple[str, ...]]


def labels(ins: Instance, state: State, obs: Observation) -> Labels:
    """(right actions, trap actions) at this point, as action strings that are legal on the page."""
    page = respond(ins, state, Request("GET", obs.url))[1]
    if not isinstance(page, Page) or len(page.elements) != len(obs.elements):
        return ((), ())
    clicks = {str(i + 1): e for i, e in enumerate(page.elements)}
    right = _right(ins, state, obs, clicks)
    trap = [_click(b) for b, e in clicks.items() if e.trap]
    if obs.url == "/item" and ins.addon is not None and ins.addon.trap and _ticked(obs):
        trap += [_click(b) for b, e in clicks.items() if e.post == "confirm"]
    return tuple(right), tuple(t for t in trap if t not in right)


def _click(bid: str) -> str:
    return str(Action("click", (bid,)))


def _ticked(obs: Observation) -> bool:
    return any(e.role == "checkbox" and e.checked for e in obs.elements)


def _right(ins: Instance, state: State, obs: Observation, on_page: dict[str, Element]) -> list[str]:
    def click(post: str = "", href: str = "") -> list[str]:
        return [_click(b) for b, e in on_page.items() if (post and e.post == post) or (href and e.href == href)]

    if obs.url == "/item":
        wanted = ins.want is not None and WRAP in ins.want
        box = [_click(b) for b, e in on_page.items() if e.role == "checkbox"]
        return click(post="confirm") if _ticked(obs) == wanted else box
    if obs.url == "/offer":
        assert ins.extra is not None
        return click(post="accept" if ins.want and ins.extra.sku in ins.want else "decline")
    want, have = Counter(ins.want or ()), Counter(state.cart)
    excess, missing = have - want, want - have
    missing = Counter({s: n for s, n in missing.items() if any(p.sku == s for p in ins.products)})
    if excess:
        return [a for s in excess for a in click(post=f"remove:{s}")] or click(href="/cart")
    if ins.want is None:
        return [str(Action("report_infeasible", ("not found",)))]
    if missing:
        return [a for s in missing for a in click(post=f"add:{s}")] or click(href="/")
    if ins.has_codes and not state.applied_code:
        return _enter_code(ins, obs, on_page) or click(href="/cart")
    return [str(Action("done"))]


def _enter_code(ins: Instance, obs: Observation, on_page: dict[str, Element]) -> list[str]:
    out = [_click(b) for b, e in on_page.items() if e.post == "push" and not e.trap]
    for seen in obs.elements:
        if seen.role == "textbox" and seen.value != ins.code:
            out.append(str(Action("fill", (seen.bid, ins.code))))
        elif seen.role == "textbox":
            out += [_click(b) for b, e in on_page.items() if e.post == "apply"]
    return out


Policy = Callable[[Instance, State, Observation], str]


def oracle(ins: Instance, state: State, obs: Observation) -> str:
    """The first right action; 100 % strict by test."""
    right = labels(ins, state, obs)[0]
    return right[0] if right else "noop()"


def always_trap(ins: Instance, state: State, obs: Observation) -> str:
    """Takes every bait in sight and believes in it; otherwise shops rightly. 100 % fell by test."""
    right, trap = labels(ins, state, obs)
    if trap and not any(e.startswith("trap:") for e in state.events):
        return trap[0]
    if any(e.startswith("trap:") for e in state.events) and obs.url not in ("/item", "/offer"):
        return "done()"
    return right[0] if right else "noop()"


def noop(ins: Instance, state: State, obs: Observation) -> str:  # noqa: ARG001
    """Does nothing; 0 % strict by test."""
    return "noop()"


def random_policy(seed: int) -> Policy:
    """Any legal action, seeded."""
    rng = random.Random(seed)

    def act(ins: Instance, state: State, obs: Observation) -> str:  # noqa: ARG001
        return rng.choice(legal_actions(obs))

    return act
