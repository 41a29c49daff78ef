"""Everything that reads what others wrote, fed with what nobody meant: a refusal in words, never a crash."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.report.synthetic_run import write_run
from tests.steering.strategies import edits

from fairlead.core.errors import EditError, PlanError, RecordError
from fairlead.core.plan import Plan, parse_plan
from fairlead.core.records import Run, Store, to_line
from fairlead.core.types import Cost, Record
from fairlead.report import render
from fairlead.steering import format, parse
from fairlead.tasks.shop import actions
from fairlead.tasks.shop.server import ShopServer
from fairlead.tasks.shop.site import Page, Redirect, Request, State, respond, to_html
from fairlead.tasks.shop.spec import CATEGORIES, TRAPS, instance

pytestmark = pytest.mark.soak
fixture_is_read_only = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def tries(n: int) -> settings:
    return settings(max_examples=n, deadline=None, database=None, suppress_health_check=fixture_is_read_only)


def mangled(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """A text with pieces cut out, doubled, or put in from another or from nowhere."""

    @st.composite
    def one(draw: st.DrawFn) -> str:
        text = draw(texts)
        for _ in range(draw(st.integers(0, 4))):
            a, b = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
            b = min(b, a + 12)
            piece = draw(st.sampled_from(["", text[a:b] * 2]) | st.text(max_size=6) | texts.map(lambda t: t[:20]))
            text = text[:a] + piece + text[b:]
        return text

    return one()


# ---- actions

CALLS = ['click("7")', 'fill("3","a \\"b\\" \\\\ c")', 'select("4","x")', 'goto("/cart")', "done()", "go_back()",
         'report_infeasible("not found")', '__import__("os").system("id")', "open('x','w')", 'eval("1+1")']  # fmt: skip


@tries(3000)
@given(mangled(st.sampled_from(CALLS)) | st.text(max_size=300))
@example("click(" * 600)
@example('click("' + "\\" * 3990)
@example('fill("1","' + "9" * 3900 + '")')
def test_action_text_is_an_action_or_a_reason(text: str) -> None:
    got = actions.parse(text)
    if isinstance(got, actions.Action):
        assert len(got.args) == actions.ARITY[got.name]
        assert actions.parse(str(got)) == got
    else:
        assert got and "\n" not in got


@pytest.mark.parametrize("call", ['open("{}","w")', '__import__("pathlib").Path("{}").touch()', 'exec("{}")'])
def test_action_text_is_never_evaluated(call: str, tmp_path: Path) -> None:
    for wrapped in ("{}", "click({})", 'fill("1",{})', 'fill("1","{}")', "done()\n{}", 'f"{{{}}}"'):
        actions.parse(wrapped.format(call.format(tmp_path / "made")))
    assert list(tmp_path.iterdir()) == []


# ---- the edit language

LINES = ["26737 -= 6; 23803 += 6 on step 0", "812 = 0 at generated when 97 > 0.4", "@layer 19: 34 *= 0.5 at last",
         "@resid.2: 12 += 3x, $careful += 2 on steps 0..2 when 97 > 0.4 and (12 <= 3 or 8 > #97)", "nothing",
         "$refusal -> out", "4 -> off at role user", "1 >= -2.5e3 at tokens 3..9"]  # fmt: skip


@tries(4000)
@given(mangled(st.sampled_from(LINES)) | st.text("0123456789 +-*=<>();,@#$.xatonwhen\n", max_size=80) | st.text())
@example("9" * 5000 + " = 0")
@example("1 = 0 at tokens 0.." + "9" * 5000)
@example("@resid." + "9" * 5000 + ": 1 = 0")
@example("1 = 0 when " + "(" * 5000)
@example("1 = 1e999")
@example("1 = 0." + "0" * 5000)
@example("; " * 5000)
@example("1 = 0; " * 2000)
def test_an_edit_line_is_read_or_refused_with_a_caret(line: str) -> None:
    try:
        found = parse(line)
    except EditError as error:
        assert "^" in str(error)
        assert len(str(error)) < 1500
    else:
        assert parse(format(found)) == found


@tries(500)
@given(st.lists(edits(), max_size=4).map(tuple))
def test_edits_come_back_from_their_line(found) -> None:
    assert parse(format(found)) == found
    assert format(parse(format(found))) == format(found)


# ---- plans

TOML = Path("studies/demo.toml")
PLAN_TEXT = (Path(__file__).parents[2] / TOML).read_text(encoding="utf-8")
PLAN_LINES = PLAN_TEXT.splitlines()
VALUES = ["0", "-1", "1e400", "nan", "inf", "true", '""', '"x"', "[]", "[[]]", "{}", "{a = {b = 1}}", "1979-05-27",
          "07:32:00", '["none", "none"]', '["+"]', "9" * 30, '"none+"', '"feature.."', "[1, true]"]  # fmt: skip
KEYS = re.findall(r"^(\w+) =", PLAN_TEXT, re.MULTILINE)


@st.composite
def broken_plans(draw: st.DrawFn) -> str:
    lines = list(PLAN_LINES)
    for _ in range(draw(st.integers(1, 3))):
        kind, at = draw(st.integers(0, 3)), draw(st.integers(0, len(lines) - 1))
        if kind == 0:
            del lines[at : at + draw(st.integers(1, 3))]
        elif kind == 1:
            lines.insert(at, f"{draw(st.sampled_from(KEYS))} = {draw(st.sampled_from(VALUES))}")
        elif kind == 2:
            key = draw(st.sampled_from(KEYS))
            lines = [f"{key} = {draw(st.sampled_from(VALUES))}" if x.startswith(f"{key} =") else x for x in lines]
        else:
            lines[at] = draw(mangled(st.just(lines[at])))
        lines = lines or [""]
    return "\n".join(lines)


@tries(2500)
@given(broken_plans() | st.text(max_size=200))
@example("")
@example("x = " + "[" * 5000)
@example("n = " + "9" * 5000)
@example("a." * 5000 + "b = 1")
@example("\ufeff" + PLAN_TEXT)
def test_a_plan_is_a_plan_or_a_reason(text: str) -> None:
    try:
        plan = parse_plan(text)
    except PlanError as error:
        assert str(error)
    else:
        assert isinstance(plan, Plan)


# ---- the shop's pages

INSTANCES = st.builds(
    instance, st.sampled_from(CATEGORIES), st.sampled_from(["train", "validation"]), st.integers(0, 40),
    st.sampled_from(TRAPS),
)  # fmt: skip
DOS = st.sampled_from(["add:", "remove:", "confirm", "accept", "decline", "apply", "push", "add", ":", "add:add:"])
FORMS = st.dictionaries(
    st.sampled_from(["do", "code", "delivery", "addon"]) | st.text(max_size=5),
    DOS | st.builds(lambda d, n: f"{d}p{n}", DOS, st.integers(-1, 9)) | st.text(max_size=30) | st.just("express"),
    max_size=4,
)
PATHS = st.sampled_from(["/", "/item", "/offer", "/cart", "/act", "", "//", "/cart/", "/../etc"]) | st.text(max_size=30)
REQUESTS = st.builds(Request, st.sampled_from(["GET", "POST", "PUT", "", "get"]), PATHS, FORMS)


@tries(600)
@given(INSTANCES, st.lists(REQUESTS, max_size=25), st.randoms(use_true_random=False))
def test_every_request_has_an_answer(ins, requests, rng) -> None:
    state, skus = State(), [p.sku for p in ins.products]
    for request in requests:
        if rng.random() < 0.4:
            request = Request(
                "POST", "/act", {**request.form, "do": f"{rng.choice(['add', 'remove'])}:{rng.choice(skus)}"}
            )
        before = state
        state, reply = respond(ins, state, request)
        assert respond(ins, before, request) == (state, reply)
        assert state.events[: len(before.events)] == before.events
        assert isinstance(reply, Page | Redirect)
        if isinstance(reply, Page):
            assert to_html(reply, ins).count("<script") == 0


async def _exchange(port: int, head: bytes, body: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with suppress(ConnectionError):
            writer.write(head + body)
            await writer.drain()
            writer.write_eof()
            return await asyncio.wait_for(reader.read(200_000), 10)
        return b""
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


HTTP_PATHS = ["/", "/act", "/cart", "/item", "/offer", "/%00", "/%ff%fe", "/..%2f..%2fetc/passwd", "/?a=1", "/é", "//"]
BODIES = st.sampled_from(
    [
        b"",
        b"do=add%3Ap0",
        b"do=apply&code=%ff",
        b"&" * 40,
        b"a=1&" * 30,
        b"\xff\xfe\x00",
        b"do=" + b"x" * 17_000,
        b"%" * 99,
    ]
) | st.binary(max_size=200)

FORM = "application/x-www-form-urlencoded"
ORDINARY = [
    ("GET", "/", b"", "127.0.0.1", "", True), ("POST", "/act", b"do=add%3Ap0", "127.0.0.1", FORM, True),
    ("GET", "/", b"", "evil.example", "", True), ("GET", "/", b"", "127.0.0.1", "", False),
]  # fmt: skip


def test_the_server_never_fails_inside() -> None:
    """Random HTTP over loopback, by hand: 400s and closed connections are answers, a 500 is a fault."""

    @tries(400)
    @given(
        ins=INSTANCES,
        calls=st.lists(
            st.tuples(
                st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "G\xe9T"]),
                st.sampled_from(HTTP_PATHS) | st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=30),
                BODIES,
                st.sampled_from(["127.0.0.1", "evil.example", ""]),
                st.sampled_from(["application/x-www-form-urlencoded", "multipart/form-data", "text/plain; \xff", ""]),
                st.booleans(),
            ),
            min_size=1, max_size=6,
        ),
    )  # fmt: skip
    @example(instance(CATEGORIES[0], "train", 0, TRAPS[0]), ORDINARY)  # drawn ones may hold no page and no act
    def one(ins, calls) -> None:
        loop.run_until_complete(play(ins, calls))

    async def play(ins, calls) -> None:
        episode = server.open(ins)
        try:
            for method, path, body, host, kind, known in calls:
                prefix = episode.prefix if known else f"/e/{secrets.token_hex(6)}"
                target = f"{prefix}/act" if method == "POST" and known and path == "/act" else prefix + path
                head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
                head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                got = await _exchange(server.port, head.encode("latin-1"), body)
                if got:
                    status = int(got.split(b" ", 2)[1])
                    statuses.add(status)
                    assert status < 500, (method, target, body, got[:300])
                    assert host == "127.0.0.1" or status == 400
        finally:
            server.close(episode)

    statuses: set[int] = set()
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        server = runner.run(ShopServer.start())
        one()
        runner.run(server.stop())
    assert {200, 303, 400, 404} <= statuses


# ---- Records

KEY = "k" * 32


def row(i: int) -> Record:
    score = None if i % 5 == 4 else {"strict": i % 2 == 0, "loose": None}
    cost = Cost(flops=1.5 * i)
    return Record(KEY, "none", "m", "constrained", 0, f"i{i}", f"c{i}", "test", {"trap": "on"},
                  {"note": "ünï\u2028\r\x85 line"}, score, None if score else "boom\nbang", cost)  # fmt: skip


ROWS = tuple(row(i) for i in range(8))
LINES_ON_DISK = [to_line(r).encode() for r in ROWS]
JUNK = ["null", "[]", "5", '"x"', "{}", "[" * 3000, '{"trial":[]}', "NaN", "\x00", "{" * 5, " "]


def on_disk(folder: Path, content: bytes) -> Path:
    trials = folder / "trials"
    trials.mkdir(exist_ok=True)
    (trials / f"{KEY}.jsonl").write_bytes(content)
    return folder


@tries(700)
@given(st.integers(0, sum(map(len, LINES_ON_DISK))))
def test_a_cut_loses_only_the_line_it_cuts(tmp_path, cut: int) -> None:
    content = b"".join(LINES_ON_DISK)[:cut]
    whole = content.count(b"\n")
    folder = on_disk(tmp_path, content)
    assert Run.open(folder).records == ROWS[:whole]
    store = Store(folder)
    assert tuple(store.records(KEY)) == ROWS[:whole]
    assert (folder / "trials" / f"{KEY}.jsonl").read_bytes() == b"".join(LINES_ON_DISK[:whole])
    assert bool(store.torn) == (content != b"".join(LINES_ON_DISK[:whole]))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    lines = list(LINES_ON_DISK)
    at = draw(st.integers(0, len(lines) - 1))
    kind = draw(st.integers(0, 3))
    if kind == 0:
        place = draw(st.integers(0, len(lines[at]) - 1))
        lines[at] = lines[at][:place] + draw(st.binary(max_size=6)) + lines[at][place + 1 :]
    elif kind == 1:
        lines.insert(at, draw(st.sampled_from(JUNK)).encode() + b"\n")
    elif kind == 2:
        found = json.loads(lines[at])
        name = draw(st.sampled_from(sorted(found)))
        found[name] = draw(st.sampled_from([None, [], {}, 3, "x", True, [[1]], {"a": [1]}]))
        lines[at] = json.dumps(found).encode() + b"\n"
    else:
        found = json.loads(lines[at])
        del found[draw(st.sampled_from(sorted(found)))]
        lines[at] = json.dumps(found).encode() + b"\n"
    return b"".join(lines)


@tries(1500)
@given(damaged())
def test_a_damaged_file_is_refused_or_every_whole_line_is_a_record(tmp_path, content: bytes) -> None:
    folder = on_disk(tmp_path, content)
    whole = [line for line in content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]]
    try:
        run = Run.open(folder)
    except RecordError as error:
        assert "line" in str(error)
    else:
        assert len(run.records) == len(whole)
    assert (folder / "trials" / f"{KEY}.jsonl").read_bytes() == content  # reading never writes


@tries(300)
@given(st.sampled_from(["plan.json", "trials.json", "done"]), st.sampled_from(JUNK) | st.text(max_size=40))
def test_a_damaged_side_file_is_refused(tmp_path, name: str, junk: str) -> None:
    folder = on_disk(tmp_path, b"".join(LINES_ON_DISK))
    path = folder / "trials" / f"{KEY}.done" if name == "done" else folder / name
    path.write_bytes(junk.encode("utf-8", "surrogatepass"))
    try:
        with suppress(RecordError):
            Run.open(folder)
    finally:
        path.unlink()


# ---- reports

HOSTILE = ["</script><script>alert(1)</script>", "<script src=//evil.example>", '"><img src=x onerror=alert(1)>', "]]>",
           "<!--<script>", "\u2028\u2029", "{{7*7}}{% raw %}", "\ud800", "\x00\x1b[31m", "]" * 500, "<svg/onload=x>",
           "__proto__", "constructor", "", " ", "‮gnp.exe", "A" * 20_000, "${x}`", "'; drop"]  # fmt: skip
TEXTS = st.sampled_from(HOSTILE) | st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6,
)  # fmt: skip


class _Scripts(HTMLParser):
    """The attributes of every script element, and every attribute that runs something."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs))
        self.handlers += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]
        assert tag not in ("iframe", "img", "link", "object", "embed", "base") or "src" not in dict(attrs), attrs


