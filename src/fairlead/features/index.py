"""Figures of every latent of a feature store: one pass over its shards, whatever the number of latents.

A shard's codes are sorted once under one 64-bit key (latent, window, activation, token); the strongest token of each
window then merges into a running table of `top` places a latent. The same merge under a hash in place of the
activation keeps a uniform sample of the windows in which a latent fires. Memory is the tables' and one shard's,
not the corpus's. Everything is a function of the shards alone: made twice, it has the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairlead.core.errors import FairleadError, LoadError
from fairlead.features.store import INDEX, Array, Shard, Store, load_array, save_arrays

TOP, SAMPLE, PARTNERS, NEIGHBOURS = 20, 16, 8, 8
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
NOWHERE = -1  # in tables of tokens: no further place

Progress = Callable[[str, int, int], None]  # phase, done, of how many

_PLACE_BITS = 40  # a token's number in the store
_RANK_BITS = 22  # what places are ranked by: f16 bits of an activation, or a hash
_BINS_SHIFT, _BINS = 6, 512  # f16 bits to bins of a sixteenth of an octave
_AT_ONCE = 2**20  # candidates merged at once
_PAIRS_AT_ONCE = 2**21
_U = np.uint64


def build(store: Store, dictionary: Any = None, *, progress: Progress | None = None) -> Index:
    """Makes the index of a store, decoder neighbours included where its dictionary is given."""
    say = progress or (lambda _phase, _done, _total: None)
    running = _Running(store.n_features)
    for done, shard in enumerate(store.shards, 1):
        running.add(shard, store.header.window)
        say("index", done, len(store.shards))
    top, sample = _tokens_of(running.top), _tokens_of(running.sample)
    partners, shares, drawn = _partners(store, running.count, sample, say)
    arrays: dict[str, Array] = {
        "count": running.count,
        "windows": running.windows,
        "mean": (running.total / np.maximum(running.count, 1)).astype(np.float32),
        "quantiles": _quantiles(running.histogram, running.count),
        "top": top,
        "top_values": _activations_of(running.top),
        "sample": sample,
        "sample_values": drawn,
        "partners": partners,
        "partner_shares": shares,
    }
    if dictionary is not None:
        arrays["neighbours"], arrays["cosines"] = neighbours(dictionary, progress=say)
    save_arrays(store.root / INDEX, arrays)
    return Index(store)


@dataclass(frozen=True, eq=False)
class Index:
    """The index of a store, memory-mapped. m latents; tables are padded with NOWHERE (places) or 0 (values).

    count, windows [m]      tokens, and windows, in which a latent fires
    mean, quantiles [m, 6]  of its activations where it fires; quantiles to 1 part in 16, from a histogram
    top, top_values [m, 20] its strongest token in each of the windows where it fires strongest, strongest first
    sample [m, 16]          the same of windows drawn uniformly from all in which it fires, with sample_values
    partners [m, 8]         what fires with it: the latents of highest φ with it, estimated on the sample's tokens;
                            partner_shares: on what share of those tokens
    neighbours [m, 8]       decoder rows of highest cosine, with `cosines`; absent where no dictionary was given
    """

    store: Store

    def __getattr__(self, name: str) -> Array:
        file = self.store.root / INDEX / f"{name}.npy"
        if name.startswith("_") or not file.is_file():
            raise AttributeError(name)
        return load_array(file)

    def __post_init__(self) -> None:
        if not (self.store.root / INDEX / "count.npy").is_file():
            raise LoadError(
                f"{self.store.root} has no index",
                expected=f"a directory {INDEX} beside its shards",
                do="run the same `fairlead features harvest` again",
            )

    @cached_property
    def density(self) -> Array:
        """[m] share of tokens on which a latent fires."""
        return self.count / max(1, self.store.n_tokens)

    def check(self, latent: int) -> int:
        """`latent`, if there is one. FairleadError."""
        if not 0 <= latent < self.store.n_features:
            last = self.store.n_features - 1
            raise FairleadError(f"no latent {latent} in {self.store.root}", expected=f"0 to {last}", got=str(latent))
        return latent


class _Running:
    """Sums and tables over the shards so far. Table entries are rank << 40 | (all ones − token), largest first."""

    def __init__(self, n_features: int) -> None:
        m = n_features
        self.count, self.windows = np.zeros(m, dtype=np.int64), np.zeros(m, dtype=np.int64)
        self.total = np.zeros(m)
        self.histogram = np.zeros((m, _BINS), dtype=np.uint32)
        self.top, self.sample = np.zeros((m, TOP), dtype=_U), np.zeros((m, SAMPLE), dtype=_U)

    def add(self, shard: Shard, window: int) -> None:
        m = len(self.count)
        latents, values = np.asarray(shard.latents), np.asarray(shard.values)
        if len(latents) and int(latents.max()) >= m:
            raise LoadError("a shard names a latent that does not exist", expected=f"below {m}", got=f"{latents.max()}")
        self.count += np.bincount(latents, minlength=m)
        self.total += np.bincount(latents, weights=values, minlength=m)
        bits = values.view(np.uint16)
        self._count_bins(latents, bits)
        latent, bits, token = strongest(shard, latents, bits, window)
        self.windows += np.bincount(latent, minlength=m)
        place = _U(2**_PLACE_BITS - 1) - (token.astype(_U) + _U(shard.first))
        _merge(self.top, latent, (bits.astype(_U) << _U(_PLACE_BITS)) | place)
        drawn = _hashed((latent.astype(_U) << _U(_PLACE_BITS)) ^ place) >> _U(64 - _RANK_BITS)
        _merge(self.sample, latent, (np.maximum(drawn, _U(1)) << _U(_PLACE_BITS)) | place)

    def _count_bins(self, latents: Array, bits: Array) -> None:
        bins = (latents.astype(np.uint32) << np.uint32(9)) | (bits >> _BINS_SHIFT)
        bins.sort()
        ends = _ends(bins)
        self.histogram.reshape(-1)[bins[ends]] += np.diff(ends, prepend=-1).astype(np.uint32)


def strongest(shard: Shard, latents: Array, bits: Array, window: int) -> tuple[Array, Array, Array]:
    """For every latent and window in which it fires, ordered by both: (latent, f16 bits, token in the shard)."""
    tokens = len(shard)
    lengths: Array = np.diff(np.append(shard.starts.astype(np.int64), tokens))
    inside = np.arange(tokens) - np.repeat(shard.starts.astype(np.int64), lengths)  # place in the sequence
    new = inside % window == 0
    number = (np.cumsum(new) - 1).astype(_U)
    begins = np.flatnonzero(new)
    sizes = [int(tokens).bit_length(), 15, int(window).bit_length()]  # windows, bits, token in the window
    if int(latents.max(initial=0)).bit_length() + sum(sizes) > 64:
        raise FairleadError("a shard is too large to sort at once", do="harvest with fewer tokens a shard")
    low, middle = _U(sizes[2]), _U(sizes[1] + sizes[2])
    of_token = (number << middle) | (inside % window).astype(_U)
    entries: Array = np.diff(shard.rows.astype(np.int64))
    key = np.repeat(of_token, entries)
    key |= latents.astype(_U) << (_U(sizes[0]) + middle)
    key |= bits.astype(_U) << low
    key.sort()
    best = key[_ends(key >> middle)]
    which = ((best >> middle) & _U(2 ** sizes[0] - 1)).astype(np.int64)
    token = begins[which] + (best & _U(2 ** sizes[2] - 1)).astype(np.int64)
    latent = (best >> (_U(sizes[0]) + middle)).astype(np.int64)
    return latent, ((best >> low) & _U(2**15 - 1)).astype(np.uint16), token


def _merge(table: Array, latent: Array, entry: Array) -> None:
    """Puts each latent's largest entries into its row of `table` [m, K], which stays sorted, largest first."""
    width = table.shape[1]
    for start in range(0, len(latent), _AT_ONCE):
        who, what = latent[start : start + _AT_ONCE], entry[start : start + _AT_ONCE]
        enters = np.flatnonzero(what > table[who, -1])
        if not len(enters):
            continue
        who, what = who[enters], what[enters]
        size = _U(len(who).bit_length())
        order = _U(len(who)) - np.arange(len(who), dtype=_U)  # so that of equals the first one wins
        key = (((who.astype(_U) << _U(_RANK_BITS)) | (what >> _U(_PLACE_BITS))) << size) | order
        key.sort()
        picked = len(who) - (key & ((_U(1) << size) - _U(1))).astype(np.int64)
        who, what = who[picked], what[picked]
        ends = _ends(who)
        below = np.repeat(ends, np.diff(ends, prepend=-1)) - np.arange(len(who))  # larger ones of the same latent
        rows = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))
        few = below < width
        fresh = np.zeros((len(ends), width), dtype=_U)
        fresh[rows[few], below[few]] = what[few]
        whom = who[ends]
        both = np.concatenate([table[whom], fresh], axis=1)
        both.sort(axis=1)
        table[whom] = both[:, : -width - 1 : -1]


