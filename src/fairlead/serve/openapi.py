"""The interface, described for programs: what may be sent, within which limits, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairlead import __version__
from fairlead.core.types import Json
from fairlead.serve.limits import Limits

_ERROR = {"$ref": "#/components/schemas/Error"}
_REFUSALS = {
    "400": "Cannot be answered as asked; an edit that cannot be applied is here, never unsteered text.",
    "401": "The key is missing or wrong.",
    "404": "No such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "429": "Too many wait; come again after Retry-After seconds.",
    "500": "The server failed; its log says how.",
    "503": "The server is stopping.",
    "504": "The answer took too long.",
}


def describe(names: Sequence[str], limits: Limits, *, key: bool) -> Json:
    """OpenAPI 3.1 for a server of these models."""
    security: list[Json] = [{"bearer": []}] if key else []
    listed = {"object": {"const": "list"}, "data": {"type": "array"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Fairlead",
            "version": __version__,
            "description": "OpenAI-compatible completions of a language model whose activations are edited.",
        },
        "paths": {
            "/health": {"get": _get("Whether it serves.", {"status": {"const": "ok"}, "waiting": _whole(0)}, [])},
            "/metrics": {"get": _metrics(security)},
            "/v1/models": {"get": _get("The models.", listed, security)},
            "/v1/chat/completions": {"post": _post("Answer a chat.", "Chat", "ChatAnswer", security)},
            "/v1/completions": {"post": _post("Continue raw texts.", "Text", "TextAnswer", security)},
        },
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Chat": _chat(names, limits), "Text": _text(names, limits), "Error": _error(),
                "ChatAnswer": _answer("chat.completion"), "TextAnswer": _answer("text_completion"),
            },
        },
    }  # fmt: skip


def _get(told: str, properties: Json, security: Json) -> Json:
    schema = {"type": "object", "required": sorted(properties), "properties": properties}
    found = {"200": {"description": told, "content": {"application/json": {"schema": schema}}}}
    return {"summary": told, "security": security, "responses": {**found, **_refused("401")}}


def _metrics(security: Json) -> Json:
    found = {"200": {"description": "Counters.", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    return {"summary": "Counters for Prometheus.", "security": security, "responses": {**found, **_refused("401")}}


def _post(told: str, asked: str, answer: str, security: Json) -> Json:
    whole = {"schema": {"$ref": f"#/components/schemas/{answer}"}}
    content = {"application/json": whole, "text/event-stream": {"schema": {"type": "string"}}}
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{asked}"}}}
    return {
        "summary": told, "security": security, "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": "An answer, or a stream of them.", "content": content},
                      **_refused(*_REFUSALS)},
    }  # fmt: skip


def _refused(*codes: str) -> Json:
    return {c: {"description": _REFUSALS[c], "content": {"application/json": {"schema": _ERROR}}} for c in codes}


def _chat(names: Sequence[str], limits: Limits) -> Json:
    content = [{"type": "string"}, {"type": "array", "items": _object({"type": {"const": "text"}, "text": _string()})}]
    message = _object(
        {
            "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": {"oneOf": content},
            "name": {},
        },
        ("role", "content"),
    )
    own = {
        "messages": {"type": "array", "items": message, "minItems": 1, "maxItems": limits.messages},
        "max_completion_tokens": _or_null(_whole(1, limits.tokens)),
        "logprobs": _or_null({"type": "boolean"}),
        "top_logprobs": _or_null(_whole(0, limits.tops)),
    }
    return _object({**_shared(names, limits), **own}, ("model", "messages"))


def _text(names: Sequence[str], limits: Limits) -> Json:
    texts = {"type": "array", "items": _string(), "minItems": 1, "maxItems": limits.n}
    own = {"prompt": {"oneOf": [_string(), texts]}, "logprobs": _or_null(_whole(0, limits.tops))}
    return _object({**_shared(names, limits), **own}, ("model", "prompt"))


def _shared(names: Sequence[str], limits: Limits) -> Json:
    stop = {"type": "string", "minLength": 1}
    stops = {"type": "array", "items": stop, "maxItems": limits.stops, "uniqueItems": True}
    legal = {"type": "array", "items": stop, "maxItems": limits.choices, "uniqueItems": True}
    more = {
        "choices": _or_null(legal),
        "step": _or_null(_whole(0, 10_000)),
        "paired": _or_null({"type": "boolean"}),
    }
    line = {"type": "string", "maxLength": limits.edit_chars, "description": "A line of the edit language."}
    data = {"type": "array", "maxItems": limits.edits, "items": {"type": "object"}, "description": "Its JSON."}
    return {
        "model": {"enum": list(names)},
        "max_tokens": _or_null(_whole(1, limits.tokens)),
        "temperature": _or_null({"type": "number", "minimum": 0, "maximum": 2}),
        "top_p": _or_null({"type": "number", "minimum": 0, "maximum": 1}),
        "n": _or_null(_whole(1, limits.n)),
        "seed": _or_null(_whole(-(2**63), 2**63 - 1)),
        "stop": {"oneOf": [stop, stops, {"type": "null"}]},
        "stream": _or_null({"type": "boolean"}),
        "stream_options": _or_null({"type": "object", "properties": {"include_usage": {"type": "boolean"}}}),
        "edits": {"oneOf": [line, data, {"type": "null"}]},
        "fairlead": _or_null(_object(more)),
    }


def _answer(kind: str) -> Json:
    whole = {"type": "integer", "minimum": 0}
    usage = {name: whole for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage", "fairlead"],
        "properties": {
            "id": _string(), "object": {"const": kind}, "created": whole, "model": _string(),
            "choices": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["index"]}},
            "usage": {"type": "object", "required": sorted(usage), "properties": usage},
            "fairlead": {"type": "object", "required": ["fingerprint", "edits"], "properties": {
                "fingerprint": _string(), "edits": {"type": "array", "items": _report()}, "line": _string(),
            }},
        },
    }  # fmt: skip


def _report() -> Json:
    number = {"type": ["number", "null"]}
    return _object(
        {"edit": _string(), "fired": _whole(0), "seen": _whole(0), "before": number, "after": number},
        ("edit", "fired", "seen", "before", "after"),
    )


def _error() -> Json:
    text = {"type": ["string", "null"]}
    inside = {"message": _string(), "type": _string(), "param": text, "code": text}
    return _object({"error": _object(inside, tuple(inside))}, ("error",))


def _object(properties: Json, required: Sequence[str] = ()) -> Json:
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False,
    }  # fmt: skip


def _string() -> Json:
    return {"type": "string"}


def _whole(least: int, most: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "integer", "minimum": least}
    return found if most is None else {**found, "maximum": most}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}
