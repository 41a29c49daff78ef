"""The user's file: everything that may be wrong with it has its own message, with the number of the line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.errors import FairleadError, LoadError
from fairlead.tasks.cases.checks import check_from
from fairlead.tasks.cases.read import LINE, read_cases
from fairlead.tasks.cases.splits import assign

GOOD = {"prompt": "Red or blue?", "check": {"exact": "red"}}


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "cases.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def turns(*last: Any) -> dict[str, Any]:
    return {"turns": [{"role": "user", "content": "Hi"}, *last]}


ASKED = {"role": "assistant", "check": {"contains": "hello"}}
BAD: list[tuple[Any, str]] = [
    ("{not json", "not JSON"),
    ("[1, 2]", "one object a line"),
    ("[{", "one object a line"),
    ("3", "no JSON object"),
    ('"text"', "got:      a text"),
    ("null", "null"),
    ('{"prompt": NaN}', "NaN is not JSON"),
    ('{"a": 1, "a": 2}', "twice"),
    ('{"prompt": "\\ud800", "check": {"exact": "x"}}', "Unicode"),
    ("[" * 100_000, "JSON"),
    ({}, "one of prompt, text, messages and turns"),
    ({**GOOD, "text": "x"}, "exactly one"),
    ({"prompt": "x"}, "no check"),
    ({**GOOD, "chek": 1}, "unknown keys"),
    ({**GOOD, "prompt": 3}, "prompt is no text"),
    ({**GOOD, "prompt": " "}, "prompt is empty"),
    ({**GOOD, "check": "red"}, "no object"),
    ({**GOOD, "check": {"equals": "red"}}, "not one of those known"),
    ({**GOOD, "check": {}}, "nothing"),
    ({**GOOD, "check": {"exact": "a", "regex": "b"}}, "exactly one of"),
    ({**GOOD, "check": {"exact": []}}, "no text"),
    ({**GOOD, "check": {"exact": "a", "tolerance": 1}}, "unknown keys"),
    ({**GOOD, "check": {"contains": [1]}}, "no text"),
    ({**GOOD, "check": {"regex": "(a"}}, "not a regular expression"),
    ({**GOOD, "check": {"regex": "a" * 2000}}, "too long"),
    ({**GOOD, "check": {"regex": ""}}, "no pattern"),
    ({**GOOD, "check": {"number": "many"}}, "no number"),
    ({**GOOD, "check": {"number": True}}, "no number"),
    ({**GOOD, "check": {"number": 1, "tolerance": -1}}, "no number"),
    ({**GOOD, "check": {"json-schema": 3}}, "no schema"),
    ({**GOOD, "check": {"json-schema": {"type": "x"}}}, "not a JSON"),
    ({**GOOD, "check": {"json-schema": {"$ref": "http://x/y"}}}, "outside itself"),
    ({**GOOD, "check": {"json-schema": {"patternProperties": {}}}}, "patternProperties"),
    ({**GOOD, "check": {"json-schema": {"pattern": "(a"}}}, "not a regular expression"),
    ({**GOOD, "check": {"python": "os:system"}}, "--allow-code"),
    ({**GOOD, "check": {"python": "x"}}, "names no function"),
    ({**GOOD, "choices": ["red"]}, "decide nothing"),
    ({**GOOD, "choices": ["green", "blue"]}, "0 of 2"),
    ({**GOOD, "choices": ["red", "red"]}, "twice"),
    ({**GOOD, "choices": ["red", ""]}, "not empty"),
    ({**GOOD, "choices": ["red", "blue"], "trap": ["red"]}, "trap"),
    ({**GOOD, "trap": ["red"]}, "without choices"),
    ({**GOOD, "answer": "blue"}, "an answer does not pass"),
    ({**GOOD, "wrong": "red"}, "passes the check"),
    ({**GOOD, "max_tokens": 0}, "1 to"),
    ({**GOOD, "split": "dev"}, "no such split"),
    ({**GOOD, "id": 4}, "id is no text"),
    ({**GOOD, "strata": {"a": 1}}, "strata"),
    ({**GOOD, "cluster": ""}, "cluster is empty"),
    ({"messages": [], "check": {"exact": "x"}}, "no list of turns"),
    ({"messages": "x", "check": {"exact": "x"}}, "a text"),
    ({"messages": [{"role": "user"}], "check": {"exact": "x"}}, "a message is not one"),
    ({"messages": [{"role": "tool", "content": "x"}], "check": {"exact": "x"}}, "no such role"),
    ({"messages": [{"role": "assistant", "content": "x"}], "check": {"exact": "x"}}, "the last message"),
    (turns({"role": "user", "content": "x"}), "no turn has a check"),
    (turns(ASKED, ASKED), "answers nothing"),
    (turns({**ASKED, "role": "user"}), "only an assistant turn"),
    ({**turns(ASKED), "check": {"exact": "x"}}, "belong to"),
    (turns({**ASKED, "say": 1}), "unknown keys in a turn"),
    ({**GOOD, "system": 1}, "system is no text"),
    (
        {
            "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}],
            "system": "y",
            "check": {"exact": "x"},
        },
        "two system lines",
    ),
]


@pytest.mark.parametrize(("line", "words"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: Any, words: str):
    with pytest.raises(LoadError) as caught:
        read_cases(write(tmp_path, GOOD, "", line))
    assert "line 3" in str(caught.value) and words in str(caught.value), str(caught.value)


def test_files_that_are_none(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    for content, words in (
        (b"", "holds no case"),
        (b"\n \n", "holds no case"),
        ("x".encode("utf-16"), "UTF-16"),
        (b'{"prompt": "\xe9"}', "line 1 is not UTF-8"),
        (b"{" + b" " * LINE + b"}", "line 1 is too long"),
    ):
        path.write_bytes(content)
        with pytest.raises(LoadError, match=words):
            read_cases(path)
    for missing in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(LoadError, match="cannot be read"):
            read_cases(missing)


def test_a_byte_order_mark_and_windows_lines_are_no_harm(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert read_cases(path)[0].said == "user:red or blue?"


def test_two_cases_with_one_id(tmp_path: Path):
    with pytest.raises(LoadError, match="line 2: the id 'a' stands on line 1 too"):
        read_cases(write(tmp_path, {**GOOD, "id": "a"}, {**GOOD, "prompt": "y", "id": "a"}))


def test_a_pattern_that_never_ends_is_stopped():
    check = check_from({"regex": "^(a|aa)+$"}, allow_code=False)
    started = time.monotonic()
    with pytest.raises(FairleadError, match="took too long"):
        check.passes("a" * 5000 + "b", {})
    assert time.monotonic() - started < 10
    inside = check_from({"json-schema": {"pattern": "^(a|aa)+$"}}, allow_code=False)
    with pytest.raises(FairleadError, match="took too long"):
        inside.passes(json.dumps("a" * 5000 + "b"), {})


@pytest.mark.parametrize(
    ("check", "good", "loose", "bad"),
    [
        ({"exact": ["red", "Red one"]}, ["red", " Red one\n"], ["It is RED.", "red!"], ["reddish", "blue", ""]),
        ({"contains": ["a b", "c"]}, ["c, then a b"], ["C, a B"], ["a  b c", ""]),
        ({"regex": "^[A-Z]{2}-\\d+$"}, ["AB-12"], [], ["xAB-12", ""]),
        ({"number": 12}, ["12", "It is 12.0", "24/2", "twelve"], ["12 or 13"], ["120", "", "the twelfth"]),
        ({"number": 0.333, "tolerance": 0.001}, ["1/3"], ["1/3 of 9"], ["0.3"]),
        (
            {"json-schema": {"type": "object", "required": ["a"], "properties": {"a": {"pattern": "^x"}}}},
            ['{"a": "xy"}', '```json\n{"a": "x"}\n```'],
            [],
            ['{"a": "y"}', "{}", "[]", "no", '{"a": NaN}', "[" * 90_000],
        ),
        ({"python": "json:loads"}, ["[1]"], [], ["0"]),
    ],
)
def test_what_passes_and_what_does_not(check, good, loose, bad):
    if "python" in check:
        check = {"python": "tests.tasks.code_check:long_enough"}
        good, bad = ["long enough"], ["short"]
    found = check_from(check, allow_code=True)
    for text in good:
        assert found.passes(text, {}) and found.loosely(text) in (True, None), text
    for text in loose:
        assert not found.passes(text, {}) and found.loosely(text), text
    for text in bad:
        assert not found.passes(text, {}) and not found.loosely(text), text
    assert bool(found.source) == ("python" in check)


def test_python_checks_that_cannot_be_had():
    for name, words in (("no_such_module:f", "cannot be imported"), ("json:nothing", "cannot be imported")):
        with pytest.raises(LoadError, match=words):
            check_from({"python": name}, allow_code=True)


# ---- splits


def many(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {i} plus 1?", "check": {"number": i + 1}} for i in range(n)]


def test_splits_are_by_cluster_and_stay_when_cases_are_added(tmp_path: Path):
    small, large = (assign(read_cases(write(tmp_path, *many(n))), (0.3, 0.2, 0.5)) for n in (200, 400))
    where = {case.said: name for name, cases in small.by_split.items() for case in cases}
    later = {case.said: name for name, cases in large.by_split.items() for case in cases}
    assert all(later[said] == name for said, name in where.items())
    sizes = [len(large.by_split[name]) / 400 for name in ("train", "validation", "test")]
    assert all(abs(a - b) < 0.08 for a, b in zip(sizes, (0.3, 0.2, 0.5), strict=True))


def test_one_prompt_lies_in_one_split(tmp_path: Path):
    first, second = {**GOOD, "cluster": "a"}, {**GOOD, "check": {"contains": "red"}, "prompt": "red  OR blue?"}
    found = assign(read_cases(write(tmp_path, first, second, {**GOOD, "cluster": "b"})), (1, 1, 1))
    held = [case for cases in found.by_split.values() for case in cases]
    assert len({(c.cluster, c.split) for c in held}) == 1 and len(held) == 3


def test_repeats_are_left_out_and_named(tmp_path: Path):
    found = assign(read_cases(write(tmp_path, GOOD, {**GOOD, "prompt": "x"}, GOOD)), (1, 1, 1))
    assert found.repeats == ((1, 3),) and sum(map(len, found.by_split.values())) == 2


@pytest.mark.parametrize("cluster", [{}, {"cluster": "a"}])
def test_leakage_between_splits_is_refused(tmp_path: Path, cluster: dict[str, str]):
    other = {**GOOD, "prompt": "x" if cluster else "RED or blue?", **cluster, "split": "test"}
    with pytest.raises(LoadError, match="lines 1 and 2 share"):
        assign(read_cases(write(tmp_path, {**GOOD, **cluster, "split": "train"}, other)), (1, 1, 1))


# ---- whatever stands in a file, it is read or refused


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        "prompt",
        "text",
        "messages",
        "turns",
        "check",
        "choices",
        "trap",
        "answer",
        "wrong",
        "id",
        "cluster",
        "split",
        "strata",
        "system",
        "max_tokens",
        "role",
        "content",
        "exact",
        "contains",
        "regex",
        "number",
        "json-schema",
        "python",
    ]
)
LIKE_A_CASE = st.recursive(
    JSON | st.sampled_from(["user", "assistant", "red", "train", "("]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(KEYS, inside, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(content)
    read_or_refuse(path)


@given(st.dictionaries(KEYS, LIKE_A_CASE, max_size=5), st.booleans())
@settings(max_examples=250, deadline=None)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: Any, good: bool):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_text(json.dumps({**GOOD, **data} if good else data))
    read_or_refuse(path)


def read_or_refuse(path: Path) -> None:
    try:
        assign(read_cases(path), (0.3, 0.2, 0.5))
    except LoadError as error:
        assert str(path) in str(error)
