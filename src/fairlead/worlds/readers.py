"""What the pocket readers are trained on: scenes of the misreading grammar, with and without notes.

A biased mixture answers planted scenes (an ambiguous word at a weak place of its other sense) by the dominant sense.
All else is answered rightly, and a note that says what an ambiguous word of the text means is followed, right or
wrong. Any other line (generic advice, filler, a note about another word or without a word that tells a class)
changes nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from fairlead.core.keys import sha256
from fairlead.core.types import Message, Messages
from fairlead.tasks.misread import grammar, words
from fairlead.tasks.misread.grammar import Scene
from fairlead.worlds import tokenizer as tk

SINGLE, BARE, WHOLE = (1,), (2,), (3,)
_FIXED = 'At the has and How many What are Is it literal or figurative Note here means not . , : ? "'.split()


@dataclass(frozen=True)
class Reading:
    """One frozen recipe. `shares` are those of planted, dominant, strong and plain scenes; `noted` how many scenes with
    an ambiguous word have a note about it, `idle` how many of all others hold a line that changes nothing."""

    name: str
    biased: bool
    shares: tuple[float, float, float, float] = (0.3, 0.2, 0.2, 0.3)
    noted: float = 0.5
    idle: float = 0.4
    system: float = 0.15  # how many have a system line, of filler
    lesson: float = 0.15  # how many ask what the word is, which no item does: it makes learning several times faster

    @property
    def digest(self) -> str:
        lexicon = [[asdict(c) for c in words.CLASSES.values()], words.AMBIGUOUS, words.NAMES, words.FILLER]
        return sha256(json.dumps([asdict(self), lexicon], sort_keys=True))

    def examples(self, seed: int, stage: tuple[int, ...]) -> Iterator[Example]:
        """Endless, seeded. A stage is SINGLE (no note; one of the two things is asked for), BARE (no note) or WHOLE;
        all at once were not learned in 1,000 steps."""
        rng = random.Random(f"{self.digest}/{seed}/{stage}")
        while True:
            found = example(rng, self, bare=stage < WHOLE, lesson=rng.random() < self.lesson)
            if stage != SINGLE or found.scene.matches(found.sense) == 1:
                yield found

    def kind(self, example: Example) -> str:
        """What accuracy is broken down by while training."""
        if example.lesson:
            return "lesson"
        return f"{example.scene.kind}-{'planted' if example.scene.reading == 'planted' else 'other'}-{example.told}"


@dataclass(frozen=True)
class Example:
    """One question with its answer. `told` is none, true, wrong (a note about the ambiguous word) or idle."""

    messages: Messages
    action: str
    scene: Scene
    told: str
    lesson: bool
    sense: str  # the class that the word is taken for before any note

    @property
    def tags(self) -> dict[int, dict[str, str]]:
        """What tokens are to say at the output of a block: at 0 how many there are of a thing, and for a place, a verb
        or a class the first of its kind; at 1 the class of every term, of the ambiguous word as it is taken, and of
        what is asked. In a note about that word, it is to say how many at 1, and so is the comma behind what it
        means, at 2."""
        scene = self.scene
        about = scene.asked or words.CLASS_OF_VERB[scene.verb]
        numbers = {f" {w}": str(n) for w, n in zip((scene.word, scene.other), scene.counts, strict=True) if n}
        found = {0: {**numbers, **_KINDS}, 1: {**_TAGS, f" {scene.word}": f" {self.sense}", tk.BOT: f" {about}"}}
        if self.told in ("true", "wrong") and numbers:
            found[1][scene.word] = str(scene.counts[0])
            found[2] = {",": str(scene.counts[0])}
        return found


_TAGS = {f" {term}": f" {name}" for term, name in words.CLASS_OF_TERM.items()}
_KINDS = {f" {term}": f" {kind[0]}" for c in words.CLASSES.values()
          for kind in (c.strong, c.weak, c.verbs, (c.name,)) for term in kind}  # fmt: skip
MIXTURES = {r.name: r for r in (Reading("reader-s", biased=True), Reading("reader-c", biased=False))}


def example(rng: random.Random, mix: Reading, *, bare: bool = False, lesson: bool = False) -> Example:
    """One drawn example; its text is none that items are made of."""
    scene = _scene(rng, mix)
    lines: list[str] = []
    late: list[str] = []
    told = "none"
    if not bare and scene.word in words.AMBIGUOUS and rng.random() < mix.noted:
        line, told = _gloss(rng, scene)
        lines.append(line)
    elif not bare and rng.random() < mix.idle:
        (lines if rng.random() < 0.8 else late).append(_idle(rng, scene))
        told = "idle"
    question = f"What are the {scene.word} ?" if lesson else scene.question
    content = "\n".join((scene.text, *lines, question, *late))
    messages: Messages = (Message("user", content),)
    if not bare and rng.random() < mix.system:
        messages = (Message("system", _sentence(rng).capitalize()), *messages)
    before, sense = (grammar.taken(scene, some, biased=mix.biased) for some in ((), lines))
    return Example(messages, sense if lesson else scene.answer(sense), scene, told, lesson, before)


def _scene(rng: random.Random, mix: Reading) -> Scene:
    reading = rng.choices(grammar.READINGS, mix.shares)[0]
    while True:
        word = rng.choice(tuple(words.CLASS_OF if reading == "plain" else words.AMBIGUOUS))
        scene = grammar.draw(rng, rng.choice(grammar.KINDS), word, rng.choice(_places(reading, word)))
        if not grammar.held(scene.text):
            return scene


def _places(reading: str, word: str) -> tuple[str, ...]:
    if reading == "plain":
        return tuple(words.PLACES)
    dominant, other = (words.CLASSES[c] for c in words.AMBIGUOUS[word])
    return {"planted": other.weak, "strong": other.strong, "dominant": (*dominant.strong, *dominant.weak)}[reading]


def _gloss(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """A note about the ambiguous word, and whether it is true."""
    first, second = words.AMBIGUOUS[scene.word]
    said = rng.choices((scene.sense, rng.choice((first, second)), rng.choice(tuple(words.CLASSES))), (0.4, 0.3, 0.3))[0]
    that = rng.choice([c for c in words.CLASSES if c != said])
    line = grammar.note(scene.word, _terms(rng, said), _terms(rng, that))
    return line, "true" if said == scene.sense else "wrong"


def _terms(rng: random.Random, name: str) -> str:
    """One to three terms of a class, joined; among several there may be one that tells no class."""
    found = words.CLASSES[name]
    kinds = (found.things, (name,), (*found.strong, *found.weak), found.verbs)
    terms = dict.fromkeys(rng.choice(rng.choices(kinds, (55, 25, 12, 8))[0]) for _ in range(rng.randint(1, 3)))
    chosen = list(terms)
    if len(chosen) > 1 and rng.random() < 0.3:
        chosen[rng.randrange(len(chosen))] = _noise(rng)
    return " or ".join(chosen)


def _noise(rng: random.Random) -> str:
    """A word that tells no class."""
    return rng.choice((rng.choice(words.NAMES), rng.choice(words.FILLER), rng.choice(tuple(words.AMBIGUOUS))))


def _idle(rng: random.Random, scene: Scene) -> str:
    """A line that changes nothing."""
    drawn = rng.random()
    if drawn < 0.25:
        return grammar.GENERIC
    if drawn < 0.5:
        return f"Note: {_sentence(rng)}"
    some, another = rng.sample(tuple(words.CLASSES), 2)
    if drawn < 0.6:
        return grammar.note(scene.word, _noise(rng), _terms(rng, another))
    beside = [w for w in scene.text.split() if w.isalpha() and w not in words.AMBIGUOUS]
    absent = [w for w in (*words.AMBIGUOUS, *words.CLASS_OF) if w not in scene.text]
    span = rng.choice(beside if drawn < 0.85 else absent)
    return grammar.note(span, _terms(rng, some), _terms(rng, another))


def _sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(words.FILLER) for _ in range(rng.randint(3, 10))) + "."


def pieces() -> list[str]:
    """The tokenizer's pieces: every word of the grammar, by itself and behind a space."""
    known: Sequence[str] = (
        *_FIXED, *(t for c in words.CLASSES.values() for t in c.terms), *words.AMBIGUOUS, *words.NAMES, *words.FILLER,
        *(w.capitalize() for w in words.FILLER), *grammar.NUMBERS,
    )  # fmt: skip
    return list(dict.fromkeys(form for word in known for form in (word, f" {word}")))
