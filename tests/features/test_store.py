"""The feature store against plain counting: same figures, same bytes after a kill, nothing read that is not whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.features.planted import SITE, M

from fairlead.core.errors import FairleadError, LoadError
from fairlead.core.types import Message
from fairlead.features import harvest as harvesting
from fairlead.features import index as indexing
from fairlead.features import store as stores
from fairlead.features.harvest import Corpus, chats_of, encode_sparse, harvest, texts_of
from fairlead.features.index import NOWHERE, QUANTILES, Index
from fairlead.features.store import Store

WIDTH, LATENTS, WINDOW = 8, 40, 4


class Toy:
    """A subject whose activations are drawn, and a vocabulary of twenty words."""

    d_model, name, fingerprint = WIDTH, "toy", "toy-1"

    class tokenizer:
        decode = staticmethod(lambda ids, **_: f"w{ids[0]} ")
        __len__ = staticmethod(lambda: 20)

    tokenizer = tokenizer()


def toy_dictionary(activation: str = "relu") -> Any:
    from fairlead.dictionaries.base import SparseDictionary

    g = torch.Generator().manual_seed(0)
    rows = torch.randn(LATENTS, WIDTH, generator=g)
    return SparseDictionary(
        "toy", SITE, rows.T.contiguous(), rows, -1.5 * torch.ones(LATENTS), torch.zeros(WIDTH),
        activation=activation, k=5 if activation == "topk" else None,  # type: ignore[arg-type]
    )  # fmt: skip


def toy_corpus(n: int = 60) -> tuple[Corpus, list[torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    lengths = [1 + (i * 7) % 23 for i in range(n)]
    hidden = [torch.randn(k, WIDTH, generator=g) for k in lengths]
    ids = [np.arange(k, dtype=np.uint32) % 20 for k in lengths]
    return Corpus(ids, lambda part, site: hidden[part]), hidden


def made(out: Path, **more: Any) -> Store:
    return harvest(Toy(), toy_dictionary(), toy_corpus()[0], out, window=WINDOW, shard_tokens=100, batch=3, **more)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made(tmp_path_factory.mktemp("store") / "s")


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    """What the store must hold: every latent of every token, in f16."""
    _, hidden = toy_corpus()
    return toy_dictionary().encode(torch.cat(hidden)).half().float().numpy()


def everything(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def windows() -> list[int]:
    """The window each token lies in."""
    out, number = [], -1
    for ids in toy_corpus()[0].ids:
        for place in range(len(ids)):
            number += place % WINDOW == 0
            out.append(number)
    return out


def test_it_holds_what_a_dense_encode_gives(store: Store, dense: np.ndarray) -> None:
    assert len(store.shards) > 3 and store.n_tokens == len(dense)
    ids = np.concatenate([s for s in toy_corpus()[0].ids])
    for latent in (0, 7, LATENTS - 1):
        got, seen, at = [], [], 0
        while at < store.n_tokens:
            span = store.window(at)
            assert at == span.start
            got += store.activations(latent, span)
            seen += store.tokens(span)
            at = span.stop
        assert np.array_equal(np.array(got, dtype=np.float32), dense[:, latent]) and seen == ids.tolist()
    assert store.texts(range(0, 1)) == ["w0 "] and all(s.latents.dtype == np.uint16 for s in store.shards)


def test_the_index_is_what_counting_gives(store: Store, dense: np.ndarray) -> None:
    found, fires, window = Index(store), dense > 0, np.array(windows())
    assert np.array_equal(found.count, fires.sum(0)) and np.allclose(found.density, fires.mean(0))
    assert np.allclose(found.mean, dense.sum(0) / np.maximum(fires.sum(0), 1), rtol=1e-5)
    for latent in range(LATENTS):
        best: dict[int, tuple[float, int]] = {}
        for token in np.flatnonzero(fires[:, latent]):
            here = (float(dense[token, latent]), -int(token))
            best[window[token]] = max(best.get(window[token], (0.0, 0)), here)
        ranked = sorted(best.values(), reverse=True)
        assert found.windows[latent] == len(best)
        top = [int(t) for t in found.top[latent] if t != NOWHERE]
        assert [float(dense[t, latent]) for t in top] == [v for v, _ in ranked[: indexing.TOP]]
        assert top == [-t for _, t in ranked[: indexing.TOP]]
        assert found.top_values[latent, : len(top)].tolist() == [v for v, _ in ranked[: indexing.TOP]]
        drawn = [int(t) for t in found.sample[latent] if t != NOWHERE]
        assert len(drawn) == min(indexing.SAMPLE, len(best)) and {-t for t in drawn} <= {t for _, t in ranked}
        assert np.array_equal(found.sample_values[latent, : len(drawn)], dense[drawn, latent].astype(np.float16))
        values = dense[fires[:, latent], latent]
        for share, value in zip(QUANTILES, found.quantiles[latent], strict=True):
            near = np.quantile(values, [max(0.0, share - 0.1), min(1.0, share + 0.1)], method="linear")
            assert near[0] * 15 / 16 <= float(value) <= near[1] * 17 / 16


def test_partners_are_what_fires_on_the_sampled_tokens(store: Store, dense: np.ndarray) -> None:
    found, p = Index(store), (dense > 0).mean(0)
    for latent in range(0, LATENTS, 5):
        drawn = [int(t) for t in found.sample[latent] if t != NOWHERE]
        share = (dense[drawn] > 0).mean(0)
        a = p[latent]
        phi = a * (share - p) / np.sqrt(np.maximum(a * (1 - a) * p * (1 - p), 1e-30))
        phi[latent] = -1
        phi[share * len(drawn) < 2] = -1
        wanted = [int(j) for j in np.argsort(-phi, kind="stable") if phi[j] > 0][: indexing.PARTNERS]
        got = [int(j) for j in found.partners[latent] if j != NOWHERE]
        assert np.allclose(phi[got], phi[wanted]) and np.allclose(
            found.partner_shares[latent, : len(got)], share[got], rtol=1e-3
        )


def test_the_sample_is_uniform_over_windows() -> None:
    """10,000 windows of one latent, 16 of them drawn, under 200 latents: every tenth gets its share."""
    n, m = 10_000, 200
    where: Counter[int] = Counter()
    table = np.zeros((m, indexing.SAMPLE), dtype=np.uint64)
    for latent in range(m):
        place = np.uint64(2**40 - 1) - np.arange(n, dtype=np.uint64)
        drawn = indexing._hashed((np.uint64(latent) << np.uint64(40)) ^ place) >> np.uint64(42)
        indexing._merge(table, np.full(n, latent), (np.maximum(drawn, 1).astype(np.uint64) << np.uint64(40)) | place)
        where.update((indexing._tokens_of(table[latent]) // (n // 10)).tolist())
    assert sum(where.values()) == m * indexing.SAMPLE
    expected = m * indexing.SAMPLE / 10
    assert sum((c - expected) ** 2 / expected for c in where.values()) < 27.9  # χ², 9 degrees, p = 0.001


def test_neighbours_are_the_highest_cosines(store: Store) -> None:
    rows = toy_dictionary().W_dec
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1).fill_diagonal_(-2)
    wanted = cosine.topk(indexing.NEIGHBOURS, dim=1)
    for block in (7, 1000):
        ids, values = indexing.neighbours(toy_dictionary(), block=block)
        assert np.array_equal(ids, wanted.indices.numpy()) and np.allclose(values, wanted.values.numpy(), atol=1e-3)
    assert np.array_equal(Index(store).neighbours, wanted.indices.numpy())


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.features import test_store
from fairlead.features import store, index
die_at = int(sys.argv[2])
real, n = store.np.save, 0
def save(*args, **more):
    global n
    n += 1
    if n == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **more)
store.np.save = save
test_store.made(Path(sys.argv[1]))
"""