def _partners(store: Store, count: Array, sample: Array, say: Progress) -> tuple[Array, Array, Array]:
    """(partners [m, P], their shares, activations [m, R] of the sample), from the codes of the sample's tokens."""
    m, width = sample.shape
    partners = np.full((m, PARTNERS), NOWHERE, dtype=np.int32)
    shares, drawn = np.zeros((m, PARTNERS), dtype=np.float16), np.zeros((m, width), dtype=np.float16)
    density = count / max(1, store.n_tokens)
    per_token = max(1.0, count.sum() / max(1, store.n_tokens))
    step = max(1, int(_PAIRS_AT_ONCE / (width * per_token)))
    for start in range(0, m, step):
        block = sample[start : start + step]
        pairs, own = _together(store, block, start)
        drawn[start : start + step] = own
        seen = (block != NOWHERE).sum(1)
        found = _best_partners(pairs, seen, density, start)
        partners[start : start + step], shares[start : start + step] = found
        say("partners", min(m, start + step), m)
    return partners, shares, drawn


def _together(store: Store, block: Array, start: int) -> tuple[Array, Array]:
    """(sorted keys row · m + latent, one for every latent on every sampled token; the sampled latents' values)."""
    own = np.zeros(block.shape, dtype=np.float16)
    kind = np.uint32 if block.shape[0] * store.n_features < 2**32 else np.uint64  # the narrow kind sorts twice as fast
    keys = []
    for shard in store.shards:
        row, column = np.nonzero((block >= shard.first) & (block < shard.first + len(shard)))
        if not len(row):
            continue
        at = block[row, column] - shard.first
        first = shard.rows[at].astype(np.int64)
        size = shard.rows[at + 1].astype(np.int64) - first
        entry = np.repeat(first - (np.cumsum(size) - size), size) + np.arange(size.sum())
        latent = shard.latents[entry]
        hit = np.flatnonzero(latent == np.repeat((row + start).astype(latent.dtype), size))
        place = np.searchsorted(np.cumsum(size), hit, side="right")
        own[row[place], column[place]] = shard.values[entry[hit]]
        keys.append(np.repeat((row * store.n_features).astype(kind), size) + latent.astype(kind))
    found = np.concatenate(keys) if keys else np.zeros(0, dtype=kind)
    found.sort()
    return found, own


