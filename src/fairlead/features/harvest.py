"""Filling a feature store: texts or chats through the model once, encoded, kept sparse.

    store = harvest(subject, dictionary, texts_of(subject, texts), "my-store")
    Index(store).top[123]
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairlead.core.errors import FairleadError
from fairlead.core.types import Messages
from fairlead.features import index, store
from fairlead.features.store import Array, Codes, Header, Store

_DENSE_AT_ONCE = 2**21  # latents of a piece while it is dense: 8 MiB of float32, which a cache can hold

Progress = Callable[[str, int, int], None]  # phase, done, of how many


@dataclass(frozen=True, eq=False)
class Corpus:
    """What is read: the token ids of every sequence, and a function that gives the activations [P, d] at a site of
    some of them, one tensor each. No sequence exceeds `longest` tokens, where that is known."""

    ids: Sequence[Array]
    read: Callable[[slice, str], list[Tensor]]
    longest: int | None = None


def texts_of(subject: Any, texts: Sequence[str], *, max_tokens: int = 256) -> Corpus:
    """Raw texts, each cut to `max_tokens`; what a cut leaves out is not read."""
    ids = [np.array(found, dtype=np.uint32) for found in subject.text_tokens(texts, max_tokens)]
    return Corpus(ids, lambda part, site: subject.text_activations(texts[part], [site], max_tokens=max_tokens)[site])


def chats_of(subject: Any, prompts: Sequence[Messages]) -> Corpus:
    """Chats, as the subject's template renders them."""
    ids = [np.asarray(subject.tokens(prompt).ids, dtype=np.uint32) for prompt in prompts]
    return Corpus(ids, lambda part, site: subject.activations(prompts[part], [site], "all")[site])


@dataclass(frozen=True)
class Plan:
    """What is to be harvested, for whoever only writes it down: the store's header, the texts of all token ids, and the
    length of every sequence."""

    header: Header
    vocabulary: list[str]
    lengths: list[int]
    longest: int | None = None

    @property
    def cut(self) -> int:
        """Sequences that reach the length that is read."""
        return sum(length == self.longest for length in self.lengths)

    @property
    def parts(self) -> list[slice]:
        """The sequences of every shard."""
        return store.divide(self.lengths, self.header.shard_tokens)


class Harvester:
    """Reads and encodes one shard after another; writes nothing. Raises FairleadError where nothing is to be read."""

    def __init__(
        self, subject: Any, dictionary: Any, corpus: Corpus, *, window: int = 32, shard_tokens: int = 65_536,
        batch: int = 16,
    ) -> None:  # fmt: skip
        if not len(corpus.ids):
            raise FairleadError("nothing to harvest", expected="at least one text")
        dictionary.check_width(subject.d_model)
        self.dictionary, self._corpus = dictionary, corpus
        header = _header(subject, dictionary, corpus, window, shard_tokens, batch)
        self.plan = Plan(header, _vocabulary(subject), [len(s) for s in corpus.ids], corpus.longest)

    def shard(self, part: slice, told: Callable[[int], None] = lambda _tokens: None) -> dict[str, Array]:
        """The arrays of the shard that holds the sequences `part`; `told` hears how many tokens are read."""
        codes = _codes(self.dictionary, self._corpus, part, self.plan.header.batch, told)
        return store.shard_arrays(self.plan.header, self._corpus.ids[part], codes)


def harvest(
    subject: Any,
    dictionary: Any,
    corpus: Corpus,
    out: str | Path,
    *,
    window: int = 32,
    shard_tokens: int = 65_536,
    batch: int = 16,
    with_neighbours: bool = True,
    progress: Progress | None = None,
) -> Store:
    """The store of `corpus` at `out`, with its index. Interrupted, the same call goes on; finished, it only opens.

    Memory: one shard's codes (6 bytes an entry), a piece of dense latents, and the index's tables (about 2.7 kB a
    latent). Raises FairleadError where another harvest lies, where nothing is to be read, or where a shard cannot be
    written."""
    harvester = Harvester(subject, dictionary, corpus, window=window, shard_tokens=shard_tokens, batch=batch)
    fill(harvester, out, progress=progress)
    return indexed(Path(out), dictionary if with_neighbours else None, progress)


