"""The live page in a real Chromium, driven as its reader would."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.app.conftest import FEATURES, SITE, WIDTH
from tests.report.synthetic_run import HOSTILE, write_run
from tests.serve.ladder import LEGAL, Ladder

from fairlead.core import plugins
from fairlead.core.fake import FakeSubject
from fairlead.core.keys import canonical
from fairlead.dictionaries import random as random_dictionary
from fairlead.features.detection import Detection
from fairlead.features.harvest import harvest, texts_of
from fairlead.features.labels import Label
from fairlead.serve.features_api import Shelf
from fairlead.serve.live.episode import Bench, Session
from fairlead.serve.live.pages import Pages
from fairlead.serve.live.server import beside, token
from fairlead.serve.live.tail import Tail
from fairlead.serve.live.web import Live
from fairlead.tasks.shop.browser import find_browser

pytestmark = pytest.mark.browser
ITEM = "validation/0"
# Every visible text whose contrast with what is behind it is below WCAG AA.
FAINT = r"""() => {
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = c => c.map(v => linear(v / 255)).reduce((t, v, i) => t + v * [0.2126, 0.7152, 0.0722][i], 0);
  const parts = c => { const m = c.match(/[\d.]+/g).map(Number); return [m.slice(0, 3), m[3] ?? 1]; };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const [c, a] = parts(getComputedStyle(e).backgroundColor);
      if (a > 0.9) return c;
    }
    return [255, 255, 255];
  };
  const out = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(); n; n = walk.nextNode()) {
    const e = n.parentElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
    if (!n.data.trim() || !e.checkVisibility() || !r.width || e.matches(':disabled, option, noscript')) continue;
    const a = luminance(parts(s.color)[0]), b = luminance(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(s.fontSize) >= 24 || (parseFloat(s.fontSize) >= 18.66 && Number(s.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) out.push(`${n.data.trim().slice(0, 30)} ${ratio.toFixed(2)} ${e.className}`);
  }
  return out;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = find_browser()  # these tests fail rather than skip where there is none
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose pages, labels and question try to break out, with two traces a kind."""
    root = tmp_path_factory.mktemp("live")
    return write_run(root, per_category=3, traced=2, hostile=True, categories=("promo", "upsell"))


@pytest.fixture(scope="module")
def live(made: Path, subject: Any, tmp_path_factory: pytest.TempPathFactory) -> Live:
    rows = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(1))
    dictionary = random_dictionary.fit(rows, FEATURES, site=SITE)
    store = tmp_path_factory.mktemp("store") / "s"
    texts = [f"buy a {HOSTILE[i % len(HOSTILE)]} lamp {i}" for i in range(12)]
    harvest(subject, dictionary, texts_of(subject, texts), store)
    held = Detection(0.9, 0.8, 0.95, 0.85, 12, 12)
    said = [Label(i, f"fires on {lure}", "peaks", (), held, {}) for i, lure in enumerate(HOSTILE)]
    lines = [canonical({}), *(canonical(asdict(one)) for one in said)]
    (store / "labels.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    task, pages = Ladder(), Live(token()).pages
    items = {i.id: i for i in task.items("validation")}
    bench = Bench(task, items, subject, [dictionary], label=lambda i: f"{i} {HOSTILE[1]}", model="pocket/tiny",
                  dictionary="random")  # fmt: skip
    session = Session(lambda: bench, pages, item=ITEM)

    async def parts() -> tuple[Any, Any]:
        return (await session.opened()).subject, dictionary

    shelf = Shelf.of(store, parts=parts, now=lambda: (subject, dictionary) if session.bench else None)
    return Live(token(), Tail(made), session, pages, shelf)


@pytest.fixture(scope="module")
def url(live: Live) -> Iterator[str]:
    with beside(live) as found:
        yield found
        live.looked = False  # do not wait for the last tab


class Tab:
    """A page of the live view, and what went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.base, self.wrong = page, url.partition("#")[0], []
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", self._said)
        page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss())[1])
        page.on("popup", lambda popup: self.wrong.append(popup.url))
        page.on("request", lambda r: None if r.url.startswith(self.base) else self.wrong.append(r.url))
        page.goto(url)
        page.wait_for_selector("html[data-ready]")

    def _said(self, line: Any) -> None:
        """Errors, but for what framed pages were refused: that is what they are framed for."""
        where = (line.location or {}).get("url", "")
        framed = "/page/" in line.text + where or "evil.example/' violates" in line.text
        if line.type == "error" and not framed:
            self.wrong.append(line.text)

    def at(self, view: str) -> None:
        self.page.goto(f"{self.base}#{view}")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def wide(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth"))


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Callable[..., Tab]]:
    contexts = []

    def go(where: str = url, **settings: Any) -> Tab:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings}))
        return Tab(contexts[-1].new_page(), where)

    yield go
    for context in contexts:
        context.close()


