"""The live page's server: who may do what, a run that grows, an episode that waits, and text that stays text."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.report.synthetic_run import write_run
from tests.serve.ladder import Ladder

from fairlead.core import plugins
from fairlead.core.errors import EditError, FairleadError, RecordError, UnknownName
from fairlead.core.fake import FakeSubject
from fairlead.core.records import Run
from fairlead.core.types import Item, Outcome
from fairlead.judge import judge
from fairlead.serve.live.episode import Bench, Session
from fairlead.serve.live.pages import Pages
from fairlead.serve.live.server import beside, serve, token
from fairlead.serve.live.tail import Tail
from fairlead.serve.live.web import Live, app, static

HOSTS = ("127.0.0.1", "localhost", "testserver")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("live"), per_category=3, traced=2, categories=("promo", "upsell"))


# ---- a run that grows


def test_rates_and_intervals_are_the_judges(made: Path) -> None:
    tail = Tail(made)
    assert tail.refresh() and not tail.refresh()
    status, verdict = tail.status(), judge(Run.open(made))
    assert status["complete"] and status["items"]["done"] == len(Run.open(made).records)
    for group in status["groups"]:
        for arm in group["arms"]:
            row = next(r for r in verdict.rows if (r.model, r.decoding, r.arm, r.measure, dict(r.where)) == (
                group["model"], group["decoding"], arm["arm"], "strict", {"trap": "on"}))  # fmt: skip
            assert arm["rate"]["n"] == row.n and arm["rate"]["clusters"] == row.clusters
            assert row.clustered is not None
            assert (arm["rate"]["value"], arm["rate"]["low"], arm["rate"]["high"]) == pytest.approx(
                (row.value, row.clustered.low, row.clustered.high)
            )


def test_a_run_is_read_as_it_is_written_line_by_line(made: Path, tmp_path: Path) -> None:
    growing = tmp_path / "run"
    (growing / "trials").mkdir(parents=True)
    for name in ("plan.json", "trials.json"):
        (growing / name).write_bytes((made / name).read_bytes())
    tail = Tail(growing)
    tail.refresh()
    begun = tail.status()
    assert not begun["complete"] and begun["items"]["done"] == 0 and begun["items"]["left_seconds"] is None
    assert {arm["status"] for group in begun["groups"] for arm in group["arms"]} == {"waiting"}
    key = tail.trials[0].key
    lines = (made / "trials" / f"{key}.jsonl").read_bytes().splitlines(keepends=True)
    with (growing / "trials" / f"{key}.jsonl").open("ab") as file:
        for done, line in enumerate(lines):
            file.write(line[: len(line) // 2])
            file.flush()
            tail.refresh()
            assert len(tail.records([key])) == done, "half a line is no Record"
            file.write(line[len(line) // 2 :])
            file.flush()
            assert tail.refresh()
            assert len(tail.records([key])) == done + 1
    row = tail.status()["groups"][0]["arms"][0]
    assert (row["status"], row["done"], row["planned"]) == ("running", len(lines), 64 * 3)
    assert tail.status()["items"]["left_seconds"] > 0
    (growing / "trials" / f"{key}.done").write_bytes((made / "trials" / f"{key}.done").read_bytes())
    assert tail.refresh() and tail.status()["groups"][0]["arms"][0]["status"] == "complete"
    with (growing / "trials" / f"{tail.trials[1].key}.jsonl").open("wb") as file:
        file.write(b"{]\n")
    tail.refresh()
    assert "damaged" in tail.status()["notes"][0], "said, and the rest is shown"
    assert len(tail.records([key])) == len(lines)


def test_looking_does_not_write_and_no_run_is_no_run(made: Path, tmp_path: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in made.rglob("*")}
    tail = Tail(made)
    tail.refresh()
    tail.status()
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in made.rglob("*")}
    with pytest.raises(RecordError, match="no run in"):
        Tail(tmp_path)


# ---- an episode that waits


def session(**change: Any) -> Session:
    task = Ladder()
    bench = Bench(task, {i.id: i for i in task.items("validation")}, FakeSubject(), model="fake")
    return Session(lambda: replace(bench, **change), Pages())


async def until(live: Session, phase: str) -> None:
    for _ in range(20_000):
        if live.phase in (phase, "error"):
            break
        await asyncio.sleep(0.005)
    if live.phase == phase:
        return
    raise AssertionError(f"{live.phase}: {live.problem}")


async def test_an_episode_waits_for_every_step_and_ends_with_its_score() -> None:
    live = session()
    await live.start()
    for step in range(3):
        await until(live, "waiting")
        state = live.state()
        assert state["point"]["step"] == step and len(state["steps"]) == step
        assert state["point"]["steered"]["p"] == pytest.approx([0.9, *[0.1 / 3] * 3], abs=1e-4)
        before = live.version
        await asyncio.sleep(0)
        assert live.version == before, "nothing goes on by itself"
        await live.step()
        await until(live, "waiting" if step < 2 else "ended")
    state = live.state()
    assert state["score"] == {"strict": True} and [s["action"] for s in state["steps"]] == ["up"] * 3
    assert state["plain"]["score"] == {"strict": True} and len(state["timeline"]) == 3
    with pytest.raises(FairleadError, match="no episode waits"):
        await live.step()
    await live.start()
    await until(live, "waiting")
    assert live.state()["steps"] == [] and live.state()["score"] is None
    await live.run()
    await until(live, "ended")
    json.dumps(live.state(), allow_nan=False)


async def test_the_edit_that_cannot_be_read_or_applied_changes_nothing() -> None:
    live = session()
    with pytest.raises(EditError, match=r"\^"):
        await live.change("12 =- 3")
    with pytest.raises(EditError):
        await live.change("12 += 3" + " " * 3000)
    assert live.line == "nothing" and live.edits == ()
    with pytest.raises(UnknownName, match="no item 'test/1'"):
        await live.start("test/1")
    assert live.phase == "error" and "no item" in live.problem


async def test_a_task_that_fails_says_so_and_the_next_start_works() -> None:
    class Broken(Ladder):
        broken = True

        async def run(self, item: Item, world: Any) -> Outcome:
            if self.broken:
                raise ValueError("the ladder fell")
            return await super().run(item, world)

    task = Broken()
    live = session(task=task)
    await live.start()
    await until(live, "error")
    assert "the ladder fell" in live.state()["problem"]
    task.broken = False
    await live.start()
    await until(live, "waiting")
    await live.close()


@pytest.mark.browser
async def test_in_a_browser_the_picture_of_the_page_comes_along() -> None:
    task = plugins.get("tasks", "shop")({"n": 1, "categories": ["promo"], "front": "chromium", "contexts": 1})
    items = {item.id: item for item in task.items("validation")}
    live = session(task=task, items=items)
    try:
        await live.start()
        await until(live, "waiting")
        point = live.state()["point"]
        kind, data = live._pages.get(point["picture"]) or ("", b"")
        assert kind == "image/png" and data.startswith(b"\x89PNG")
        assert point["goal"] and point["url"] == "/" and point["steered"]["right"]
        bid = point["steered"]["right"][0].split('"')[1]
        left, top, wide, high = point["boxes"][bid]
        assert 0 <= left < left + wide <= 1 and 0 <= top < top + high <= 1
    finally:
        await live.close()
        await task.aclose()


# ---- who may do what


@pytest.fixture
async def client(made: Path) -> AsyncIterator[tuple[httpx2.AsyncClient, Live]]:
    tail = Tail(made)
    tail.refresh()
    live = Live(token(), tail, session())
    transport = httpx2.ASGITransport(app=app(live, HOSTS))
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as found:
        yield found, live
    assert live.session is not None
    await live.session.close()


async def test_reading_is_open_and_acting_needs_the_token(client: tuple[httpx2.AsyncClient, Live]) -> None:
    http, live = client
    assert (await http.get("/api/about")).json()["control"] is False
    assert (await http.get("/api/study")).json()["question"]
    for headers in ({}, {"X-Fairlead-Token": ""}, {"X-Fairlead-Token": live.token[:-1]}, {"Cookie": live.token}):
        for verb in ("start", "step", "edits"):
            got = await http.post(f"/api/episode/{verb}", json={}, headers=headers)
            assert got.status_code == 401 and live.session is not None and live.session.phase == "none"
    mine = {"X-Fairlead-Token": live.token}
    other = await http.post("/api/episode/start", json={}, headers={**mine, "Origin": "http://evil.example"})
    assert other.status_code == 403
    assert (await http.post("/api/episode/start", json={}, headers=mine)).status_code == 200
    assert (await http.get("/api/about", headers=mine)).json()["control"] is True


async def test_on_other_addresses_reading_needs_the_token_too(client: tuple[httpx2.AsyncClient, Live]) -> None:
    http, live = client
    live.exposed = True
    for path in ("/api/about", "/api/study", "/api/index", "/api/episode"):
        assert (await http.get(path)).status_code == 401
        assert (await http.get(path, headers={"X-Fairlead-Token": live.token})).status_code == 200
    assert (await http.get("/")).status_code == 200 and (await http.get("/static/app.js")).status_code == 200


async def test_every_answer_is_sealed(client: tuple[httpx2.AsyncClient, Live]) -> None:
    http, live = client
    name = live.pages.keep("<p>hello")
    for path in ("/", "/static/live.css", f"/page/{name}", "/api/about", "/nowhere", "/page/forgotten"):
        headers = (await http.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe-eval" not in policy, path
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        if path.startswith("/page/"):
            assert policy.endswith("sandbox") and "script-src" not in policy
        else:
            assert "unsafe-inline" not in policy and "require-trusted-types-for 'script'" in policy
    assert (await http.get("/api/about", headers={"Host": "evil.example"})).status_code == 400
    assert "access-control-allow-origin" not in (await http.get("/api/about")).headers


@pytest.mark.parametrize("path", [
    "/static/../web.py", "/static/%2e%2e%2fweb.py", "/static/index.html", "/static/.", "/page/../../etc/passwd",
    "/static/live.css%00", "/page/%2Fetc%2Fpasswd",
])  # fmt: skip
async def test_no_path_of_a_request_is_a_path_here(client: tuple[httpx2.AsyncClient, Live], path: str) -> None:
    assert (await client[0].get(path)).status_code == 404


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{", b'{"line": 3}', b'{"line": "12 += NaN"}', b'{"line": null}', b"\xff", b"[" * 50_000,
    b'{"line": "' + b"1" * 200_000 + b'"}', b'{"line": "999999 += 1"}', b'{"line": NaN}',
])  # fmt: skip
async def test_a_bad_body_is_refused_and_changes_nothing(client: tuple[httpx2.AsyncClient, Live], body: bytes) -> None:
    http, live = client
    got = await http.post("/api/episode/edits", content=body, headers={"X-Fairlead-Token": live.token})
    assert got.status_code == (413 if len(body) > 100_000 else 400) and got.json()["error"]
    assert live.session is not None and live.session.edits == ()
    for verb in ("turn", "watch", "nonsense", "start"):
        value = {"place": True, "value": "x", "latents": [-1], "item": "../../etc/passwd"}
        got = await http.post(f"/api/episode/{verb}", json=value, headers={"X-Fairlead-Token": live.token})
        assert got.status_code == 400, verb


async def test_replays_hold_what_was_recorded(client: tuple[httpx2.AsyncClient, Live], made: Path) -> None:
    http, live = client
    index = (await http.get("/api/index")).json()
    item = index["items"][0]["id"]
    found = (await http.get("/api/replay", params={"item": item})).json()
    records = [r for r in Run.open(made).records if r.item == item and r.trace]
    assert len(found["about"]) == len(records) > 4
    step = found["episodes"][0][0]
    page = await http.get(f"/page/{found['texts'][step['html']]}?bid=3")
    assert "Harbour Goods" in page.text and '[data-bid="3"]' in page.text
    assert '[data-bid="' not in (await http.get(f"/page/{found['texts'][step['html']]}?bid=x%22")).text
    assert (await http.get("/api/replay", params={"item": "nowhere"})).status_code == 404
    assert (await http.get("/api/verdict")).json()["status"] in ("supported", "refuted", "inconclusive")


def test_pages_are_forgotten_in_time_and_named_by_content() -> None:
    pages = Pages()
    one = pages.keep("a")
    assert pages.keep("a") == one != pages.keep("b") and Pages().keep("a") != one
    for i in range(1000):
        pages.keep(str(i))
    assert pages.get(one) is None and pages.get("") is None


def test_the_page_holds_no_script_of_its_own() -> None:
    files = static()
    page = files["index.html"].decode()
    assert "onclick" not in page and "<style" not in page and 'style="' not in page and "http" not in page
    for name, text in files.items():
        for banned in (b"innerHTML", b"outerHTML", b"insertAdjacent", b"document.write", b"eval(", b"srcdoc"):
            assert banned not in text, f"{banned!r} in {name}"
    assert sum(len(text) for name, text in files.items() if name != "report.css") < 100_000


# ---- starting and stopping


async def test_it_stops_by_the_clock_when_nobody_looks_and_when_told(made: Path) -> None:
    urls: list[str] = []
    for how in ({"stop_after": 0.0}, {"idle": 0.0}, {"until": lambda: True}):
        await serve(Live(token(), Tail(made)), ready=urls.append, **how)
    assert len(urls) == 3 and all(u.startswith("http://127.0.0.1:") and "/#token=" in u for u in urls)


async def test_a_taken_port_is_one_message(made: Path) -> None:
    found: dict[str, str] = {}
    up, over = threading.Event(), threading.Event()

    def work() -> None:
        with beside(Live(token(), Tail(made))) as url:
            found["url"] = url
            up.set()
            over.wait()

    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.to_thread(up.wait)
    try:
        port = int(found["url"].split(":")[2].split("/")[0])
        with pytest.raises(FairleadError, match="cannot be used"):
            await serve(Live(token(), Tail(made)), port=port)
    finally:
        over.set()
        await asyncio.to_thread(thread.join)
