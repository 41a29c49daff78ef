"""The shop in a real Chromium: one browser process, a few reused contexts, one page each.

What the agent sees is read from the live page; what it does are real clicks, fills and selects. An
action that the page refuses is a text for the agent; a page that crashes or does not answer is a
`BrowserError`, which a study records as an error and never as a zero.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.core.errors import BrowserError
from fairlead.tasks.shop.actions import Action
from fairlead.tasks.shop.fronts import check_path, check_target, typed
from fairlead.tasks.shop.observe import Seen
from fairlead.tasks.shop.server import HOST, Served, ShopServer
from fairlead.tasks.shop.site import State
from fairlead.tasks.shop.spec import Instance

if TYPE_CHECKING:
    from playwright.async_api import Browser as Program
    from playwright.async_api import Locator, Page, Playwright

VARIABLE = "FAIRLEAD_CHROMIUM"
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = (
    "apt-get install chromium-headless-shell, or playwright install chromium-headless-shell, "
    f"or set {VARIABLE} to a Chromium you have"
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Whatever is not this machine goes to a proxy that does not exist: pages cannot reach the network.
    f"--proxy-server=http://{HOST}:9",
    "--proxy-bypass-list=127.0.0.1",
)
VIEWPORT: Any = {"width": 640, "height": 640}  # nobody looks: small is cheap to paint
# Roles and names of every element with a bid, from the document as it stands now.
READ = """() => {
  const roles = {A: 'link', BUTTON: 'button', SELECT: 'combobox'};
  const role = e => e.tagName !== 'INPUT' ? roles[e.tagName] || 'text' : e.type === 'checkbox' ? 'checkbox' : 'textbox';
  const tidy = s => s.replace(/\\s+/g, ' ').trim();
  const seen = e => {
    const r = role(e), select = r === 'combobox';
    const chosen = select && e.selectedIndex >= 0 ? e.options[e.selectedIndex].text : '';
    return [e.dataset.bid, r, tidy(e.getAttribute('aria-label') ?? e.innerText),
            select ? chosen : r === 'textbox' ? e.value : '', r === 'checkbox' && e.checked,
            select ? Array.from(e.options, o => o.text) : []];
  };
  return [Number(document.documentElement.dataset.page), location.pathname,
          Array.from(document.querySelectorAll('[data-bid]'), seen)];
}"""

# Where to click an element, or null when a click there would not reach it.
AIM = """bid => {
  const [e, ...more] = Array.from(document.querySelectorAll('[data-bid]')).filter(e => e.dataset.bid === bid);
  if (!e || more.length || e.disabled) return null;
  e.scrollIntoView({block: 'nearest', behavior: 'instant'});
  const {left, top, width, height} = e.getClientRects()[0] ?? {};
  const x = left + width / 2, y = top + height / 2;
  const hit = width && height ? document.elementFromPoint(x, y) : null;
  return hit && e.contains(hit) ? [x, y] : null;
}"""

# Where each numbered element lies on the whole page: [left, top, width, height], as shares of it.
BOXES = """() => {
  const whole = document.documentElement, found = {};
  for (const e of document.querySelectorAll('[data-bid]')) {
    const {left, top, width, height} = e.getBoundingClientRect();
    found[e.dataset.bid] = [(left + scrollX) / whole.scrollWidth, (top + scrollY) / whole.scrollHeight,
                            width / whole.scrollWidth, height / whole.scrollHeight];
  }
  return found;
}"""

# The document with what was typed, ticked and selected written into it, and without the episode's prefix.
COPY = """prefix => {
  const copy = document.documentElement.cloneNode(true);
  const now = document.querySelectorAll('input, select'), then = copy.querySelectorAll('input, select');
  now.forEach((e, i) => {
    if (e.type === 'checkbox') then[i].toggleAttribute('checked', e.checked);
    else if (e.tagName === 'INPUT') then[i].setAttribute('value', e.value);
    else Array.from(e.options, (o, k) => then[i].options[k].toggleAttribute('selected', o.selected));
  });
  for (const [tag, name] of [['a', 'href'], ['form', 'action']])
    for (const e of copy.querySelectorAll(tag)) {
      const to = e.getAttribute(name) ?? '';
      if (to.startsWith(prefix)) e.setAttribute(name, to.slice(prefix.length));
    }
  copy.removeAttribute('data-page');
  return '<!doctype html>' + copy.outerHTML;
}"""


def find_browser() -> Path:
    """The Chromium to use: $FAIRLEAD_CHROMIUM, then one on the PATH, then Playwright's own."""
    named = os.environ.get(VARIABLE)
    if named:
        if not os.access(named, os.X_OK) or not Path(named).is_file():
            raise BrowserError(
                f"{VARIABLE} names no program",
                expected="the path of a Chromium",
                got=named,
                do=f"unset it, or {INSTALL}",
            )
        return Path(named)
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return Path(found)
    for own in _playwright_browsers():
        return own
    raise BrowserError("no Chromium found", expected=f"one of {', '.join(NAMES)} on the PATH", got="none", do=INSTALL)