def test_killed_it_goes_on_and_leaves_the_same_bytes(store: Store, tmp_path: Path) -> None:
    out, wanted = tmp_path / "s", everything(store.root)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    got = subprocess.run([sys.executable, str(script), str(out), "13"], env=env, cwd=os.getcwd(), timeout=120)
    assert got.returncode == -9 and not (out / "index").exists() and stores.has_shard(out, 1)
    with pytest.raises(LoadError, match=r"not finished[\s\S]*goes on"):
        Store(out)
    untouched = (out / "shards" / "00000").stat().st_mtime_ns
    made(out)
    assert everything(out) == wanted and (out / "shards" / "00000").stat().st_mtime_ns == untouched


def test_stopped_anywhere_it_leaves_the_same_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, wanted, real = tmp_path / "s", everything(store.root), np.save

    def failing(*args: Any, **more: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError("disk full")
        real(*args, **more)

    for stop in (1, 4, 9, 38):
        left = [stop]
        with monkeypatch.context() as patch, pytest.raises(FairleadError, match="cannot be written: disk full"):
            patch.setattr(np, "save", failing)
            made(out)
    made(out)
    assert everything(out) == wanted
    seen: list[str] = []
    made(out, progress=lambda phase, done, total: seen.append(phase))
    assert set(seen) == {"tokens"}  # nothing is made twice


def test_another_harvest_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FairleadError, match=r"another harvest[\s\S]*another corpus, sequences, tokens"):
        corpus, _ = toy_corpus(59)
        harvest(Toy(), toy_dictionary(), corpus, store.root, window=WINDOW, shard_tokens=100, batch=3)
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FairleadError, match="is there already"):
        made(tmp_path)
    with pytest.raises(FairleadError, match="nothing to harvest"):
        harvest(Toy(), toy_dictionary(), Corpus([], lambda part, site: []), tmp_path / "y")


