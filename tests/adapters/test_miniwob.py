"""Our agent on MiniWoB++: a scripted policy earns the page's reward on many kinds of task, and a model plays too."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fairlead.adapters import miniwob
from fairlead.adapters.miniwob import Episode, MiniWoB, acting, legal_actions
from fairlead.core.errors import BrowserError, FairleadError, MissingExtra, UnknownName
from fairlead.core.fake import FakeSubject
from fairlead.tasks.shop.actions import Action
from fairlead.tasks.shop.observe import Observation, Seen

here = pytest.mark.skipif(
    miniwob.find_spec("miniwob") is None, reason="the pages come with pip install 'fairlead[miniwob]'"
)
ORDER = {"ONE": 0, "TWO": 1}
NTH = re.compile(r"(\d+)(?:st|nd|rd|th)")

Policy = Callable[[Observation], str]


def click(seen: Observation, name: str, role: str = "") -> str:
    """The first element of that name (and role)."""
    found = [e for e in seen.elements if e.name.lower() == name.lower() and role in ("", e.role)]
    return str(Action("click", (found[0].bid,))) if found else "noop()"


def submit(seen: Observation, *fills: str) -> str:
    """Fill the fields in order, then press the last button."""
    fields = [e for e in seen.elements if e.role == "textbox"]
    for element, text in zip(fields, fills, strict=False):
        if element.value != text:
            return str(Action("fill", (element.bid, text)))
    return str(Action("click", ([e for e in seen.elements if e.role == "button"][-1].bid,)))


def quoted(seen: Observation) -> list[str]:
    return re.findall(r'"([^"]+)"', seen.goal)


def the_quoted(seen: Observation) -> str:
    return click(seen, quoted(seen)[-1].replace("x", "Close") if quoted(seen)[-1] == "x" else quoted(seen)[-1])


def ticked(seen: Observation) -> str:
    wanted = set(re.search(r"Select (.+?)(?: from .*)? and click", seen.goal)[1].split(", "))  # type: ignore[index]
    for e in seen.elements:
        if e.role == "checkbox" and not e.checked and e.name in wanted:
            return str(Action("click", (e.bid,)))
        if e.role == "combobox" and e.value not in wanted:
            return str(Action("select", (e.bid, next(iter(wanted)))))
    return submit(seen)


def sequence(seen: Observation) -> str:
    return click(seen, "TWO" if "ONE" in seen.past else "ONE")


def first_button(seen: Observation) -> str:
    return str(Action("click", (next(e for e in seen.elements if e.role == "button").bid,)))


def looking(seen: Observation) -> str:
    """Opens what is closed, one after another, until the link is there."""
    found = click(seen, quoted(seen)[0])
    if found != "noop()" and "link" in {e.role for e in seen.elements if e.name == quoted(seen)[0]}:
        return found
    doors = [e for e in seen.elements if re.match(r"(Tab|Section) #", e.name)]
    tried = [e.name for e in doors].index(seen.past[-1]) + 1 if seen.past else 0
    return str(Action("click", (doors[tried % len(doors)].bid,)))


def widget(seen: Observation) -> str:
    role = {"radio": "checkbox", "checkbox": "checkbox", "button": "button"}.get(quoted(seen)[0], "textbox")
    found = [e for e in seen.elements if e.role == role]
    return str(Action("fill" if role == "textbox" else "click", (found[0].bid, "x")[: 1 + (role == "textbox")]))


def expand(seen: Observation) -> str:
    return submit(seen) if seen.past else first_button(seen)


def focus(seen: Observation) -> str:
    nth = int(NTH.search(seen.goal)[1]) if NTH.search(seen.goal) else 1  # type: ignore[index]
    return str(Action("fill", ([e for e in seen.elements if e.role == "textbox"][nth - 1].bid, "")))


def table(seen: Observation) -> str:
    wanted = re.search(r"value of (.+) into", seen.goal)[1]  # type: ignore[index]
    texts = [e.name for e in seen.elements if e.role == "text"]
    return submit(seen, texts[texts.index(wanted) + 1])


def word(seen: Observation) -> str:
    words = next(e.name for e in seen.elements if e.role == "text").split()
    return submit(seen, words[int(NTH.search(seen.goal)[1]) - 1].strip(".,"))  # type: ignore[index]


def sums(seen: Observation) -> str:
    a, op, b = re.match(r"(-?\d+) ([x+-]) (-?\d+) =", seen.elements[0].name).groups()  # type: ignore[union-attr]
    return submit(seen, str({"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[op]))


def parity(seen: Observation) -> str:
    numbers = [(i, int(e.name)) for i, e in enumerate(seen.elements) if e.role == "text"]
    done = seen.step
    if done == len(numbers):
        return submit(seen)
    at, number = numbers[done]
    return str(Action("click", (seen.elements[at + (1 if number % 2 == 0 else -1)].bid,)))


def upper(seen: Observation) -> str:
    said = quoted(seen)[0]
    return submit(seen, said.upper() if "upper" in seen.goal else said.lower())


def greatest(seen: Observation) -> str:
    cards = [e for e in seen.elements if e.name.isdigit()]
    return submit(seen) if seen.past else click(seen, max(cards, key=lambda e: int(e.name)).name)


POLICIES: dict[str, Policy] = {
    "click-button": lambda seen: click(seen, quoted(seen)[0], "button"),
    "click-button-sequence": sequence,
    "click-checkboxes": ticked,
    "click-checkboxes-large": ticked,
    "click-checkboxes-transfer": ticked,
    "click-collapsible-2-nodelay": looking,
    "click-collapsible-nodelay": expand,
    "click-color": lambda seen: click(seen, re.search(r"the (\w+) colored", seen.goal)[1] + " div"),  # type: ignore[index]
    "click-dialog": lambda seen: click(seen, "Close"),
    "click-dialog-2": the_quoted,
    "click-link": lambda seen: click(seen, quoted(seen)[0], "link"),
    "click-option": ticked,
    "click-tab": lambda seen: click(seen, seen.goal.removeprefix("Click on ").removesuffix(".")),
    "click-tab-2-easy": looking,
    "click-test": first_button,
    "click-test-2": lambda seen: click(seen, "ONE"),
    "click-widget": widget,
    "choose-list": ticked,
    "enter-password": lambda seen: submit(seen, quoted(seen)[0], quoted(seen)[0]),
    "enter-text": lambda seen: submit(seen, quoted(seen)[0]),
    "enter-text-2": upper,
    "enter-text-dynamic": lambda seen: submit(seen, quoted(seen)[0]),
    "find-greatest": greatest,
    "find-word": word,
    "focus-text": focus,
    "focus-text-2": focus,
    "login-user": lambda seen: submit(seen, *quoted(seen)),
    "odd-or-even": parity,
    "read-table": table,
    "simple-arithmetic": sums,
    "unicode-test": lambda seen: click(seen, quoted(seen)[0], "link" if "link" in seen.goal else "button"),
}


@pytest.fixture
async def wob() -> AsyncIterator[MiniWoB]:
    async with MiniWoB.start() as found:
        yield found


def scripted(policy: Policy) -> Any:
    async def act(seen: Observation, legal: tuple[str, ...]) -> str:
        return policy(seen)

    return act


@here
@pytest.mark.browser
async def test_a_scripted_policy_earns_the_reward_of_every_kind_it_knows(wob):
    found = [await wob.play(task, seed, scripted(policy)) for task, policy in POLICIES.items() for seed in (0,)]
    assert {e.task: (e.reward, e.ended, e.errors) for e in found if e.reward != 1.0} == {}
    assert all(e.ended == "page" and not e.errors for e in found)


@here
@pytest.mark.browser
async def test_the_same_seed_is_the_same_page_and_a_wrong_action_costs(wob):
    first, again, other = [await wob.play("enter-text", seed, scripted(lambda _: "done()")) for seed in (1, 1, 2)]
    assert first == again and first.goal != other.goal and first.reward == 0.0 and not first.success
    wrong = await wob.play("enter-text", 1, scripted(lambda seen: submit(seen, "something else")))
    assert wrong.reward == -1.0 and wrong.ended == "page" and not wrong.success
    idle = await wob.play("enter-text", 1, scripted(lambda _: 'click("99")'), steps=2)
    assert idle.ended == "limit" and idle.errors == ('click("99"): no element [99] on this page',) * 2
    odd = await wob.play("enter-text", 1, scripted(lambda _: "goto(\"http://example.org/\")"), steps=1)
    assert "does nothing here" in odd.errors[0]


@here
@pytest.mark.browser
async def test_a_pocket_model_plays_to_the_end_and_gets_its_honest_score(wob):
    from fairlead.lm.load import load

    subject = load("pocket/shopper-s")
    tasks = ("click-test", "enter-text", "click-checkboxes")
    found = [await wob.play(task, 0, acting(subject), steps=4) for task in tasks]
    for episode in found:
        assert isinstance(episode, Episode) and episode.ended in ("page", "done", "limit") and not episode.errors
        assert 1 <= len(episode.actions) <= 4 and episode.success == (episode.reward > 0)
    free = await wob.play("click-test", 0, acting(subject, free=True), steps=2)
    assert 1 <= len(free.actions) <= 2


@here
async def test_an_unknown_task_or_no_steps_is_an_error():
    wob = MiniWoB(None, "", 1.0)
    for name in ("no-such-task", "../core/core", "", "a" * 200):
        with pytest.raises(UnknownName, match="no such task"):
            await wob.play(name, 0, scripted(first_button))
    with pytest.raises(FairleadError, match="no steps"):
        await wob.play("click-test", 0, scripted(first_button), steps=0)


@here
@pytest.mark.browser
async def test_a_page_that_does_not_answer_is_an_error_and_no_zero(monkeypatch):
    monkeypatch.setattr(miniwob, "_STILL", "() => new Promise(() => {})")
    async with MiniWoB.start(seconds=3) as wob:
        with pytest.raises(BrowserError, match="did not"):
            await wob.play("focus-text", 0, scripted(focus))


def test_what_may_be_done_is_what_the_page_offers():
    seen = Observation('Enter "Tora" into it.', "/enter-text", (
        Seen("1", "textbox", "tt"), Seen("2", "combobox", "c", "a", False, ("a", "b", "b", "")), Seen("3", "text", "x"),
        Seen("4", "checkbox", "y"),
    ), "", 0, 3, ())  # fmt: skip
    assert legal_actions(seen) == ('fill("1","Tora")', 'select("2","b")', 'click("4")', "done()")
    assert 'goal: Enter "Tora"' in miniwob.messages(seen)[1].content


async def test_an_agent_is_any_subject():
    act = acting(FakeSubject(lambda messages, legal, step: legal[-1] if legal else "click(\"1\")"))
    seen = Observation("x", "/t", (Seen("1", "button", "b"),), "", 0, 3, ())
    assert await act(seen, legal_actions(seen)) == "done()"


def test_without_the_package_the_message_names_the_extra(monkeypatch):
    monkeypatch.setattr(miniwob, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"fairlead\[miniwob\]"):
        miniwob.tasks()


def test_the_scripts_of_the_pages_are_only_read(tmp_path: Path):
    """Nothing of the package is imported: its Selenium stays outside."""
    import subprocess
    import sys

    code = "import sys, fairlead.adapters.miniwob as m; m.find_spec('miniwob'); print('selenium' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
