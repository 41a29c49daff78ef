"""What latents do, over HTTP: found by words, looked at, ranked on a text, contrasted between texts.

    POST /v1/features/search     {"query": "deal", "limit": 20}: by number, by words of a label, by a token it peaks on
    POST /v1/features/inspect    {"latents": [12], "text": "..."}: cards; with a text, their activation on each token
    POST /v1/features/top        {"text": "..."}: the strongest latents on a text; {"by": "density"}: of the store
    POST /v1/features/contrast   {"a": [texts], "b": [texts]}: which latents tell a from b, at their strongest

`messages` may stand for `text`: the prompt as the model is asked it. A `Shelf` is what is known; who mounts `routes`
says who may ask. What reads a text runs the model, and is asked about apart.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fairlead.core.errors import FairleadError, NotApplicable
from fairlead.core.types import Message, Messages
from fairlead.features import cards, labels
from fairlead.features.contrast import contrast as contrasted
from fairlead.features.described import described, words_of
from fairlead.features.index import NOWHERE, Index
from fairlead.features.store import Store
from fairlead.serve.ask import json_object
from fairlead.serve.limits import FeatureLimits, Limits
from fairlead.serve.patience import body, while_here
from fairlead.serve.shapes import HEADERS, no_key, refusal, refused

LIMITS = FeatureLimits()
PEAKS = 5  # of the strongest windows, whose tokens a search looks at
BY = ("density", "largest", "mean", "auroc")

May = Callable[[Request], bool]
Parts = tuple[Any, Any]  # a subject and a dictionary that fits it


@dataclass
class Shelf:
    """What is known of a dictionary's latents: a feature store with its labels, cards that a run made, and a subject
    with its dictionary. `parts` opens these two when a text is to be read; `now` gives them where they are open, and
    while `guest` is open the model's other users let go of it now and then."""

    store: Store | None = None
    labels: Mapping[int, labels.Label] = field(default_factory=dict)
    cards: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    parts: Callable[[], Awaitable[Parts]] | None = None
    now: Callable[[], Parts | None] = lambda: None
    screen: Path | None = None
    guest: Callable[[], AbstractContextManager[None]] = nullcontext

    @classmethod
    def of(
        cls,
        store: Path | None,
        *,
        cards: Mapping[int, Mapping[str, Any]] | None = None,
        parts: Callable[[], Awaitable[Parts]] | None = None,
        now: Callable[[], Parts | None] = lambda: None,
    ) -> Shelf:
        """The shelf of a store directory, with the labels and the screening that lie in it."""
        if store is None:
            return cls(cards=cards or {}, parts=parts, now=now)
        file = store / "labels.jsonl"
        said = labels.read(file)[1] if file.is_file() else {}
        opened = Store(store)
        Index(opened)
        return cls(opened, said, cards or {}, parts, now, store / "screen")

    @cached_property
    def index(self) -> Index | None:
        return None if self.store is None else Index(self.store)

    @property
    def n_features(self) -> int:
        """How many latents can be asked about by number; 0 while neither a store nor a dictionary is open."""
        opened = self.now()
        return self.store.n_features if self.store is not None else int(opened[1].n_features) if opened else 0

    def about(self) -> dict[str, Any]:
        """What there is, for who is about to search."""
        header = None if self.store is None else self.store.header
        return {
            "dictionary": header.dictionary if header else None,
            "site": header.site if header else None,
            "latents": self.n_features,
            "tokens": header.tokens if header else None,
            "labelled": sum(one.holds() for one in self.labels.values()),
            "labels": len(self.labels),
            "cards": sorted(self.cards),
            "model": self.parts is not None,
        }

    def label(self, latent: int) -> str | None:
        """What it fires on, in words; a label that does not hold is none."""
        said = self.labels.get(latent)
        if said is not None and said.holds():
            return said.text
        return words_of(self.cards[latent]) or None if latent in self.cards else None

    # ---- the four questions

    def search(self, query: str, limit: int = 20) -> list[dict[str, Any]]:
        """Latents for a query: the one of that number, those whose label has all its words, those that peak on a token
        which it is. Labels that hold come first, then by held-out AUROC."""
        words = query.casefold().split()
        found: dict[int, str] = {}
        if re.fullmatch(r"#?\d{1,9}", query.strip()) and self.knows(int(query.strip().lstrip("#"))):
            found[int(query.strip().lstrip("#"))] = "number"
        if words:
            said = [i for i, one in self.labels.items() if one.text and _has(one.text, words)]
            said.sort(key=lambda i: (not self.labels[i].holds(), -_auroc(self.labels[i]), i))
            told = [i for i in sorted(self.cards) if _has(words_of(self.cards[i]), words)]
            for latent in (*said, *told):
                found.setdefault(latent, "label")
            for latent in self._peaking(query.strip().casefold(), limit):
                found.setdefault(latent, "token")
        return [{**self.row(latent), "found": why} for latent, why in list(found.items())[:limit]]

    def ranked(self, by: str = "density", limit: int = 20) -> list[dict[str, Any]]:
        """The latents of the store of highest `by`: density, largest, mean, or auroc (of their label)."""
        if by not in BY:
            raise FairleadError("no such figure", expected=", ".join(BY), got=by[:40])
        opened = self.now()
        if self.index is None and opened is not None and by != "auroc":
            levels = getattr(opened[1], "firing_rate" if by == "density" else "max_activation", None)
            order = [] if levels is None else levels.topk(min(limit, len(levels))).indices.tolist()
            return [self.row(latent) for latent in order]
        if by == "auroc" or self.index is None:
            known = sorted({*self.labels, *self.cards}, key=lambda i: (-_auroc(self.labels.get(i)), i))
            return [self.row(latent) for latent in known[:limit]]
        figures = {"density": self.index.count, "mean": self.index.mean, "largest": self.index.top_values[:, 0]}[by]
        order = np.lexsort((np.arange(len(figures)), -figures.astype(np.float64)))
        return [self.row(int(latent)) for latent in order[:limit]]

    async def top(self, prompt: str | Messages, limit: int = 20) -> list[dict[str, Any]]:
        """The latents that fire strongest on a text, each at its strongest token."""
        tokens, latents = await self._read(prompt)
        value, at = latents.max(0)
        order = value.topk(min(limit, len(value))).indices.tolist()
        return [
            {**self.row(i), "value": float(value[i]), "at": int(at[i]), "token": tokens[int(at[i])]}
            for i in order if float(value[i]) > 0
        ]  # fmt: skip

    async def contrast(self, a: Sequence[str], b: Sequence[str], limit: int = 20) -> dict[str, Any]:
        """The latents whose strongest activation on a text tells texts of `a` from texts of `b`, in both directions.
        With so few texts the AUROC is a hint, not a finding: it has no interval here."""
        rows = [(await self._read(text))[1].amax(0) for text in (*a, *b)]
        found = contrasted(torch.stack(rows), [True] * len(a) + [False] * len(b))
        sure = (found.auroc - 0.5).abs() + 1e-6 * found.difference.abs() / found.difference.abs().max().clamp(min=1e-9)
        order = [i for i in sure.topk(min(limit, len(sure))).indices.tolist() if float(found.auroc[i]) != 0.5]
        return {
            "n_a": len(a), "n_b": len(b),
            "latents": [{**self.row(i), "auroc_a": float(found.auroc[i]), "difference": float(found.difference[i])}
                        for i in order],
        }  # fmt: skip

    async def inspect(
        self, latents: Sequence[int], prompt: str | Messages | None = None, *, examples: int = 5
    ) -> dict[str, Any]:
        """The cards of latents; with a text, their activation on each of its tokens."""
        found: dict[str, Any] = {"latents": [await self.card(latent, examples) for latent in latents]}
        if prompt is not None:
            tokens, values = await self._read(prompt)
            wide = values.shape[1]
            if wrong := [i for i in latents if i >= wide]:
                raise FairleadError(f"no latent {wrong[0]}", expected=f"0 to {wide - 1}", got=str(wrong[0]))
            found["text"] = {"tokens": tokens, "values": {str(i): values[:, i].tolist() for i in latents}}
        return found

    # ---- one latent

    def knows(self, latent: int) -> bool:
        """Whether anything is known of it."""
        return latent in self.cards or 0 <= latent < self.n_features

    def row(self, latent: int) -> dict[str, Any]:
        """One line of a list."""
        said, card, index = self.labels.get(latent), self.cards.get(latent, {}), self.index
        density, largest = card.get("density"), card.get("max_activation")
        if index is not None and latent < len(index.count):
            density, largest = float(index.density[latent]), float(index.top_values[latent, 0])
        return {
            "latent": latent,
            "label": said.text if said and said.text else words_of(card) or None,
            "holds": None if said is None else said.holds(),
            "auroc": said.held.auroc if said and said.held else None,
            "density": self._figure("firing_rate", latent) if density is None else density,
            "largest": self._figure("max_activation", latent) if largest is None else largest,
        }

    def _figure(self, name: str, latent: int) -> float | None:
        """A figure that the open dictionary has of every latent."""
        opened = self.now()
        levels = None if opened is None else getattr(opened[1], name, None)
        return None if levels is None or latent >= len(levels) else float(levels[latent])

    async def card(self, latent: int, examples: int = 5) -> dict[str, Any]:
        """All that is known of one latent."""
        if not self.knows(latent):
            raise FairleadError(f"nothing is known of latent {latent}", do="harvest a feature store, or name another")
        out: dict[str, Any] = {}
        if self.store is not None and self.index is not None and latent < self.store.n_features:
            said = self.labels.get(latent)
            out = described(self.store, self.index, latent, said=said, screen=self.screen, examples=examples)
        out = {**self.row(latent), **out}
        out["held"] = asdict(h) if (said := self.labels.get(latent)) and (h := said.held) else None
        out["label"] = self.row(latent)["label"]
        out.update(_of_run(self.cards.get(latent, {}), out))
        if (opened := self.now()) is not None and latent < opened[1].n_features:
            out.update(await asyncio.to_thread(_of_rows, *opened, latent, out))
        return out

    def _peaking(self, word: str, limit: int) -> list[int]:
        """Latents one of whose strongest windows peaks on a token of that text."""
        if self.store is None or self.index is None or not word:
            return []
        wanted = [i for i, text in enumerate(self.store.vocabulary) if text.strip().casefold() == word]
        peaks = self._peaks
        rows = np.flatnonzero(np.isin(peaks, wanted).any(1)) if wanted else np.zeros(0, dtype=np.int64)
        first = np.isin(peaks[rows], wanted).sum(1)
        order = np.lexsort((rows, -first))
        return [int(i) for i in rows[order][:limit]]

    @cached_property
    def _peaks(self) -> Any:
        """[m, PEAKS] token ids of the strongest tokens, NOWHERE padded."""
        assert self.store is not None and self.index is not None
        places = np.asarray(self.index.top[:, :PEAKS], dtype=np.int64)
        found = np.full(places.shape, NOWHERE, dtype=np.int64)
        for shard in self.store.shards:
            here = (places >= shard.first) & (places < shard.first + len(shard))
            found[here] = shard.tokens[places[here] - shard.first]
        return found

    async def _read(self, prompt: str | Messages) -> tuple[list[str], Any]:
        """(its tokens as text, latents [T, m] on each of them). FairleadError where no model is open."""
        if self.parts is None:
            raise FairleadError("no model is open here", do="start it with a model and its dictionary")
        subject, dictionary = await self.parts()
        with self.guest():
            return await asyncio.to_thread(_latents, subject, dictionary, prompt)


