"""Ways to say what a latent fires on. Each gives a text *and* a predicate that scores any text.

    peaks     the words on which it fires most
    terms     words that windows where it fires have and near misses have not (log-odds with an informative prior)
    lens      the tokens its decoder row promotes
    phrase    the phrase whose embedding lies nearest to what sets the windows apart
    asked     what a language model says when it is shown both; it is asked again, of each text, whether that holds

A labeller sees `shown` only.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fairlead.core.types import Message
from fairlead.features.detection import auroc
from fairlead.features.evidence import Evidence, Part

TERMS, TRIED, PROMOTED, PHRASES, SHOWN_TO_A_MODEL = 5, 30, 20, 40, 8
GAIN = 0.02  # in AUROC on the shown windows, for which a rule takes another word
_WORD = re.compile(r"\w+|[^\w\s]")

Scores = Callable[[Sequence[str]], Awaitable[list[float]]]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A label that has yet to be scored: how it was made, its text, the words or phrases in it, and its predicate."""

    kind: str
    text: str
    terms: tuple[str, ...]
    scores: Scores


class Labeller(Protocol):
    """Makes at most one candidate of what it is shown."""

    @property
    def kind(self) -> str: ...

    async def label(self, evidence: Evidence) -> Candidate | None: ...


@dataclass(frozen=True)
class Peaks:
    """Up to five of the words where the latent fires most, none of `avoid`; needs windows with marked tokens."""

    kind: str = "peaks"
    avoid: frozenset[str] = frozenset()

    async def label(self, evidence: Evidence) -> Candidate | None:
        words = Counter(e.peak for e in evidence.shown.positives if e.peak and e.peak not in self.avoid)
        return _rule(self.kind, "fires on ", evidence.shown, [word for word, _ in words.most_common()])


@dataclass(frozen=True)
class Terms:
    """Up to five words of the windows, wherever they stand, none of `avoid`."""

    kind: str = "terms"
    avoid: frozenset[str] = frozenset()

    async def label(self, evidence: Evidence) -> Candidate | None:
        part = evidence.shown
        groups = (part.positives, part.negatives)
        ranked = contrastive(*([set(_words(e.text)) - self.avoid for e in group] for group in groups))
        return _rule(self.kind, "texts with ", part, ranked[:TRIED])


def _rule(kind: str, says: str, part: Part, words: Sequence[str]) -> Candidate | None:
    """Words, added one by one while "has any of them" tells the shown windows apart better."""
    fires, silent = ([set(_words(e.text)) for e in group] for group in (part.positives, part.negatives))
    chosen: list[str] = []
    best = 0.5
    while len(chosen) < TERMS:
        tried = [(auroc(_hits(fires, [*chosen, w]), _hits(silent, [*chosen, w])), -i, w) for i, w in enumerate(words)]
        value, _, word = max((t for t in tried if t[2] not in chosen), default=(0.0, 0, ""))
        if value < best + GAIN:
            break
        best = value
        chosen.append(word)
    if not chosen:
        return None

    async def scores(texts: Sequence[str]) -> list[float]:
        return _hits([set(_words(t)) for t in texts], chosen)

    return Candidate(kind, says + " or ".join(f"“{w}”" for w in chosen), tuple(chosen), scores)


def contrastive(fires: Sequence[set[str]], silent: Sequence[set[str]]) -> list[str]:
    """Words that are likelier in texts of `fires` than of `silent`, by the z of their log-odds with an informative
    Dirichlet prior (Monroe et al. 2008), highest first."""
    one, two = (Counter(w for words in group for w in words) for group in (fires, silent))
    every = one + two
    a, b, total = sum(one.values()), sum(two.values()), sum(every.values())
    if not total:
        return []
    found = []
    for word, count in every.items():
        prior = 10.0 * count / total
        x, y = one[word] + prior, two[word] + prior
        delta = np.log(x / (a + 10.0 - x)) - np.log(y / (b + 10.0 - y))
        found.append((float(delta / np.sqrt(1 / x + 1 / y)), word))
    return [word for z, word in sorted(found, key=lambda f: (-f[0], f[1])) if z > 0]


@dataclass(frozen=True)
class Lens:
    """The tokens a latent promotes (or is nearest to: `says`); a text scores by how many of them are in it. `promoted`
    gives their texts."""

    promoted: Callable[[int], Sequence[str]]
    kind: str = "lens"
    says: str = "promotes "
    avoid: frozenset[str] = frozenset()

    async def label(self, evidence: Evidence) -> Candidate | None:
        tokens = dict.fromkeys(t.strip().lower() for t in self.promoted(evidence.latent))
        words = [t for t in tokens if re.search(r"\w", t) and t not in self.avoid][:PROMOTED]
        if not words:
            return None

        async def scores(texts: Sequence[str]) -> list[float]:
            return [float(sum(_holds(t.lower(), w) for w in words)) for t in texts]

        return Candidate(self.kind, self.says + ", ".join(f"“{w}”" for w in words[:5]), tuple(words), scores)


