"""The shop in a real Chromium: oracle episodes, the live page, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from tests.tasks.players import play_with

from fairlead.core.errors import BrowserError
from fairlead.core.types import Generation
from fairlead.tasks.shop import ShopTask, browser, policies
from fairlead.tasks.shop.actions import Action
from fairlead.tasks.shop.browser import Browser
from fairlead.tasks.shop.fronts import TextFront
from fairlead.tasks.shop.observe import Observation, legal_actions
from fairlead.tasks.shop.server import MAX_BODY, ShopServer
from fairlead.tasks.shop.spec import CATEGORIES, Instance, instance

needs_browser = pytest.mark.browser
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"&amp;"


@pytest_asyncio.fixture
async def shop() -> AsyncIterator[Browser]:
    started = await Browser.start(contexts=1, seconds=60)
    yield started
    await started.stop()


class OracleWorld:
    """A world that knows the answers: it plays each prompt's episode ahead on the text twin."""

    def __init__(self, task: ShopTask, split: str) -> None:
        self.answers: dict[str, str] = {}
        self.prompts: list[str] = []
        for item in task.items(split):
            asyncio.run(self._learn(task.instance(item)))

    async def _learn(self, ins: Instance) -> None:
        def policy(ins: Instance, state: object, obs: Observation) -> str:
            answer = policies.oracle(ins, state, obs)  # type: ignore[arg-type]
            assert self.answers.setdefault(obs.text(), answer) == answer
            return answer

        await play_with(ins, TextFront(ins), policy)

    async def generate(
        self, prompt: object, *, step: int = 0, legal: object = None, max_tokens: int = 32
    ) -> Generation:
        return Generation(self.answers[prompt[-1].content], 1, 1)  # type: ignore[index]


@needs_browser
def test_oracle_is_strict_in_chromium_and_sees_the_twins_prompts() -> None:
    """33 instances through `ShopTask.run`: the world only knows prompts met on the text twin."""
    options = {"categories": list(CATEGORIES), "n": len(CATEGORIES), "contexts": 3}
    task, twin = ShopTask({**options, "front": "chromium"}), ShopTask(options)
    world = OracleWorld(twin, "validation")

    async def main() -> None:
        items = task.items("validation")
        outcomes = await asyncio.gather(*(task.run(item, world) for item in items))
        await task.aclose()
        assert len(items) == 33
        for item, outcome in zip(items, outcomes, strict=True):
            assert task.score(item, outcome).values["strict"] is True, item.id
            same = await twin.run(item, world)
            assert outcome.data == same.data, "prompts, funnel, cart and events are those of the twin"
            assert outcome.decisions == same.decisions

    asyncio.run(main())


@needs_browser
async def test_changing_the_live_page_changes_the_observation(shop: Browser) -> None:
    async with shop.front(instance("discount", "test", 0, "on")) as front:
        await front.act(Action("goto", ("/cart",)))
        _, before = await front.read()
        link, box, choice = (next(e for e in before if e.role == r) for r in ("link", "textbox", "combobox"))

        async def change(bid: str, code: str) -> None:
            await front.page.evaluate(f"""e => {{ e = document.querySelector('[data-bid="{bid}"]'); {code} }}""")

        await change(link.bid, "e.textContent = '  Other \\n name '")
        await change(box.bid, "e.value = 'TYPED'; e.setAttribute('aria-label', 'Renamed')")
        await change(choice.bid, "e.options[0].text = 'drone'; e.selectedIndex = 0")
        _, after = await front.read()
        now = {e.bid: e for e in after}
        assert now[link.bid].name == "Other name"
        assert (now[box.bid].name, now[box.bid].value) == ("Renamed", "TYPED")
        assert now[choice.bid].value == "drone" and now[choice.bid].options[0] == "drone"
        await change(link.bid, "e.remove()")
        assert len((await front.read())[1]) == len(before) - 1
        assert await front.act(Action("click", (link.bid,))) == f"no element [{link.bid}] on this page"
    async with shop.front(instance("addon", "test", 0, "on")) as front:
        await front.act(Action("click", (next(e.bid for e in (await front.read())[1] if e.role == "button"),)))
        assert next(e for e in (await front.read())[1] if e.role == "checkbox").checked
        await front.page.evaluate("document.querySelector('input').checked = false")
        assert not next(e for e in (await front.read())[1] if e.role == "checkbox").checked


@needs_browser
async def test_a_click_that_does_not_get_through_is_an_error_text(shop: Browser) -> None:
    async with shop.front(instance("promo", "test", 0, "on")) as front:
        await front.page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<div style=\"position:fixed;inset:0;z-index:9\"></div>')"
        )
        bid = next(e.bid for e in (await front.read())[1] if e.role == "button")
        assert await front.act(Action("click", (bid,))) == f"could not click [{bid}]: something is in the way"
        assert front.state.cart == ()
        assert await front.act(Action("goto", ("/",))) == ""
        assert await front.act(Action("click", (bid,))) == "" and len(front.state.cart) == 1


