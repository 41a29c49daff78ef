"""How strongly every latent fires on the words of every prompt, at most, and on which token: sparse, in one pass.

Items × latents would not fit (10,000 × 65,536 floats are 2.6 GB); what fires does. Memory: the non-zero entries (12
bytes each), and a few rows of dense latents at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from fairlead.core.types import Messages
from fairlead.features.harvest import encode_sparse, read_at
from fairlead.features.misread.spans import Words, words_of

Floats = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Peaks:
    """`values` [N, m], CSR: each latent's largest activation on the words of prompt i. `places` [N, m] has the same
    sparsity: the prompt token where that is, plus one. `words[i]` are the words of prompt i."""

    values: Any
    places: Any
    words: tuple[Words, ...]

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def column(self, latent: int) -> Floats:
        """[N]: a latent's largest activation in each prompt."""
        found: Floats = np.asarray(self.values[:, [latent]].todense(), dtype=np.float64)[:, 0]
        return found

    def place(self, latent: int) -> npt.NDArray[np.int64]:
        """[N]: the prompt token where that is; -1 where it does not fire."""
        found: npt.NDArray[np.int64] = np.asarray(self.places[:, [latent]].todense(), dtype=np.int64)[:, 0] - 1
        return found

    def rows(self, index: Sequence[int]) -> Peaks:
        """The prompts at `index`."""
        at = np.asarray(index, dtype=np.int64)
        return Peaks(self.values[at], self.places[at], tuple(self.words[i] for i in at))


def read_peaks(
    subject: Any, dictionary: Any, prompts: Sequence[Messages], *, batch: int = 32, progress: Progress | None = None
) -> Peaks:
    """One forward over each prompt, up to the dictionary's site. It and the encoding are charged to the subject's
    meter."""
    words = tuple(words_of(subject, prompt) for prompt in prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(subject.tokens(prompts[i]).ids))
    data: list[tuple[Any, Any, Any, Any]] = []
    for start in range(0, len(order), batch):
        these = order[start : start + batch]
        read = subject.activations([prompts[i] for i in these], [read_at(dictionary)], "all")[read_at(dictionary)]
        kept = [x[torch.from_numpy(words[i].tokens).to(x.device)] for x, i in zip(read, these, strict=True)]
        data += _reduced(dictionary, torch.cat(kept), these, words)
        if progress:
            progress(min(start + batch, len(order)), len(order))
    if getattr(subject, "meter", None) is not None:
        tokens = sum(len(w.tokens) for w in words)
        subject.meter.charge(flops=2.0 * dictionary.d_in * dictionary.n_features * tokens)
    shape = (len(prompts), dictionary.n_features)
    return Peaks(*_csr(data, shape), words)


def _reduced(dictionary: Any, x: torch.Tensor, items: Sequence[int], words: Sequence[Words]) -> list[Any]:
    """(item, latent, largest activation, token + 1), one array each, of one batch of word tokens [T, d]."""
    codes = encode_sparse(dictionary, x)
    lengths = [len(words[i].tokens) for i in items]
    item = np.repeat(np.repeat(np.asarray(items, dtype=np.int64), lengths), codes.counts)
    token = np.repeat(np.concatenate([words[i].tokens for i in items]) if items else [], codes.counts)
    order = np.lexsort((-codes.values, codes.latents, item))
    item, token = item[order], np.asarray(token, dtype=np.int64)[order]
    latent, value = codes.latents[order].astype(np.int64), codes.values[order]
    first = np.ones(len(item), dtype=bool)
    first[1:] = (item[1:] != item[:-1]) | (latent[1:] != latent[:-1])
    return [(item[first].astype(np.int32), latent[first].astype(np.int32), value[first].astype(np.float32),
             token[first].astype(np.int32) + 1)]  # fmt: skip


def _csr(parts: Sequence[tuple[Any, Any, Any, Any]], shape: tuple[int, int]) -> tuple[Any, Any]:
    kinds = (np.int32, np.int32, np.float32, np.int32)
    joined = [np.concatenate([p[k] for p in parts] or [np.zeros(0, kind)]) for k, kind in enumerate(kinds)]
    item, latent, value, token = joined
    order = np.argsort(item, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(item, minlength=shape[0]))])
    columns = latent[order]
    values = sparse.csr_matrix((value[order], columns, starts), shape=shape)
    places = sparse.csr_matrix((token[order], columns.copy(), starts.copy()), shape=shape)
    return values, places
