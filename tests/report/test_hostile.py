"""Trap text is written by an attacker. In real Chromium: nothing of it runs, and nothing leaves the page.

All hosts resolve to a listener that counts connections, so a request counts even if the page hides it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request
from tests.report.synthetic_run import HOSTILE, page

from fairlead.report import compare_html, render

FRAMES = "[...document.querySelectorAll('iframe')].map(f => [f.getAttribute('sandbox'), f.srcdoc])"
pytestmark = pytest.mark.browser


BLOCKED = ("csp", "other")  # by the page's policy, or by Chromium before it: nothing was sent


@dataclass
class Tab:
    """A page, and what it tried: requests that no policy stopped, dialogs, popups, script errors."""

    page: Page
    tried: list[str] = field(default_factory=list)

    def owned(self) -> object:
        return self.page.evaluate("window.__owned ?? null")


@pytest.fixture
def visit(browser: Browser):
    context = browser.new_context()

    def go(path: Path) -> Tab:
        tab, url = Tab(context.new_page()), path.as_uri()

        def failed(request: Request) -> None:
            if request.failure not in BLOCKED:
                tab.tried.append(f"{request.url} {request.failure}")

        tab.page.on("requestfailed", failed)
        tab.page.on("requestfinished", lambda r: None if r.url.split("#")[0] == url else tab.tried.append(r.url))
        tab.page.on("dialog", lambda dialog: (tab.tried.append(dialog.message), dialog.dismiss())[1])
        tab.page.on("popup", lambda popup: tab.tried.append(f"popup {popup.url}"))
        tab.page.on("pageerror", lambda error: tab.tried.append(str(error)))
        tab.page.goto(url)
        return tab

    yield go
    context.close()


@pytest.mark.parametrize("number", [0, 1])
def test_the_attacks_run_where_nothing_defends(visit, tmp_path: Path, number: int) -> None:
    file = tmp_path / "bare.html"
    file.write_text(page("Pan", HOSTILE[number], "on", 0, []), encoding="utf-8")
    tab = visit(file)
    tab.page.wait_for_function("window.__owned")
    assert tab.owned() == number + 1


def test_the_listener_hears_a_request(visit, heard: list[str], tmp_path: Path) -> None:
    file = tmp_path / "bare.html"
    file.write_text(page("Pan", HOSTILE[3], "on", 0, []), encoding="utf-8")
    tab = visit(file)
    tab.page.wait_for_timeout(300)
    assert heard, "the listener hears nothing, so its silence proves nothing"


def test_the_report_survives_them(visit, hostile: Path, heard: list[str]) -> None:
    tab = visit(render(hostile, max_items=100))
    tab.page.wait_for_selector("#replay-view[data-ready]")
    tab.page.check("#replay-text")
    shown = set()
    for number in range(len(HOSTILE)):
        tab.page.evaluate("item => location.hash = '#replay?item=' + item + '&step=2'", f"test/promo/{number}/on")
        tab.page.wait_for_selector(f"#replay-view[data-ready='test/promo/{number}/on 1']")
        frames = tab.page.evaluate(
            "[...document.querySelectorAll('iframe')].map(f => [f.getAttribute('sandbox'), f.srcdoc])"
        )
        assert frames and all(sandbox == "" for sandbox, _ in frames)
        assert all("Content-Security-Policy" in html.split("<base")[0] for _, html in frames)
        shown |= {lure for lure in HOSTILE for _, html in frames if lure in html}
    tab.page.wait_for_timeout(300)
    assert shown == set(HOSTILE), "every attack must have been on the screen"
    assert (tab.owned(), tab.tried, heard) == (None, [], [])
    assert tab.page.locator("iframe").count() == 2 and tab.page.locator("img, link").count() == 0


def test_links_and_forms_inside_the_page_lead_nowhere(visit, hostile: Path, heard: list[str]) -> None:
    tab = visit(render(hostile, max_items=3))
    tab.page.wait_for_selector("#replay-view[data-ready]")
    inside = tab.page.frame_locator("#replay-view iframe >> nth=0")
    for bid in ("9", "7", "3"):
        inside.locator(f"[data-bid='{bid}']").first.click(force=True, no_wait_after=True)
    tab.page.wait_for_timeout(300)
    assert (tab.owned(), tab.tried, heard) == (None, [], [])
    assert inside.locator("header").inner_text().startswith("Harbour Goods")


def test_the_comparison_survives_them(visit, hostile: Path, run: Path, heard: list[str], tmp_path: Path) -> None:
    tab = visit(compare_html(hostile, run, tmp_path / "c.html"))
    assert (tab.owned(), tab.tried, heard) == (None, [], [])
    assert HOSTILE[0] in tab.page.inner_text("main")


def test_the_file_holds_no_raw_attack(hostile: Path) -> None:
    text = render(hostile).read_text(encoding="utf-8")
    harmless = ("<!--", "]]>", "{{ 7*7 }}", HOSTILE[2])  # as text
    assert 'href="javascript' not in text
    assert not [attack for attack in HOSTILE if attack not in harmless and attack in text]
    assert "\u2028" not in text and "\u2029" not in text
    assert text.count("<script") == text.count("</script>")


def test_half_a_character_does_not_stop_the_page(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON may carry a lone surrogate, which no encoding can write."""
    monkeypatch.setattr("fairlead.report.html.page", lambda *_, **__: "<p>a\ud800b</p>")
    assert render(hostile, tmp_path / "r.html").read_text(encoding="utf-8") == "<p>a?b</p>"
