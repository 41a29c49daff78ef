"""The interface, described for programs: what may be sent, within which limits, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairlead import __version__
from fairlead.core.types import Json
from fairlead.serve.ask import IGNORED, neutral_keys
from fairlead.serve.limits import FeatureLimits, Limits

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


def describe(names: Sequence[str], limits: Limits, *, key: bool, features: bool = False) -> Json:
    """OpenAPI 3.1 for a server of these models; `features` are asked about where it has a dictionary."""
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
            "/health": {"get": _health()},
            "/metrics": {"get": _metrics(security)},
            "/v1/models": {"get": _get("The models.", listed, security)},
            "/v1/chat/completions": {"post": _post("Answer a chat.", "Chat", "ChatAnswer", security)},
            "/v1/completions": {"post": _post("Continue raw texts.", "Text", "TextAnswer", security)},
            **(_feature_paths(security) if features else {}),
        },
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Chat": _chat(names, limits), "Text": _text(names, limits), "Error": _error(),
                "ChatAnswer": _answer("chat.completion"), "TextAnswer": _answer("text_completion"),
                **(_feature_schemas() if features else {}),
            },
        },
    }  # fmt: skip


def _get(told: str, properties: Json, security: Json) -> Json:
    schema = {"type": "object", "required": sorted(properties), "properties": properties}
    found = {"200": {"description": told, "content": {"application/json": {"schema": schema}}}}
    return {"summary": told, "security": security, "responses": {**found, **_refused("401")}}


def _health() -> Json:
    told = {"status": {"const": "ok"}, "waiting": _whole(0)}
    dead = _get("The model's thread died.", {**told, "status": {"const": "failed"}}, [])["responses"]["200"]
    found = _get("Whether it serves.", told, [])
    return {**found, "responses": {**found["responses"], "503": dead}}


def _metrics(security: Json) -> Json:
    found = {"200": {"description": "Counters.", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    return {"summary": "Counters for Prometheus.", "security": security, "responses": {**found, **_refused("401")}}


def _post(told: str, asked: str, answer: str, security: Json, *, streams: bool = True) -> Json:
    whole = {"schema": {"$ref": f"#/components/schemas/{answer}"}}
    content = {"application/json": whole}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    said = "An answer, or a stream of them." if streams else "An answer."
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{asked}"}}}
    return {
        "summary": told, "security": security, "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": said, "content": content},
                      **_refused(*_REFUSALS)},
    }  # fmt: skip


def _refused(*codes: str) -> Json:
    return {c: {"description": _REFUSALS[c], "content": {"application/json": {"schema": _ERROR}}} for c in codes}


def _chat(names: Sequence[str], limits: Limits) -> Json:
    part = {**_object({"type": {"const": "text"}, "text": _string()}, ("type", "text")), "additionalProperties": True}
    content = [{"type": "string"}, {"type": "array", "items": part}]
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
    return _object({**_without_effect(text=False), **_shared(names, limits), **own}, ("model", "messages"))


def _text(names: Sequence[str], limits: Limits) -> Json:
    texts = {"type": "array", "items": _string(), "minItems": 1, "maxItems": limits.n}
    own = {"prompt": {"oneOf": [_string(), texts]}, "logprobs": _or_null(_whole(0, limits.tops))}
    return _object({**_without_effect(text=True), **_shared(names, limits), **own}, ("model", "prompt"))


def _shared(names: Sequence[str], limits: Limits) -> Json:
    stop, flag = {"type": "string", "minLength": 1}, {"type": ["boolean", "null"]}
    stops = {"type": "array", "items": stop, "maxItems": limits.stops, "uniqueItems": True}
    legal = {"type": "array", "items": stop, "maxItems": limits.choices, "uniqueItems": True}
    more = {
        "choices": _or_null(legal),
        "step": _or_null(_whole(0, 10_000)),
        "paired": flag,
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
        "stream": flag,
        "stream_options": _or_null({"type": "object", "properties": {"include_usage": flag}}),
        "edits": {"oneOf": [line, data, {"type": "null"}]},
        "fairlead": _or_null(_object(more)),
    }


def _without_effect(*, text: bool) -> Json:
    """Keys that a client may send and that change nothing: any value of some, the neutral one of others."""
    neutral = {key: {"enum": list(allowed)} for key, allowed in neutral_keys(text=text).items()}
    return {**{key: {} for key in IGNORED}, **neutral}


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


def _feature_paths(security: Json) -> Json:
    told = {
        "search": "Latents by number, by words of a label, by a token they peak on.",
        "inspect": "What is known of latents; with a text, their activation on each token.",
        "top": "The strongest latents on a text, or of all.",
        "contrast": "Latents that tell texts from other texts.",
    }
    schema = {name: name.capitalize() for name in told}
    return {
        f"/v1/features/{name}": {
            "post": _post(what, schema[name], f"{schema[name]}Answer", security, streams=False)
        } for name, what in told.items()
    }  # fmt: skip


def _feature_schemas() -> Json:
    most = FeatureLimits()
    told = {"type": "string", "minLength": 1, "maxLength": most.chars}
    texts = {"type": "array", "items": told, "minItems": 1, "maxItems": most.texts}
    said = {"role": {"enum": ["system", "user", "assistant"]}, "content": {"type": "string", "maxLength": most.chars}}
    messages = {"type": "array", "items": _object(said, tuple(said)), "minItems": 1, "maxItems": most.texts}
    read = {"text": _or_null(told), "messages": {**_or_null(messages), "description": "In place of a text."}}
    limit = {"limit": _whole(1, most.rows)}
    wanted = {"type": "array", "items": _whole(0, 2**31 - 1), "minItems": 1, "maxItems": most.latents}
    found = {"type": "string", "enum": ["number", "label", "token"]}
    number = {"type": "number"}
    shown = {"tokens": {"type": "array", "items": _string()}, "values": {"type": "object"}}
    return {
        "Search": _object({"query": {"type": "string", "maxLength": most.query}, **limit}, ("query",)),
        "Inspect": _object({"latents": wanted, **read}, ("latents",)),
        "Top": _object({"by": {"enum": ["density", "largest", "mean", "auroc"]}, **limit, **read}),
        "Contrast": _object({"a": texts, "b": texts, **limit}, ("a", "b")),
        "SearchAnswer": _object(_rows({"found": found}), ("latents",)),
        "InspectAnswer": _object({**_rows({}, more=True), "text": _object(shown, tuple(shown))}, ("latents",)),
        "TopAnswer": _object(_rows({"value": number, "at": _whole(0), "token": _string()}, ()), ("latents",)),
        "ContrastAnswer": _object(
            {**_rows({"auroc_a": number, "difference": number}), "n_a": _whole(1), "n_b": _whole(1)},
            ("latents", "n_a", "n_b"),
        ),
    }


def _rows(own: Json, required: Sequence[str] | None = None, *, more: bool = False) -> Json:
    """Lines about latents: what all of them have, and what this question adds; `more`: whole cards."""
    number, text = {"type": ["number", "null"]}, {"type": ["string", "null"]}
    shared: Json = {
        "latent": _whole(0), "label": text, "holds": {"type": ["boolean", "null"]}, "auroc": number,
        "density": number, "largest": number,
    }  # fmt: skip
    row = _object({**shared, **own}, (*shared, *(own if required is None else required)))
    return {"latents": {"type": "array", "items": {**row, "additionalProperties": more}}}


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
