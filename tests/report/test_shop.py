"""A trace that the real shop wrote, shown in a real browser."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from fairlead.core.plan import plan_from
from fairlead.core.records import Store
from fairlead.core.types import Cost, EditReport, Generation, Item, Outcome, Record
from fairlead.report import render
from fairlead.tasks.shop import plugin
from fairlead.tasks.shop.episode import play
from fairlead.tasks.shop.fronts import TextFront
from fairlead.tasks.shop.policies import always_trap, oracle

PLAN = {
    "question": "Is the shop shown as it is?", "task": "shop", "model": "pocket/toy", "arms": ["none", "feature"],
    "primary": "strict", "where": {"trap": "on"}, "smallest_effect": 0.1, "n": 2,
}  # fmt: skip
EDIT = EditReport("3 = 0", 2, 40, 1.5, 0.0)


async def episode(task: object, item: Item, arm: str) -> Outcome:
    ins, policy = task.instance(item), always_trap if arm == "none" else oracle
    front = TextFront(ins)

    async def ask(obs: object, legal: tuple[str, ...]) -> Generation:
        action = policy(ins, front.state, obs)
        shares = tuple(-0.1 if a == action else -3.0 for a in legal)
        return Generation(action, 300, 9, shares, (EDIT,) if arm == "feature" else ())

    return await play(ins, front, ask, keep_html=True)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    plan, task = plan_from(PLAN), plugin({"n": 2, "categories": ["promo"]})
    with Store(tmp_path / "shop") as store, ThreadPoolExecutor(1) as pool:
        store.begin(plan, plan.trials())
        for trial in plan.trials():
            for item in task.items("test"):
                outcome = pool.submit(asyncio.run, episode(task, item, trial.arm)).result()
                final = dict(outcome.data)
                digest = store.save_trace({"item": item.id, "arm": trial.arm, "steps": outcome.trace, "final": final})
                store.append([Record(
                    trial.key, trial.arm, trial.model, trial.decoding, 0, item.id, item.cluster, "test",
                    dict(item.strata), final, dict(task.score(item, outcome).values), None, Cost(300, 9, 1e6), digest,
                )])  # fmt: skip
            store.finish(trial.key, "complete", planned=6)
    return render(tmp_path / "shop")


@pytest.mark.browser
def test_the_shop_is_shown_as_the_agent_saw_it(written: Path, browser: Browser) -> None:
    tab = browser.new_page()
    tab.goto(written.as_uri())
    tab.wait_for_selector("#replay-view[data-ready]")
    left, right = tab.locator(".side").nth(0), tab.locator(".side").nth(1)
    assert "takes the trap" in left.locator(".act").inner_text() and "button '" in left.locator(".act").inner_text()
    assert right.locator(".act .word-right").inner_text() == "right"
    assert tab.locator("#replay-goal").inner_text()
    assert "$" in right.locator(".cart").inner_text(), "a cart entry has a name and a price"
    assert "1.50 → 0.00" in right.locator(".acts").inner_text()
    outlined = tab.frame_locator(".side iframe >> nth=0").locator("[data-bid]").first
    assert outlined.count() == 1
    head = tab.locator(".headline thead").inner_text()
    assert "emitted" not in head and "strict" in head, "the funnel is one column, not five measures"
    tab.close()