def test_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "s"
    made(out, with_neighbours=False)
    assert not hasattr(Index(Store(out)), "neighbours")
    file = out / "shards" / "00001" / "latents.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(LoadError, match=r"cannot be read|not whole"):
        Store(out)
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(LoadError, match="cannot be read"):  # and never unpickled
        Store(out)
    file.write_bytes(whole)
    (out / "store.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(LoadError, match="not a feature store"):
        Store(out)
    with pytest.raises(FairleadError, match="no latent 40"):
        Index(made(tmp_path / "t")).check(40)


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_sparse_codes_are_the_dense_ones(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvesting, "_DENSE_AT_ONCE", 3 * LATENTS)
    x = torch.cat(toy_corpus()[1])
    codes, f = encode_sparse(toy_dictionary(activation), x), toy_dictionary(activation).encode(x)
    back = np.zeros(f.shape, dtype=np.float32)
    back[np.repeat(np.arange(len(x)), codes.counts), codes.latents] = codes.values
    assert np.allclose(back, f.numpy(), atol=1e-6)
    assert len(encode_sparse(toy_dictionary(activation), x[:0]).counts) == 0


def test_what_f16_cannot_hold_still_fires(tmp_path: Path) -> None:
    values = np.array([1e-9, 1e9], dtype=np.float32)
    header = stores.Header("m", "f", "d", "f", SITE, 70_000, "c", 1, 1)
    stores.begin(tmp_path / "s", header, ["a"])
    codes = stores.Codes(np.array([2]), np.array([5, 69_999]), values)
    stores.write_shard(tmp_path / "s", 0, header, [np.array([0])], [codes])
    kept = Store(tmp_path / "s")
    assert kept.activations(5, range(1))[0] > 0 and kept.activations(69_999, range(1)) == [65504.0]


def test_texts_and_chats_of_a_model(subject: Any, dictionary: Any, tmp_path: Path) -> None:
    texts = [f"buy the {w} lamp {i}" for i, w in enumerate(["red", "blue", "old"] * 5)]
    found = harvest(subject, dictionary, texts_of(subject, texts, max_tokens=8), tmp_path / "a", batch=4)
    x = subject.text_activations(texts, [SITE], max_tokens=8)[SITE]
    dense = dictionary.encode(torch.cat(x))
    assert np.array_equal(Index(found).count, (dense > 0).sum(0).numpy()) and found.n_features == M
    assert all(len(found.tokens(found.window(i))) <= 8 for i in range(found.n_tokens))
    chats = [(Message("user", t),) for t in texts]
    told = harvest(subject, dictionary, chats_of(subject, chats), tmp_path / "b", batch=4)
    assert "".join(told.texts(range(0, len(subject.tokens(chats[0]).ids)))).count("buy") == 1


def test_merging_is_choosing_the_largest() -> None:
    rng = np.random.default_rng(0)
    for trial in range(30):
        table = np.zeros((6, 3), dtype=np.uint64)
        held: dict[int, list[int]] = defaultdict(list)
        for _ in range(4):
            n = int(rng.integers(0, 40))
            who = np.sort(rng.integers(0, 6, n))
            what = (rng.integers(1, 5, n).astype(np.uint64) << np.uint64(40)) | (
                np.uint64(2**40 - 1) - np.unique(rng.integers(0, 10**6, n + 50))[:n].astype(np.uint64)
            )
            indexing._merge(table, who, what)
            for a, b in zip(who.tolist(), what.tolist(), strict=True):
                held[a].append(b)
        for latent in range(6):
            wanted = sorted(held[latent], reverse=True)[:3]
            assert [int(x) for x in table[latent] if x] == wanted, trial


def test_a_corpus_on_which_nothing_fires_is_a_store(tmp_path: Path) -> None:
    silent = toy_dictionary().replace(b_enc=torch.full((LATENTS,), -1e6))
    found = Index(harvest(Toy(), silent, toy_corpus(5)[0], tmp_path / "s", window=WINDOW))
    assert not found.count.any() and (found.top == NOWHERE).all() and not found.quantiles.any()
    assert (found.partners == NOWHERE).all() and found.store.activations(3, range(1)) == [0.0]
