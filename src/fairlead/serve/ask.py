"""A request's body to an Ask, or a refusal: what cannot be applied is never passed over in silence."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.core.types import Message, Messages
from fairlead.serve.limits import Limits

LIMITS = Limits()
DEFAULT_TOKENS = 256
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What a client may send without effect, and what must have the value that changes nothing.
IGNORED = ("user", "metadata", "store", "stream_options", "safety_identifier", "prompt_cache_key", "service_tier")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}),
}  # fmt: skip
_NEUTRAL_CHAT: dict[str, tuple[Any, ...]] = {
    "tools": (None, []), "tool_choice": (None, "none", "auto"), "response_format": (None, {"type": "text"}),
    "parallel_tool_calls": (None, True, False),
}  # fmt: skip
_NEUTRAL_TEXT: dict[str, tuple[Any, ...]] = {"echo": (None, False), "best_of": (None, 1), "suffix": (None, "")}
_READ = ("model", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "stream", "logprobs", "edits", "fairlead")
_READ_CHAT = ("messages", "max_completion_tokens", "top_logprobs")
_READ_TEXT = ("prompt",)
_MORE = ("choices", "step", "paired")


class Refused(Exception):
    """A request that cannot be answered as asked. `param` is the key at fault; `after` when to ask again."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None,
        after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.message, self.param, self.status, self.code, self.after = message, param, status, code, after


@dataclass(frozen=True)
class Ask:
    """One request: a chat to be continued (`messages`), or raw texts (`prompts`), `n` answers to each. `tops` is how
    many alternatives each token comes with (None: no log-probabilities). `edits` are as they came: a line of the edit
    language, or its JSON. `choices` are the only legal answers, where given; `step` is the agent step that gated edits
    look at; `paired` asks for the unsteered answer beside the steered one. `usage` says whether a stream ends with
    its token counts."""

    model: str
    messages: Messages = ()
    prompts: tuple[str, ...] = ()
    max_tokens: int = DEFAULT_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    tops: int | None = None
    edits: Any = None
    choices: tuple[str, ...] = ()
    step: int = 0
    paired: bool = False


def read(body: bytes, limits: Limits = LIMITS, *, text: bool = False) -> Ask:
    """The Ask in a body, of a chat or (`text`) of raw texts. Refused names the key that is wrong."""
    data = json_object(body)
    neutral = neutral_keys(text=text)
    known = {*_READ, *(_READ_TEXT if text else _READ_CHAT), *IGNORED, *neutral}
    if unknown := sorted(set(data) - known):
        raise Refused(f"unknown or unsupported: {', '.join(unknown)[:200]}", param=unknown[0][:100])
    for key, allowed in neutral.items():
        if not any(type(data.get(key)) is type(a) and data.get(key) == a for a in (*allowed, *map(_as_float, allowed))):
            raise Refused(f"{key} is not supported here", param=key)
    if not isinstance(data.get("model"), str):
        raise Refused("model is a text", param="model")
    more = {} if data.get("fairlead") is None else data["fairlead"]
    if not isinstance(more, dict) or set(more) - set(_MORE):
        raise Refused('fairlead is an object with "choices", "step" and "paired"', param="fairlead")
    few = min(DEFAULT_TOKENS, limits.tokens)
    tokens = [_whole(data, key, few, 1, limits.tokens) for key in ("max_tokens", "max_completion_tokens")]
    ask = Ask(
        model=data["model"],
        messages=() if text else _messages(data.get("messages"), limits),
        prompts=_prompts(data.get("prompt"), limits) if text else (),
        max_tokens=tokens[data.get("max_completion_tokens") is not None],
        temperature=_number(data, "temperature", 0.0, 0.0, 2.0),
        top_p=_number(data, "top_p", 1.0, 0.0, 1.0),
        n=_whole(data, "n", 1, 1, limits.n),
        seed=_whole(data, "seed", 0, -(2**63), 2**63 - 1),
        stop=_texts(data.get("stop"), "stop", limits.stops, limits, one=True),
        stream=_flag(data.get("stream"), "stream"),
        usage=_usage(data.get("stream_options")),
        tops=_tops_text(data, limits) if text else _tops_chat(data, limits),
        edits=_edits(data.get("edits"), limits),
        choices=_texts(more.get("choices"), "fairlead.choices", limits.choices, limits),
        step=_whole(more, "step", 0, 0, 10_000),
        paired=_flag(more.get("paired"), "fairlead.paired"),
    )
    _check_together(ask, limits)
    return ask


