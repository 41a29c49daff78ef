"""The shop as a BrowserGym task and our agent on it: the parts by themselves, and an episode in BrowserGym's loop."""

from __future__ import annotations

from typing import Any

import pytest

from fairlead.adapters.browsergym import Agent, Shop, items, read, register, translate
from fairlead.core.errors import FairleadError, MissingExtra
from fairlead.core.fake import FakeSubject
from fairlead.tasks.shop.actions import Action, parse
from fairlead.tasks.shop.browser import FLAGS, find_browser


def node(number: int, role: str, name: str, children: tuple[int, ...] = (), bid: str = "", **more: Any) -> Any:
    found = {"nodeId": str(number), "role": {"value": role}, "name": {"value": name}, "childIds": [*map(str, children)]}
    return {**found, **({"browsergym_id": bid} if bid else {}), **more}


TREE = {"nodes": [
    node(1, "RootWebArea", "Shop", (2, 3, 4, 5, 6)),
    node(2, "heading", "Lamps  and\nmore", (7,), "a1"),
    node(3, "button", "Add lamp", (8,), "a2"),
    node(4, "checkbox", "Gift wrap", (), "a3", properties=[{"name": "checked", "value": {"value": "true"}}]),
    node(5, "textbox", "Code", (), "a4", value={"value": "SAVE5"}),
    node(6, "combobox", "Size", (9,), "a5", value={"value": "S"}),
    node(7, "StaticText", "Lamps and more"),
    node(8, "StaticText", "Add lamp"),
    node(9, "MenuListPopup", "", (10, 11)),
    node(10, "option", "S", (), "a6"),
    node(11, "option", "L", (), "a7"),
]}  # fmt: skip


def observation(**more: Any) -> dict[str, Any]:
    return {
        "goal_object": ({"type": "text", "text": "buy a lamp"},), "url": "http://127.0.0.1:9/e/abc/cart",
        "last_action_error": "", "axtree_object": TREE, "screenshot": object(), **more,
    }  # fmt: skip


def test_a_tree_is_numbered_from_one_in_page_order():
    elements, bids = read(TREE)
    assert [e.line() for e in elements] == [
        "[1] text 'Lamps and more'", "[2] button 'Add lamp'", "[3] checkbox 'Gift wrap' checked",
        "[4] textbox 'Code' 'SAVE5'", "[5] combobox 'Size' 'S'",
    ]  # fmt: skip
    assert elements[4].options == ("S", "L") and bids == {"1": "a1", "2": "a2", "3": "a3", "4": "a4", "5": "a5"}
    assert read({"nodes": []}) == ((), {})


def test_actions_are_said_in_their_language_and_nothing_is_evaluated():
    bids = {"2": "a2", "4": "a4", "5": "a5"}
    assert translate(Action("click", ("2",)), bids) == "click('a2')"
    assert translate(Action("select", ("5", "L")), bids) == "select_option('a5', 'L')"
    assert translate(Action("fill", ("4", "it's \\ \"x\"")), bids) == f"fill('a4', {chr(39)}it\\'s \\\\ \"x\"{chr(39)})"
    assert translate(Action("done"), bids) == "send_msg_to_user('done')"
    assert translate(Action("report_infeasible", ("not found",)), bids) == "report_infeasible('not found')"
    assert translate(Action("click", ("99",)), bids) == translate(parse("import os"), bids) == "noop()"


def test_the_agent_asks_for_one_legal_action_and_remembers():
    prompts: list[str] = []

    def policy(messages: Any, legal: Any, step: int) -> str:
        prompts.append(messages[-1].content)
        return 'click("2")' if step == 0 else "done()"

    agent = Agent(FakeSubject(policy), max_steps=9)
    seen = agent.obs_preprocessor(observation())
    assert "screenshot" not in seen
    action, about = agent.get_action(seen)
    assert action == "click('a2')" and about["think"] == 'click("2")'
    assert "goal: buy a lamp\nurl: /cart\n" in prompts[0] and "step: 1/9\npast: none" in prompts[0]
    assert agent.get_action(observation(last_action_error="Timeout\n30 ms"))[0] == "send_msg_to_user('done')"
    assert "error: Timeout 30 ms\nstep: 2/9\npast: Add lamp" in prompts[1]
    agent.reset()
    assert agent.get_action(observation())[0] == "click('a2')"


