"""The shop as BrowserGym tasks, and our agent as an agent that AgentLab runs on any BrowserGym task.

    register()                                      # gymnasium then knows browsergym/fairlead.promo.on.0, ...
    env = gymnasium.make("browsergym/fairlead.promo.on.0")
    agent = Agent(load("pocket/shopper-s"))
    action, about = agent.get_action(agent.obs_preprocessor(observation))

The tasks are made of the validation split, never of test: that is opened once, by a study. A task ends when the agent
sends the user a message or reports the task infeasible, and its reward is 1 where the shop's own score is strict.

The agent reads the accessibility tree that BrowserGym gives, numbers what it can act on from 1 in page order, as our
own front does, and asks for one legal action; what it returns is in BrowserGym's action language. Nothing here needs
BrowserGym but `register`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from fairlead.core.errors import FairleadError
from fairlead.core.extras import need
from fairlead.core.types import Generation, Item, Messages
from fairlead.tasks.shop import plugin as shop
from fairlead.tasks.shop import score_outcome
from fairlead.tasks.shop.actions import Action, parse
from fairlead.tasks.shop.observe import Observation, Seen, describe, legal_actions
from fairlead.tasks.shop.server import ShopServer
from fairlead.tasks.shop.spec import CATEGORIES, TRAPS

INSTANCES = 20  # of each category and trap
STEPS = 30  # that an observation speaks of, where nobody says how many there are
SPLIT = "validation"
_ROLES = {
    "link": "link", "button": "button", "checkbox": "checkbox", "radio": "checkbox", "textbox": "textbox",
    "searchbox": "textbox", "combobox": "combobox", "tab": "button", "menuitem": "button", "switch": "checkbox",
}  # fmt: skip
_TEXTS = {"heading", "StaticText", "paragraph", "LabelText", "gridcell", "cell", "listitem"}


class Shop:
    """One instance of the shop, by the hooks of browsergym.core.task.AbstractBrowserTask: setup, validate, teardown.
    It serves itself on the loopback from a thread of its own until it is torn down."""

    def __init__(self, seed: int = 0, *, item: str = "") -> None:
        self._item = _find(item)
        self._ins = shop({"n": 1}).instance(self._item)
        self._serving: _Serving | None = None
        self._episode: Any = None
        self.seed = seed

    def setup(self, page: Any) -> tuple[str, dict[str, Any]]:
        """Serve, open the first page, and give (goal, info)."""
        self._serving = _Serving()
        self._episode = self._serving.server.open(self._ins)
        page.goto(f"{self._serving.server.url}{self._episode.prefix}/")
        return self._ins.goal, {"item": self._item.id, "max_steps": self._ins.max_steps}

    def validate(
        self, page: Any, chat_messages: Sequence[Mapping[str, Any]]  # noqa: ARG002
    ) -> tuple[float, bool, str, dict[str, Any]]:
        """(reward, done, message, info): done once the agent has said that it is, or that it cannot be."""
        said = [str(m["role"]) for m in chat_messages]
        goal_at = said.index("user") if "user" in said else -1  # what stands before is BrowserGym's own greeting
        after = said[goal_at + 1 :]
        ended = "infeasible" if "infeasible" in after else "done" if "assistant" in after else ""
        state = self._episode.state
        data = {"cart": list(state.cart), "events": list(state.events), "code": state.applied_code,
                "ended": ended or "limit", "steps": 0, "funnel": {}}  # fmt: skip
        scores = score_outcome(self._ins, data)
        return float(bool(ended and scores["strict"])), bool(ended), "", {"scores": scores}

    def teardown(self) -> None:
        """Stop serving. Safe to call twice."""
        if self._serving is not None:
            serving, self._serving = self._serving, None
            serving.stop()


def items() -> list[str]:
    """What can be registered, as `promo.on.0`: category, trap, number."""
    return [f"{category}.{trap}.{i}" for category in CATEGORIES for trap in TRAPS for i in range(INSTANCES)]


def register(names: Sequence[str] = ()) -> list[str]:
    """Make the tasks known to gymnasium as `browsergym/fairlead.NAME`; returns their ids. Known ones stay."""
    need("browsergym", "browsergym")
    import gymnasium
    from browsergym.core.registration import register_task
    from browsergym.core.task import AbstractBrowserTask

    class FairleadShop(Shop, AbstractBrowserTask):
        """The shop with what every task of BrowserGym's has beside its hooks."""

        def __init__(self, seed: int, *, item: str) -> None:
            AbstractBrowserTask.__init__(self, seed)
            Shop.__init__(self, seed, item=item)
            self.slow_mo = 0

        @classmethod
        def get_task_id(cls) -> str:
            return "fairlead"

    ids = []
    for name in names or items():
        _find(name)
        ids.append(f"browsergym/fairlead.{name}")
        if ids[-1] not in gymnasium.registry:
            register_task(f"fairlead.{name}", FairleadShop, task_kwargs={"item": name}, nondeterministic=False)
    return ids