@needs_browser
async def test_html_is_the_live_page_and_the_same_on_every_run(shop: Browser) -> None:
    ins, seen = instance("discount", "test", 0, "on"), []
    for _ in range(2):
        async with shop.front(ins) as front:
            await front.act(Action("goto", ("/cart",)))
            for e in (await front.read())[1]:
                if e.role == "textbox":
                    await front.act(Action("fill", (e.bid, 'A"<b>')))
                if e.role == "combobox":
                    await front.act(Action("select", (e.bid, "express")))
            seen.append(await front.html())
    assert seen[0] == seen[1] and "/e/" not in seen[0] and "data-page" not in seen[0]
    assert 'value="A&quot;<b>"' in seen[0] or 'value="A&quot;&lt;b&gt;"' in seen[0]
    assert '<option selected="">express' in seen[0] and '<option selected="">standard' not in seen[0]
    async with shop.front(instance("addon", "test", 0, "on")) as front:
        await front.act(Action("click", (next(e.bid for e in (await front.read())[1] if e.role == "button"),)))
        assert 'checked=""' in await front.html()
        await front.act(Action("click", (next(e.bid for e in (await front.read())[1] if e.role == "checkbox"),)))
        assert 'checked=""' not in await front.html()


@needs_browser
async def test_hostile_page_text_is_only_text(shop: Browser) -> None:
    ins = instance("addon", "test", 0, "on")
    assert ins.addon is not None
    ins = replace(
        ins,
        products=tuple(replace(p, name=f"{p.name} {HOSTILE}") for p in ins.products),
        addon=replace(ins.addon, label=HOSTILE),
    )
    twin = TextFront(ins)
    async with shop.front(ins) as front:
        for action in ('click("2")', 'click("3")', 'goto("/cart")'):
            assert await front.read() == await twin.read()
            step = Action("goto", ("/cart",)) if "goto" in action else Action("click", (action[7],))
            assert await front.act(step) == await twin.act(step)
        assert await front.read() == await twin.read() and HOSTILE in (await front.read())[1][1].name
        assert await front.page.title() == "Cart"
        assert await front.page.evaluate("document.querySelectorAll('script, img').length") == 0


@needs_browser
async def test_the_page_cannot_leave_this_machine(shop: Browser) -> None:
    from playwright.async_api import Error

    async with shop.front(instance("promo", "test", 0, "on")) as front:
        for address in ("http://192.0.2.1/", "http://example.org/"):
            page = await front.page.context.new_page()
            with pytest.raises(Error, match="ERR_PROXY_CONNECTION_FAILED"):
                await page.goto(address, timeout=20_000)
            await page.close()


@needs_browser
async def test_a_crashed_page_is_a_browser_error_and_the_next_episode_runs(shop: Browser) -> None:
    ins = instance("promo", "test", 0, "on")
    with pytest.raises(BrowserError):
        async with shop.front(ins) as front:
            session = await front.page.context.new_cdp_session(front.page)
            crash = asyncio.ensure_future(session.send("Page.crash"))
            await asyncio.wait([crash], timeout=5)
            crash.cancel()
            await asyncio.gather(crash, return_exceptions=True)
            await front.read()
    async with shop.front(ins) as front:
        assert (await front.read())[0] == "/"


@needs_browser
async def test_a_browser_that_died_is_started_again(shop: Browser) -> None:
    ins = instance("promo", "test", 0, "on")
    with pytest.raises(BrowserError):
        async with shop.front(ins) as front:
            assert shop._program is not None
            await shop._program.close()
            await front.read()
    async with shop.front(ins) as front:
        assert (await front.read()) == await TextFront(ins).read()


@needs_browser
async def test_a_page_that_does_not_answer_is_a_browser_error(shop: Browser) -> None:
    shop._seconds = 1
    with pytest.raises(BrowserError, match="show the page it was sent"):
        async with shop.front(instance("promo", "test", 0, "on")) as front:
            front._episode.pages += 1  # the server believes in a page that never arrived
            await front.read()


@needs_browser
async def test_episodes_side_by_side_do_not_mix_and_wait_their_turn() -> None:
    started = await Browser.start(contexts=2, seconds=60)
    inside: list[int] = []

    async def one(i: int) -> tuple[str, ...]:
        ins = instance("promo", "test", i, "on")
        async with started.front(ins) as front:
            inside.append(i)
            assert len(inside) <= 2
            outcome = await play_with(ins, front, policies.oracle)
            inside.remove(i)
        assert outcome.data["cart"] == list(ins.want or ())
        return tuple(outcome.data["cart"])

    try:
        assert len(await asyncio.gather(*(one(i) for i in range(6)))) == 6
    finally:
        await started.stop()
    with pytest.raises(OSError):
        urllib.request.urlopen(started.server.url, timeout=5)  # the server went with the browser


