"""Whatever is sent, it is read or refused with a 4xx; what was read is within the limits."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.serve import ask
from fairlead.serve.ask import LIMITS, Refused, read
from fairlead.serve.limits import Limits

KEYS = [
    *ask._READ, *ask._READ_CHAT, *ask._READ_TEXT, *ask.IGNORED, *ask._NEUTRAL, *ask._NEUTRAL_CHAT, *ask._NEUTRAL_TEXT,
    *ask._MORE, "role", "content", "type", "text", "include_usage",
]  # fmt: skip
WORDS = st.sampled_from(["user", "assistant", "system", "developer", "text", "none", "auto", "m"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2000) | st.just(10**400) | st.floats() | st.text(max_size=6) | WORDS,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inside, max_size=4),
    max_leaves=12,
)
GOOD: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def read_or_refuse(body: bytes, text: bool = False) -> None:
    try:
        found = read(body, text=text)
    except Refused as refused:
        assert 400 <= refused.status < 500 and refused.message
        return
    assert 1 <= found.max_tokens <= LIMITS.tokens and 0 <= found.temperature <= 2 and 0 <= found.top_p <= 1
    assert len(found.choices) <= LIMITS.choices and 1 <= found.n <= LIMITS.n and (found.tops or 0) <= LIMITS.tops
    assert found.prompts if text else found.messages and found.messages[-1].role != "assistant"


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_json_is_read_or_refused(data: dict[str, Any], good: bool):
    read_or_refuse(json.dumps({**GOOD, **data} if good else data).encode())
    read_or_refuse(json.dumps({"model": "m", "prompt": "hi", **data} if good else data).encode(), text=True)


@given(st.binary(max_size=100))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_read_or_refused(body: bytes):
    read_or_refuse(body)


def test_what_a_client_sends_by_default_is_read():
    sent = {**GOOD, "temperature": None, "top_p": 1.0, "n": 1, "stream": False, "stop": None, "logit_bias": {},
            "presence_penalty": 0, "frequency_penalty": 0.0, "max_completion_tokens": 9, "user": "u"}  # fmt: skip
    found = read(json.dumps(sent).encode())
    assert found.max_tokens == 9 and found.temperature == 0 and not found.stream
    parts = {"model": "m", "messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}]},
                                        {"role": "user", "content": "b"}]}  # fmt: skip
    assert [m.role for m in read(json.dumps(parts).encode()).messages] == ["system", "user"]


def test_an_answer_is_no_longer_than_the_server_allows_where_the_request_does_not_say() -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
    assert ask.read(body).max_tokens == ask.DEFAULT_TOKENS
    assert ask.read(body, Limits(tokens=4)).max_tokens == 4