def fill(harvester: Harvester, out: str | Path, *, progress: Progress | None = None) -> None:
    """Write every shard that is not there yet."""
    plan, root, say = harvester.plan, Path(out), progress or (lambda _phase, _done, _total: None)
    store.begin(root, plan.header, plan.vocabulary)
    done = 0
    for number, part in enumerate(plan.parts):

        def told(tokens: int, before: int = done) -> None:
            say("tokens", before + tokens, plan.header.tokens)

        if not store.has_shard(root, number):
            store.keep_shard(root, number, harvester.shard(part, told))
        done += sum(plan.lengths[part])
        say("tokens", done, plan.header.tokens)


def indexed(root: Path, dictionary: Any | None, progress: Progress | None = None) -> Store:
    """The store at `root`, whole, with its index; a dictionary adds the neighbours of its rows."""
    found = Store(root)
    if not index.path_of(found).is_dir():
        index.build(found, dictionary, progress=progress)
    return found


def read_at(dictionary: Any) -> str:
    """The site whose activations a dictionary encodes: a transcoder reads at one and writes at another."""
    return str(getattr(dictionary, "site_in", dictionary.site))


@torch.inference_mode()
def encode_sparse(dictionary: Any, x: Tensor) -> Codes:
    """The latents of x [T, d] that are above 0, without ever holding more than a few rows of [T, m] dense."""
    step = max(1, _DENSE_AT_ONCE // dictionary.n_features)
    counts, latents, values = [], [], []
    for piece in x.split(step):
        f = dictionary.encode(piece.float())
        row, latent = f.nonzero(as_tuple=True)
        counts.append(torch.bincount(row, minlength=len(piece)))
        latents.append(latent)
        values.append(f[row, latent].float())

    def joined(parts: list[Tensor]) -> Array:
        whole: Array = torch.cat(parts).cpu().numpy()
        return whole

    if not len(x):
        return Codes(*(np.zeros(0, dtype=kind) for kind in (np.int64, np.int64, np.float32)))
    return Codes(joined(counts), joined(latents), joined(values))


def _codes(
    dictionary: Any, corpus: Corpus, part: slice, batch: int, told: Callable[[int], None]
) -> Iterator[Codes]:
    tokens = 0
    for start in range(part.start, part.stop, batch):
        these = slice(start, min(start + batch, part.stop))
        hidden = corpus.read(these, read_at(dictionary))
        wrong = [i for i, (x, ids) in enumerate(zip(hidden, corpus.ids[these], strict=True)) if len(x) != len(ids)]
        if wrong:
            raise FairleadError(
                "the model read other tokens than were counted",
                expected=f"{len(corpus.ids[start + wrong[0]])} tokens of sequence {start + wrong[0]}",
                got=str(len(hidden[wrong[0]])),
            )
        rows = torch.cat(list(hidden))
        if not bool(torch.isfinite(rows).all()):
            raise FairleadError(
                f"activations at {read_at(dictionary)} hold NaN or infinity",
                expected="finite numbers",
                got=f"sequences {start} to {these.stop - 1}",
                do="check the model's weights and dtype",
            )
        yield encode_sparse(dictionary, rows)
        tokens += len(rows)
        told(tokens)


def _header(
    subject: Any, dictionary: Any, corpus: Corpus, window: int, shard_tokens: int, batch: int
) -> Header:
    digest = hashlib.sha256()
    for ids in corpus.ids:
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(ids, dtype="<u4").data)
    return Header(
        model=subject.name,
        model_fingerprint=subject.fingerprint,
        dictionary=dictionary.name,
        dictionary_fingerprint=dictionary.fingerprint,
        site=read_at(dictionary),
        n_features=dictionary.n_features,
        corpus=digest.hexdigest(),
        sequences=len(corpus.ids),
        tokens=sum(len(s) for s in corpus.ids),
        window=window,
        shard_tokens=shard_tokens,
        batch=batch,
    )


def _vocabulary(subject: Any) -> list[str]:
    tokenizer = subject.tokenizer
    return [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in range(len(tokenizer))]