def begin(tab: Tab) -> None:
    """An episode at its first decision, with no edit."""
    tab.at("episode")
    tab.page.fill("#episode-item", ITEM)
    tab.page.click("#episode-start")
    tab.page.wait_for_selector("#view-episode[data-phase=waiting]")
    tab.page.fill("#edit-line", "nothing")
    tab.page.click("#edit-apply")
    expect(tab.page.locator("#sliders input")).to_have_count(0)


def test_a_run_is_watched_as_it_grows(visit: Callable[..., Tab], made: Path, tmp_path: Path) -> None:
    growing = tmp_path / "growing"
    (growing / "trials").mkdir(parents=True)
    for name in ("plan.json", "trials.json"):
        shutil.copy(made / name, growing / name)
    shutil.copytree(made / "traces", growing / "traces")
    watched = Live(token(), Tail(growing))
    with beside(watched) as url:
        tab = visit(url)
        row = tab.page.locator(".arms tbody tr").first
        expect(row).to_contain_text("waiting")
        expect(tab.page.locator("#items")).to_contain_text("No item has been run yet")
        key = watched.tail.trials[0].key if watched.tail else ""
        lines = (made / "trials" / f"{key}.jsonl").read_bytes().splitlines(keepends=True)
        with (growing / "trials" / f"{key}.jsonl").open("ab", buffering=0) as file:
            file.write(b"".join(lines[:6]))
            expect(row).to_contain_text("6 of 192")
            expect(row).to_contain_text("2 clusters")
            assert "Provisional" in tab.text("#study-note")
            assert row.locator("svg.provisional").get_attribute("aria-label", timeout=5000)
            assert tab.page.locator(".marks tbody tr").count() == 6
            file.write(b"".join(lines[6:]))
            expect(row).to_contain_text(f"{len(lines)} of 192")
        for file in (made / "trials").glob("*"):
            shutil.copy(file, growing / "trials" / file.name)
        expect(tab.page.locator("#study-phase .word")).to_have_text("inconclusive", timeout=60_000)  # it is judged
        expect(tab.page.locator("svg.provisional")).to_have_count(0)
        assert "Provisional" not in tab.text("#study-note") and tab.wrong == []
        watched.looked = False


def test_bars_and_shares_follow_an_edit_and_a_slider(visit: Callable[..., Tab]) -> None:
    tab = visit()
    begin(tab)
    assert tab.text("#act-default") == tab.text("#act-steered")
    bare = tab.page.locator("#dist .p").all_inner_texts()
    assert len(bare) == len(LEGAL) and all(a == b for a, b in (t.split(" → ") for t in bare))
    tab.page.fill("#edit-line", "3 += 400")
    tab.page.keyboard.press("Enter")
    bar = tab.page.locator("#bars .p").first
    expect(tab.page.locator("#bars .name").first).to_contain_text("edited")
    before, after = bar.inner_text().split(" → ")
    assert float(after.replace("−", "-")) > float(before.replace("−", "-")) + 1
    moved = tab.page.locator("#dist .p").all_inner_texts()
    assert [t.split(" → ")[0] for t in moved] == [t.split(" → ")[0] for t in bare], "the counterfactual stays"
    assert any(a != b for a, b in (t.split(" → ") for t in moved)), "and the edited shares part from it"
    width = tab.page.locator("#bars .track i.is").first.evaluate("e => e.style.width")
    slider = tab.page.locator("#sliders input").first
    slider.focus()
    slider.press("Home")
    expect(tab.page.locator("#edit-line")).to_have_value(re.compile(r"3 -= \d"))
    expect(bar).not_to_have_text(f"{before} → {after}")
    assert tab.page.locator("#bars .track i.is").first.evaluate("e => e.style.width") != width
    tab.page.click("#step")
    expect(tab.page.locator("#timeline")).to_contain_text("3 -= ")
    expect(tab.page.locator("#timeline")).to_contain_text("tokens")
    expect(tab.page.locator("#timeline .badges")).to_have_count(1)
    tab.page.click("#run")
    tab.page.wait_for_selector("#view-episode[data-phase=ended]")
    assert "strict" in tab.text("#episode-phase")
    tab.page.click("#reset")
    tab.page.wait_for_selector("#view-episode[data-phase=waiting]")
    expect(tab.page.locator("#timeline-section")).to_be_hidden()
    assert tab.wrong == []


