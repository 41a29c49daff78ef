"""A request's body to an Ask, or a refusal: what cannot be applied is never passed over in silence."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.core.types import Message, Messages

MESSAGES, CHARS, TOKENS, CHOICES, STOPS = 512, 400_000, 1024, 500, 4
DEFAULT_TOKENS = 256
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What a client may send without effect, and what must have the value that changes nothing.
_IGNORED = ("user", "metadata", "store", "stream_options", "safety_identifier", "prompt_cache_key", "service_tier")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (None, 1), "n": (None, 1), "frequency_penalty": (None, 0), "presence_penalty": (None, 0),
    "logprobs": (None, False), "top_logprobs": (None, 0), "logit_bias": (None, {}), "tools": (None, []),
    "tool_choice": (None, "none", "auto"), "response_format": (None, {"type": "text"}),
    "parallel_tool_calls": (None, True, False),
}  # fmt: skip
_READ = (
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "stop", "stream", "fairlead",
)  # fmt: skip


class Refused(Exception):
    """A request that cannot be answered as asked. `param` is the key at fault."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code


@dataclass(frozen=True)
class Ask:
    """One chat completion. `choices` are the only legal answers, where given; `step` is the agent step that gated
    edits look at. `usage` says whether a stream ends with its token counts."""

    model: str
    messages: Messages
    max_tokens: int = DEFAULT_TOKENS
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    choices: tuple[str, ...] = ()
    step: int = 0


def read(body: bytes) -> Ask:
    """The Ask in a body. Refused names the key that is wrong."""
    try:
        data = json.loads(body, parse_constant=_no_constant)
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Refused("the body is not JSON") from error
    if not isinstance(data, dict):
        raise Refused("the body is no JSON object")
    unknown = sorted(set(data) - {*_READ, *_IGNORED, *_NEUTRAL})
    if unknown:
        raise Refused(f"unknown or unsupported: {', '.join(unknown)[:200]}", param=unknown[0][:100])
    for key, allowed in _NEUTRAL.items():
        if not any(type(data.get(key)) is type(a) and data.get(key) == a for a in (*allowed, *map(_as_float, allowed))):
            raise Refused(f"{key} is not supported here", param=key)
    if not isinstance(data.get("model"), str):
        raise Refused("model is a text", param="model")
    more = data.get("fairlead") or {}
    if not isinstance(more, dict) or set(more) - {"choices", "step"}:
        raise Refused('fairlead is an object with "choices" and "step"', param="fairlead")
    limit_key = "max_tokens" if data.get("max_completion_tokens") is None else "max_completion_tokens"
    temperature = 0.0 if data.get("temperature") is None else data["temperature"]
    if not _is_number(temperature) or not 0 <= temperature <= 2:
        raise Refused("temperature is a number from 0 to 2", param="temperature")
    ask = Ask(
        model=data["model"],
        messages=_messages(data.get("messages")),
        max_tokens=_whole(data, limit_key, DEFAULT_TOKENS, 1, TOKENS),
        temperature=float(temperature),
        seed=_whole(data, "seed", 0, -(2**63), 2**63 - 1),
        stop=_texts(data.get("stop"), "stop", STOPS, one=True),
        stream=_flag(data.get("stream"), "stream"),
        usage=_flag((data.get("stream_options") or {}).get("include_usage"), "stream_options")
        if isinstance(data.get("stream_options") or {}, dict)
        else _bad_options(),
        choices=_texts(more.get("choices"), "fairlead.choices", CHOICES),
        step=_whole(more, "step", 0, 0, 10_000),
    )
    if ask.choices and ask.stop:
        raise Refused("stop has no meaning beside fairlead.choices", param="stop")
    return ask


def _bad_options() -> bool:
    raise Refused("stream_options is an object", param="stream_options")


def _as_float(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _messages(value: Any) -> Messages:
    if not isinstance(value, list) or not 1 <= len(value) <= MESSAGES:
        raise Refused(f"messages is a list of 1 to {MESSAGES}", param="messages")
    found = tuple(_message(m, i) for i, m in enumerate(value))
    if sum(len(m.content) for m in found) > CHARS:
        raise Refused(f"messages hold more than {CHARS} characters", param="messages")
    if found[-1].role == "assistant":
        raise Refused("the last message is the assistant's: there is nothing to answer", param="messages")
    return found


def _message(value: Any, place: int) -> Message:
    where = f"messages[{place}]"
    if not isinstance(value, dict) or set(value) - {"role", "content", "name"}:
        raise Refused(f"{where} is an object of role and content", param=where)
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise Refused(f"{where}.role is one of {', '.join(_ROLES)}", param=where)
    content = value.get("content")
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise Refused(f"{where}.content holds something else than text", param=where)
        content = "".join(p["text"] for p in content)
    if not isinstance(content, str):
        raise Refused(f"{where}.content is a text", param=where)
    return Message(_ROLES[role], content)


def _texts(value: Any, key: str, most: int, *, one: bool = False) -> tuple[str, ...]:
    if value is None:
        return ()
    texts: Sequence[Any] = [value] if one and isinstance(value, str) else value
    good = isinstance(texts, list) and len(texts) <= most and all(isinstance(t, str) and t for t in texts)
    if not good or len(set(texts)) != len(texts) or sum(map(len, texts)) > CHARS:
        raise Refused(f"{key} is a list of at most {most} different texts", param=key)
    return tuple(texts)


def _whole(data: Mapping[str, Any], key: str, default: int, least: int, most: int) -> int:
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Refused(f"{key} is a whole number from {least} to {most}", param=key)
    return value


def _flag(value: Any, key: str) -> bool:
    if not isinstance(value, bool | None):
        raise Refused(f"{key} is true or false", param=key)
    return bool(value)


def _is_number(value: Any) -> bool:
    """True of a whole number of any size, which no float need hold, and of a finite float."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