def _best_partners(keys: Array, seen: Array, density: Array, start: int) -> tuple[Array, Array]:
    """The PARTNERS of highest φ of each row, and on what share of its sampled tokens they fire."""
    partners = np.full((len(seen), PARTNERS), NOWHERE, dtype=np.int32)
    shares = np.zeros((len(seen), PARTNERS), dtype=np.float16)
    again = keys[1:][keys[1:] == keys[:-1]]  # what fired with it twice or more; once is chance
    ends = _ends(again)
    found, times = again[ends].astype(np.int64), np.diff(ends, prepend=-1) + 1
    row, partner = found // len(density), found % len(density)
    kept = partner != row + start
    row, partner, share = row[kept], partner[kept], times[kept] / seen[row[kept]]
    p, q = density[row + start], density[partner]
    phi = p * (share - q) / np.sqrt(np.maximum(p * (1 - p) * q * (1 - q), 1e-30))
    row, partner, share, phi = (x[phi > 0] for x in (row, partner, share, phi))
    order = np.lexsort((partner, -phi, row))
    row, partner, share = row[order], partner[order], share[order]
    begins = np.searchsorted(row, np.arange(len(seen)))
    place = np.arange(len(row)) - begins[row]
    few = place < PARTNERS
    partners[row[few], place[few]], shares[row[few], place[few]] = partner[few], share[few]
    return partners, shares


