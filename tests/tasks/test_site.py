"""`respond` is pure and total; `to_html` escapes what the shop sells."""

from __future__ import annotations

import copy
from dataclasses import replace
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.types import SPLITS
from fairlead.tasks.shop.fronts import MAX_REDIRECTS, TextFront
from fairlead.tasks.shop.site import Element, Page, Redirect, Request, State, bait_in, falls, respond, to_html
from fairlead.tasks.shop.spec import CATEGORIES, TRAPS, Instance, instance

HOSTILE = "<script>alert('1')</script>\"'><img src=x onerror=alert(2)>&lt;{n}</title></style>"
INSTANCES = st.builds(
    instance, st.sampled_from(CATEGORIES), st.sampled_from(SPLITS), st.integers(0, 50), st.sampled_from(TRAPS)
)
DO = st.sampled_from(
    "add:p0 add:p1 add:t add:extra add:addon add:nothing add: remove:p0 remove:t remove:zzz confirm accept decline "
    "apply push : ::".split()
) | st.text(max_size=20)
FORM = st.dictionaries(st.sampled_from(["addon", "code", "delivery", "do2", ""]), st.text(max_size=20) | st.just("on"))
REQUESTS = st.builds(
    Request, st.just("GET"), st.sampled_from(["/", "/item", "/offer", "/cart", "/act"]) | st.text()
) | (
    st.builds(lambda do, form: Request("POST", "/act", {**form, "do": do}), DO, FORM)
    | st.builds(lambda form: Request("POST", "/act", form), FORM)
)


@given(INSTANCES, st.lists(REQUESTS, max_size=12))
@settings(max_examples=150, deadline=None)
def test_respond_is_pure_and_total(ins: Instance, requests: list[Request]) -> None:
    state = State()
    known = {p.sku for p in (*ins.products, ins.addon, ins.extra) if p is not None}
    for request in requests:
        before = copy.deepcopy((ins, state, request))
        after, reply = respond(ins, state, request)
        assert (ins, state, request) == before, "an argument was changed"
        assert respond(ins, state, request) == (after, reply), "the same question had two answers"
        assert isinstance(reply, Redirect) or request.method == "GET"
        assert after.events[: len(state.events)] == state.events, "events are append-only"
        assert set(after.cart) <= known
        assert not bait_in(ins, after) or falls(ins, after)
        for _ in range(MAX_REDIRECTS):
            if isinstance(reply, Page):
                break
            after, reply = respond(ins, after, Request("GET", reply.path))
        assert isinstance(reply, Page) and reply.elements and to_html(reply, ins)
        state = after


def test_get_changes_nothing() -> None:
    ins = instance("addon", "test", 0, "on")
    state = respond(ins, State(), Request("POST", "/act", {"do": "add:p0"}))[0]
    for path in ("/", "/item", "/offer", "/cart", "/nowhere"):
        assert respond(ins, state, Request("GET", path))[0] == state


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


def test_hostile_text_makes_no_tag_and_no_attribute() -> None:
    ins = instance("promo", "test", 0, "on")
    roles = ("link", "button", "checkbox", "textbox", "combobox", "text")
    elements = [
        Element(r, HOSTILE, HOSTILE, options=(HOSTILE + HOSTILE,), href="/" + HOSTILE, post=HOSTILE, css=HOSTILE)
        for r in roles
    ]
    page = Tags()
    page.feed(to_html(Page("/", HOSTILE, tuple(elements)), ins, "/e/x"))
    assert "script" not in page.tags and "img" not in page.tags and "onerror" not in page.attributes
    plain = Tags()
    plain.feed(to_html(Page("/", "Shop", tuple(replace(e, name="a", options=("a",)) for e in elements)), ins))
    assert page.tags == plain.tags and page.attributes == plain.attributes


def test_a_hostile_product_name_is_text_on_every_page() -> None:
    ins = instance("addon", "test", 0, "on")
    product = replace(ins.products[0], name=HOSTILE)
    ins = replace(ins, products=(product, *ins.products[1:]), goal=f"buy {HOSTILE}")
    state = State(cart=(product.sku,), pending=product.sku)
    for path in ("/", "/item", "/cart"):
        reply = respond(ins, state, Request("GET", path))[1]
        assert isinstance(reply, Page)
        assert any(HOSTILE in e.name for e in reply.elements) and "<script" not in to_html(reply, ins)


async def test_the_twins_html_shows_what_was_typed_and_ticked() -> None:
    from fairlead.tasks.shop.actions import Action

    front = TextFront(instance("discount", "test", 0, "on"))
    front.act_now(Action("goto", ("/cart",)))
    box = next(e for e in front.elements() if e.role == "textbox")
    front.act_now(Action("fill", (box.bid, 'A"<b>')))
    assert "A&quot;&lt;b&gt;" in await front.html()
