"""What is kept of answered requests stays within its bounds, and the most recently used stays."""

from __future__ import annotations

import numpy as np
import torch

from fairlead.serve.prefixes import MANY, Past, Prefixes


def past(first: int, length: int = 4, key: str = "none") -> Past:
    ids = np.arange(first, first + length)
    held = [(torch.zeros(1, 1, length, 8), torch.zeros(1, 1, length, 8))]
    return Past(key, ids, np.zeros_like(ids), held, np.zeros((length, 1), dtype=bool))


def found(kept: Prefixes, one: Past) -> int:
    return kept.find(one.key, one.ids, one.signatures, 0)[1]


def test_bytes_are_bounded_and_the_one_used_last_stays():
    size = past(0).size
    assert size >= 4 * 8 * 4 * 2  # keys and values at the least
    kept = Prefixes(3 * size)
    for i in range(3):
        kept.keep(past(100 * i), 0)
    assert len(kept) == 3 and kept.bytes == 3 * size
    assert found(kept, past(0)) == 4  # used, so it is not the oldest any more
    kept.keep(past(300), 0)
    assert len(kept) == 3 and kept.bytes == 3 * size
    assert [found(kept, past(100 * i)) for i in range(4)] == [4, 0, 4, 4]
    kept.keep(past(500, length=400), 0)  # larger than all there is room for
    assert len(kept) == 3


def test_so_many_are_kept_and_no_more():
    kept = Prefixes(1 << 30)
    for i in range(MANY + 10):
        kept.keep(past(100 * i), 0)
    assert len(kept) == MANY and kept.bytes == MANY * past(0).size
    assert found(kept, past(0)) == 0 and found(kept, past(100 * (MANY + 9))) == 4


def test_a_longer_past_takes_the_place_of_what_it_continues_under_the_same_edits():
    kept = Prefixes(1 << 30)
    for one in (past(0), past(0, key="other"), past(0, length=6)):
        kept.keep(one, 0)
    assert len(kept) == 2
    assert found(kept, past(0, length=9)) == 6 and found(kept, past(0, length=9, key="other")) == 4
