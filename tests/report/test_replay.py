"""The replay in a real browser, and how its items are chosen and packed."""

from __future__ import annotations

import base64
import gzip
import json
import math
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page

from fairlead.report import render
from fairlead.report.replay import choose, pack, softmax, why
from fairlead.report.source import read


def by_item(run: Path) -> dict[str, list]:
    out: dict[str, list] = {}
    for record in read(run).records:
        if record.trace:
            out.setdefault(record.item, []).append(record)
    return out


def test_softmax_is_over_the_legal_actions_alone() -> None:
    shares = softmax([math.log(0.1), math.log(0.3)])
    assert shares == pytest.approx([0.25, 0.75])
    assert sum(softmax([-1000.0, -1001.0, -5000.0])) == pytest.approx(1)


def test_items_where_the_arms_part_come_first_and_categories_take_turns(run: Path) -> None:
    found = by_item(run)
    order = choose(found, "strict", "feature")
    assert sorted(order) == sorted(found)
    ranks = [why(found[item], "strict", "feature") != "same" for item in order]
    assert any(ranks) and not all(ranks)
    assert ranks == sorted(ranks, reverse=True)
    first = [item.split("/")[1] for item in order[:5]]
    assert len(set(first)) == len(first)


def test_caps_hold_and_are_stated(run: Path) -> None:
    replay = pack(read(run), max_items=3)
    assert replay.shown == 3 and replay.available == 48
    assert pack(read(run), max_items=100, max_bytes=1).shown == 1
    assert "Embedded here: 3 of 48 items" in " ".join(render(run, run / "small.html", max_items=3).read_text().split())


def test_a_blob_holds_every_step(run: Path) -> None:
    source = read(run)
    replay = pack(source, max_items=1)
    blob = json.loads(gzip.decompress(base64.b64decode(replay.blobs[0])))
    item = replay.index["items"][0]
    for about, steps in zip(item["episodes"], blob["episodes"], strict=True):
        where = (item["id"], about["arm"], about["model"], about["decoding"])
        record = next(r for r in source.records if (r.item, r.arm, r.model, r.decoding) == where)
        trace = source.trace(record.trace or "")
        assert trace is not None
        assert [s["action"] for s in steps] == [s["action"] for s in trace["steps"]]
        assert [blob["texts"][s["html"]] for s in steps] == [s["html"] for s in trace["steps"]]
        assert sum(steps[0]["p"]) == pytest.approx(1, abs=1e-3)


def test_missing_traces_are_counted_not_fatal(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    for file in (copy / "traces").glob("*"):
        file.unlink()
    replay = pack(read(copy))
    assert replay.shown == 0 and replay.missing > 0
    assert "nothing to replay" in render(copy).read_text(encoding="utf-8")


@pytest.fixture
def tab(browser: Browser, run: Path, page: str) -> Page:
    found = browser.new_page()
    found.goto((run / "report.html").as_uri())
    found.wait_for_selector("#replay-view[data-ready]")
    yield found
    found.close()


@pytest.mark.browser
def test_opens_at_the_first_divergence_and_steps_with_keys(tab: Page) -> None:
    assert tab.locator("#replay-strip .flag").inner_text().endswith("first divergence")
    where = tab.locator("#replay-where")
    actions = tab.locator(".side .act code").all_inner_texts()
    assert len(actions) == 2 and actions[0] != actions[1]
    before = where.inner_text()
    tab.keyboard.press("ArrowLeft")
    tab.wait_for_function("t => document.getElementById('replay-where').textContent !== t", arg=before)
    same = tab.locator(".side .act code").all_inner_texts()
    assert same[0] == same[1], "before the divergence both arms act alike"
    tab.keyboard.press("d")
    tab.wait_for_function("t => document.getElementById('replay-where').textContent === t", arg=before)


@pytest.mark.browser
def test_a_permalink_opens_the_same_step(tab: Page, browser: Browser) -> None:
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function("location.hash.includes('step=')")
    link = tab.url
    item = tab.evaluate("document.getElementById('replay-item').value")
    assert f"item={quote(item, safe='')}" in link and "a=none" in link and "b=feature" in link and "run=" in link
    other = browser.new_page()
    other.goto(link)
    other.wait_for_selector("#replay-view[data-ready]")
    for probe in ("#replay-where", ".side .act >> nth=0", ".side .act >> nth=1"):
        assert other.locator(probe).inner_text() == tab.locator(probe).inner_text()
    other.close()


@pytest.mark.browser
def test_shows_distribution_activations_funnel_and_page(tab: Page) -> None:
    right = tab.locator(".side").nth(1)
    assert right.locator(".track.right").count() == 1
    assert "4.10 → −1.90" in right.locator(".acts").inner_text()
    assert "did not fire" in right.locator(".acts").inner_text()
    assert right.locator(".badges .yes").count() == 5
    assert tab.frame_locator(".side iframe >> nth=1").locator("header").inner_text().startswith("Harbour Goods")


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_overflows_sideways(tab: Page, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_the_heat_map_follows_its_controls(tab: Page) -> None:
    tab.select_option("#heat-measure", "fell")
    cells = tab.locator("#heat table >> nth=0").locator("tbody tr >> nth=0").locator("td").all_inner_texts()
    assert len(cells) == 3 and cells[1] == "—", "fell is not measured with the trap off"
    assert "n 5" in cells[0]
