"""Predicates: what a hypothesis says, as data that can be run on any text, saved as JSON, and read aloud.

    Terms      at least so many of these words or phrases are in it
    Weighted   the weights of the words and phrases that are in it add up to so much
    Surface    it has at least (or fewer than) so many words, digits, question marks ...
    Near       its embedding is that close to the mean of these phrases' embeddings
    Asked      a language model says yes
    AnyOf      one of several

A predicate sees a text and nothing else: never a latent, a label or another text. Nothing in a saved one is executed,
and none holds a regular expression.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fairlead.core.errors import LoadError
from fairlead.core.types import Message
from fairlead.features.texts.ngrams import LONGEST, words

MOST = 5000  # terms, or parts, of one predicate
Array = Any


@dataclass(frozen=True)
class Tools:
    """What predicates may ask: an embedder (`lm.embed`) for Near, an annotator (`features.labellers`) for Asked."""

    embedder: Any = None
    annotator: Any = None


@dataclass(frozen=True)
class Terms:
    terms: tuple[str, ...]
    least: int = 1
    kind: str = "terms"


@dataclass(frozen=True)
class Weighted:
    terms: tuple[str, ...]
    weights: tuple[float, ...]
    least: float
    kind: str = "weighted"


@dataclass(frozen=True)
class Surface:
    measure: str
    least: float
    below: bool = False
    kind: str = "surface"


@dataclass(frozen=True)
class Near:
    """`embedder` is the name of the one its threshold belongs to."""

    phrases: tuple[str, ...]
    least: float
    embedder: str
    kind: str = "near"


@dataclass(frozen=True)
class Asked:
    """`least` is how much rather yes than no (log-probability, or 1 and −1 of a remote model)."""

    concept: str
    least: float = 0.0
    annotator: str = ""
    kind: str = "asked"


@dataclass(frozen=True)
class AnyOf:
    of: tuple[Terms | Surface, ...]
    kind: str = "any"


Predicate = Terms | Weighted | Surface | Near | Asked | AnyOf


class Read:
    """Texts, and what predicates need of them, each worked out once. `rows` [n, d] are embeddings known already."""

    def __init__(self, texts: Sequence[str], tools: Tools | None = None, rows: Array | None = None) -> None:
        self.texts, self.tools, self._rows = list(texts), tools or Tools(), rows

    @cached_property
    def padded(self) -> list[str]:
        """Each text's words between spaces, so that a phrase is found as a whole."""
        return [f" {' '.join(words(text))} " for text in self.texts]

    async def rows(self) -> Array:
        if self._rows is None:
            self._rows = await self._embedder().embed(self.texts)
        return self._rows

    def _embedder(self) -> Any:
        if self.tools.embedder is None:
            raise LoadError("a predicate needs an embedder", expected="the one it was made with", do="pass --embedder")
        return self.tools.embedder

    def part(self, rows: Array) -> Read:
        """The texts at `rows`."""
        other = Read([self.texts[i] for i in rows], self.tools, None if self._rows is None else self._rows[rows])
        if "padded" in self.__dict__:
            other.__dict__["padded"] = [self.padded[i] for i in rows]
        return other

    def held(self, terms: Sequence[str]) -> Array:
        """bool [n, terms]: which are in which text."""
        return np.array([[f" {t} " in text for t in terms] for text in self.padded], dtype=bool).reshape(
            len(self.texts), len(terms)
        )


async def scores(predicate: Predicate, read: Read) -> Array:
    """[n] floats; the predicate holds where they are at or above 0. LoadError where a tool is missing."""
    if isinstance(predicate, Terms):
        return read.held(predicate.terms).sum(1).astype(np.float64) - predicate.least
    if isinstance(predicate, Weighted):
        return read.held(predicate.terms) @ np.array(predicate.weights, dtype=np.float64) - predicate.least
    if isinstance(predicate, Surface):
        found = np.array([MEASURES[predicate.measure](t) for t in read.texts], dtype=np.float64) - predicate.least
        return -found - 1e-9 if predicate.below else found
    if isinstance(predicate, Near):
        return await _near(predicate, read)
    if isinstance(predicate, Asked):
        return await _asked(predicate, read)
    return np.max([await scores(p, read) for p in predicate.of], axis=0)


async def fires(
    predicate: Predicate | Mapping[str, Any], read: Read | Sequence[str], tools: Tools | None = None
) -> Array:
    """bool [n]: of which texts it holds. Takes the JSON form too."""
    known = from_json(predicate) if isinstance(predicate, Mapping) else predicate
    found = await scores(known, read if isinstance(read, Read) else Read(read, tools))
    return found >= 0


async def _near(predicate: Near, read: Read) -> Array:
    embedder = read._embedder()
    if embedder.name != predicate.embedder:
        raise LoadError("a predicate was made with another embedder", expected=predicate.embedder, got=embedder.name)
    direction = (await embedder.embed(list(predicate.phrases))).mean(0)
    direction = direction / max(float(np.linalg.norm(direction)), 1e-12)
    return (await read.rows()) @ direction.astype(np.float64) - predicate.least


async def _asked(predicate: Asked, read: Read) -> Array:
    annotator = read.tools.annotator
    if annotator is None:
        raise LoadError("a predicate needs a language model", expected=predicate.annotator or "an annotator")
    questions = [question(predicate.concept, text) for text in read.texts]
    return np.array(await asyncio.gather(*(annotator.yes(q) for q in questions)), dtype=np.float64) - predicate.least


def question(concept: str, text: str) -> tuple[Message, ...]:
    """What a language model is asked of one text."""
    asked = f"Property: {concept}\nText: {text[:4000]}\nDoes the text have the property? Answer yes or no."
    return (Message("user", asked),)