def neutral_keys(*, text: bool) -> dict[str, tuple[Any, ...]]:
    """What a client may send only with a value that changes nothing, and these values."""
    return {**_NEUTRAL, **(_NEUTRAL_TEXT if text else _NEUTRAL_CHAT)}


def _check_together(ask: Ask, limits: Limits) -> None:
    if ask.n * len(ask.prompts) > limits.n:
        raise Refused(f"n times the prompts is at most {limits.n}", param="n")
    beside = {"stop": ask.stop, "n": ask.n > 1, "logprobs": ask.tops is not None, "prompt": ask.prompts}
    if ask.choices and (wrong := [key for key, given in beside.items() if given]):
        raise Refused(f"{wrong[0]} has no meaning beside fairlead.choices", param=wrong[0])


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Refused for anything else: NaN, half a surrogate pair, and a list, too."""
    try:
        data = json.loads(body, parse_constant=_no_constant)
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Refused("the body is not JSON") from error
    if not isinstance(data, dict):
        raise Refused("the body is no JSON object")
    return data


def _usage(value: Any) -> bool:
    if value is not None and not isinstance(value, dict):
        raise Refused("stream_options is an object", param="stream_options")
    return _flag((value or {}).get("include_usage"), "stream_options")


def _tops_chat(data: Mapping[str, Any], limits: Limits) -> int | None:
    wanted = _flag(data.get("logprobs"), "logprobs")
    tops = _whole(data, "top_logprobs", 0, 0, limits.tops)
    if tops and not wanted:
        raise Refused("top_logprobs needs logprobs", param="top_logprobs")
    return tops if wanted else None


def _tops_text(data: Mapping[str, Any], limits: Limits) -> int | None:
    return None if data.get("logprobs") is None else _whole(data, "logprobs", 0, 0, limits.tops)


def _edits(value: Any, limits: Limits) -> Any:
    if value is not None and not isinstance(value, str | list):
        raise Refused("edits is a line of the edit language, or a list of its JSON", param="edits")
    if isinstance(value, str) and len(value) > limits.edit_chars:
        raise Refused(f"edits is longer than {limits.edit_chars} characters", param="edits")
    if isinstance(value, list) and len(value) > limits.edits:
        raise Refused(f"more than {limits.edits} edits", param="edits")
    return value


def _as_float(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _messages(value: Any, limits: Limits) -> Messages:
    if not isinstance(value, list) or not 1 <= len(value) <= limits.messages:
        raise Refused(f"messages is a list of 1 to {limits.messages}", param="messages")
    found = tuple(_message(m, i) for i, m in enumerate(value))
    if sum(len(m.content) for m in found) > limits.chars:
        raise Refused(f"messages hold more than {limits.chars} characters", param="messages")
    if found[-1].role == "assistant":
        raise Refused("the last message is the assistant's: there is nothing to answer", param="messages")
    return found


def _prompts(value: Any, limits: Limits) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    good = isinstance(texts, list) and 1 <= len(texts) <= limits.n and all(isinstance(t, str) for t in texts)
    if not good or sum(map(len, texts)) > limits.chars:
        raise Refused(f"prompt is a text, or a list of 1 to {limits.n}, {limits.chars} characters in all",
                      param="prompt")  # fmt: skip
    return tuple(texts)


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


def _texts(value: Any, key: str, most: int, limits: Limits, *, one: bool = False) -> tuple[str, ...]:
    if value is None:
        return ()
    texts: Sequence[Any] = [value] if one and isinstance(value, str) else value
    good = isinstance(texts, list) and len(texts) <= most and all(isinstance(t, str) and t for t in texts)
    if not good or len(set(texts)) != len(texts) or sum(map(len, texts)) > limits.chars:
        raise Refused(f"{key} is a list of at most {most} different texts", param=key)
    return tuple(texts)


def _whole(data: Mapping[str, Any], key: str, default: int, least: int, most: int) -> int:
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Refused(f"{key} is a whole number from {least} to {most}", param=key)
    return value


def _number(data: Mapping[str, Any], key: str, default: float, least: float, most: float) -> float:
    value = data.get(key)
    if value is None:
        return default
    if not _is_number(value) or not least <= value <= most:
        raise Refused(f"{key} is a number from {least:g} to {most:g}", param=key)
    return float(value)


def _flag(value: Any, key: str) -> bool:
    if not isinstance(value, bool | None):
        raise Refused(f"{key} is true or false", param=key)
    return bool(value)


def _is_number(value: Any) -> bool:
    """True of a whole number of any size, which no float need hold, and of a finite float."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
