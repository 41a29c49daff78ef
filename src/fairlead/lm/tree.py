"""Continuations of one prompt as a tree of shared token prefixes, scored in a single forward.

The legal actions of a page share most of their tokens: click("12") and click("13") differ in one. Each
prefix becomes one token of the forward; an attention mask lets it see the prompt and its own ancestors
only, and its position is its depth. So every log-probability is exactly that of the whole string alone,
and no KV cache is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tree:
    """n inner prefixes of a continuations, and the e (prefix, next token) steps whose log-probabilities add up."""

    tokens: Ids  # [n] the prefix's last token
    depth: Ids  # [n] 1 for the first token of a continuation
    sees: npt.NDArray[np.bool_]  # [n, n] sees[i, j]: j is i or one of its ancestors
    before: Ids  # [e] 0 for the decision token, else 1 + the prefix that the step starts from
    token: Ids  # [e] the token the step takes
    owner: Ids  # [e] which continuation the step belongs to
    lengths: tuple[int, ...]  # [a] tokens of each continuation

    def ends(self) -> torch.Tensor:
        """[a] where the last but one token of each continuation stands: 0 the decision token, 1 + i the prefix i."""
        return torch.from_numpy(self.before[np.cumsum(self.lengths) - 1])


def grow(continuations: Sequence[Sequence[int]]) -> Tree:
    """The tree of some token sequences. An empty sequence has log-probability 0."""
    known: dict[tuple[int, int], int] = {}
    tokens: list[int] = []
    parents: list[int] = []
    steps: list[tuple[int, int, int]] = []
    for owner, ids in enumerate(continuations):
        at = 0
        for place, token in enumerate(ids):
            steps.append((at, token, owner))
            if place == len(ids) - 1:
                break
            if (at, token) not in known:
                tokens.append(token)
                parents.append(at)
                known[at, token] = len(tokens)
            at = known[at, token]
    sees = np.eye(len(tokens), dtype=bool)
    depth = np.ones(len(tokens), dtype=np.int64)
    for node, parent in enumerate(parents):
        if parent:
            sees[node] |= sees[parent - 1]
            depth[node] = depth[parent - 1] + 1
    before, token_, owner_ = np.array(steps, dtype=np.int64).reshape(-1, 3).T
    lengths = tuple(len(ids) for ids in continuations)
    return Tree(np.array(tokens, dtype=np.int64), depth, sees, before, token_, owner_, lengths)


EMPTY = grow(())