def test_in_a_browser_what_is_about_to_be_used_is_framed(visit: Callable[..., Tab]) -> None:
    """Two browsers: the agent's, whose picture the page shows, and the reader's. The frame lies on the element."""
    task = plugins.get("tasks", "shop")({"n": 1, "categories": ["promo"], "front": "chromium", "contexts": 1})
    items = {item.id: item for item in task.items("validation")}
    session = Session(lambda: Bench(task, items, FakeSubject(), model="fake"), pages := Pages())
    watched = Live(token(), session=session, pages=pages)
    with beside(watched) as url:
        tab = visit(url)
        tab.at("episode")
        tab.page.click("#episode-start")
        shot, aim = tab.page.locator("#page-view img.shot"), tab.page.locator("#page-view .aim")
        for step in range(2):
            expect(tab.page.locator("#view-episode")).to_have_attribute("data-phase", "waiting", timeout=60_000)
            expect(aim).to_have_count(1)
            tab.page.wait_for_function("document.querySelector('#page-view img.shot').naturalWidth > 0")
            point = session.state()["point"]
            bid = point["steered"]["action"].split('"')[1]
            whole, frame = shot.bounding_box(), aim.bounding_box()
            assert whole and frame and point["step"] == step
            found = [
                (frame["x"] - whole["x"]) / whole["width"], (frame["y"] - whole["y"]) / whole["height"],
                frame["width"] / whole["width"], frame["height"] / whole["height"],
            ]  # fmt: skip
            assert found == pytest.approx(point["boxes"][bid], abs=0.02)
            tab.page.click("#step")
            expect(tab.page.locator("#timeline .badges")).to_have_count(step + 1)
        assert tab.wrong == []
        watched.looked = False


def test_an_edit_that_cannot_be_read_shows_the_caret_and_changes_nothing(visit: Callable[..., Tab]) -> None:
    tab = visit()
    begin(tab)
    bars = tab.text("#bars")
    tab.page.fill("#edit-line", f"12 =- 3 {HOSTILE[1]}")
    tab.page.click("#edit-apply")
    error = tab.page.locator("#edit-error")
    expect(error).to_be_visible()
    place, caret = error.inner_text().split("\n")[1:3]
    assert place[caret.index("^")] == "-" and HOSTILE[1] in place
    assert tab.text("#bars") == bars
    tab.page.fill("#edit-line", "nothing")
    tab.page.click("#edit-apply")
    expect(error).to_be_hidden()


def test_without_the_token_the_page_is_read_only(visit: Callable[..., Tab], url: str, live: Live) -> None:
    tab = visit(url.partition("#")[0])
    tab.at("episode")
    assert "read only" in tab.text("#control")
    assert tab.page.locator("#view-episode button:visible:not(:disabled)").count() == 0
    version = live.session.version if live.session else 0
    post = (
        "v => fetch('/api/episode/start', {method: 'POST', headers: {'X-Fairlead-Token': v}, body: '{}'})"
        ".then(r => r.status)"
    )
    assert tab.page.evaluate(post, "guess") == 401 and tab.page.evaluate(post, live.token[:-1]) == 401
    assert live.session is not None and live.session.version == version
    assert "token" not in visit(url).page.url, "the address can be passed on"


def test_a_replay_is_opened_from_an_item_with_the_keyboard_alone(visit: Callable[..., Tab]) -> None:
    tab = visit()
    keys = tab.page.keyboard
    keys.press("Tab")
    assert tab.page.evaluate("document.activeElement.className") == "skip"
    for _ in range(30):
        keys.press("Tab")
        if tab.page.evaluate("document.activeElement.getAttribute('href') || ''").startswith("#replay?"):
            break
    ring = tab.page.evaluate("getComputedStyle(document.activeElement).outline")
    assert "solid 2px" in ring, "focus can be seen"
    item = tab.page.evaluate("document.activeElement.textContent")
    keys.press("Enter")
    tab.page.wait_for_selector("#replay-view[data-ready]")
    assert tab.page.input_value("#replay-item") == item
    where = tab.text("#replay-where")
    keys.press("ArrowRight")
    expect(tab.page.locator("#replay-where")).not_to_have_text(where)  # a script in the page would need eval
    assert tab.page.frame_locator(".side iframe >> nth=0").locator("header").inner_text().startswith("Harbour Goods")
    assert tab.wrong == []


