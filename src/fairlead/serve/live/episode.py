"""One episode under the reader's hands: it waits at every decision until somebody says step.

The task plays as it always does; only its world is ours. At each decision the bare model and the edited one are both
asked, so the counterfactual is beside the answer that is taken, and an edit changed there is asked about again at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fairlead import steering
from fairlead.core.errors import EditError, FairleadError, UnknownName
from fairlead.core.types import Generation, Item, Messages
from fairlead.report.replay import softmax
from fairlead.serve.live.pages import Pages
from fairlead.steering import Edit, Latent, Op

STRONGEST = 6  # latents shown besides those that an edit or the reader names
WATCHED = 24  # latents that a reader may name
LINE = 2_000  # characters of an edit
EDITS = 32


@dataclass(frozen=True)
class Bench:
    """What episodes are played with. `label` says in words what a latent fires on, where that is known."""

    task: Any
    items: Mapping[str, Item]
    subject: Any
    dictionaries: Sequence[Any] = ()
    vectors: Mapping[str, Any] = field(default_factory=dict)
    label: Callable[[int], str | None] = lambda _: None
    model: str = ""
    dictionary: str = ""

    def steered(self, edits: Sequence[Edit]) -> Any:
        """The subject with edits on it; itself with none. EditError says what cannot be applied."""
        if not edits:
            return self.subject
        if not hasattr(self.subject, "edited"):
            name = str(self.subject.name)
            raise EditError("this model cannot be edited", expected="weights on this machine", got=name)
        return steering.apply(self.subject, edits, list(self.dictionaries) or None, self.vectors)


@dataclass(frozen=True)
class Point:
    """A decision that is waited at: what was asked, and the page it was asked on."""

    prompt: Messages
    step: int
    legal: tuple[str, ...] | None
    max_tokens: int
    page: Mapping[str, Any]


@dataclass(frozen=True)
class Thought:
    """Both answers at a Point, and what the watched latents read in each."""

    default: Generation
    steered: Generation
    bars: tuple[dict[str, Any], ...]


class Session:
    """One reader's episode. Every method that changes something bumps `version`."""

    def __init__(self, open_bench: Callable[[], Bench], pages: Pages, *, line: str = "", item: str = "") -> None:
        self._open, self._pages = open_bench, pages
        self.bench: Bench | None = None
        self.version, self.phase, self.problem = 0, "none", ""
        self.item, self.line = item, line or steering.format(())
        self.edits: tuple[Edit, ...] = ()
        self.pinned: tuple[int, ...] = ()
        self.point: Point | None = None
        self.thought: Thought | None = None
        self.steps: list[dict[str, Any]] = []
        self.timeline: list[dict[str, Any]] = []
        self.plain: dict[str, Any] | None = None
        self.score: Mapping[str, Any] | None = None
        self._page: Mapping[str, Any] = {}
        self._busy = asyncio.Lock()
        self._go = asyncio.Event()
        self._running = False
        self._playing: asyncio.Task[None] | None = None

    # ---- what the reader does

    async def start(self, item: str = "") -> None:
        """Begin an episode, the same one anew where no item is named. Loads the model when it is first needed."""
        await self.close()
        try:
            bench = await self.opened()
            chosen = item or self.item or next(iter(bench.items), "")
            if chosen not in bench.items:
                raise UnknownName(f"no item {chosen!r} to be played here", expected=_some(bench.items), got=chosen)
            if not self.edits and self.line != steering.format(()):
                self.edits = self._parsed(self.line)
        except FairleadError as error:
            self._say("error", str(error))
            raise
        self.item, self.steps, self.timeline, self.score, self.plain = chosen, [], [], None, None
        self.point = self.thought = None
        self._say("thinking")
        self._playing = asyncio.create_task(self._play(bench, bench.items[chosen]))

    async def opened(self) -> Bench:
        """What is played with, loaded now if it is not there."""
        async with self._busy:
            if self.bench is None:
                self._say("loading")
                self.bench = await asyncio.to_thread(self._open)
                self._say("none")
            return self.bench

    async def step(self) -> None:
        """Take the edited model's action."""
        self._need_point()
        self._go.set()
        self._say("thinking")

    async def run(self) -> None:
        """Step on until the end, or until `pause`."""
        self._need_point()
        self._running = True
        self._go.set()
        self._say("thinking")

    async def pause(self) -> None:
        """Wait again at the next decision."""
        self._running = False
        self._say(self.phase)

    async def change(self, line: str) -> None:
        """Put another line of edits in force, from this decision on. EditError leaves those that were."""
        await self._edit(self._parsed(line))

    async def turn(self, place: int, value: float) -> None:
        """Give one edit another value."""
        if not 0 <= place < len(self.edits):
            raise EditError("no such edit", expected=f"0 to {len(self.edits) - 1}", got=str(place))
        changed = replace(self.edits[place], value=value)
        await self._edit((*self.edits[:place], changed, *self.edits[place + 1 :]))

    async def watch(self, latents: Sequence[int]) -> None:
        """Watch these latents too."""
        if len(latents) > WATCHED or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in latents):
            raise FairleadError("not latents", expected=f"at most {WATCHED} whole numbers", got=str(latents)[:80])
        bench = await self.opened()
        most = max((d.n_features for d in bench.dictionaries), default=0)
        if any(i >= most for i in latents):
            raise FairleadError("no such latent", expected=f"0 to {most - 1}", got=str(max(latents)))
        async with self._busy:
            self.pinned = tuple(dict.fromkeys(latents))
            await self._think()

    async def close(self) -> None:
        """Stop playing."""
        playing, self._playing, self._running = self._playing, None, False
        if playing is not None:
            playing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await playing
        self._go.clear()

    def _need_point(self) -> None:
        if self.point is None or self.phase != "waiting":
            raise FairleadError("no episode waits for a step", got=self.phase, do="start one, or wait for it")

    def _parsed(self, line: str) -> tuple[Edit, ...]:
        if len(line) > LINE:
            raise EditError("the line is too long", expected=f"at most {LINE} characters", got=str(len(line)))
        edits = steering.parse(line)
        if len(edits) > EDITS:
            raise EditError("too many edits", expected=f"at most {EDITS}", got=str(len(edits)))
        return edits

    async def _edit(self, edits: tuple[Edit, ...]) -> None:
        bench = await self.opened()
        bench.steered(edits)  # refuses what cannot be applied, before anything changes
        async with self._busy:
            self.edits, self.line = edits, steering.format(edits)
            await self._think()

    # ---- the episode

    async def _play(self, bench: Bench, item: Item) -> None:
        try:
            if bench.task.needs != "subject":
                raise FairleadError(f"{bench.task.name} is not played step by step", got=f"needs {bench.task.needs}")
            bare = _Bare(bench.subject)
            outcome = await bench.task.run(item, bare)
            steps = [dict(step) for step in outcome.trace]
            self.plain = {"steps": steps, "score": dict(bench.task.score(item, outcome).values)}
            outcome = await bench.task.run(item, _Watched(self, bench))
            self.score = dict(bench.task.score(item, outcome).values)
            self.point = None
            self._say("ended")
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever a task raises is shown, and ends this episode only
            self.point = self.thought = None
            self._say("error", f"{type(error).__name__}: {error}")

    async def _decide(self, prompt: Messages, step: int, legal: Sequence[str] | None, max_tokens: int) -> Generation:
        async with self._busy:
            self.point = Point(prompt, step, None if legal is None else tuple(legal), max_tokens, self._page)
            self._page = {}
            await self._think()
        if not self._running:
            self._go.clear()
            await self._go.wait()
        async with self._busy:  # a change of edits that is being thought about comes first
            assert self.thought is not None
            said, default = self.thought.steered, self.thought.default
            self.timeline.append({"step": step, "line": self.line, "action": said.text, "default": default.text,
                                  "reports": [asdict(e) for e in said.edits]})  # fmt: skip
            self._say("thinking")
        return said

    def _told(self, step: Mapping[str, Any]) -> None:
        self.steps.append({**step, "html": None})
        self._say(self.phase)

    async def _think(self) -> None:
        """Ask both models at the point, and read the watched latents in both."""
        if (point := self.point) is None or (bench := self.bench) is None:
            self._say(self.phase)
            return
        steered = bench.steered(self.edits)
        asked = {"step": point.step, "legal": point.legal, "max_tokens": point.max_tokens}
        default = await bench.subject.generate(point.prompt, **asked)
        answer = await steered.generate(point.prompt, **asked) if self.edits else default
        bars = await asyncio.to_thread(self._bars, bench, steered, point)
        self.thought = Thought(default, answer, bars)
        self._say("waiting")

    def _bars(self, bench: Bench, steered: Any, point: Point) -> tuple[dict[str, Any], ...]:
        """What latents read in the bare and in the edited model: those that edits change or look at and those that the
        reader pinned, each at the token where it changes most (where none does, where it is strongest), then the
        strongest at the decision token."""
        if not bench.dictionaries or not hasattr(bench.subject, "activations"):
            return ()
        sites = [d.site for d in bench.dictionaries]
        asked = ([point.prompt], sites, "all", [point.step])
        both = [subject.activations(*asked) for subject in (bench.subject, steered)]
        tokens = _tokens(bench.subject, point.prompt)
        out = []
        for dictionary in bench.dictionaries:
            x, y = (found[dictionary.site][0].float() for found in both)
            changed, read = _named(self.edits, dictionary.site, only=len(bench.dictionaries) == 1)
            pinned = [i for i in self.pinned if i < dictionary.n_features]
            named = list(dict.fromkeys([*changed, *read, *pinned]))
            if named:
                was, now = (dictionary.encode_rows(h, named) for h in (x, y))
                moved = (now - was).abs()
                where = moved.argmax(0).where(moved.amax(0) > 0, was.argmax(0))
                for place, latent in enumerate(named):
                    at = int(where[place])
                    why = "edited" if latent in changed else "read" if latent in read else "pinned"
                    out.append(_bar(latent, dictionary, was[at, place], now[at, place], why, tokens, at, bench))
            was, now = (dictionary.encode(h[-1:])[0] for h in (x, y))
            larger = was.maximum(now)
            for latent in larger.topk(min(STRONGEST + len(named), len(larger))).indices.tolist():
                if latent not in named and float(larger[latent]) > 0 and len(out) < STRONGEST + len(named):
                    out.append(_bar(latent, dictionary, was[latent], now[latent], "", tokens, len(x) - 1, bench))
        return tuple(out)

    def _say(self, phase: str, problem: str = "") -> None:
        self.phase, self.problem, self.version = phase, problem, self.version + 1

    # ---- what the reader sees

    def state(self) -> dict[str, Any]:
        """The episode as JSON."""
        bench, point, thought = self.bench, self.point, self.thought
        return {
            "version": self.version,
            "phase": self.phase,
            "problem": self.problem,
            "running": self._running,
            "item": self.item,
            "items": list(bench.items) if bench else [],
            "model": bench.model if bench else "",
            "dictionary": bench.dictionary if bench else "",
            "line": self.line,
            "edits": [_shown(edit, bench) for edit in self.edits],
            "pinned": list(self.pinned),
            "point": self._point(point, thought) if point and thought else None,
            "steps": self.steps,
            "timeline": self.timeline,
            "plain": self.plain,
            "score": self.score,
        }

    def _point(self, point: Point, thought: Thought) -> dict[str, Any]:
        page = point.page
        html, picture = page.get("html"), page.get("picture")
        system = [m.content for m in point.prompt if m.role == "system"]
        one = {"action": thought.steered.text, "right": page.get("right", []), "trap": page.get("trap", [])}
        return {
            "step": point.step,
            "max_steps": page.get("max_steps"),
            "goal": page.get("goal"),
            "url": page.get("url"),
            "cart": page.get("cart"),
            "text": point.prompt[-1].content if point.prompt else "",
            "system": system[0] if system else None,
            "page": self._pages.keep(html) if isinstance(html, str) else None,
            "picture": self._pages.keep(picture, "image/png") if isinstance(picture, bytes) else None,
            "boxes": page.get("boxes"),
            "legal": None if point.legal is None else list(point.legal),
            "default": {**one, "action": thought.default.text, "p": _shares(thought.default)},
            "steered": {**one, "p": _shares(thought.steered), "edits": [asdict(e) for e in thought.steered.edits]},
            "bars": list(thought.bars),
        }


