"""`fairlead features`: harvest a feature store, show a latent, label latents, screen them by what they write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from fairlead.app.models import open_dictionary, open_model, use_threads
from fairlead.app.placement import Settings, sized
from fairlead.app.texts import read_texts
from fairlead.app.train import own_prompts
from fairlead.core.crew import Cluster
from fairlead.core.errors import FairleadError
from fairlead.core.ledger import Meter

LABELS, SCREEN = "labels.jsonl", "screen"
OWN_TEXTS = 200  # prompts, where no texts are given
FIT_WINDOWS = 5000  # windows that TF-IDF is fitted on

Progress = Callable[[str, int, int], None]  # phase, done, of how many


@dataclass(frozen=True)
class Harvested:
    """What a store holds. `alive` latents fired at least once; `l0` latents fire per token; `bytes` on disk; `cut`
    texts reached the length that is read, and what comes behind it was left out."""

    path: str
    tokens: int
    sequences: int
    n_features: int
    alive: int
    l0: float
    bytes: int
    cut: int


def harvest(
    model: str,
    ref: str,
    *,
    texts: Path | None,
    out: Path,
    limit: int | None = None,
    max_tokens: int = 256,
    window: int = 32,
    with_neighbours: bool = True,
    threads: int = 1,
    progress: Progress | None = None,
    where: Cluster | None = None,
) -> Harvested:
    """Every latent of a dictionary on every token of `texts` (default: `own_prompts`), from one pass; on the workers of
    a cluster, `where` one is named."""
    from fairlead.features import harvest_ray
    from fairlead.features.harvest import fill, indexed
    from fairlead.features.index import Index

    use_threads(threads)
    make = Reading(model, ref, texts, limit, max_tokens, window, Settings.here(threads))
    if where is None:
        harvester = make()
        fill(harvester, out, progress=progress)
        plan, dictionary = harvester.plan, harvester.dictionary
    else:
        plan = harvest_ray.fill(make, out, sized(where, threads), progress=progress)
        dictionary = open_dictionary(ref) if with_neighbours else None
    store = indexed(out, dictionary if with_neighbours else None, progress)
    count = Index(store).count
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    l0 = float(count.sum()) / max(1, store.n_tokens)
    header, alive = store.header, int((count > 0).sum())
    return Harvested(str(out), header.tokens, header.sequences, header.n_features, alive, l0, size, plan.cut)


@dataclass(frozen=True)
class Reading:
    """What makes a harvester, here or on a worker: references, not what they stand for."""

    model: str
    dictionary: str
    texts: Path | None
    limit: int | None
    max_tokens: int
    window: int
    settings: Settings

    def __call__(self) -> Any:
        from fairlead.features.harvest import Harvester, chats_of, texts_of

        read = None if self.texts is None else read_texts(self.texts)[: self.limit]
        subject = self.settings.wrap(open_model)(self.model)
        dictionary = self.settings.wrap(open_dictionary)(self.dictionary)
        if read is None:
            corpus = chats_of(subject, list(islice(own_prompts(self.model, 0), self.limit or OWN_TEXTS)))
        else:
            longest = min(self.max_tokens, subject.checkpoint.shape.context)
            corpus = replace(texts_of(subject, read, max_tokens=self.max_tokens), longest=longest)
        return Harvester(subject, dictionary, corpus, window=self.window)


def show(root: Path, latent: int, *, examples: int = 5) -> dict[str, Any]:
    """One latent's page: figures, strongest windows, partners, neighbours, and its label and scores where made."""
    from fairlead.features import labels
    from fairlead.features.described import described
    from fairlead.features.index import Index
    from fairlead.features.store import Store

    store = Store(root)
    file = root / LABELS
    said = labels.read(file)[1].get(latent) if file.is_file() else None
    return described(store, Index(store), latent, said=said, screen=root / SCREEN, examples=examples)


@dataclass(frozen=True)
class Labelled:
    """Labels, and how many of them hold; `path` is the file they are in."""

    path: str
    labels: list[dict[str, Any]]
    coverage: dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """A language model that is to make labels and judge them: an endpoint (`url`, `model`, and the environment
    variable `key_env` its key is in), or a local model (`model` alone)."""

    model: str
    url: str | None = None
    key_env: str | None = None