def test_an_episode_is_played_with_the_keyboard_alone(visit: Callable[..., Tab]) -> None:
    tab = visit()
    begin(tab)
    keys, focused = tab.page.keyboard, "document.activeElement.id"

    def to(wanted: str) -> None:
        for _ in range(40):
            if tab.page.evaluate(focused) == wanted:
                return
            keys.press("Tab")
        raise AssertionError(f"no way to {wanted}")

    to("edit-line")
    keys.press("Control+A")
    keys.type("3 = 9")
    keys.press("Enter")
    expect(tab.page.locator("#slide-0")).to_be_visible()
    bar = tab.page.locator("#bars .p").first
    before = bar.inner_text()
    to("slide-0")
    keys.press("ArrowLeft")
    expect(bar).not_to_have_text(before)
    assert tab.page.evaluate(focused) == "slide-0", "news do not take the focus away"
    to("step")
    keys.press("Enter")
    expect(tab.page.locator("#timeline tbody tr")).to_have_count(2)
    tab.page.wait_for_selector("#view-episode[data-phase=waiting]")


def test_hostile_text_stays_text(visit: Callable[..., Tab]) -> None:
    tab = visit()
    assert HOSTILE[0] in tab.text("#question")
    begin(tab)
    for place, lure in (("#goal", 1), ("#page-cart", 3), ("#page-url", 2)):
        assert HOSTILE[lure] in tab.text(place)
    tab.page.fill("#pin", "3")
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#bars")).to_contain_text(f"3 {HOSTILE[1]}")
    assert LEGAL[3] in tab.text("#dist")
    tab.page.fill("#episode-item", f"validation/2{HOSTILE[1]}")
    tab.page.click("#episode-start")
    expect(tab.page.locator("#episode-phase")).to_contain_text("waits")
    frame = tab.page.frame_locator("#page-view iframe")
    expect(frame.locator("p").first).to_have_text("rung 0")
    tab.at("replay")
    tab.page.wait_for_selector("#replay-view[data-ready]")
    found = "[window.__owned ?? null, document.querySelectorAll('main img:not(.shot), main script').length]"
    assert tab.page.evaluate(found) == [None, 0]
    for frame in tab.page.frames[1:]:
        assert frame.evaluate("window.__owned ?? null") is None
    assert tab.wrong == []


def test_a_feature_is_found_and_tried(visit: Callable[..., Tab]) -> None:
    tab = visit()
    tab.at("features")
    expect(tab.page.locator("#card article")).to_be_visible()
    tab.page.fill("#search", "onerror")
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#search-said")).to_contain_text("for “onerror”")
    expect(tab.page.locator("#found tbody tr").first).to_contain_text(HOSTILE[1])
    expect(tab.page.locator("#card .label")).to_have_text(f"fires on {HOSTILE[1]}")
    expect(tab.page.locator("#card")).to_contain_text("AUROC 0.90 [0.80, 0.95], 12 + 12 windows")
    assert tab.page.locator("#card mark.peak").count() >= 1, "the token that it fires on most is marked"
    tab.page.locator("#card .near a").first.click()
    expect(tab.page.locator("#card")).not_to_have_attribute("data-latent", "1")
    tab.page.fill("#search", "3")
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#card h2")).to_have_text("latent 3")
    tab.page.click("#try-compare")
    expect(tab.page.locator("#try-result .p")).to_have_count(2)
    tab.page.click("#try-dose")
    expect(tab.page.locator("#try-result svg path")).to_have_count(2)
    assert tab.page.locator("#try-result svg circle").count() == 18, "nine doses of two answers"
    tab.page.locator(".try input").fill("3 =- 1")
    tab.page.click("#try-compare")
    expect(tab.page.locator("#try-error")).to_contain_text("^")
    tab.page.get_by_text("watch it in the episode").click()
    expect(tab.page.locator("#view-episode")).to_be_visible()
    assert tab.wrong == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_dark_and_faint(visit: Callable[..., Tab], scheme: str) -> None:
    tab = visit(color_scheme=scheme, viewport={"width": 360, "height": 740})
    tab.page.wait_for_selector(".marks td")
    assert tab.page.evaluate(FAINT) == [] and tab.wide() <= 360
    begin(tab)
    tab.page.fill("#edit-line", "3 += 400")
    tab.page.click("#edit-apply")
    expect(tab.page.locator("#bars .name").first).to_contain_text("edited")
    tab.page.click("#step")
    tab.page.wait_for_selector("#timeline td")
    assert tab.page.evaluate(FAINT) == [] and tab.wide() <= 360
    for view, there in (("replay", "#replay-view[data-ready]"), ("features", "#card article")):
        tab.at(view)
        tab.page.wait_for_selector(there)
        assert tab.page.evaluate(FAINT) == [] and tab.wide() <= 360, view


def test_who_wants_less_motion_gets_none(visit: Callable[..., Tab]) -> None:
    probe = "getComputedStyle(document.getElementById('study-bar')).transitionDuration"
    assert visit().page.evaluate(probe) == "0.3s"
    assert visit(reduced_motion="reduce").page.evaluate(probe) == "0s"
