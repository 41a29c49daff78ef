"""A tiny model, a run on disk with a saved Fitted, and a server of both on the loopback, in the test's own loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from tests.app.conftest import FEATURES, PLAN, SITE, WIDTH, make_model

from fairlead import steering
from fairlead.core.plan import parse_plan
from fairlead.core.records import Store
from fairlead.dictionaries import random as random_dictionary
from fairlead.lm.load import load
from fairlead.methods._steered import Steered
from fairlead.serve.limits import Limits
from fairlead.serve.opened import Served, bare, fitted
from fairlead.serve.server import Endpoint, Settings

MODEL = "pocket/tiny"
SMALL = Limits(tokens=4, n=3, messages=3, choices=3, stops=2, edits=3, edit_chars=60, body=20_000, body_seconds=0.3)
EDIT = "3 += 40 at prompt"


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    found = load(make_model(tmp_path_factory.mktemp("models") / "tiny"))
    found.threaded = True
    return found


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose arm `feature` was fitted: an edit of one latent."""
    home = tmp_path_factory.mktemp("runs") / "small"
    plan = parse_plan(PLAN.replace('"prompt"]', '"prompt", "feature"]'))
    rows = random_dictionary.fit(
        torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(1)), FEATURES, site=SITE
    )
    with Store(home) as store:
        store.begin(plan, plan.trials())
        for trial in plan.trials():
            if trial.arm == "feature":
                made = Steered("feature", tuple(steering.parse(EDIT)), rows)
                store.save_fitted(trial.key, made.save, {}, {"fingerprint": made.fingerprint})
    return home


@pytest.fixture
def models(subject: Any, run: Path) -> list[Served]:
    return [bare(subject, MODEL), fitted(subject, MODEL, run / "feature")]


@pytest.fixture
async def client(models: list[Served]) -> AsyncIterator[httpx2.AsyncClient]:
    endpoint = await Endpoint.start(models)
    async with httpx2.AsyncClient(base_url=endpoint.url, timeout=60) as found:
        yield found
    await endpoint.stop()


@pytest.fixture
async def endpoint(models: list[Served]) -> AsyncIterator[Endpoint]:
    """A server with a dictionary, whose limits are soon reached."""
    found = await Endpoint.start(models, dictionaries=[models[1].fitted.rows], settings=Settings(limits=SMALL))
    yield found
    await found.stop()


@pytest.fixture
def body(models: list[Served]) -> Callable[..., dict[str, Any]]:
    """A request to the steered model; keywords replace keys."""

    def make(**change: Any) -> dict[str, Any]:
        asked = [{"role": "user", "content": "goal: buy a lamp"}]
        return {"model": models[1].name, "messages": asked, "max_tokens": 8, **change}

    return make