@dataclass
class _Watched:
    """The world of a task that is played for a reader."""

    session: Session
    bench: Bench

    @property
    def name(self) -> str:
        return str(self.bench.subject.name)

    @property
    def fingerprint(self) -> str:
        return str(self.bench.subject.fingerprint)

    async def look(self, page: Mapping[str, Any]) -> None:
        self.session._page = page

    def told(self, step: Mapping[str, Any]) -> None:
        self.session._told(step)

    async def generate(
        self, prompt: Messages, *, step: int = 0, legal: Sequence[str] | None = None, max_tokens: int = 32
    ) -> Generation:
        return await self.session._decide(prompt, step, legal, max_tokens)

    async def logprobs(self, prompt: Messages, continuations: Sequence[str], *, step: int = 0) -> tuple[float, ...]:
        steered = self.bench.steered(self.session.edits)
        found: tuple[float, ...] = await steered.logprobs(prompt, continuations, step=step)
        return found


@dataclass(frozen=True)
class _Bare:
    """The bare subject, without what would let a task be watched."""

    subject: Any

    async def generate(self, prompt: Messages, **asked: Any) -> Generation:
        said: Generation = await self.subject.generate(prompt, **asked)
        return said

    async def logprobs(self, prompt: Messages, continuations: Sequence[str], **asked: Any) -> tuple[float, ...]:
        found: tuple[float, ...] = await self.subject.logprobs(prompt, continuations, **asked)
        return found