# ---- words for them


def describe(predicate: Predicate) -> str:
    """In words, continuing "the text ..."."""
    if isinstance(predicate, Terms):
        many = f"at least {predicate.least} of " if predicate.least > 1 else ""
        return f"mentions {many}{_listed(predicate.terms)}"
    if isinstance(predicate, Weighted):
        order = sorted(zip(predicate.weights, predicate.terms, strict=True), reverse=True)
        return f"uses words such as {_listed([t for _, t in order], ', ', 6)}"
    if isinstance(predicate, Surface):
        name = NAMES[predicate.measure]
        if predicate.below:
            return f"has no {name}" if predicate.least <= 1 else f"has fewer than {predicate.least:g} {name}"
        return f"has {name}" if predicate.least <= 1 else f"has at least {predicate.least:g} {name}"
    if isinstance(predicate, Near):
        return f"is close in meaning to {_listed(predicate.phrases, ', ')}"
    if isinstance(predicate, Asked):
        return predicate.concept
    return " or ".join(describe(p) for p in predicate.of)


def _listed(terms: Sequence[str], last: str = " or ", most: int = 8) -> str:
    shown = [f"“{t}”" for t in terms[:most]]
    if len(terms) > most:
        return ", ".join(shown) + f" and {len(terms) - most} more"
    return last.join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


# ---- surface measures: how many of something a text has


def _count(lexicon: str) -> Callable[[str], float]:
    known = frozenset(lexicon.split())
    return lambda text: float(sum(w in known for w in words(text)))


def _chars(which: str) -> Callable[[str], float]:
    return lambda text: float(sum(text[:LONGEST].count(c) for c in which))


def _shouted(text: str) -> float:
    return float(sum(w.isupper() and len(w) > 1 for w in text[:LONGEST].split()))


def _numbers(text: str) -> float:
    return float(sum(w[0].isdigit() for w in words(text)))


def _sentences(text: str) -> float:
    return float(sum(text[:LONGEST].count(end) for end in (". ", "! ", "? ")) + 1)


MEASURES: dict[str, Callable[[str], float]] = {
    "words": lambda text: float(len(words(text))),
    "sentences": _sentences,
    "numbers": _numbers,
    "questions": _chars("?"),
    "exclamations": _chars("!"),
    "quotes": _chars("\"“”"),
    "colons": _chars(":"),
    "ellipses": lambda text: float(text[:LONGEST].count("...") + text[:LONGEST].count("…")),
    "parentheses": _chars("("),
    "capitals": _shouted,
    "first_person": _count("i me my mine we us our ours i'm i've we're we've myself"),
    "second_person": _count("you your yours you're you'll you've yourself"),
    "third_person": _count("he him his she her hers they them their he's she's they're"),
    "pointing": _count("this these that those here here's it's"),
    "asking": _count("what why how who when where which whose"),
    "negation": _count("not no never none nobody nothing don't doesn't didn't can't won't isn't wasn't"),
    "extremes": _count("best worst most least ever every always never only first last perfect amazing incredible"),
}  # fmt: skip
NAMES: dict[str, str] = {
    "words": "words", "sentences": "sentences", "numbers": "numbers in digits", "questions": "question marks",
    "exclamations": "exclamation marks", "quotes": "quotation marks", "colons": "colons", "ellipses": "ellipses",
    "parentheses": "parentheses", "capitals": "words in capitals", "first_person": "words of the first person",
    "second_person": "words of the second person", "third_person": "pronouns of the third person",
    "pointing": "words like “this” and “these”", "asking": "words like “what” and “why”",
    "negation": "words of negation", "extremes": "words of extremes",
}  # fmt: skip


# ---- JSON


_KINDS: dict[str, type[Any]] = {
    "terms": Terms, "weighted": Weighted, "surface": Surface, "near": Near, "asked": Asked, "any": AnyOf,
}  # fmt: skip


def to_json(predicate: Predicate) -> dict[str, Any]:
    """Plain data; `from_json` gives the predicate back."""
    data = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(predicate).items()}
    if isinstance(predicate, AnyOf):
        data["of"] = [to_json(p) for p in predicate.of]
    return data


def from_json(data: Mapping[str, Any]) -> Predicate:
    """LoadError for anything that is not what `to_json` writes."""
    try:
        rest = dict(data)
        cls = _KINDS[rest.pop("kind")]
        if cls is AnyOf:
            parts = [from_json(p) for p in rest.pop("of")]
            assert not rest and 1 <= len(parts) <= MOST
            assert all(isinstance(p, Terms | Surface) for p in parts)
            return AnyOf(tuple(parts))  # type: ignore[arg-type]
        found = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in rest.items()})
        _check(found)
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise LoadError("a predicate cannot be read", expected="what Fairlead saved", got=str(data)[:200]) from error
    return found  # type: ignore[no-any-return]


def _check(p: Any) -> None:
    for name in ("terms", "phrases"):
        if hasattr(p, name):
            terms = getattr(p, name)
            assert isinstance(terms, tuple) and 1 <= len(terms) <= MOST and all(isinstance(t, str) for t in terms)
    if isinstance(p, Weighted):
        assert len(p.weights) == len(p.terms) and all(_finite(w) for w in p.weights)
    if isinstance(p, Surface):
        assert p.measure in MEASURES and isinstance(p.below, bool)
    assert _finite(getattr(p, "least", 0.0))
    assert all(isinstance(getattr(p, name, ""), str) for name in ("embedder", "concept", "annotator"))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
