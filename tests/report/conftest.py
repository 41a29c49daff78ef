"""Invented runs on disk, made once a session, and a browser that keeps count of what a page tries."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from tests.report.synthetic_run import HOSTILE, write_run

from fairlead.report import render
from fairlead.tasks.shop.browser import find_browser


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs"), per_category=5, traced=2)


@pytest.fixture(scope="session")
def page(run: Path) -> str:
    return render(run).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every page, label, prompt and question of this run tries to break out."""
    lures = len(HOSTILE)
    root = tmp_path_factory.mktemp("hostile")
    return write_run(root, per_category=lures, traced=lures, hostile=True, errors=0, categories=("promo",))


@pytest.fixture(scope="session")
def listener() -> Iterator[tuple[int, list[str]]]:
    """A port, and the peers that connected to it."""
    peers: list[str] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, peer = server.accept()
            except OSError:
                return
            peers.append(f"{peer}")
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1], peers
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.fixture
def heard(listener: tuple[int, list[str]]) -> list[str]:
    """Connections made during this test."""
    listener[1].clear()
    return listener[1]


@pytest.fixture(scope="module")
def browser(listener: tuple[int, list[str]]) -> Iterator[Browser]:
    """Chromium, with every host name leading to the listener. Closed with the module: while it is open, its event
    loop runs in this thread, and no asyncio test can."""
    found = find_browser()  # these tests fail rather than skip where there is none
    rules = f"--host-resolver-rules=MAP * 127.0.0.1:{listener[0]}"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", rules])
        yield running
        running.close()
