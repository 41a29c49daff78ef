"""One episode on any front: observe, ask, act, and count the action funnel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from fairlead.core.types import Decision, Generation, Outcome
from fairlead.tasks.shop.actions import ENDING, parse
from fairlead.tasks.shop.fronts import Front, check_path, check_target
from fairlead.tasks.shop.observe import Observation, describe, legal_actions
from fairlead.tasks.shop.policies import labels
from fairlead.tasks.shop.spec import Instance

FUNNEL = ("emitted", "valid", "grounded", "executed", "effective")
Ask = Callable[[Observation, tuple[str, ...]], Awaitable[Generation]]


@dataclass
class _Tally:
    funnel: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FUNNEL, 0))
    trace: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    prompts: Any = field(default_factory=hashlib.sha256)
    past: tuple[str, ...] = ()
    error: str = ""


async def observe(ins: Instance, front: Front, step: int, past: tuple[str, ...], error: str) -> Observation:
    url, elements = await front.read()
    return Observation(ins.goal, url, elements, error, step, ins.max_steps, past)


async def shown(ins: Instance, front: Front, obs: Observation) -> dict[str, Any]:
    """A page before it is acted on, for who looks on: the document, its picture where it is a real one (with the
    place of each element on it), what the oracle calls right and a trap, and the cart."""
    right, trap = labels(ins, front.state, obs)
    paint = getattr(front, "picture", None)
    picture, boxes = (None, None) if paint is None else await paint()
    return {
        "goal": ins.goal,
        "url": obs.url,
        "html": await front.html(),
        "picture": picture,
        "boxes": boxes,
        "right": list(right),
        "trap": list(trap),
        "cart": _cart(ins, front),
        "max_steps": ins.max_steps,
    }


async def play(
    ins: Instance, front: Front, ask: Ask, *, keep_html: bool = False, told: Callable[[Any], None] | None = None
) -> Outcome:
    """Run the episode to its end; `told` hears of each step when it was taken. Funnel levels are nested counts of
    steps: emitted (some text came), valid (it parses), grounded (its target is on the page and takes it), executed (no
    error), effective (page, state or ending changed)."""
    t = _Tally()
    ended, obs = "limit", await observe(ins, front, 0, (), "")
    for step in range(ins.max_steps):
        legal = legal_actions(obs)
        answer = await ask(obs, legal)
        messages = obs.messages()
        t.prompts.update(messages[-1].content.encode())
        right, trap = labels(ins, front.state, obs)
        text = answer.text.strip()
        t.decisions.append(Decision(messages, step, legal, text, right, trap, answer.legal_logprobs, answer.edits))
        page = await front.html() if keep_html else None
        before = (obs.url, obs.elements, front.state)
        level, t.error, ended_now = await _act(t, front, text, obs)
        after = await observe(ins, front, step + 1, t.past, t.error)
        if level == 4 and (ended_now or before != (after.url, after.elements, front.state)):
            level = 5
        for name in FUNNEL[:level]:
            t.funnel[name] += 1
        t.trace.append(_trace(ins, step, obs, page, answer, legal, right, trap, text, t.error, level, front))
        if told is not None:
            told(t.trace[-1])
        if ended_now:
            ended = ended_now
            break
        obs = after
    data = {
        "steps": len(t.trace),
        "ended": ended,
        "cart": list(front.state.cart),
        "events": list(front.state.events),
        "code": front.state.applied_code,
        "funnel": t.funnel,
        "prompts_sha256": t.prompts.hexdigest(),
    }
    return Outcome(data, tuple(t.decisions), tuple(t.trace))


async def _act(t: _Tally, front: Front, text: str, obs: Observation) -> tuple[int, str, str]:
    """(funnel level reached up to executed, error, how the episode ended or "")."""
    if not text:
        return 0, "no action given", ""
    action = parse(text)
    if isinstance(action, str):
        return 1, action, ""
    if action.name in ("click", "fill", "select"):
        wrong = check_target(action, obs.elements)
    else:
        wrong = check_path(action.args[0]) if action.name == "goto" else ""
    if wrong:
        return 2, wrong, ""
    if action.name in ENDING:
        return 4, "", "done" if action.name == "done" else "infeasible"
    error = await front.act(action)
    if not error:
        t.past = (*t.past, describe(action, obs.elements))[-2:]
    return (3, error, "") if error else (4, "", "")


def _trace(
    ins: Instance,
    step: int,
    obs: Observation,
    html: str | None,
    answer: Generation,
    legal: tuple[str, ...],
    right: tuple[str, ...],
    trap: tuple[str, ...],
    text: str,
    error: str,
    level: int,
    front: Front,
) -> dict[str, Any]:
    observation = obs.text()
    return {
        "i": step,
        "url": obs.url,
        "html": html,
        "observation": observation,
        "messages_sha256": hashlib.sha256(json.dumps([asdict(m) for m in obs.messages()]).encode()).hexdigest(),
        "legal": list(legal),
        "logprobs": None if answer.legal_logprobs is None else [round(x, 4) for x in answer.legal_logprobs],
        "action": text,
        "error": error,
        "funnel": {name: i < level for i, name in enumerate(FUNNEL)},
        "edits": [asdict(e) for e in answer.edits],
        "right": list(right),
        "trap": list(trap),
        "cart": _cart(ins, front),
    }


def _cart(ins: Instance, front: Front) -> list[dict[str, Any]]:
    return [{"name": ins.product(s).name, "price": ins.price(s)} for s in front.state.cart]
