"""What the agent is shown, and which actions the page allows.

The same text comes from the browser's live page and from the text twin; a differential test holds
them equal. Roles: link, button, checkbox, textbox, combobox, text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.core.types import Message, Messages
from fairlead.tasks.shop.actions import Action

SYSTEM = "You shop for the user."
_CODE = re.compile(r"\b[A-Z]{3,6}[0-9]{1,3}\b")


@dataclass(frozen=True)
class Seen:
    """One element as read from the page."""

    bid: str
    role: str
    name: str
    value: str = ""
    checked: bool = False
    options: tuple[str, ...] = ()

    def line(self) -> str:
        state = ""
        if self.role == "checkbox":
            state = " checked" if self.checked else " unchecked"
        elif self.role in ("textbox", "combobox"):
            state = f" '{self.value}'"
        return f"[{self.bid}] {self.role} '{self.name}'{state}"


@dataclass(frozen=True)
class Observation:
    """Everything the agent is told at one step. `past` names the last two things it acted on."""

    goal: str
    url: str
    elements: tuple[Seen, ...]
    error: str
    step: int
    max_steps: int
    past: tuple[str, ...]

    def text(self) -> str:
        lines = [f"goal: {self.goal}", f"url: {self.url}", *(e.line() for e in self.elements)]
        lines.append(f"error: {self.error or 'none'}")
        lines.append(f"step: {self.step + 1}/{self.max_steps}")
        lines.append("past: " + (", ".join(self.past) or "none"))
        return "\n".join(lines)

    def messages(self) -> Messages:
        return (Message("system", SYSTEM), Message("user", self.text()))


def legal_actions(obs: Observation) -> tuple[str, ...]:
    """Every action the page allows, in page order: the menu for constrained decoding. Texts to type are
    the codes that stand in the goal or on the page; free text is only for free decoding."""
    codes = sorted(set(_CODE.findall(obs.goal)) | {c for e in obs.elements for c in _CODE.findall(e.name)})
    out: list[Action] = []
    for e in obs.elements:
        if e.role in ("link", "button", "checkbox"):
            out.append(Action("click", (e.bid,)))
        elif e.role == "textbox":
            out += [Action("fill", (e.bid, c)) for c in codes if c != e.value]
        elif e.role == "combobox":
            out += [Action("select", (e.bid, o)) for o in e.options if o != e.value]
    out += [Action("report_infeasible", ("not found",)), Action("done")]
    return tuple(str(a) for a in out)


def describe(action: Action, elements: Sequence[Seen]) -> str:
    """How an action is remembered in `past`: the name of what it acted on."""
    if action.args and action.name in ("click", "fill", "select"):
        for e in elements:
            if e.bid == action.args[0]:
                return e.name if action.name == "click" else f"{e.name} {action.args[1]}"
    return action.name
