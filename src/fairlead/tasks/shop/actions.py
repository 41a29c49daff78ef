"""The action grammar. Strings in, values out; nothing is ever evaluated.

    click("7")  fill("3","text")  select("4","opt")  goto("/cart")  go_back()  noop()
    send_msg_to_user("text")  report_infeasible("text")  done()

An invalid action is an observation for the agent (`last_action_error`), never an exception.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

ARITY = {
    "click": 1,
    "fill": 2,
    "select": 2,
    "goto": 1,
    "go_back": 0,
    "noop": 0,
    "send_msg_to_user": 1,
    "report_infeasible": 1,
    "done": 0,
}
ENDING = ("done", "report_infeasible")
MAX_ARGUMENT = 500
MAX_TEXT = 4000
_CALL = re.compile(r"\s*([a-z_]{1,20})\((.*)\)\s*", re.DOTALL)
_STRING = r'"(?:[^"\\\x00-\x1f\ud800-\udfff]|\\["\\n])*"'  # text: no control characters, no half characters
_ARGUMENTS = re.compile(rf"\s*(?:({_STRING})(?:\s*,\s*({_STRING}))?)?\s*")


@dataclass(frozen=True)
class Action:
    """A parsed action; `str()` gives the canonical text, which parses back to the same action as long as
    the arguments are text without control characters other than the line break."""

    name: str
    args: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({','.join(json.dumps(a, ensure_ascii=False) for a in self.args)})"


def parse(text: str) -> Action | str:
    """The action, or a one-line reason why the text is none."""
    call = _CALL.fullmatch(text) if len(text) <= MAX_TEXT else None
    if call is None:
        return 'not an action: expected one call such as click("7")'
    name = call.group(1)
    if name not in ARITY:
        return f"unknown action {name}"
    arguments = _ARGUMENTS.fullmatch(call.group(2))
    if arguments is None:
        return f"{name} takes quoted strings"
    args = tuple(json.loads(a) for a in arguments.groups() if a is not None)
    if len(args) != ARITY[name]:
        return f"{name} takes {ARITY[name]} arguments, not {len(args)}"
    if any(len(a) > MAX_ARGUMENT for a in args):
        return f"{name}: an argument is longer than {MAX_ARGUMENT} characters"
    return Action(name, args)