@torch.inference_mode()
def neighbours(
    dictionary: Any, n: int = NEIGHBOURS, *, block: int = 2048, progress: Progress | None = None
) -> tuple[Array, Array]:
    """(latents [m, n] of highest decoder cosine, the cosines), by blocks: 2·m²·d FLOPs and [block, m] at once."""
    unit = dictionary.decoder_rows(torch.arange(dictionary.n_features)).float()
    unit /= unit.norm(dim=1, keepdim=True).clamp_min(1e-12)  # rows picked by number are a copy
    m, kept = len(unit), min(n, len(unit) - 1)
    ids, cosines = np.full((m, n), NOWHERE, dtype=np.int32), np.zeros((m, n), dtype=np.float16)
    for start in range(0, m, block):
        cosine = unit[start : start + block] @ unit.T
        here = torch.arange(len(cosine), device=unit.device)
        cosine[here, here + start] = -2.0
        found = cosine.topk(kept, dim=1)
        ids[start : start + block, :kept] = found.indices.cpu().numpy()
        cosines[start : start + block, :kept] = found.values.cpu().numpy()
        if progress:
            progress("neighbours", min(m, start + block), m)
    return ids, cosines


def _quantiles(histogram: Array, count: Array) -> Array:
    """[m, 6] activations below which each share of QUANTILES lies, straight lines within a bin; 0 where never on."""
    edges = (np.arange(_BINS, dtype=np.uint16) << _BINS_SHIFT).view(np.float16).astype(np.float32)
    edges = np.append(np.minimum(edges, 65504.0), np.float32(65504.0))
    out = np.zeros((len(count), len(QUANTILES)), dtype=np.float32)
    for start in range(0, len(count), 4096):
        part, n = histogram[start : start + 4096], count[start : start + 4096]
        below = np.cumsum(part, axis=1)
        for column, share in enumerate(QUANTILES):
            want = share * n[:, None]
            at = np.minimum((below < want).sum(1), _BINS - 1)
            row = np.arange(len(n))
            before = below[row, at] - part[row, at]
            inside = (want[:, 0] - before) / np.maximum(part[row, at], 1)
            out[start : start + 4096, column] = np.where(n > 0, edges[at] + inside * (edges[at + 1] - edges[at]), 0)
    return out.astype(np.float16)


def _ends(ordered: Array) -> Array:
    """Where each run of equal values ends: the places of their last members."""
    last = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=last[:-1])
    return np.flatnonzero(last)


def _tokens_of(table: Array) -> Array:
    tokens = (2**_PLACE_BITS - 1) - (table & _U(2**_PLACE_BITS - 1)).astype(np.int64)
    return np.where(table == 0, NOWHERE, tokens)


def _activations_of(table: Array) -> Array:
    return (table >> _U(_PLACE_BITS)).astype(np.uint16).view(np.float16)


def _hashed(values: Array) -> Array:
    """splitmix64: the same draw on every machine."""
    z = values + _U(0x9E3779B97F4A7C15)
    z = (z ^ (z >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _U(27))) * _U(0x94D049BB133111EB)
    mixed: Array = z ^ (z >> _U(31))
    return mixed


def path_of(store: Store) -> Path:
    """Where a store's index lies."""
    return store.root / INDEX
