"""A loopback server that speaks as much of the OpenAI API as a test needs; what it answers is a function."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any, dict[str, str]]  # status, JSON value or raw text, headers


def chat(text: str, read: int = 7, wrote: int = 3) -> Answer:
    """The body of a chat completion."""
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": read, "completion_tokens": wrote},
    }
    return 200, body, {}


def embeddings(rows: list[list[float]]) -> Answer:
    """The body of an embeddings answer, rows in reverse: `index` says which is which."""
    data = [{"index": i, "embedding": row} for i, row in enumerate(rows)]
    return 200, {"data": data[::-1], "usage": {"prompt_tokens": len(rows)}}, {}


@dataclass
class Endpoint:
    """What came in: `asked` holds (path, body, headers) of every request."""

    url: str
    asked: list[tuple[str, Any, dict[str, str]]] = field(default_factory=list)


@contextmanager
def serving(answer: Callable[[str, Any], Answer]) -> Iterator[Endpoint]:
    """An endpoint on a free port, until the context is left. `answer` gets the path after /v1/ and the body."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path = self.path.removeprefix("/v1/")
            with lock:
                endpoint.asked.append((path, body, dict(self.headers)))
                status, value, headers = answer(path, body)
            text = (value if isinstance(value, str) else json.dumps(value)).encode()
            self.send_response(status)
            for name, said in {"Content-Length": str(len(text)), **headers}.items():
                self.send_header(name, said)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()