class Agent:
    """A Subject, or what a Fitted opens, as an agent of AgentLab's shape. It remembers what it acted on: one for each
    episode, or `reset` between them."""

    def __init__(
        self, world: Any, *, free: bool = False, max_steps: int = STEPS,
        messages: Callable[[Observation], Messages] = Observation.messages,
        legal: Callable[[Observation], tuple[str, ...]] = legal_actions,
    ) -> None:  # fmt: skip
        self._world, self._free, self._max_steps, self._messages, self._legal = world, free, max_steps, messages, legal
        self.reset()

    def reset(self) -> None:
        """Before another episode."""
        self._step = 0
        self._past: tuple[str, ...] = ()

    def obs_preprocessor(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """What the agent needs of BrowserGym's observation: goal, url, error and the accessibility tree."""
        kept = ("goal_object", "goal", "url", "last_action_error", "axtree_object")
        return {key: obs[key] for key in kept if key in obs}

    def get_action(self, obs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """(an action in BrowserGym's language, what stands behind it). May be called inside a running event loop."""
        elements, bids = read(obs["axtree_object"])
        error = " ".join(str(obs.get("last_action_error") or "").split())[:200]
        seen = Observation(_goal(obs), _path(str(obs.get("url", ""))), elements, error, self._step, self._max_steps,
                           self._past)  # fmt: skip
        asked, options = self._messages(seen), None if self._free else self._legal(seen)
        said = _apart(lambda: self._world.generate(asked, step=seen.step, legal=options))
        action = parse(said.text.strip())
        self._step += 1
        if isinstance(action, Action) and (not action.args or action.args[0] in bids or action.name not in _TARGETED):
            self._past = (*self._past, describe(action, elements))[-2:]
        about = {
            "think": said.text, "chat_messages": [asdict(m) for m in asked],
            "stats": {"prompt_tokens": said.prompt_tokens, "new_tokens": said.new_tokens},
            "extra_info": {
                "edits": [asdict(e) for e in said.edits], "fingerprint": getattr(self._world, "fingerprint", ""),
            },
        }  # fmt: skip
        return translate(action, bids), about


_TARGETED = ("click", "fill", "select")


def read(tree: Mapping[str, Any]) -> tuple[tuple[Seen, ...], dict[str, str]]:
    """(elements numbered from 1 in page order, BrowserGym's bid of each number) of an accessibility tree."""
    nodes = {node["nodeId"]: node for node in tree["nodes"]}
    out: list[Seen] = []
    bids: dict[str, str] = {}

    def name_of(node: Mapping[str, Any], key: str = "name") -> str:
        return " ".join(str((node.get(key) or {}).get("value", "")).split())

    def walk(node: Mapping[str, Any], above: str) -> None:
        role, name, bid = name_of(node, "role"), name_of(node), node.get("browsergym_id")
        ours = _ROLES.get(role)
        shown = ours or ("text" if role in _TEXTS and name and name != above else "")
        if shown and (bid or shown == "text") and not node.get("ignored"):
            number = str(len(out) + 1)
            if bid:
                bids[number] = str(bid)
            said = {p["name"]: (p.get("value") or {}).get("value") for p in node.get("properties", ())}
            options = tuple(_options(node, nodes)) if ours == "combobox" else ()
            on = said.get("checked") in (True, "true")
            out.append(Seen(number, shown, name, name_of(node, "value"), on, options))
            if ours:
                return
            above = name
        for child in node.get("childIds", ()):
            if child in nodes:
                walk(nodes[child], name if shown else above)

    if tree["nodes"]:
        walk(tree["nodes"][0], "")
    return tuple(out), bids


def translate(action: Action | str, bids: Mapping[str, str]) -> str:
    """Our action in BrowserGym's language, with its bid; what is none of ours does nothing."""
    if isinstance(action, str):
        return "noop()"
    if action.name in _TARGETED:
        if action.args[0] not in bids:
            return "noop()"
        bid, rest = repr(bids[action.args[0]]), "".join(f", {a!r}" for a in action.args[1:])
        return f"{'select_option' if action.name == 'select' else action.name}({bid}{rest})"
    if action.name == "done":
        return "send_msg_to_user('done')"
    return f"{action.name}({', '.join(repr(a) for a in action.args)})"


def _options(node: Mapping[str, Any], nodes: Mapping[str, Any]) -> list[str]:
    """The names of a combobox's options, wherever below it they stand."""
    found: list[str] = []
    for child in (nodes[i] for i in node.get("childIds", ()) if i in nodes):
        if (child.get("role") or {}).get("value") == "option":
            found.append(str((child.get("name") or {}).get("value", "")))
        found += _options(child, nodes)
    return found


def _goal(obs: Mapping[str, Any]) -> str:
    texts = [str(m["text"]) for m in obs.get("goal_object", ()) if m.get("type") == "text"]
    return "\n".join(texts) or str(obs.get("goal", ""))


def _path(url: str) -> str:
    """The path of a page; of our own shop's without the episode's prefix."""
    path = "/" + url.partition("//")[2].partition("/")[2]
    parts = path.split("/")
    return "/" + "/".join(parts[3:]) if len(parts) > 3 and parts[1] == "e" else path


def _apart(ask: Callable[[], Any]) -> Generation:
    """Await in a thread and a loop of its own: the sync Playwright of BrowserGym holds this thread's."""

    async def answer() -> Generation:
        said: Generation = await ask()
        return said

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(answer())).result()


def _find(name: str) -> Item:
    category, trap, number = (*name.split("."), "", "")[:3]
    if category not in CATEGORIES or trap not in TRAPS or not number.isdigit() or int(number) >= INSTANCES:
        raise FairleadError(
            f"no shop task {name!r}", expected=f"CATEGORY.{'|'.join(TRAPS)}.0..{INSTANCES - 1}, such as promo.on.0",
            got=name,
        )  # fmt: skip
    cluster = f"{SPLIT}/{category}/{int(number)}"
    return Item(f"{cluster}/{trap}", SPLIT, cluster, {"category": category, "trap": trap}, {"seed": int(number)})


class _Serving:
    """A shop server in an event loop and a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server = asyncio.run_coroutine_threadsafe(ShopServer.start(), self._loop).result(30)

    def stop(self) -> None:
        """Stop the server, then its loop."""
        asyncio.run_coroutine_threadsafe(self.server.stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()