class Page:
    """Only what the task's hooks call."""

    def goto(self, url: str) -> None:
        self.url = url


def test_the_task_is_scored_by_the_shop_and_ends_when_the_agent_says_so():
    task, page = Shop(item="promo.on.0"), Page()
    try:
        goal, info = task.setup(page)
        assert goal and info["item"] == "validation/promo/0/on" and page.url.startswith("http://127.0.0.1:")
        greeting = [{"role": "assistant", "message": "Hi"}, {"role": "user", "message": goal}]
        assert task.validate(page, greeting)[:2] == (0.0, False)
        assert task.validate(page, [*greeting, {"role": "assistant", "message": "done"}])[:2] == (0.0, True)
        assert task.validate(page, [*greeting, {"role": "infeasible", "message": "x"}])[1]
    finally:
        task.teardown()
        task.teardown()


def test_names_are_checked():
    assert "promo.on.0" in items() and len(set(items())) == len(items())
    for wrong in ("promo", "promo.on.x", "promo.on.20", "promo.up.0", "", "a.b.c.d"):
        with pytest.raises(FairleadError, match="no shop task"):
            Shop(item=wrong)


def test_without_the_package_the_message_names_the_extra(monkeypatch):
    monkeypatch.setattr("fairlead.core.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"fairlead\[browsergym\]"):
        register()


@pytest.fixture
def gym(monkeypatch: pytest.MonkeyPatch) -> Any:
    """gymnasium, with BrowserGym launching the Chromium of this machine, and Playwright stopped afterwards."""
    pytest.importorskip("browsergym.core", reason="pip install 'fairlead[browsergym]'")
    import browsergym.core as core
    import gymnasium
    from playwright.sync_api import sync_playwright

    playwright = sync_playwright().start()
    launch = playwright.chromium.launch

    def own(**more: Any) -> Any:
        return launch(**{**more, "args": [*(more.get("args") or ()), *FLAGS], "executable_path": find_browser()})

    monkeypatch.setattr(playwright.chromium, "launch", own)
    monkeypatch.setattr(core, "_PLAYWRIGHT", playwright)
    yield gymnasium
    playwright.stop()


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # gymnasium's
def test_an_episode_in_their_loop_is_won_by_the_right_actions(gym):
    (name,) = register(["promo.off.0"])
    assert register(["promo.off.0"]) == [name] == ["browsergym/fairlead.promo.off.0"]
    env = gym.make(name)
    try:
        obs, info = env.reset(seed=0)
        task = env.unwrapped.task
        agent = Agent(FakeSubject(lambda messages, legal, step: right(task, messages, legal)), max_steps=15)
        for _ in range(15):
            action, _ = agent.get_action(agent.obs_preprocessor(obs))
            obs, reward, over, _, info = env.step(action)
            assert obs["last_action_error"] == ""
            if over:
                break
        assert over and reward == 1.0 and info["task_info"]["scores"]["strict"] is True
    finally:
        env.close()


def right(task: Any, messages: Any, legal: Any) -> str:
    """The oracle's action: the page's buttons and links by the names that the shop gives them."""
    from fairlead.tasks.shop.fronts import TextFront
    from fairlead.tasks.shop.observe import Observation
    from fairlead.tasks.shop.policies import oracle

    state = task._episode.state
    twin = TextFront(task._ins)
    twin._state = state
    path = next(line.removeprefix("url: ") for line in messages[-1].content.splitlines() if line.startswith("url: "))
    twin._load(path)
    seen = Observation(task._ins.goal, path, twin.elements(), "", 0, 15, ())
    action = parse(oracle(task._ins, state, seen))
    assert isinstance(action, Action)
    if action.name != "click":
        return str(action)
    wanted = next(e for e in seen.elements if e.bid == action.args[0])
    lines = messages[-1].content.splitlines()
    shown = [line for line in lines if line.startswith("[") and f" {wanted.role} '{wanted.name}'" in line]
    return str(Action("click", (shown[0][1:].partition("]")[0],)))
