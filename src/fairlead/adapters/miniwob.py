"""Our agent on MiniWoB++: its pages, our numbered elements, our action language, real clicks in the system's Chromium.

    async with MiniWoB.start() as wob:
        episode = await wob.play("click-test", 0, acting(subject))

The package `miniwob` ships the pages of the tasks; only those files are read, and the package itself (Selenium,
gymnasium) is never imported. They are served on the loopback. As BrowserGym does, an episode has no time limit but a
number of steps, and its reward is the page's own, without the discount for time: 1, or a part of it, or -1.

An element has a number where it is a control or where a click is listened for; everything else with text is shown as
text. The legal actions are clicks, options, and into each field every text that the goal has in quotation marks.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fairlead.core.errors import FairleadError, MissingExtra, UnknownName
from fairlead.core.types import Message, Messages
from fairlead.tasks.shop.actions import Action, parse
from fairlead.tasks.shop.browser import AIM, FLAGS, VIEWPORT, answering, find_browser
from fairlead.tasks.shop.fronts import check_target, typed
from fairlead.tasks.shop.observe import Observation, Seen, describe

SYSTEM = (
    "You do a task on a web page for the user. Every element of the page has a number. Answer with one action: "
    'click("NUMBER"), fill("NUMBER","text"), select("NUMBER","option") or done().'
)
STEPS, SECONDS = 12, 20.0
_NAME = re.compile(r"[a-z0-9-]{1,64}")
_QUOTED = re.compile(r'"([^"]{1,200})"')
# A page is still for us when nothing moves on it.
_STILL = """() => new Promise(done => {
  const look = () => window.jQuery && jQuery(':animated').length ? setTimeout(look, 20) : requestAnimationFrame(done);
  look();
})"""
_BEGIN = """seed => {
  core.EPISODE_MAX_TIME = 1000000;
  Math.seedrandom(seed);
  core.startEpisodeReal();
}"""
_GOAL = "() => { const said = core.getUtterance(); return typeof said === 'string' ? said : said.utterance; }"
_END = "() => [WOB_DONE_GLOBAL, WOB_RAW_REWARD_GLOBAL]"
# Numbers the controls and every text, and gives their roles, names and states.
_READ = """() => {
  const tidy = s => (s || '').replace(/\\s+/g, ' ').trim();
  const out = [];
  document.querySelectorAll('[data-bid]').forEach(e => e.removeAttribute('data-bid'));
  const heard = e => e.onclick || e.__onclick || e.__onmousedown ||
    (window.jQuery && Object.keys(jQuery._data(e, 'events') || {}).some(n => n === 'click' || n === 'mousedown'));
  const control = e => ['A', 'BUTTON', 'SELECT', 'TEXTAREA', 'INPUT'].includes(e.tagName) ||
    e.classList.contains('alink') || ['button', 'tab', 'menuitem', 'option', 'link'].includes(e.getAttribute('role'));
  const role = e => {
    if (e.tagName === 'SELECT') return 'combobox';
    if (e.tagName === 'TEXTAREA') return 'textbox';
    if (e.tagName !== 'INPUT') return e.tagName === 'A' || e.classList.contains('alink') ? 'link' : 'button';
    if (['checkbox', 'radio'].includes(e.type)) return 'checkbox';
    return ['submit', 'button', 'reset', 'image'].includes(e.type) ? 'button' : 'textbox';
  };
  const beside = e => {
    const label = e.labels && e.labels[0];
    if (label) return label.innerText;
    const next = e.nextSibling;
    return next && next.nodeType === 3 ? next.textContent : '';
  };
  const name = (e, r) => {
    if (r === 'checkbox') return tidy(e.getAttribute('aria-label') || beside(e) || e.value);
    if (r === 'textbox' || r === 'combobox')
      return tidy(e.getAttribute('aria-label') || (e.labels && e.labels[0] ? e.labels[0].innerText : '') ||
                  e.placeholder || e.name || e.id);
    const said = tidy(e.innerText || e.value || e.textContent || e.title || e.getAttribute('aria-label'));
    return said || tidy([e.getAttribute('fill') || e.dataset.color || e.className.baseVal || e.className || '',
                         e.tagName.toLowerCase()].join(' '));
  };
  const push = (e, r, n) => {
    e.dataset.bid = String(out.length + 1);
    const select = r === 'combobox';
    out.push([e.dataset.bid, r, n, select ? (e.selectedIndex < 0 ? '' : e.options[e.selectedIndex].text)
              : r === 'textbox' ? e.value : '', r === 'checkbox' && e.checked,
              select ? Array.from(e.options, o => o.text) : []]);
  };
  const walk = e => {
    if (e.matches('#query, #reward-display, #sync-task-cover, #click-canvas, script, style, head')) return;
    const style = getComputedStyle(e);
    if (style.display === 'none' || style.visibility === 'hidden' || e.type === 'hidden') return;
    const inner = e.querySelector('a, button, input, select, textarea, .alink');
    if (control(e) || (heard(e) && !inner && !['area', 'wrap'].includes(e.id) && e !== document.body)) {
      if (e.getClientRects().length) push(e, role(e), name(e, role(e)));
      return;
    }
    const own = tidy(Array.from(e.childNodes).filter(n => n.nodeType === 3).map(n => n.textContent).join(' '));
    const labels = e.tagName === 'LABEL' && e.querySelector('input');
    if (own && e.getClientRects().length && !labels) push(e, 'text', own);
    for (const child of e.children) walk(child);
  };
  walk(document.body);
  return out;
}"""

Act = Callable[[Observation, tuple[str, ...]], Awaitable[str]]


@dataclass(frozen=True)
class Episode:
    """One episode. `ended` is page (the page gave its reward), done (the agent said so) or limit; `reward` is the
    page's own, 0 where it gave none; `errors` are the actions that could not be done."""

    task: str
    seed: int
    goal: str
    reward: float
    ended: str
    actions: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def success(self) -> bool:
        """As the benchmark counts it."""
        return self.reward > 0


