"""Tokens to text as they come: no half characters, and nothing that a stop may still take back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF = "\ufffd"


class Speech:
    """One answer's words. `add` gives the text that is safe to send; `end` the rest. `said` is what was sent, and is
    the whole answer once `end` was called; `stopped` says that a stop was met."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, tuple(stops)
        self._ids: list[int] = []
        self._from, self._read = 0, 0  # ids[_from:_read] were decoded last: the context that the next ones need
        self._held = ""  # decoded, and not yet safe
        self.said, self.stopped = "", False

    def add(self, token: int) -> str:
        """One more token, which is no end of turn."""
        self._ids.append(token)
        before, now = self._decode(self._ids[self._from : self._read]), self._decode(self._ids[self._from :])
        if len(now) <= len(before) or now.endswith(HALF):
            return ""
        self._from, self._read = self._read, len(self._ids)
        self._held += now[len(before) :]
        return self._release()

    def end(self) -> str:
        """What was held back: half a character, or the beginning of a stop that did not come."""
        if self.stopped:
            return ""
        whole = self._decode(self._ids)
        if whole.startswith(self.said):
            self._held = whole[len(self.said) :]
        rest = self._cut() if self._stops else self._held
        self._held = ""
        self.said += rest
        return rest

    def _release(self) -> str:
        safe = self._cut()
        if not self.stopped:
            kept = max((_overlap(safe, stop) for stop in self._stops), default=0)
            safe = safe[: len(safe) - kept] if kept else safe
        self._held = self._held[len(safe) :]
        self.said += safe
        return safe

    def _cut(self) -> str:
        """What is held, up to the first stop."""
        places = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        self.stopped = bool(places)
        return self._held[: min(places)] if places else self._held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