@dataclass(frozen=True)
class Phrase:
    """The phrase nearest to the difference of mean embeddings: of `bank`, or of the words and pairs in the windows."""

    embedder: Any
    bank: tuple[str, ...] = ()
    kind: str = "phrase"

    async def label(self, evidence: Evidence) -> Candidate | None:
        part = evidence.shown
        phrases = list(self.bank) or _phrases(part)
        if not phrases:
            return None
        texts = [e.text for e in part.all]
        rows = await self.embedder.embed(texts)
        fires, silent = rows[: len(part.positives)], rows[len(part.positives) :]
        named = await self.embedder.embed(phrases)
        near = np.argsort(-(named @ (fires.mean(0) - silent.mean(0))), kind="stable")[:10]
        best = max(near, key=lambda i: auroc((fires @ named[i]).tolist(), (silent @ named[i]).tolist()))
        direction, phrase = named[best], phrases[int(best)]
        if not direction.any():
            return None

        async def scores(texts: Sequence[str]) -> list[float]:
            return [float(s) for s in (await self.embedder.embed(texts)) @ direction]

        return Candidate(self.kind, f"texts near “{phrase}”", (phrase,), scores)


class Annotator(Protocol):
    """A language model that says and judges."""

    async def say(self, messages: tuple[Message, ...]) -> str: ...
    async def yes(self, messages: tuple[Message, ...]) -> float:
        """How much rather yes than no: larger is more."""
        ...


@dataclass(frozen=True)
class Asked:
    """What a language model says the windows where a latent fires have in common."""

    annotator: Annotator
    kind: str = "asked"

    async def label(self, evidence: Evidence) -> Candidate | None:
        part = evidence.shown
        strongest = sorted(part.positives, key=lambda e: -e.value)[:SHOWN_TO_A_MODEL]
        lines = ["In these texts a feature is active, most at the words between << and >>:"]
        lines += [f"{i}. {e.marked}" for i, e in enumerate(strongest, 1)]
        lines += ["In these it is not:"]
        lines += [f"{i}. {e.text}" for i, e in enumerate(part.negatives[:SHOWN_TO_A_MODEL], 1)]
        lines += ["Name what the feature stands for, in one short phrase that holds for all of the first texts and "
                  "for none of the second. Answer with the phrase only."]  # fmt: skip
        said = (await self.annotator.say((Message("user", "\n".join(lines)),))).strip()
        phrase = said.splitlines()[0].strip(" .\"'“”")[:200] if said else ""
        if not phrase:
            return None

        async def scores(texts: Sequence[str]) -> list[float]:
            end = "Does the text contain the feature? Answer yes or no."
            asked = [f"Feature: {phrase}\nText: {text}\n{end}" for text in texts]
            return list(await asyncio.gather(*(self.annotator.yes((Message("user", a),)) for a in asked)))

        return Candidate(self.kind, phrase, (phrase,), scores)


@dataclass(frozen=True)
class RemoteAnnotator:
    """A model behind an OpenAI-compatible endpoint (lm.remote.Remote)."""

    remote: Any

    async def say(self, messages: tuple[Message, ...]) -> str:
        return str(await self.remote.complete(messages, max_tokens=60))

    async def yes(self, messages: tuple[Message, ...]) -> float:
        """1 for yes, −1 for no, 0 for anything else."""
        said = (await self.remote.complete(messages, max_tokens=4)).strip().lower()
        return 1.0 if said.startswith("yes") else -1.0 if said.startswith("no") else 0.0


@dataclass(frozen=True)
class LocalAnnotator:
    """Any Subject: it says freely, and judges by the log-probabilities of yes and no."""

    subject: Any

    async def say(self, messages: tuple[Message, ...]) -> str:
        return str((await self.subject.generate(messages, max_tokens=40)).text)

    async def yes(self, messages: tuple[Message, ...]) -> float:
        yes, no = await self.subject.logprobs(messages, ("yes", "no"))
        return float(yes - no)


def _words(text: str) -> list[str]:
    return [w.lower() for w in _WORD.findall(text)]


def _hits(texts: Sequence[set[str]], terms: Sequence[str]) -> list[float]:
    """How many of `terms` each text has; one is most of it."""
    found = [sum(t in words for t in terms) for words in texts]
    return [float(min(n, 1) + 0.01 * n) for n in found]


def _holds(text: str, word: str) -> bool:
    return word in text if len(word) > 2 else word in _words(text)


def _phrases(part: Part) -> list[str]:
    """Words and pairs of words of the windows where it fires, the most telling first."""
    fires, silent = ([_words(e.text) for e in group] for group in (part.positives, part.negatives))

    def grams(words: list[str]) -> set[str]:
        plain = [w for w in words if w[0].isalnum()]
        return {*plain, *(f"{a} {b}" for a, b in zip(plain, plain[1:], strict=False))}

    return contrastive([grams(w) for w in fires], [grams(w) for w in silent])[:PHRASES]
