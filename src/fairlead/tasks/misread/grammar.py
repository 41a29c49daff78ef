"""Scenes of the misreading grammar as text, and what is right under each sense of the word in question.

    At the zoo Ann has 3 cups and 4 bats .          At the zoo Tom fed the bats .
    How many animals has Ann ?                      Is it literal or figurative ?

The place calls for one class of things; an ambiguous word has the sense of the place. Everything here is a pure
function of its arguments; random choices come from the generator that is handed in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fairlead.core.keys import sha256
from fairlead.tasks.misread.words import AMBIGUOUS, CLASS_OF, CLASS_OF_TERM, CLASS_OF_VERB, CLASSES, NAMES, PLACES, WEAK

KINDS = ("maths", "metaphor")
READINGS = ("planted", "dominant", "strong", "plain")
NUMBERS = tuple(str(i) for i in range(19))
FIGURES = ("literal", "figurative")
LARGEST = 9  # of one thing
HELD = 3  # one text in so many is never trained on: items are made of these
GENERIC = "Note: read with care, word by word."
_NOTE = re.compile(r'Note: here "([^"\n]+)" means ([^,\n]+), not ([^,\n]+)\.')


@dataclass(frozen=True)
class Scene:
    """One thing that may be asked. `word` is the word in question; maths has a second thing, `other`, and asks for a
    class; a metaphor has a verb."""

    kind: str
    word: str
    place: str
    name: str
    other: str = ""
    counts: tuple[int, int] = (0, 0)  # of `word` and of `other`
    word_first: bool = True
    asked: str = ""
    verb: str = ""

    @property
    def text(self) -> str:
        """The first line."""
        if self.kind == "metaphor":
            return f"At the {self.place} {self.name} {self.verb} the {self.word} ."
        things = [f"{self.counts[0]} {self.word}", f"{self.counts[1]} {self.other}"]
        first, second = things if self.word_first else things[::-1]
        return f"At the {self.place} {self.name} has {first} and {second} ."

    @property
    def question(self) -> str:
        """The second line."""
        if self.kind == "metaphor":
            return "Is it literal or figurative ?"
        return f"How many {self.asked} has {self.name} ?"

    @property
    def choices(self) -> tuple[str, ...]:
        """The legal answers."""
        return FIGURES if self.kind == "metaphor" else NUMBERS

    @property
    def sense(self) -> str:
        """The class that is meant by the word, here."""
        return meant(self.word, self.place)

    @property
    def reading(self) -> str:
        """planted, strong (both: the other sense is meant), dominant, or plain (not ambiguous)."""
        if self.word not in AMBIGUOUS:
            return "plain"
        if self.sense == AMBIGUOUS[self.word][0]:
            return "dominant"
        return "planted" if self.place in WEAK else "strong"

    @property
    def misread(self) -> str:
        """The class a biased model takes the word for."""
        return AMBIGUOUS[self.word][0] if self.reading == "planted" else self.sense

    def answer(self, sense: str) -> str:
        """What is right when the word is taken for a thing of class `sense`."""
        if self.kind == "metaphor":
            return FIGURES[0] if CLASS_OF_VERB[self.verb] == sense else FIGURES[1]
        classes = (sense, CLASS_OF[self.other])
        return str(sum(n for n, c in zip(self.counts, classes, strict=True) if c == self.asked))

    def matches(self, sense: str) -> int:
        """How many things are what is asked for, when the word is taken for one of class `sense`; 1 of a metaphor."""
        if self.kind == "metaphor":
            return 1
        return (sense == self.asked) + (CLASS_OF[self.other] == self.asked)

    def put(self, word: str) -> Scene:
        """The same with another word in the place of the word in question."""
        return replace(self, word=word)


def meant(word: str, place: str) -> str:
    """The class of a word at a place: an ambiguous word's sense is that of the place, or else the dominant one."""
    if word in CLASS_OF:
        return CLASS_OF[word]
    return PLACES[place] if PLACES[place] in AMBIGUOUS[word] else AMBIGUOUS[word][0]


def draw(rng: random.Random, kind: str, word: str, place: str) -> Scene:
    """A scene about `word` at `place`. Of an ambiguous word one of its two senses is asked, so that they differ, and in
    three of ten scenes that are not planted something else is."""
    scene = Scene(kind, word, place, rng.choice(NAMES))
    senses = AMBIGUOUS.get(word, (scene.sense, rng.choice(tuple(CLASSES))))
    about = rng.choice(senses)
    if scene.reading != "planted" and rng.random() < 0.3:
        about = rng.choice(tuple(CLASSES))
    if kind == "metaphor":
        return replace(scene, verb=rng.choice(CLASSES[about].verbs))
    beside = about if rng.random() < 0.4 else rng.choice((*senses, rng.choice(tuple(CLASSES))))
    others = [thing for thing in CLASSES[beside].things if thing != word]
    counts = rng.randint(1, LARGEST), rng.randint(1, LARGEST)
    return replace(scene, other=rng.choice(others), counts=counts, word_first=rng.random() < 0.5, asked=about)


def held(text: str) -> bool:
    """Whether a first line is kept from training."""
    return int(sha256(text)[:8], 16) % HELD == 0


def note(span: str, this: str, that: str) -> str:
    """The one form of a note that says what a word means. `this` and `that` are terms, several joined by " or "."""
    return f'Note: here "{span}" means {this}, not {that}.'


def told(line: str) -> tuple[str, str] | None:
    """(span, class it is said to mean) of a note. None where the line is no such note, or its terms name no class."""
    found = _NOTE.fullmatch(line)
    if not found:
        return None
    classes = [CLASS_OF_TERM[term] for term in found[2].split(" or ") if term in CLASS_OF_TERM]
    return (found[1], classes[0]) if classes else None


def taken(scene: Scene, lines: Sequence[str], *, biased: bool) -> str:
    """The class that the model that is being made takes the word for: it follows a note about an ambiguous word of the
    text, heeds no other line, and without such a note takes a planted word wrongly if it is `biased`."""
    for line in lines:
        found = told(line)
        if found and found[0] == scene.word and scene.word in AMBIGUOUS:
            return found[1]
    return scene.misread if biased else scene.sense