def label(
    root: Path,
    *,
    latents: Sequence[int] = (),
    limit: int | None = None,
    model: str | None = None,
    ref: str | None = None,
    embed: str = "tfidf",
    ask: Ask | None = None,
    threshold: float = 0.7,
    hard: bool = True,
    seed: int = 0,
    out: Path | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> Labelled:
    """Labels latents of a store (default: all that fire) and scores them on held-out windows. With `model` and `ref`
    the logit lens is asked too; `embed` is tfidf, minilm, a directory, or none."""
    from fairlead.features import labels
    from fairlead.features.evidence import Gatherer
    from fairlead.features.index import Index
    from fairlead.features.labellers import Labeller, Peaks, Terms
    from fairlead.features.store import Store

    use_threads(threads)
    if (model is None) != (ref is None):
        raise FairleadError("the logit lens needs both", expected="--model and --dictionary, or neither")
    store = Store(root)
    index = Index(store)
    wanted = [index.check(i) for i in latents] or [int(i) for i in index.count.nonzero()[0]]
    makers: list[Labeller] = [Peaks(), Terms()]
    about = {"seed": seed, "hard": hard, "embed": embed, "lens": model is not None, "ask": ask and asdict(ask),
             "dictionary": store.header.dictionary_fingerprint, "corpus": store.header.corpus}  # fmt: skip
    if embed != "none":
        makers.append(_phrase(store, embed, seed))
    if model is not None and ref is not None:
        makers.append(_lens(store, model, ref))
    if ask is not None:
        makers.append(_asked(ask))
    gatherer = Gatherer(store, index, hard=hard, seed=seed)
    file, say = out or root / LABELS, progress or (lambda _phase, _done, _total: None)
    work = labels.label_all(
        gatherer.evidence, wanted[:limit], makers, about=about, out=file,
        progress=lambda done, total: say("labels", done, total),
    )  # fmt: skip
    found = asyncio.run(work)
    return Labelled(str(file), [asdict(one) for one in found], asdict(labels.coverage(found, threshold)))


def _phrase(store: Any, embed: str, seed: int) -> Any:
    import numpy as np

    from fairlead.features.labellers import Phrase
    from fairlead.lm.embed import kept, sentences, tfidf

    if embed != "tfidf":
        return Phrase(kept(sentences(embed)))
    drawn = np.random.default_rng(seed).integers(0, store.n_tokens, FIT_WINDOWS)
    spans = {span.start: span for span in (store.window(int(t)) for t in np.unique(drawn))}
    return Phrase(tfidf(["".join(store.texts(span)) for span in spans.values()]))


def _lens(store: Any, model: str, ref: str) -> Any:
    from fairlead.features.labellers import PROMOTED, Lens
    from fairlead.features.lens import lens_of

    subject, dictionary = open_model(model), open_dictionary(ref)
    if dictionary.fingerprint != store.header.dictionary_fingerprint:
        raise FairleadError(
            f"{ref} is not the dictionary of {store.root}", expected=store.header.dictionary, got=dictionary.name
        )
    lens = lens_of(subject)

    def promoted(latent: int) -> list[str]:
        ids = lens.logits(dictionary.decoder_rows([latent]).float())[0].topk(PROMOTED).indices
        return [store.vocabulary[i] for i in ids.tolist() if i < len(store.vocabulary)]

    return Lens(promoted)


def _asked(ask: Ask) -> Any:
    from fairlead.features.labellers import Asked

    return Asked(annotator(ask))


def annotator(ask: Ask, meter: Any = None) -> Any:
    """The language model of `ask`. An endpoint keeps its answers itself; a local model's are kept by its weights and
    the whole prompt. Both charge `meter`, a kept answer as much as it cost when it was made."""
    from fairlead.features.labellers import LocalAnnotator, RemoteAnnotator
    from fairlead.features.texts.labellers import KeptAnnotator
    from fairlead.lm.cache import Cache, default_file
    from fairlead.lm.remote import Remote

    if ask.url is not None:
        return RemoteAnnotator(Remote(ask.url, ask.model, api_key_env=ask.key_env, meter=meter))
    spends = Meter()
    subject = open_model(ask.model).metered(spends)
    kept = Cache(default_file("answers"))
    return KeptAnnotator(LocalAnnotator(subject), kept, subject.fingerprint, spends, meter)


@dataclass(frozen=True)
class ScreenedAll:
    """The latents that write most, best first, each with its scores; `path` holds those of all."""

    path: str
    latents: int
    by: str
    best: list[dict[str, float]]
    mean_score: float
    mean_chance: float


def screen(
    model: str,
    ref: str,
    *,
    out: Path,
    prompt: str | None = None,
    strength: float | None = None,
    batch: int = 256,
    by: str = "score",
    limit: int = 20,
    threads: int = 1,
    progress: Progress | None = None,
) -> ScreenedAll:
    """Output score and Δ token confidence of every latent; largest activations come from the store at `out`, where
    there is one of this dictionary, and otherwise from the dictionary."""
    import torch

    from fairlead.features.index import Index
    from fairlead.features.output import NAMES, NEUTRAL, STRENGTH
    from fairlead.features.output import screen as run
    from fairlead.features.store import HEADER, Store

    use_threads(threads)
    subject, dictionary = open_model(model), open_dictionary(ref)
    say = progress or (lambda _phase, _done, _total: None)
    largest = None
    if (out / HEADER).is_file():
        store = Store(out)
        if store.header.dictionary_fingerprint != dictionary.fingerprint:
            raise FairleadError(
                f"{out} is a store of another dictionary", expected=store.header.dictionary, got=dictionary.name
            )
        largest = torch.from_numpy(Index(store).top_values[:, 0].astype("float32"))
    found = run(
        subject, dictionary, largest=largest, prompt=prompt or NEUTRAL, strength=strength or STRENGTH, batch=batch,
        out=out / SCREEN, progress=lambda done, total: say("latents", done, total),
    )  # fmt: skip
    rows = [
        {"latent": i, **{name: float(getattr(found, name)[i]) for name in NAMES}} for i in found.best(limit, by)
    ]
    return ScreenedAll(
        str(out / SCREEN), len(found.latents), by, rows, float(found.score.mean()), float(found.chance.mean())
    )