def pages() -> Path:
    """Where the package's pages lie."""
    found = find_spec("miniwob")
    for place in (found.submodule_search_locations or ()) if found else ():
        if (Path(place) / "html" / "miniwob").is_dir():
            return Path(place) / "html"
    raise MissingExtra("miniwob is not installed", do="pip install 'fairlead[miniwob]'")


def tasks() -> list[str]:
    """The names of all tasks that the package has."""
    return sorted(file.stem for file in (pages() / "miniwob").glob("*.html"))


def acting(world: Any, *, free: bool = False, max_tokens: int = 32) -> Act:
    """A Subject, or what a Fitted opens, as an agent: it chooses among the legal actions, or with `free` writes."""

    async def act(seen: Observation, legal: tuple[str, ...]) -> str:
        options = None if free else legal
        said = await world.generate(messages(seen), step=seen.step, legal=options, max_tokens=max_tokens)
        return str(said.text)

    return act


def messages(seen: Observation) -> Messages:
    """What the model is told at one step."""
    return (Message("system", SYSTEM), Message("user", seen.text()))


def legal_actions(seen: Observation) -> tuple[str, ...]:
    """Every action that the page allows, in page order, and `done()`."""
    texts = list(dict.fromkeys(_QUOTED.findall(seen.goal)))
    out: list[Action] = []
    for e in seen.elements:
        if e.role in ("link", "button", "checkbox"):
            out.append(Action("click", (e.bid,)))
        elif e.role == "textbox":
            out += [Action("fill", (e.bid, text)) for text in texts if text != e.value]
        elif e.role == "combobox":
            out += [Action("select", (e.bid, o)) for o in dict.fromkeys(e.options) if o and o != e.value]
    return tuple(dict.fromkeys(str(a) for a in (*out, Action("done"))))


