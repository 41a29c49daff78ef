"""What answered requests have read, kept for the next turn: keys and values by edits and tokens, the oldest thrown out.

A token's keys and values depend on the weights (one store each), on the edits, and, where those act on the prompt
only, on generated tokens only, on the decision token or on a role, on which of these the token was. All of it must
agree, so that a reused past is the one that would have been computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ids = npt.NDArray[np.int64]
MANY = 512  # pasts: a new prompt is set against each of them


@dataclass(frozen=True, eq=False)
class Past:
    """Tokens that were read: `ids` [n] with their signatures [n] (see `steering.slots`), the keys and values of every
    layer, and at which of them each edit fired, bool [n, edits]."""

    key: str
    ids: Ids
    signatures: Ids
    held: Sequence[tuple[Tensor, Tensor]]
    fired: npt.NDArray[np.bool_]

    @property
    def size(self) -> int:
        """Bytes."""
        rows = self.ids.nbytes + self.signatures.nbytes + self.fired.nbytes
        return rows + sum(k.numel() * k.element_size() + v.numel() * v.element_size() for k, v in self.held)


def common(a: Ids, sa: Ids, b: Ids, sb: Ids, depends: int) -> int:
    """How many first tokens of two rows are the same to edits that depend on these bits of a signature."""
    n = min(len(a), len(b))
    other = np.flatnonzero((a[:n] != b[:n]) | (((sa[:n] ^ sb[:n]) & depends) != 0))
    return int(other[0]) if len(other) else n


class Prefixes:
    """At most `most` bytes of pasts, and at most MANY of them."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self._pasts: OrderedDict[int, Past] = OrderedDict()
        self._next = 0

    def __len__(self) -> int:
        return len(self._pasts)

    def find(self, key: str, ids: Ids, signatures: Ids, depends: int) -> tuple[Past | None, int]:
        """The past that shares the most tokens, and how many."""
        best: tuple[int, int] = (0, -1)
        for number, past in self._pasts.items():
            if past.key == key:
                best = max(best, (common(ids, signatures, past.ids, past.signatures, depends), number))
        if best[0] == 0:
            return None, 0
        self._pasts.move_to_end(best[1])
        return self._pasts[best[1]], best[0]

    def keep(self, past: Past, depends: int) -> None:
        """Takes a past in; those that it continues go, then the oldest until it fits."""
        if past.size > self.most or not past.held:
            return
        for number, old in list(self._pasts.items()):
            mine = old.key == past.key and len(old.ids) <= len(past.ids)
            if mine and common(old.ids, old.signatures, past.ids, past.signatures, depends) == len(old.ids):
                self._drop(number)
        while self.bytes + past.size > self.most or len(self) >= MANY:
            self._drop(next(iter(self._pasts)))
        self._pasts[self._next] = past
        self._next += 1
        self.bytes += past.size

    def _drop(self, number: int) -> None:
        self.bytes -= self._pasts.pop(number).size

    def clear(self) -> None:
        self._pasts.clear()
        self.bytes = 0