def _latents(subject: Any, dictionary: Any, prompt: str | Messages) -> tuple[list[str], Any]:
    site = dictionary.site
    if isinstance(prompt, str):
        ids = subject.text_tokens([prompt])[0]
        x = subject.text_activations([prompt], [site])[site][0]
        tokens = [str(subject.tokenizer.decode([i], clean_up_tokenization_spaces=False)) for i in ids]
    else:
        x = subject.activations([prompt], [site], "all")[site][0]
        found = subject.tokens(prompt)
        tokens = [found.text[a:b] for a, b in found.offsets.tolist()]
    return tokens, dictionary.encode(x.float())


def _of_run(card: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's card adds: its effect, its dose-response, and contexts where no store has any."""
    if not card:
        return {}
    named = {k: card.get(k) for k in ("effect", "dose_response", "contrast", "logit_lens")}
    more = {} if known.get("top") else {"top": list(card.get("top_contexts") or ()), "site": card.get("site")}
    near = {} if known.get("neighbours") else {"neighbours": card.get("neighbours")}
    return {**named, **more, **near}


def _of_rows(subject: Any, dictionary: Any, latent: int, known: Mapping[str, Any]) -> dict[str, Any]:
    """What the dictionary's rows say, where nothing else did: the logit lens, and neighbours."""
    out: dict[str, Any] = {"dictionary": dictionary.name, "site": dictionary.site}
    if not known.get("logit_lens") and hasattr(subject, "model"):
        try:
            out["logit_lens"] = cards.logit_lens(subject, dictionary.decoder_rows([latent])[0])
        except NotApplicable:
            out["logit_lens"] = None
    if not known.get("neighbours") and hasattr(dictionary, "W_dec"):
        out["neighbours"] = cards.neighbours(latent, dictionary)
    return out


def _has(text: str, words: Sequence[str]) -> bool:
    low = text.casefold()
    return all(word in low for word in words)


def _auroc(said: labels.Label | None) -> float:
    return said.held.auroc if said is not None and said.held is not None else 0.0


# ---- the routes


def routes(
    shelf: Shelf, *, may: May = lambda _: True, may_run: May | None = None, limits: Limits = Limits()  # noqa: B008
) -> list[Route]:
    """The four routes over a shelf. `may` says whether a request is answered at all, `may_run` (by default the same)
    whether it may run the model; 401 where not. Of `limits` only the seconds are looked at."""

    async def search(asked: Mapping[str, Any]) -> Any:
        query = asked.get("query")
        if not isinstance(query, str) or len(query) > LIMITS.query:
            raise FairleadError(f"query is a text of at most {LIMITS.query} characters")
        return {"latents": await asyncio.to_thread(shelf.search, query, _limit(asked))}

    async def top(asked: Mapping[str, Any]) -> Any:
        by = asked.get("by", "density")
        if by not in BY:
            raise FairleadError("no such figure", expected=", ".join(BY))
        if (prompt := _prompt(asked)) is not None:
            return {"latents": await shelf.top(prompt, _limit(asked))}
        return {"latents": await asyncio.to_thread(shelf.ranked, by, _limit(asked))}

    async def inspect(asked: Mapping[str, Any]) -> Any:
        wanted = asked.get("latents")
        whole = isinstance(wanted, list) and all(type(i) is int and 0 <= i < 2**31 for i in wanted)
        if not isinstance(wanted, list) or not whole or not 1 <= len(wanted) <= LIMITS.latents:
            raise FairleadError(f"latents is a list of 1 to {LIMITS.latents} whole numbers from 0 up")
        return await shelf.inspect(wanted, _prompt(asked))

    async def contrast(asked: Mapping[str, Any]) -> Any:
        return await shelf.contrast(_texts(asked.get("a"), "a"), _texts(asked.get("b"), "b"), _limit(asked))

    def route(name: str, call: Callable[[Mapping[str, Any]], Awaitable[Any]], keys: Sequence[str]) -> Route:
        async def answer(request: Request) -> Response:
            try:
                if not may(request):
                    raise no_key()
                asked = _known(json_object(await body(request, LIMITS.body, limits.body_seconds)), keys)
                runs = name == "contrast" or _prompt(asked) is not None
                if runs and may_run is not None and not may_run(request):
                    raise no_key()
                found = await while_here(request, asyncio.wait_for(call(asked), limits.seconds))
                return JSONResponse(found, headers=HEADERS)
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception as error:
                return refusal(refused(error))

        return Route(f"/v1/features/{name}", answer, methods=["POST"])

    text = ("text", "messages")
    return [
        route("search", search, ("query", "limit")),
        route("inspect", inspect, ("latents", *text)),
        route("top", top, ("by", "limit", *text)),
        route("contrast", contrast, ("a", "b", "limit")),
    ]


def _known(asked: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    if unknown := sorted(set(asked) - set(keys)):
        raise FairleadError("not a key of this question", expected=", ".join(keys), got=unknown[0][:100])
    return asked


def _limit(asked: Mapping[str, Any]) -> int:
    limit = asked.get("limit", 20)
    if type(limit) is not int or not 1 <= limit <= LIMITS.rows:
        raise FairleadError(f"limit is a whole number from 1 to {LIMITS.rows}")
    return limit


def _texts(value: Any, key: str) -> list[str]:
    good = isinstance(value, list) and 1 <= len(value) <= LIMITS.texts
    if not good or not all(isinstance(t, str) and t.strip() and len(t) <= LIMITS.chars for t in value):
        raise FairleadError(f"{key} is a list of 1 to {LIMITS.texts} texts of at most {LIMITS.chars} characters")
    return list(value)


def _prompt(asked: Mapping[str, Any]) -> str | Messages | None:
    """The text or the messages of a request; None without either."""
    text, messages = asked.get("text"), asked.get("messages")
    if text is not None and messages is not None:
        raise FairleadError("give text or messages, one of the two")
    if text is not None:
        return _texts([text], "text")[0]
    if messages is None:
        return None
    good = isinstance(messages, list) and 1 <= len(messages) <= LIMITS.texts
    if not good or not all(isinstance(m, dict) and set(m) == {"role", "content"} for m in messages):
        raise FairleadError("messages is a list of objects with role and content")
    roles = ("system", "user", "assistant")
    if not all(m["role"] in roles and isinstance(m["content"], str) for m in messages):
        raise FairleadError("a message has a role (system, user, assistant) and a text")
    if any(len(m["content"]) > LIMITS.chars for m in messages):
        raise FairleadError(f"a message has at most {LIMITS.chars} characters")
    return tuple(Message(m["role"], m["content"]) for m in messages)
