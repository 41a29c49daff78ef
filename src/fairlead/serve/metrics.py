"""Counters in the text that Prometheus reads. A page of them is three lines each, so nothing is installed for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from fairlead.serve.scheduler import Scheduler

KIND = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # seconds
_HELP = {
    "steps": "Steps of the decode loop.",
    "forwards": "Forwards of the shared batch.",
    "failed_forwards": "Forwards that failed.",
    "prompt_tokens": "Prompt tokens read.",
    "reused_tokens": "Prompt tokens taken from what was read before.",
    "new_tokens": "Tokens generated.",
    "edits_fired": "Tokens at which an edit fired, over all edits.",
    "finished": "Answers given by the shared batch.",
    "failed": "Answers of the shared batch that ended in an error.",
    "cancelled": "Answers that nobody waited for any more.",
}


@dataclass
class Requests:
    """Requests by path and status, and how long they took until the head of their answer."""

    by_status: Counter[tuple[str, int]] = field(default_factory=Counter)
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0

    def count(self, path: str, status: int, seconds: float) -> None:
        self.by_status[path, status] += 1
        self.seconds += seconds
        self.buckets[sum(seconds > bound for bound in BOUNDS)] += 1


def page(requests: Requests, waiting: int, schedulers: Sequence[Scheduler]) -> str:
    """Everything, as text. Names hold no model and no prompt."""
    return "\n".join([*_requests(requests, waiting), *_batch(schedulers)]) + "\n"


def _requests(requests: Requests, waiting: int) -> Iterator[str]:
    yield from _head("fairlead_requests_total", "counter", "Requests answered, by path and status.")
    for (path, status), count in sorted(requests.by_status.items()):
        yield f'fairlead_requests_total{{path="{path}",status="{status}"}} {count}'
    yield from _head("fairlead_request_seconds", "histogram", "Seconds until the head of an answer was sent.")
    total = 0
    for bound, count in zip((*BOUNDS, "+Inf"), requests.buckets, strict=True):
        total += count
        yield f'fairlead_request_seconds_bucket{{le="{bound}"}} {total}'
    yield f"fairlead_request_seconds_sum {requests.seconds}"
    yield f"fairlead_request_seconds_count {total}"
    yield from _gauge("fairlead_requests_here", "Requests being answered or waiting.", waiting)


def _batch(schedulers: Sequence[Scheduler]) -> Iterator[str]:
    for name, told in _HELP.items():
        yield from _head(f"fairlead_{name}_total", "counter", told)
        yield f"fairlead_{name}_total {sum(asdict(s.stats)[name] for s in schedulers)}"
    yield from _gauge("fairlead_rows_busy", "Rows at work in the shared batch.", sum(s.busy for s in schedulers))
    yield from _gauge("fairlead_rows_waiting", "Jobs that wait for a row.", sum(s.waiting for s in schedulers))
    kept = sum(s.batch.prefixes.bytes for s in schedulers)
    yield from _gauge("fairlead_prefix_bytes", "Bytes of keys and values kept for later turns.", kept)


def _head(name: str, kind: str, told: str) -> Iterator[str]:
    yield f"# HELP {name} {told}"
    yield f"# TYPE {name} {kind}"


def _gauge(name: str, told: str, value: float) -> Iterator[str]:
    yield from _head(name, "gauge", told)
    yield f"{name} {value}"