def _shares(said: Generation) -> list[float] | None:
    return None if said.legal_logprobs is None else [round(p, 5) for p in softmax(said.legal_logprobs)]


def _bar(
    latent: int, dictionary: Any, before: Any, after: Any, why: str, tokens: Sequence[str], at: int, bench: Bench
) -> dict[str, Any]:
    token = tokens[at] if at < len(tokens) - 1 else None  # None: the decision token
    return {"latent": latent, "site": dictionary.site, "before": float(before), "after": float(after), "why": why,
            "token": token, "at": at, "label": bench.label(latent)}  # fmt: skip


def _tokens(subject: Any, prompt: Messages) -> list[str]:
    """The text of every prompt token, where the subject can say."""
    if not hasattr(subject, "tokens"):
        return []
    found = subject.tokens(prompt)
    return [found.text[a:b] for a, b in found.offsets.tolist()]


def _named(edits: Sequence[Edit], site: str, *, only: bool) -> tuple[list[int], list[int]]:
    """Latents of the dictionary at `site` that edits change, and those that their conditions look at. An edit without
    a site means the one dictionary there is."""

    def here(where: str | None) -> bool:
        return where == site or (where is None and only)

    changed = [e.direction.index for e in edits if isinstance(e.direction, Latent) and here(e.site)]
    read = [
        r.direction.index for e in edits for r in e.readings()
        if isinstance(r.direction, Latent) and here(r.site or e.site)
    ]  # fmt: skip
    return list(dict.fromkeys(changed)), [i for i in dict.fromkeys(read) if i not in changed]