class MiniWoB:
    """One Chromium and one server of the pages. Episodes run one after another in a page each."""

    def __init__(self, program: Any, url: str, seconds: float) -> None:
        self._program, self._url, self._seconds = program, url, seconds

    @classmethod
    @asynccontextmanager
    async def start(cls, *, seconds: float = SECONDS) -> AsyncIterator[MiniWoB]:
        """`seconds` is how long a page may take to answer. MissingExtra without the pages, BrowserError without a
        browser; both are stopped when the context is left."""
        root = pages()
        from playwright.async_api import async_playwright

        path = find_browser()
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root)))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            async with async_playwright() as driver:
                with answering(f"start ({path})"):
                    program = await driver.chromium.launch(
                        executable_path=path, args=list(FLAGS), timeout=1000 * seconds
                    )
                try:
                    yield cls(program, f"http://127.0.0.1:{server.server_port}", seconds)
                finally:
                    await program.close()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    async def play(self, task: str, seed: int, act: Act, *, steps: int = STEPS) -> Episode:
        """One episode: the same task and seed give the same page. Raises UnknownName for a task that there is not."""
        if not _NAME.fullmatch(task) or not (pages() / "miniwob" / f"{task}.html").is_file():
            raise UnknownName("no such task of MiniWoB++", expected=", ".join(tasks()[:8]) + ", ...", got=task[:80])
        if steps < 1:
            raise FairleadError("an episode of no steps", expected="at least one")
        with answering(f"open {task}"):
            page = await self._program.new_page(viewport=VIEWPORT)
        try:
            with answering(f"open {task}"):
                await page.goto(f"{self._url}/miniwob/{task}.html", timeout=1000 * self._seconds)
                await self._ask(page, _BEGIN, str(seed))
                goal = " ".join(str(await self._ask(page, _GOAL)).split())
            return await self._episode(page, Episode(task, seed, goal, 0.0, "limit", (), ()), act, steps)
        finally:
            with answering("close its page"):
                await page.close()

    async def _episode(self, page: Any, so_far: Episode, act: Act, steps: int) -> Episode:
        past: tuple[str, ...] = ()
        error = ""
        for step in range(steps):
            with answering("show its page"):
                rows = await self._ask(page, _READ)
            elements = tuple(Seen(b, role, name, value, on, tuple(opts)) for b, role, name, value, on, opts in rows)
            seen = Observation(so_far.goal, f"/{so_far.task}", elements, error, step, steps, past)
            said = (await act(seen, legal_actions(seen))).strip()
            so_far = replace(so_far, actions=(*so_far.actions, said))
            action = parse(said)
            if isinstance(action, Action) and action.name in ("done", "report_infeasible"):
                return replace(so_far, ended="done")
            error = action if isinstance(action, str) else await self._act(page, action, elements)
            if error:
                so_far = replace(so_far, errors=(*so_far.errors, f"{said}: {error}"))
            elif isinstance(action, Action):
                past = (*past, describe(action, elements))[-2:]
            with answering("give its reward"):
                over, reward = await self._ask(page, _END)
            if over:
                return replace(so_far, ended="page", reward=float(reward))
        return so_far

    async def _act(self, page: Any, action: Action, elements: tuple[Seen, ...]) -> str:
        """Do it with real events. "" or what went wrong, in words that an agent can use."""
        if action.name not in ("click", "fill", "select"):
            return "" if action.name == "noop" else f"{action.name} does nothing here"
        if wrong := check_target(action, elements):
            return wrong
        bid = action.args[0]
        spot = page.locator(f'[data-bid="{int(bid)}"]')
        with answering(f"{action.name} [{bid}]"):
            aim = await self._ask(page, AIM, bid)
            if aim is None:
                return f"could not {action.name} [{bid}]: something is in the way"
            if action.name == "click":
                await page.mouse.click(*aim)
            elif action.name == "fill":
                await spot.click(timeout=1000 * self._seconds)
                await spot.fill(typed(action.args[1]), timeout=1000 * self._seconds)
            else:
                await spot.select_option(label=action.args[1], timeout=1000 * self._seconds)
            await self._ask(page, _STILL)
        return ""

    async def _ask(self, page: Any, script: str, *values: Any) -> Any:
        async with asyncio.timeout(self._seconds):
            return await page.evaluate(script, *values)


class _Quiet(SimpleHTTPRequestHandler):
    """Files only, and no log."""

    def guess_type(self, path: Any) -> str:
        """The pages are UTF-8 and do not say so."""
        kind = super().guess_type(path)
        return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""

    def list_directory(self, path: Any) -> None:  # noqa: ARG002
        """There is nothing to list."""
        self.send_error(404)