def scripts(page: str) -> list[dict[str, str | None]]:
    found = _Scripts()
    found.feed(page)
    assert found.handlers == []
    return found.scripts


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("calm"), per_category=2, traced=1, errors=1, categories=("promo",))


def test_a_page_of_hostile_records_runs_nothing(calm: Path, tmp_path: Path) -> None:
    """Every text that a task, a model or a plugin may have written is replaced; the page keeps its own scripts."""
    own = [{k: v for k, v in s.items() if k != "id"} for s in scripts(render(calm, tmp_path / "calm.html").read_text())]
    kinds = {json.dumps(s, sort_keys=True) for s in own}
    number = iter(range(10_000))

    @tries(8)
    @given(st.data())
    def one(data: st.DataObject) -> None:
        folder = tmp_path / f"run{next(number)}"
        shutil.copytree(calm, folder)
        draw = data.draw
        with Store(folder) as store:
            for file in sorted((folder / "trials").glob("*.jsonl")):
                rows = []
                for record in store.records(file.stem)[:3]:
                    text, other = draw(TEXTS), draw(TEXTS)
                    trace = None
                    if record.trace is not None:
                        found = Run.open(calm).read_trace(record.trace)
                        for step in found["steps"]:
                            step |= {"html": text, "observation": other, "action": draw(TEXTS), "url": text}
                            step |= {"error": draw(TEXTS), "system": other, "legal": [text, step["action"]]}
                            step["logprobs"] = [-0.1, -2.0]
                        trace = store.save_trace(_encodable(found))
                    error = None if record.error is None else text
                    strata = {**record.strata, "category": text}
                    outcome = None if record.outcome is None else {**record.outcome, "note": draw(JSON)}
                    rows.append(replace(record, error=error, strata=strata, trace=trace, item=text + record.item,
                                        outcome=outcome))  # fmt: skip
                file.write_text("".join(to_line(_encodable(r)) for r in rows), encoding="utf-8")
            for file in sorted((folder / "fitted").glob("*/describe.json")):
                told = json.loads(file.read_text())
                file.write_text(json.dumps(_shouted(told, draw(TEXTS))))
        page = render(folder).read_text(encoding="utf-8")
        shutil.rmtree(folder)
        got = [{k: v for k, v in s.items() if k != "id"} for s in scripts(page)]
        assert {json.dumps(s, sort_keys=True) for s in got} <= kinds
        assert [s for s in got if not s.get("type")] == [s for s in own if not s.get("type")]
        for text in HOSTILE:
            assert "<script" not in text or text not in page

    one()


def _shouted(value, text: str):
    """Every text inside replaced."""
    if isinstance(value, dict):
        return {k: _shouted(v, text) for k, v in value.items()}
    if isinstance(value, list):
        return [_shouted(v, text) for v in value]
    return text if isinstance(value, str) else value


def _encodable(value):
    """Half characters cannot be written as UTF-8; everything else stays."""
    if isinstance(value, Record):
        rest = {f: _encodable(getattr(value, f)) for f in ("error", "strata", "item", "outcome")}
        return replace(value, **rest)
    if isinstance(value, dict):
        return {_encodable(k): _encodable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_encodable(v) for v in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
