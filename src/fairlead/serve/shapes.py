"""Answers and errors in OpenAI's shapes. Every answer has a part `fairlead`: what answered, and what its edits did."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from starlette.responses import JSONResponse, Response

from fairlead.core.errors import FairleadError, UnknownName
from fairlead.serve.ask import Ask, Refused
from fairlead.serve.batch import Token, TookTooLong
from fairlead.serve.lanes import Answer, Choice
from fairlead.serve.opened import Served
from fairlead.serve.scheduler import Busy, Dead, Stopping

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
DONE = "data: [DONE]\n\n"
log = logging.getLogger("fairlead.serve")


class Shape:
    """One request's answer, of a chat or of raw texts, whole or in events."""

    def __init__(self, served: Served, ask: Ask) -> None:
        self.served, self.ask, self.text = served, ask, bool(ask.prompts)
        self._head = {
            "id": f"{'cmpl' if self.text else 'chatcmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.name,
        }
        self._offsets: dict[int, int] = {}

    def whole(self, answer: Answer) -> dict[str, Any]:
        kind = "text_completion" if self.text else "chat.completion"
        return {
            **self._head, "object": kind, "system_fingerprint": answer.fingerprint[:12],
            "choices": [self._choice(i, c) for i, c in enumerate(answer.choices)],
            "usage": _usage(answer, self.ask.n), "fairlead": self._about(answer),
        }  # fmt: skip

    def opening(self) -> Iterator[str]:
        """The events that open a chat's choices."""
        if not self.text:
            for index in range(self.ask.n):
                yield self._event(index, {"delta": {"role": "assistant", "content": ""}})

    def piece(self, index: int, text: str, tokens: Sequence[Token]) -> str:
        content = {"text": text} if self.text else {"delta": {"content": text}}
        return self._event(index, content, self._logprobs(tokens, index) if tokens else None)

    def closing(self, answer: Answer, streamed: bool) -> Iterator[str]:
        """The last events; with all of the text where nothing was streamed."""
        about = {"system_fingerprint": answer.fingerprint[:12], "fairlead": self._about(answer)}
        for index, choice in enumerate(answer.choices):
            if not streamed and choice.text:
                yield self.piece(index, choice.text, choice.tokens or ())
            empty: dict[str, Any] = {"text": ""} if self.text else {"delta": {}}
            last = index == len(answer.choices) - 1
            yield self._event(index, empty, None, choice.reason, **(about if last else {}))
        if self.ask.usage:  # the last event holds all that is told of the answer, asked for usage or not
            yield _line({**self._chunk(), "choices": [], "usage": _usage(answer, self.ask.n), **about})
        yield DONE

    def _event(
        self, index: int, content: dict[str, Any], logprobs: Any = None, finish: str | None = None, **more: Any
    ) -> str:
        choice = {"index": index, **content, "finish_reason": finish, "logprobs": logprobs}
        return _line({**self._chunk(), "choices": [choice], **more})

    def _chunk(self) -> dict[str, Any]:
        return {**self._head, "object": "text_completion" if self.text else "chat.completion.chunk"}

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        said = {"text": choice.text} if self.text else {"message": {"role": "assistant", "content": choice.text}}
        logprobs = None if choice.tokens is None else self._logprobs(choice.tokens, index)
        own = {"fairlead": {"edits": [asdict(edit) for edit in choice.edits]}} if index else {}
        return {"index": index, **said, "finish_reason": choice.reason, "logprobs": logprobs, **own}

    def _logprobs(self, tokens: Sequence[Token], index: int) -> dict[str, Any]:
        if not self.text:
            return {"content": [_chat_token(token) for token in tokens], "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token.text)
        return {
            "tokens": [t.text for t in tokens], "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [dict(t.top) for t in tokens], "text_offset": offsets,
        }  # fmt: skip

    def _about(self, answer: Answer) -> dict[str, Any]:
        first = answer.choices[0]
        about: dict[str, Any] = {
            "fingerprint": answer.fingerprint, "edits": [asdict(edit) for edit in first.edits]
        }  # fmt: skip
        if answer.edits is not None:
            about["line"] = answer.edits
        if self.ask.choices and first.legal is not None:
            pairs = zip(self.ask.choices, first.legal, strict=True)
            about["choices"] = [{"text": text, "logprob": logprob} for text, logprob in pairs]
        if answer.default is not None:
            default = answer.default
            about["default"] = {
                "text": default.text, "finish_reason": default.reason,
                "usage": {"prompt_tokens": default.prompt, "completion_tokens": default.new},
            }  # fmt: skip
        if any(choice.cut for choice in answer.choices):
            about["cut"] = "the server stopped before the answer was done"
        return about


def refused(error: Exception) -> Refused:
    """What is told of an error. Of what nobody foresaw, nothing but that: its place is the log."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, UnknownName):
        return Refused(str(error), status=404, param="model", code="model_not_found")
    if isinstance(error, FairleadError):
        return Refused(str(error))
    if isinstance(error, Busy):
        return busy(error.seconds)
    if isinstance(error, Stopping):
        return Refused("the server is stopping", status=503, after=5)
    if isinstance(error, Dead):
        return Refused("the server failed and answers nothing more; its log says how", status=503)
    if isinstance(error, TimeoutError | TookTooLong):
        return Refused("the answer took too long", status=504)
    log.error("a request failed", exc_info=error)  # the traceback holds no prompt
    return Refused("the server failed; its log says how", status=500)


def no_key() -> Refused:
    return Refused("a key is needed: Authorization: Bearer ...", status=401, code="invalid_api_key")


def busy(seconds: int) -> Refused:
    return Refused("too many requests wait", status=429, after=seconds)


def refusal(refused: Refused) -> Response:
    """A 4xx, or a 5xx that asks to come again."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(refused.status, "invalid_request_error")
    kind = "server_error" if refused.status >= 500 else kind
    headers = {} if refused.after is None else {"Retry-After": str(refused.after)}
    body = _error(refused.message, kind, refused.param, refused.code)
    return JSONResponse(body, refused.status, headers={**HEADERS, **headers})


def error_event(message: str, kind: str = "server_error") -> str:
    """An error after the head of a stream was sent."""
    return _line(_error(message, kind, None, None))


def _error(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _chat_token(token: Token) -> dict[str, Any]:
    return {**_said(token.text, token.logprob), "top_logprobs": [_said(*one) for one in token.top]}


def _said(text: str, logprob: float) -> dict[str, Any]:
    """A token's bytes are not told where it is a part of a character."""
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def _usage(answer: Answer, n: int) -> dict[str, Any]:
    """Tokens of the request: each prompt once, all choices, and the unsteered answer."""
    said = [*answer.choices, *([answer.default] if answer.default else ())]
    each = answer.choices[::n]
    prompt, new, reused = sum(c.prompt for c in each), sum(c.new for c in said), sum(c.reused for c in each)
    return {
        "prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": reused},
    }  # fmt: skip


def _line(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"
