"""`fairlead live`: a page that shows a run, plays an episode under the reader's hands, and shows features."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fairlead import dictionaries
from fairlead.app.models import open_model, use_threads
from fairlead.app.steer import INSTANCES, dictionary_of, read_vectors
from fairlead.core import plugins
from fairlead.core.errors import FairleadError
from fairlead.core.records import Run
from fairlead.core.types import Item
from fairlead.features.store import Store
from fairlead.report.describe import flat
from fairlead.serve.features_api import Shelf
from fairlead.serve.live.episode import Bench, Session
from fairlead.serve.live.server import beside as serve_beside
from fairlead.serve.live.server import serve, token
from fairlead.serve.live.tail import Tail
from fairlead.serve.live.web import Live
from fairlead.steering import parse
from fairlead.tasks.shop.spec import CATEGORIES

SPLITS = ("validation", "train")  # never the test split: a study opens that, once


@dataclass(frozen=True)
class Settings:
    """What to look at. `run` is a run directory; an episode is played on `model`, by default the run's."""

    run: Path | None = None
    model: str | None = None
    dictionaries: Sequence[str] = ()
    vectors: Path | None = None
    task: str = "shop"
    item: str = ""
    edit: str = ""
    browser: bool = False
    episode: bool = True
    store: Path | None = None


@dataclass(frozen=True)
class Up:
    """What is printed once the page is there. Who has the part behind the # may step and edit."""

    url: str
    run: str | None
    model: str | None
    stops_after: float | None


def prepare(settings: Settings) -> Live:
    """Check what can be checked before anything listens. Models are loaded when the page first asks for one."""
    tail = None if settings.run is None else Tail(settings.run)
    if tail is not None:
        tail.refresh()
    live, session = Live(token(), tail), None
    cards = {} if tail is None else _cards(tail)
    shelf = Shelf.of(settings.store, cards=cards)
    if settings.episode:
        chosen = _with_run(settings, tail)
        if chosen.edit:
            parse(chosen.edit)
        if chosen.browser:
            from fairlead.tasks.shop.browser import find_browser

            find_browser()
        session = Session(lambda: _bench(chosen, shelf), live.pages, line=chosen.edit, item=chosen.item)
        shelf.parts, shelf.now = partial(_parts, session), partial(_open, session)
    live.session = session
    live.shelf = shelf if settings.store or cards or session else None
    return live


async def _parts(session: Session) -> tuple[Any, Any]:
    """What reads texts for the feature browser: the subject of the episode, and its first dictionary."""
    bench = await session.opened()
    if not bench.dictionaries:
        raise FairleadError(f"{bench.model} has no dictionary here", do="name one with --dictionary")
    return bench.subject, bench.dictionaries[0]


def _open(session: Session) -> tuple[Any, Any] | None:
    bench = session.bench
    return (bench.subject, bench.dictionaries[0]) if bench is not None and bench.dictionaries else None


def _cards(tail: Tail) -> dict[int, Mapping[str, Any]]:
    """The feature cards of a run, by latent, of its first dictionary; those of the claim before others."""
    run = Run.open(tail.path)
    states = sorted(run.trials, key=lambda s: s.trial.arm != tail.claim)
    found: dict[int, Mapping[str, Any]] = {}
    site = None
    for state in states:
        for part in flat(run.fitted.get(state.trial.key, {})):
            for card in part.get("cards") or ():
                if isinstance(card, Mapping) and isinstance(card.get("index"), int):
                    site = site or card.get("site")
                    if card.get("site") == site:
                        found.setdefault(card["index"], card)
    return found


def execute(
    live: Live,
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    stop_after: float | None = None,
    idle: float | None = None,
    threads: int = 1,
    ready: Callable[[Up], None] | None = None,
) -> None:
    """Serve until Ctrl-C, for `stop_after` seconds, or until nobody has looked for `idle` seconds."""
    use_threads(threads)
    run = None if live.tail is None else str(live.tail.path)

    def say(url: str) -> None:
        if ready:
            ready(Up(url, run, _with_run(settings, live.tail).model if live.session else None, stop_after))

    asyncio.run(serve(live, host=host, port=port, stop_after=stop_after, idle=idle, ready=say))


def beside(run: Path) -> AbstractContextManager[str]:
    """The page of a run that is being made in this process: to be looked at, and nothing else."""
    return serve_beside(Live(token(), Tail(run, begins=True)))


def _with_run(settings: Settings, tail: Tail | None) -> Settings:
    """The settings, with what the run says where they say nothing: its model, dictionary and task, and the edit that
    its claim chose."""
    plan = None if tail is None else tail.plan
    if plan is None:
        return replace(settings, model=settings.model or "pocket/shopper-s")
    found = settings
    if settings.model is None:
        reference = plan.dictionary_of(plan.models[0])
        named = settings.dictionaries or ((reference,) if reference else ())
        found = replace(found, model=plan.models[0], dictionaries=named, task=plan.task)
        if not settings.edit and settings.run is not None:
            found = replace(found, edit=_chosen(settings.run, plan.models[0], plan.claim))
    return found


def _chosen(run: Path, model: str, claim: str) -> str:
    """The edit that the claim of a run chose, where it is one line that can be read; else nothing."""
    opened = Run.open(run)
    for state in opened.trials:
        about = opened.fitted.get(state.trial.key, {})
        text = about.get("edit")
        if (state.trial.arm, state.trial.model) == (claim, model) and isinstance(text, str) and text:
            try:
                parse(text)
            except FairleadError:
                return ""
            return text
    return ""


def _bench(settings: Settings, shelf: Shelf) -> Bench:
    """The task's items, the model and its dictionary. Runs when the page first needs it."""
    assert settings.model is not None
    task, items = _task(settings)
    subject = open_model(settings.model, beside_browser=True)
    refs = tuple(settings.dictionaries) or (dictionary_of(settings.model),)
    try:
        opened = [dictionaries.load(ref) for ref in refs]
    except FairleadError:
        if settings.dictionaries:
            raise
        opened = []  # a model without a dictionary can still be watched, and edited with stored vectors
    if shelf.store is not None and opened:
        _same(shelf.store, opened[0])
    stored = {} if settings.vectors is None else read_vectors(settings.vectors)
    return Bench(task, items, subject, opened, stored, label=shelf.label, model=settings.model,
                 dictionary=", ".join(d.name for d in opened))  # fmt: skip


def _same(store: Store, dictionary: Any) -> None:
    if store.header.dictionary_fingerprint != dictionary.fingerprint:
        raise FairleadError(
            f"{store.root} is of another dictionary", expected=store.header.dictionary, got=dictionary.name,
            do="name its dictionary with --dictionary, or leave --store out",
        )  # fmt: skip


def _task(settings: Settings) -> tuple[Any, Mapping[str, Item]]:
    """The task, and what may be played of it by name."""
    options: dict[str, Any] = {}
    if settings.task == "shop":
        options = {"n": INSTANCES * len(CATEGORIES), "categories": list(CATEGORIES),
                   "front": "chromium" if settings.browser else "text", "contexts": 2}  # fmt: skip
    elif settings.run is not None:
        plan = Run.open(settings.run).plan
        options = {} if plan is None else plan.options_for_task(plan.decoding[0])
    task = plugins.get("tasks", settings.task)(options)
    return task, {item.id: item for split in SPLITS for item in task.items(split)}
