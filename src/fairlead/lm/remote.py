"""A language model behind an OpenAI-compatible endpoint: chat completions and embeddings.

    remote = Remote("http://localhost:8000/v1", "llama-3.1-8b-instruct")
    text = await remote.complete([Message("user", "Say red.")])

Any base URL serves that speaks `POST {base_url}/chat/completions` and `POST {base_url}/embeddings` (vLLM, Ollama,
llama.cpp, OpenAI, ...). The API key is read from the environment variable that `api_key_env` names, at each call; it
is never kept, written or shown, is sent to no other host (redirects are not followed), and goes over plain http only
to this machine. Answers are kept on disk under the hash of base URL, model, prompt and parameters.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from fairlead.core.errors import FairleadError, RemoteError
from fairlead.core.keys import canonical, content_key
from fairlead.core.types import Message
from fairlead.lm.cache import Cache, default_file

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]  # done, of how many

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LARGEST = 256 * 2**20  # bytes of an answer
_LONGEST_WAIT = 60.0  # seconds between two attempts


@dataclass
class Usage:
    """What was asked so far. `calls` counts answered requests, those answered by the cache (`cached`) included."""

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    retries: int = 0


@dataclass
class _Line:
    """The connections of one event loop, closed when nobody uses them."""

    client: Any
    gate: asyncio.Semaphore
    users: int = 0


@dataclass(frozen=True, eq=False)
class Remote:
    """One model at one endpoint. Safe to use from many tasks at once; at most `concurrency` requests are under way.

    `api_key_env` names an environment variable (None: no key is sent). `timeout` is in seconds, for one attempt;
    `retries` attempts follow a first one that met 429, 5xx, a broken connection or silence, after `backoff`,
    twice that, ... seconds, or what Retry-After says. `cache` is a file (None: nothing is kept). `extra` is added to
    the body of chat requests, and a None in it takes a field away: {"max_tokens": None, "max_completion_tokens": 99}.

    `meter.charge` gets judge_calls, tokens and seconds. A kept answer is charged what it cost when it was made, so
    that a ledger does not depend on what a cache held. Raises RemoteError.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 0.5
    concurrency: int = 16
    cache: Path | None = field(default_factory=lambda: default_file("remote"))
    extra: Mapping[str, Any] = field(default_factory=dict)
    meter: Any = None
    usage: Usage = field(default_factory=Usage)
    _lines: dict[asyncio.AbstractEventLoop, _Line] = field(default_factory=dict, repr=False)
    _kept: list[Cache] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise FairleadError(
                f"{self._shown_url()!r} is not the base URL of an endpoint",
                expected="such as http://localhost:8000/v1 or https://api.openai.com/v1, without a key in it",
                do="name the key's environment variable with api_key_env",
            )
        if self.api_key_env is not None and parts.scheme == "http" and not _is_here(parts.hostname):
            raise FairleadError(
                f"a key would travel to {parts.hostname} unencrypted",
                expected="https, or http to this machine",
                do="use https, a tunnel to localhost, or no key",
            )
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        if self.cache is not None:
            self._kept.append(Cache(self.cache))

    async def complete(
        self, messages: Sequence[Message], *, max_tokens: int = 256, temperature: float = 0.0, seed: int | None = None
    ) -> str:
        """The assistant's answer to `messages`. With the cache on, the same request gives the same answer; to draw
        several at a temperature above 0, give several seeds."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if seed is not None:
            body["seed"] = seed
        body = {k: v for k, v in {**body, **self.extra}.items() if v is not None}
        key = content_key(["chat", self.base_url, body])
        kept = self._lookup([key]).get(key)
        if kept is None:
            answer, seconds = await self._post("chat/completions", body)
            kept = {"text": self._text_of(answer), **_tokens_of(answer), "seconds": seconds}
            self._keep({key: canonical(kept).encode()})
        else:
            kept = json.loads(kept)
            self.usage.cached += 1
        self._charge(kept)
        return str(kept["text"])

    async def complete_all(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> list[str]:
        """`complete` of each prompt, side by side, answers in the prompts' order. The first failure ends it; what
        was answered by then is kept in the cache."""
        done = 0

        async def one(messages: Sequence[Message]) -> str:
            nonlocal done
            text = await self.complete(messages, max_tokens=max_tokens, temperature=temperature, seed=seed)
            done += 1
            if progress:
                progress(done, len(prompts))
            return text

        return await self._together([one(messages) for messages in prompts])

    async def embed(self, texts: Sequence[str], *, batch: int = 128, progress: Progress | None = None) -> Vectors:
        """Embeddings [len(texts), d] as float32, as the endpoint gives them (not normalised here)."""
        keys = [content_key(["embedding", self.base_url, self.model, text]) for text in texts]
        kept = self._lookup(list(dict.fromkeys(keys)))
        self.usage.cached += len(kept)
        rows = {key: np.frombuffer(value, dtype="<f4") for key, value in kept.items()}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in rows}
        parts = [list(missing)[i : i + batch] for i in range(0, len(missing), batch)]

        async def one(part: list[str]) -> None:
            answer, seconds = await self._post(
                "embeddings", {"model": self.model, "input": [missing[key] for key in part]}
            )
            found = self._rows_of(answer, len(part))
            self._keep({key: row.tobytes() for key, row in zip(part, found, strict=True)})
            rows.update(zip(part, found, strict=True))
            self._charge({**_tokens_of(answer), "seconds": seconds})
            if progress:
                progress(len(rows), len(kept) + len(missing))

        await self._together([one(part) for part in parts])
        widths = {len(row) for row in rows.values()}
        if len(widths) > 1:
            raise self._wrong("embeddings of one width", f"widths {sorted(widths)}")
        return np.stack([rows[key] for key in keys]) if texts else np.zeros((0, 0), dtype=np.float32)

    async def __aenter__(self) -> Remote:
        """Keeps connections open until the context is left; without it each lone call opens its own."""
        (await self._take()).users += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._leave()

    # ---- inside

    async def _together(self, jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """The results of `jobs`, in order; the first failure is raised when the others have been called off."""
        async with self:
            tasks = [asyncio.ensure_future(job) for job in jobs]
            try:
                return list(await asyncio.gather(*tasks))
            except BaseException:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise

    def _charge(self, kept: Mapping[str, Any]) -> None:
        self.usage.calls += 1
        self.usage.prompt_tokens += kept["prompt_tokens"]
        self.usage.new_tokens += kept["new_tokens"]
        if self.meter is not None:
            self.meter.charge(
                judge_calls=1,
                prompt_tokens=kept["prompt_tokens"],
                new_tokens=kept["new_tokens"],
                seconds=kept["seconds"],
            )

    def _lookup(self, keys: Sequence[str]) -> dict[str, Any]:
        return self._kept[0].get(keys) if self._kept else {}

    def _keep(self, entries: Mapping[str, bytes]) -> None:
        if self._kept:
            self._kept[0].put(entries)

    async def _take(self) -> _Line:
        import httpx2

        loop = asyncio.get_running_loop()
        if loop not in self._lines:
            limits = httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
            client = httpx2.AsyncClient(timeout=self.timeout, limits=limits, follow_redirects=False)
            self._lines[loop] = _Line(client, asyncio.Semaphore(self.concurrency))
        return self._lines[loop]

    async def _leave(self) -> None:
        loop = asyncio.get_running_loop()
        line = self._lines[loop]
        line.users -= 1
        if not line.users:
            del self._lines[loop]
            await line.client.aclose()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        async with self:
            line = self._lines[asyncio.get_running_loop()]
            async with line.gate:
                yield line.client

    async def _post(self, path: str, body: Mapping[str, Any]) -> tuple[Any, float]:
        """(the answer's JSON, seconds of the attempt that succeeded)."""
        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with self._connected() as client:
            for attempt in range(self.retries + 1):
                started = time.perf_counter()
                status, text, wait = await self._attempt(client, path, body, headers)
                if status == 200:
                    try:
                        return json.loads(text), time.perf_counter() - started
                    except ValueError as error:
                        raise self._wrong("JSON", _short(_hidden(text, key))) from error
                if (status is not None and status not in _AGAIN) or attempt == self.retries:
                    raise self._refused(path, status, _short(_hidden(text, key)), attempt + 1)
                self.usage.retries += 1
                pause = self.backoff * 2**attempt * (1.0 + 0.25 * random.random())
                await asyncio.sleep(min(_LONGEST_WAIT, pause if wait is None else wait))
        raise AssertionError("unreachable")

    async def _attempt(
        self, client: Any, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[int | None, str, float | None]:
        """(status, body, seconds the server asks to wait). A status of None: no answer, and why."""
        import httpx2

        try:
            async with client.stream("POST", f"{self.base_url}/{path}", json=body, headers=headers) as answer:
                got = bytearray()
                async for chunk in answer.aiter_bytes():
                    got += chunk
                    if len(got) > _LARGEST:
                        raise self._wrong(f"an answer of at most {_LARGEST >> 20} MiB", "more")
                after = answer.headers.get("retry-after", "")
                wait = float(after) if after.isascii() and after.isdigit() else None
                return answer.status_code, got.decode("utf-8", "replace"), wait
        except httpx2.TimeoutException:
            return None, f"no answer within {self.timeout:g} s", None
        except httpx2.HTTPError as error:
            return None, f"{type(error).__name__}: {error}", None

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise RemoteError(
                f"no API key in the environment variable {self.api_key_env}",
                expected=f"the key of {self._shown_url()}",
                got="not set, or empty",
                do=f"export {self.api_key_env}=..., or name another variable",
            )
        return key

    def _refused(self, path: str, status: int | None, text: str, attempts: int) -> RemoteError:
        where = f"{self._shown_url()}/{path}"
        if status is None:
            return RemoteError(
                f"no answer from {where}",
                expected="an OpenAI-compatible server that is running",
                got=f"{text}, {attempts} times",
                do="start the server, or check the base URL",
            )
        do = {
            401: f"check the key in {self.api_key_env}" if self.api_key_env else "name the key's variable: api_key_env",
            403: "check that the key may use this model",
            404: f"check the model's name ({self.model}) and the base URL; most end in /v1",
            429: "wait, or lower the concurrency",
        }.get(status, "read what the server says; its own log may say more")
        times = f", after {attempts} attempts" if attempts > 1 else ""
        return RemoteError(f"{where} refused with status {status}{times}", expected="200", got=text, do=do)

    def _text_of(self, answer: Any) -> str:
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise self._wrong("choices[0].message.content, a text", _short(json.dumps(answer)))
        return text

    def _rows_of(self, answer: Any, count: int) -> Vectors:
        try:
            found = sorted(answer["data"], key=lambda row: row["index"])
            places = [row["index"] for row in found]
            rows = np.array([row["embedding"] for row in found], dtype="<f4")
        except (KeyError, IndexError, TypeError, ValueError):
            raise self._wrong("data[i].embedding, numbers", _short(json.dumps(answer))) from None
        if places != list(range(count)) or rows.ndim != 2 or not np.isfinite(rows).all():
            raise self._wrong(f"{count} finite embeddings of one width", f"{len(places)}, of shape {rows.shape}")
        return rows

    def _wrong(self, expected: str, got: str) -> RemoteError:
        return RemoteError(
            f"{self._shown_url()} answered something else",
            expected=expected,
            got=got,
            do="check that the base URL is that of an OpenAI-compatible API",
        )

    def _shown_url(self) -> str:
        """The base URL as a message may show it: without what stands before an @ or after a ?."""
        parts = urlsplit(self.base_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def _tokens_of(answer: Any) -> dict[str, int]:
    """What the server says it read and wrote; 0 where it says nothing."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    counts = {"prompt_tokens": usage.get("prompt_tokens"), "new_tokens": usage.get("completion_tokens")}
    return {name: value if isinstance(value, int) else 0 for name, value in counts.items()}


def _hidden(text: str, key: str | None) -> str:
    return text.replace(key, "***") if key else text


def _short(text: str, limit: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + " ..."


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