def _playwright_browsers() -> Iterator[Path]:
    roots = [Path.home() / ".cache/ms-playwright", Path.home() / "Library/Caches/ms-playwright"]
    if os.environ.get("PLAYWRIGHT_BROWSERS_PATH"):
        roots.insert(0, Path(os.environ["PLAYWRIGHT_BROWSERS_PATH"]))
    patterns = (
        "chromium_headless_shell-*/*/chrome-headless-shell",
        "chromium_headless_shell-*/*/headless_shell",
        "chromium-*/chrome-linux*/chrome",
        "chromium-*/chrome-mac*/*.app/Contents/MacOS/*",
    )
    for root in roots:
        for pattern in patterns:
            yield from (p for p in sorted(root.glob(pattern), reverse=True) if os.access(p, os.X_OK))


@contextmanager
def answering(what: str) -> Iterator[None]:
    """Whatever Playwright raises inside becomes a BrowserError."""
    from playwright.async_api import Error

    try:
        yield
    except (Error, TimeoutError) as wrong:
        lines = str(wrong).strip().splitlines() or [type(wrong).__name__]
        raise BrowserError(
            f"the browser did not {what}", got=lines[0], do="run the episode again; lower `contexts` on a busy machine"
        ) from wrong


class BrowserFront:
    """One episode in one page of the browser. See `fronts.Front`; made by `Browser.front`.

    Clicks are mouse events at the element's place, sent without Playwright's own helpers: those would be
    compiled anew in every page, at more than the cost of the page. `seconds` is how long a page may take.
    """

    def __init__(self, page: Page, server: ShopServer, episode: Served, seconds: float) -> None:
        self.page = page
        self._base, self._episode = server.url + episode.prefix, episode
        self._ms = 1000 * seconds
        self._stack: list[str] = []
        self._seen: tuple[Seen, ...] | None = None  # what the agent saw last: what it may act on

    @property
    def state(self) -> State:
        return self._episode.state

    async def read(self) -> tuple[str, tuple[Seen, ...]]:
        """Waits until the document is the last page the server sent, so that a stale one is never read."""
        path, rows = await self._rows()
        self._seen = tuple(Seen(bid, role, name, value, on, tuple(opts)) for bid, role, name, value, on, opts in rows)
        return path, self._seen

    async def _rows(self) -> tuple[str, list[Any]]:
        from playwright.async_api import Error

        with answering("show the page it was sent"):
            async with asyncio.timeout(self._ms / 1000):
                while True:
                    try:
                        serial, path, rows = await self.page.evaluate(READ)
                    except Error as wrong:
                        if "context was destroyed" not in str(wrong) and "navigating" not in str(wrong):
                            raise
                        serial = None
                    if serial == self._episode.pages:
                        return str(path).removeprefix(self._episode.prefix), rows
                    await asyncio.sleep(0.01)

    async def load(self, path: str, *, push: bool = True) -> None:
        """Go to a path of the shop, as by the address bar."""
        with answering(f"load {path}"):
            await self.page.goto(self._base + path, wait_until="domcontentloaded", timeout=self._ms)
        self._arrived(push)

    def _arrived(self, push: bool = True) -> None:
        self._seen = None
        if push:
            self._stack.append(self._episode.path)

    async def act(self, action: Action) -> str:
        if action.name == "goto":
            wrong = check_path(action.args[0])
            if not wrong:
                await self.load(action.args[0])
            return wrong
        if action.name == "go_back":
            if len(self._stack) < 2:
                return "there is no page to go back to"
            self._stack.pop()
            await self.load(self._stack[-1], push=False)
            return ""
        if action.name not in ("click", "fill", "select"):
            return ""
        elements = self._seen if self._seen is not None else (await self.read())[1]
        return check_target(action, elements) or await self._perform(action, elements)

    async def _perform(self, action: Action, elements: tuple[Seen, ...]) -> str:
        bid = action.args[0]
        self._seen = None
        with answering(f"{action.name} [{bid}]"):
            async with asyncio.timeout(self._ms / 1000):
                aim = await self.page.evaluate(AIM, bid)
            if aim is None:
                return f"could not {action.name} [{bid}]: something is in the way"
            if action.name == "fill":
                await self._locate(bid).fill(typed(action.args[1]), timeout=self._ms)
            elif action.name == "select":
                await self._locate(bid).select_option(label=action.args[1], timeout=self._ms)
            elif next(e for e in elements if e.bid == bid).role == "checkbox":
                await self.page.mouse.click(*aim)
            else:
                async with self.page.expect_navigation(wait_until="domcontentloaded", timeout=self._ms):
                    await self.page.mouse.click(*aim)
                self._arrived()
        return ""

    def _locate(self, bid: str) -> Locator:
        quoted = bid.replace("\\", "\\\\").replace('"', '\\"')
        return self.page.locator(f'[data-bid="{quoted}"]')

    async def html(self) -> str:
        """The live page with typed, ticked and selected state in it; the same on every run."""
        await self._rows()
        with answering("give its page"):
            async with asyncio.timeout(self._ms / 1000):
                return str(await self.page.evaluate(COPY, self._episode.prefix))

    async def picture(self) -> tuple[bytes, dict[str, list[float]]]:
        """The page as it stands now, whole, as PNG, and where each numbered element lies on it (see BOXES)."""
        await self._rows()
        with answering("be painted"):
            async with asyncio.timeout(self._ms / 1000):
                boxes = await self.page.evaluate(BOXES)
            return bytes(await self.page.screenshot(full_page=True, timeout=self._ms)), boxes


