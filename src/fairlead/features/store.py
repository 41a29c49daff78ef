"""A sparse feature store: what every latent did on every token of a corpus, on disk, from one pass of the model.

    DIR/store.json               what was read by which model and dictionary (Header)
    DIR/vocabulary.json          the text of every token id
    DIR/shards/00000/*.npy       tokens u32 [T], starts u32 [S] (where sequences begin), rows u32 [T + 1],
                                 latents u16 [nnz] (u32 above 65,536 latents), values f16 [nnz]
    DIR/index/*.npy              figures of every latent, made from the shards (see index.py)

Token t of a shard has the latents `latents[rows[t]:rows[t + 1]]`. Tokens are there once; everything is read through a
memory map. A shard holds whole sequences, the same ones however often the harvest was interrupted, and appears by
a rename: after kill -9 the same call goes on behind the last whole shard and leaves the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.core.errors import FairleadError, LoadError
from fairlead.core.keys import canonical

HEADER, VOCABULARY, SHARDS, INDEX = "store.json", "vocabulary.json", "shards", "index"
FORMAT = 1
LARGEST_U16 = 65_536  # latents that fit two bytes
SMALLEST, LARGEST = 2.0**-24, 65504.0  # activations that f16 holds; what fires never becomes 0

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Header:
    """What a store holds. `corpus` is a hash of all token ids; `window` tokens in a row count as one place when
    examples are chosen; `shard_tokens` and `batch` fix which tokens are encoded together, so that bytes repeat."""

    model: str
    model_fingerprint: str
    dictionary: str
    dictionary_fingerprint: str
    site: str
    n_features: int
    corpus: str
    sequences: int
    tokens: int
    window: int = 32
    shard_tokens: int = 65_536
    batch: int = 16
    format: int = FORMAT


@dataclass(frozen=True, eq=False)
class Codes:
    """Sparse codes of T tokens: `counts` [T] latents each; `latents` and `values` [nnz], by token."""

    counts: Array
    latents: Array
    values: Array


@dataclass(frozen=True, eq=False)
class Shard:
    """One shard, memory-mapped; `first` is the number of its first token in the whole store."""

    tokens: Array
    starts: Array
    rows: Array
    latents: Array
    values: Array
    first: int

    def __len__(self) -> int:
        return len(self.tokens)


def divide(lengths: Sequence[int], shard_tokens: int) -> list[slice]:
    """Sequences of these lengths into shards of at least `shard_tokens` tokens (but the last), in order."""
    parts, begin, held = [], 0, 0
    for place, length in enumerate(lengths):
        held += length
        if held >= shard_tokens:
            parts.append(slice(begin, place + 1))
            begin, held = place + 1, 0
    if begin < len(lengths):
        parts.append(slice(begin, len(lengths)))
    return parts


def begin(root: Path, header: Header, vocabulary: Sequence[str]) -> None:
    """Make `root` ready for this harvest, or for going on with it. FairleadError when another lies there."""
    known = root / HEADER
    if known.exists():
        if (old := read_header(root)) != header:
            names = [f.name for f in fields(Header) if getattr(old, f.name) != getattr(header, f.name)]
            raise FairleadError(
                f"{root} holds another harvest",
                expected="the same model, dictionary, texts and settings",
                got=f"another {', '.join(names)}",
                do="choose another directory, or remove this one",
            )
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FairleadError(f"{root} is there already", expected="a new directory, or a store to go on with")
    else:
        try:
            (root / SHARDS).mkdir(parents=True, exist_ok=True)
            _write(root / VOCABULARY, json.dumps(list(vocabulary), ensure_ascii=False))
            _write(known, canonical(asdict(header)) + "\n")
        except OSError as error:
            raise _unwritable(root, error) from error
    for left in (root / SHARDS).glob("*.part"):
        shutil.rmtree(left)


def has_shard(root: Path, number: int) -> bool:
    """Whether a shard is whole."""
    return _place(root, number).is_dir()


def write_shard(root: Path, number: int, header: Header, sequences: Sequence[Array], codes: Iterable[Codes]) -> None:
    """One shard: the token ids of its sequences, and their codes in pieces that follow one another."""
    keep_shard(root, number, shard_arrays(header, sequences, codes))


def keep_shard(root: Path, number: int, arrays: dict[str, Array]) -> None:
    """Write what `shard_arrays` made."""
    save_arrays(_place(root, number), arrays)


def shard_arrays(header: Header, sequences: Sequence[Array], codes: Iterable[Codes]) -> dict[str, Array]:
    """The arrays of a shard, by the names of their files."""
    pieces = list(codes)
    counts = np.concatenate([p.counts for p in pieces])
    lengths = np.array([len(s) for s in sequences], dtype=np.int64)
    if len(counts) != lengths.sum():
        raise FairleadError("codes do not fit their tokens", expected=f"{lengths.sum()} tokens", got=f"{len(counts)}")
    values = np.concatenate([np.clip(p.values, SMALLEST, LARGEST).astype(np.float16) for p in pieces])
    return {
        "tokens": np.concatenate(list(sequences)).astype(np.uint32),
        "starts": (np.cumsum(lengths) - lengths).astype(np.uint32),
        "rows": np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32),
        "latents": np.concatenate([p.latents for p in pieces]).astype(latent_type(header.n_features)),
        "values": values,
    }


def save_arrays(place: Path, arrays: dict[str, Array]) -> None:
    """A directory of .npy files that appears whole or not at all. FairleadError when it cannot be written."""
    part = place.with_name(place.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array, allow_pickle=False)
        part.rename(place)
    except OSError as error:
        raise _unwritable(place, error) from error


def _unwritable(place: Path, error: OSError) -> FairleadError:
    return FairleadError(
        f"{place} cannot be written: {error.strerror or error}",
        expected="a directory that can be written to, and room on its disk",
        do="make room or choose another directory, and run the same command again: what is whole is kept",
    )


def load_array(file: Path) -> Array:
    """A .npy file as a memory map. LoadError when it is not whole. Nothing is unpickled."""
    try:
        found: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{file} cannot be read: {error}", expected="a whole .npy file of numbers", do="harvest again"
        ) from error
    return found


def latent_type(n_features: int) -> Any:
    """The type latent numbers are kept in."""
    return np.uint16 if n_features <= LARGEST_U16 else np.uint32


def read_header(root: Path) -> Header:
    """The header of the store at `root`. LoadError when there is none that can be read."""
    try:
        found = json.loads((root / HEADER).read_text(encoding="utf-8"))
        header = Header(**found)
    except (OSError, ValueError, TypeError) as error:
        raise LoadError(
            f"{root} is not a feature store",
            expected=f"a directory with {HEADER}",
            got=str(error),
            do="make one with `fairlead features harvest`",
        ) from error
    if header.format != FORMAT:
        raise LoadError(f"{root} has another format", expected=str(FORMAT), got=str(header.format), do="harvest again")
    return header


class Store:
    """A whole store, read through memory maps. LoadError when it is not whole."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.header = read_header(self.root)
        self.shards: list[Shard] = []
        first = sequences = 0
        while has_shard(self.root, len(self.shards)):
            shard = self._shard(len(self.shards), first)
            self.shards.append(shard)
            first, sequences = first + len(shard), sequences + len(shard.starts)
        if (first, sequences) != (self.header.tokens, self.header.sequences):
            raise LoadError(
                f"{self.root} is not finished",
                expected=f"{self.header.tokens} tokens of {self.header.sequences} sequences",
                got=f"{first} of {sequences}",
                do="run the same `fairlead features harvest` again; it goes on where it stopped",
            )
        self._firsts = np.array([s.first for s in self.shards], dtype=np.int64)

    @property
    def n_features(self) -> int:
        return self.header.n_features

    @property
    def n_tokens(self) -> int:
        return self.header.tokens

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of every token id."""
        try:
            found = json.loads((self.root / VOCABULARY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LoadError(f"{self.root / VOCABULARY} cannot be read: {error}", do="harvest again") from error
        return [str(text) for text in found]

    def locate(self, token: int) -> tuple[Shard, int]:
        """(shard, place in it) of a token of the store."""
        if not 0 <= token < self.n_tokens:
            raise FairleadError(f"no token {token}", expected=f"0 to {self.n_tokens - 1}")
        shard = self.shards[int(np.searchsorted(self._firsts, token, side="right")) - 1]
        return shard, token - shard.first

    def window(self, token: int) -> range:
        """The tokens of the window that holds `token`: `header.window` tokens of one sequence, fewer at its end."""
        shard, at = self.locate(token)
        which = int(np.searchsorted(shard.starts, at, side="right")) - 1
        begin = int(shard.starts[which])
        end = int(shard.starts[which + 1]) if which + 1 < len(shard.starts) else len(shard)
        begin += (at - begin) // self.header.window * self.header.window
        return range(shard.first + begin, shard.first + min(end, begin + self.header.window))

    def sequence(self, token: int) -> int:
        """The first token of the sequence that holds `token`."""
        shard, at = self.locate(token)
        return shard.first + int(shard.starts[int(np.searchsorted(shard.starts, at, side="right")) - 1])

    def tokens(self, span: range) -> list[int]:
        """Token ids of a span within one shard."""
        shard, at = self.locate(span.start)
        return [int(t) for t in shard.tokens[at : at + len(span)]]

    def activations(self, latent: int, span: range) -> list[float]:
        """One latent's activation on every token of a span within one shard."""
        shard, at = self.locate(span.start)
        rows = shard.rows[at : at + len(span) + 1].astype(np.int64)
        hits = np.flatnonzero(shard.latents[rows[0] : rows[-1]] == latent) + rows[0]
        found = np.zeros(len(span), dtype=np.float32)
        found[np.searchsorted(rows, hits, side="right") - 1] = shard.values[hits]
        return [float(v) for v in found]

    def texts(self, span: range) -> list[str]:
        """The text of every token of a span."""
        return [self.vocabulary[t] if t < len(self.vocabulary) else "\ufffd" for t in self.tokens(span)]

    def _shard(self, number: int, first: int) -> Shard:
        place = _place(self.root, number)
        names = ("tokens", "starts", "rows", "latents", "values")
        shard = Shard(first=first, **{name: load_array(place / f"{name}.npy") for name in names})
        rows = shard.rows
        whole = len(rows) == len(shard) + 1 and len(shard.starts) > 0 and int(shard.starts[0]) == 0
        if not whole or int(rows[-1]) != len(shard.latents) or len(shard.latents) != len(shard.values):
            raise LoadError(f"{place} is not whole", expected="arrays that fit one another", do="harvest again")
        return shard


def _place(root: Path, number: int) -> Path:
    return root / SHARDS / f"{number:05d}"


def _write(file: Path, text: str) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