def test_without_a_browser_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(browser.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PLAYWRIGHT_BROWSERS_PATH", raising=False)
    with pytest.raises(BrowserError) as caught:
        browser.find_browser()
    assert "apt-get install chromium-headless-shell" in str(caught.value)
    assert "playwright install chromium-headless-shell" in str(caught.value)
    with pytest.raises(BrowserError, match="no Chromium found"):
        asyncio.run(Browser.start())


def test_browsers_are_found_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def program(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return path

    monkeypatch.delenv(browser.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    own = program(tmp_path / "pw/chromium_headless_shell-1/linux/chrome-headless-shell")
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "pw"))
    assert browser.find_browser() == own
    chrome = program(tmp_path / "bin/google-chrome")
    assert browser.find_browser() == chrome
    shell = program(tmp_path / "bin/chromium-headless-shell")
    assert browser.find_browser() == shell
    named = program(tmp_path / "mine")
    monkeypatch.setenv(browser.VARIABLE, str(named))
    assert browser.find_browser() == named
    monkeypatch.setenv(browser.VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(BrowserError, match=f"{browser.VARIABLE} names no program"):
        browser.find_browser()


def test_a_program_that_is_no_browser_is_a_browser_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(browser.VARIABLE, "/bin/true")
    with pytest.raises(BrowserError, match="did not start"):
        asyncio.run(Browser.start(seconds=20))


async def test_a_taken_port_is_a_browser_error_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrowserError, match=f"port {port} of 127.0.0.1 cannot be used"):
            await ShopServer.start(port)
    with pytest.raises(BrowserError, match="port 70000"):
        await ShopServer.start(70_000)
    server = await ShopServer.start(port)
    assert server.port == port
    await server.stop()
    await server.stop()


def _ask(url: str, data: bytes | None = None, host: str = "") -> tuple[int, dict[str, str], str]:
    request = urllib.request.Request(url, data, {"Host": host} if host else {})

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args: object) -> None:
            return None

    try:
        with urllib.request.build_opener(Stay).open(request, timeout=20) as reply:
            return reply.status, dict(reply.headers), reply.read().decode()
    except urllib.error.HTTPError as reply:
        with reply:
            return reply.code, dict(reply.headers), reply.read().decode()


async def test_the_server_answers_its_own_episodes_only() -> None:
    server = await ShopServer.start()
    ins = instance("addon", "test", 0, "on")
    episode = server.open(ins)
    base = server.url + episode.prefix

    async def ask(*args: object) -> tuple[int, dict[str, str], str]:
        return await asyncio.to_thread(_ask, *args)  # type: ignore[arg-type]

    status, headers, body = await ask(base + "/")
    assert status == 200 and headers["cache-control"] == "no-store" and "data-bid" in body
    assert "default-src 'none'" in headers["content-security-policy"] and "<script" not in body
    assert (await ask(base + "/nowhere"))[0] == 404
    assert (await ask(server.url + "/e/other/"))[0] == 404
    assert (await ask(server.url + "/e/other/act", b"do=add:p0"))[0] == 404
    assert (await ask(server.url + "/"))[0] == 404
    assert (await ask(base + "/", None, "evil.example"))[0] == 400
    status, headers, _ = await ask(base + "/act", b"do=add%3Ap0")
    assert status == 303 and headers["location"] == episode.prefix + "/item" and episode.state.pending == "p0"
    state = episode.state
    assert (await ask(base + "/act", b"do=" + b"x" * MAX_BODY))[0] == 413
    assert (await ask(base + "/act", b"&".join(b"a%d=1" % i for i in range(50))))[0] == 413
    assert (await ask(base + "/act", b"\xff\xfe%zz=%80&do=remove:p0"))[0] == 303
    assert episode.state == state
    server.close(episode)
    assert (await ask(base + "/"))[0] == 404
    await server.stop()


def test_the_server_binds_loopback_only() -> None:
    async def main() -> None:
        server = await ShopServer.start()
        assert server._sock.getsockname()[0] == "127.0.0.1"
        await server.stop()

    asyncio.run(main())


def test_legal_actions_of_what_the_page_says_are_quoted() -> None:
    obs = TextFront(instance("discount", "test", 0, "on"))
    assert all('"' in a or a == "done()" for a in legal_actions(Observation("g", "/", obs.elements(), "", 0, 8, ())))