class Browser:
    """One Chromium and one shop server. `contexts` episodes can run at a time; more wait their turn.

    Example:
        browser = await Browser.start(contexts=4)
        async with browser.front(instance) as front: ...
        await browser.stop()
    """

    def __init__(self, driver: Playwright, server: ShopServer, path: Path, seconds: float) -> None:
        self._driver, self.server, self._path, self._seconds = driver, server, path, seconds
        self._pages: asyncio.Queue[Page | None] = asyncio.Queue()
        self._program: Program | None = None
        self._launching = asyncio.Lock()

    @classmethod
    async def start(cls, *, contexts: int = 2, port: int = 0, seconds: float = 30) -> Browser:
        """`seconds` is how long a page may take to answer. Raises BrowserError when there is no browser, it
        does not start, or `port` is taken."""
        try:
            from playwright.async_api import async_playwright
        except ImportError as wrong:
            raise BrowserError("Playwright is not installed", got=str(wrong), do="pip install playwright") from wrong
        path = find_browser()
        server = await ShopServer.start(port)
        browser = cls(await async_playwright().start(), server, path, seconds)
        try:
            await browser._running()
        except BaseException:
            await browser.stop()
            raise
        for _ in range(contexts):
            browser._pages.put_nowait(None)
        return browser

    async def _running(self) -> Program:
        """The browser process; a new one when it died."""
        async with self._launching:
            if self._program is None or not self._program.is_connected():
                with answering(f"start ({self._path})"):
                    self._program = await self._driver.chromium.launch(
                        executable_path=self._path, args=list(FLAGS), timeout=1000 * self._seconds
                    )
            return self._program

    @asynccontextmanager
    async def front(self, instance: Instance) -> AsyncIterator[BrowserFront]:
        """A fresh episode in a free context. The page is kept for the next one unless something broke."""
        page = await self._pages.get()
        episode = self.server.open(instance)
        try:
            if page is None or page.is_closed():
                page = await self._page()
            front = BrowserFront(page, self.server, episode, self._seconds)
            await front.load("/")
            yield front
        except BaseException:  # the page may be anywhere: the next episode gets a new one
            await self._discard(page)
            page = None
            raise
        finally:
            self.server.close(episode)
            self._pages.put_nowait(page)

    async def _page(self) -> Page:
        with answering("open a page"):
            program = await self._running()
            context = await program.new_context(viewport=VIEWPORT, service_workers="block")
            page: Page = await context.new_page()
            return page

    async def _discard(self, page: Page | None) -> None:
        from playwright.async_api import Error

        if page is not None:
            try:
                await page.context.close()
            except Error:
                pass  # it is gone already, with its page

    async def stop(self) -> None:
        """Close the browser and the server."""
        from playwright.async_api import Error

        try:
            if self._program is not None:
                await self._program.close()
        except Error:
            pass  # a browser that died is closed
        finally:
            await self._driver.stop()
            await self.server.stop()
