"""What a front is, and the text twin. The browser front is in `browser`.

A front shows one episode: it loads paths, reads elements, and performs actions on them. Errors a page
would give are returned as text; `FrontError` is for what breaks the episode itself.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Protocol

from fairlead.tasks.shop.actions import Action
from fairlead.tasks.shop.observe import Seen
from fairlead.tasks.shop.site import Page, Redirect, Request, State, respond, to_html
from fairlead.tasks.shop.spec import Instance

PATH = re.compile(r"/[a-z0-9/_-]{0,64}")
MAX_REDIRECTS = 5


class Front(Protocol):
    """One episode on one front. `state` is the server's; the agent never sees it."""

    @property
    def state(self) -> State: ...
    async def read(self) -> tuple[str, tuple[Seen, ...]]:
        """(path, elements) of the page as it stands now."""
        ...

    async def act(self, action: Action) -> str:
        """Perform a page action. Returns "" or what went wrong, in words an agent can use."""
        ...

    async def html(self) -> str:
        """The page as HTML, for replays."""
        ...


def check_target(action: Action, elements: tuple[Seen, ...]) -> str:
    """Empty when the action's bid is on the page and takes that action; shared by both fronts."""
    bid = action.args[0]
    element = next((e for e in elements if e.bid == bid), None)
    if element is None:
        return f"no element [{bid}] on this page"
    takes = {"link": "click", "button": "click", "checkbox": "click", "textbox": "fill", "combobox": "select"}
    if takes.get(element.role) != action.name:
        return f"cannot {action.name} [{bid}]: it is a {element.role}"
    if action.name == "select" and action.args[1] not in element.options:
        return f"[{bid}] has no option '{action.args[1]}'"
    return ""


def check_path(path: str) -> str:
    return "" if PATH.fullmatch(path) else "goto takes a path of this shop such as /cart"


def typed(text: str) -> str:
    """What is left of a text in a one-line field: line breaks are dropped."""
    return text.replace("\r", "").replace("\n", "")


class TextFront:
    """The in-process twin: the same `respond`, and the form state a browser would keep."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._state = State()
        self._stack: list[str] = []
        self._page: Page
        self._form: dict[int, str | bool] = {}
        self._load("/")

    @property
    def state(self) -> State:
        return self._state

    @property
    def path(self) -> str:
        """The address of the page as it stands now."""
        return self._page.path

    def _load(self, path: str, *, push: bool = True) -> None:
        for _ in range(MAX_REDIRECTS):
            self._state, reply = respond(self.instance, self._state, Request("GET", path))
            if isinstance(reply, Page):
                break
            path = reply.path
        else:
            raise RuntimeError(f"redirect loop at {path}")
        self._page, self._form = reply, {}
        if push:
            self._stack.append(path)

    def elements(self) -> tuple[Seen, ...]:
        out = []
        for i, e in enumerate(self._page.elements):
            value, checked = e.value, e.checked
            if i in self._form:
                now = self._form[i]
                value, checked = (value, now) if isinstance(now, bool) else (now, checked)
            out.append(Seen(str(i + 1), e.role, " ".join(e.name.split()), value, checked, e.options))
        return tuple(out)

    async def read(self) -> tuple[str, tuple[Seen, ...]]:
        return self.path, self.elements()

    async def act(self, action: Action) -> str:
        return self.act_now(action)

    def act_now(self, action: Action) -> str:
        if action.name == "goto":
            wrong = check_path(action.args[0])
            if not wrong:
                self._load(action.args[0])
            return wrong
        if action.name == "go_back":
            if len(self._stack) < 2:
                return "there is no page to go back to"
            self._stack.pop()
            self._load(self._stack[-1], push=False)
            return ""
        if action.name not in ("click", "fill", "select"):
            return ""
        wrong = check_target(action, self.elements())
        if wrong:
            return wrong
        i = int(action.args[0]) - 1
        e = self._page.elements[i]
        if action.name == "fill":
            self._form[i] = typed(action.args[1])
        elif action.name == "select":
            self._form[i] = action.args[1]
        elif e.role == "checkbox":
            self._form[i] = not self._form.get(i, e.checked)
        elif e.role == "link":
            self._load(e.href)
        else:
            self._submit(e.post)
        return ""

    def _fields(self) -> dict[str, str]:
        """What a browser would send of this page's controls."""
        form = {}
        for e, seen in zip(self._page.elements, self.elements(), strict=True):
            if e.role == "checkbox" and seen.checked:
                form[e.field] = "on"
            elif e.role in ("textbox", "combobox"):
                form[e.field] = seen.value
        return form

    def _submit(self, post: str) -> None:
        form = {"do": post, **self._fields()}
        self._state, reply = respond(self.instance, self._state, Request("POST", "/act", form))
        assert isinstance(reply, Redirect)
        self._load(reply.path)

    async def html(self) -> str:
        elements = tuple(
            replace(e, value=s.value, checked=s.checked)
            for e, s in zip(self._page.elements, self.elements(), strict=True)
        )
        return to_html(replace(self._page, elements=elements), self.instance)