def _shown(edit: Edit, bench: Bench | None) -> dict[str, Any]:
    """An edit with the slider that turns it; an edit without a value has none."""
    text = steering.format((edit,))
    if edit.op in (Op.ABLATE, Op.PROJECT_OUT):
        return {"text": text, "slider": None}
    if edit.op is Op.SCALE:
        low, high = -2.0, 4.0
    elif edit.unit == "max":
        low, high = -4.0, 4.0
    else:
        high = float(f"{2 * _largest(edit, bench):.1g}")
        low = -high
    low, high = min(low, edit.value), max(high, edit.value)
    return {"text": text, "slider": {"value": edit.value, "low": low, "high": high, "step": _grid(high - low),
                                     "unit": "× its largest" if edit.unit == "max" else ""}}  # fmt: skip


def _largest(edit: Edit, bench: Bench | None) -> float:
    """A latent's largest activation, where its dictionary knows it."""
    for dictionary in bench.dictionaries if bench else ():
        levels = getattr(dictionary, "max_activation", None)
        if isinstance(edit.direction, Latent) and edit.site in (None, dictionary.site) and levels is not None:
            with contextlib.suppress(IndexError, KeyError):
                if float(levels[edit.direction.index]) > 0:
                    return float(levels[edit.direction.index])
    return max(5.0, 2 * abs(edit.value))


def _grid(width: float) -> float:
    """A step of about a two-hundredth of a slider, in round numbers."""
    for step in (0.01, 0.05, 0.1, 0.5, 1.0, 5.0):
        if width / step <= 200:
            return step
    return width / 200


def _some(names: Mapping[str, Item], most: int = 4) -> str:
    few = list(names)[:most]
    return ", ".join(few) + (f" and {len(names) - most} more" if len(names) > most else "")
