"""Short word problems and metaphors with ambiguous words: what a model of `worlds` was taught to misread.

`plugin(options)` builds the task. Options: kinds ("maths", "metaphor"), decoding ("constrained" only: every answer is a
choice), n (what a plan asks for; the grammar decides how many clusters there are).

An item's data: text and question (the two lines of the prompt), answer (what is right), choices, hard (whether the item
is planted), and where the word in question is ambiguous, paraphrase (the text with a word of the class that is meant in
its place) and gloss (what a true note says). Measures: those of `tasks._asked.marks`, loose being strict; and located
(planted and annotated: whether the note is about the ambiguous word; None elsewhere).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fairlead.core.errors import PlanError
from fairlead.core.keys import content_key
from fairlead.core.types import Item, Message, Messages, Outcome, Score
from fairlead.tasks._asked import Question, ask, marks
from fairlead.tasks.misread.clusters import DEAL, ITEMS, Cluster, clusters
from fairlead.tasks.misread.grammar import KINDS, Scene, draw, held
from fairlead.tasks.misread.words import AMBIGUOUS, CLASSES

DEFAULTS: dict[str, Any] = {"kinds": list(KINDS), "decoding": "constrained", "n": 0}
SPLITS = ("train", "validation", "test")


class MisreadTask:
    """`needs` a subject. Items are scenes; those of one word at one place share a cluster."""

    name = "misread"
    needs = "subject"

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = _options(dict(options or {}))

    def items(self, split: str) -> Sequence[Item]:
        """`pretrain` holds texts of all clusters such as a model was trained on; the others hold texts it was not."""
        if split == "pretrain":
            return [i for part in SPLITS for c in clusters(part) for i in self._of(c, split)]
        return [i for c in clusters(split) for i in self._of(c, split)]

    def manifest(self, split: str) -> str:
        return content_key([asdict(item) for item in self.items(split)])

    async def run(self, item: Item, world: Any) -> Outcome:
        """The two lines as one turn, and one of the choices."""
        return await ask(_question(item), world)

    def score(self, item: Item, outcome: Outcome) -> Score:
        found = marks(_question(item), outcome.data).values
        rewrite, planted = outcome.data["rewrite"], item.strata["reading"] == "planted"
        located = rewrite["span"] == item.data["gloss"]["span"] if rewrite is not None and planted else None
        return Score({**found, "loose": found["strict"], "located": located})

    def _of(self, cluster: Cluster, split: str) -> list[Item]:
        """A cluster's items, the kinds in turn, no text twice."""
        rng = random.Random(f"misread/{DEAL}/{split}/{cluster.name}")
        name = f"{split}/{cluster.name}" if split == "pretrain" else cluster.name
        kinds = KINDS if rng.random() < 0.5 else KINDS[::-1]
        found: dict[str, Item] = {}
        while len(found) < ITEMS[cluster.reading]:
            kind = kinds[len(found) % len(kinds)]
            scene = draw(rng, kind, cluster.word, cluster.place)
            key = f"{name}/{len(found)}"
            if held(scene.text) != (split == "pretrain") and scene.text not in found:
                found[scene.text] = Item(key, split, name, {"kind": kind, "reading": scene.reading}, _data(scene, rng))
        return [item for item in found.values() if item.strata["kind"] in self.options["kinds"]]


def prompt_of(item: Item) -> Messages:
    """The prompt of an item, as it is asked without any note."""
    return (Message("user", f"{item.data['text']}\n{item.data['question']}"),)


def _question(item: Item) -> Question:
    prompt, data = prompt_of(item), item.data
    return Question(item.id, prompt, data["answer"], "choice", tuple(data["choices"]), own=prompt[0].content)


def _data(scene: Scene, rng: random.Random) -> dict[str, Any]:
    data: dict[str, Any] = {
        "text": scene.text,
        "question": scene.question,
        "answer": scene.answer(scene.sense),
        "choices": list(scene.choices),
        "hard": scene.reading == "planted",
    }
    if scene.word in AMBIGUOUS:
        other = next(c for c in AMBIGUOUS[scene.word] if c != scene.sense)
        things = [thing for thing in CLASSES[scene.sense].things if thing != scene.other]
        data["paraphrase"] = scene.put(rng.choice(things)).text
        data["gloss"] = {"span": scene.word, "this": _terms(scene.sense), "not": _terms(other)}
    return data


def _terms(name: str) -> str:
    """A class in the notes' language."""
    return " or ".join(CLASSES[name].things[:2])


def _options(given: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise PlanError("unknown misread option", expected=", ".join(DEFAULTS), got=", ".join(unknown))
    options = {**DEFAULTS, **given}
    kinds = options["kinds"]
    if not isinstance(kinds, list) or not kinds or any(kind not in KINDS for kind in kinds):
        raise PlanError("misread option kinds", expected="some of " + ", ".join(KINDS), got=repr(kinds))
    if options["decoding"] != "constrained":
        raise PlanError("misread option decoding", expected="constrained", got=repr(options["decoding"]))
    if type(options["n"]) is not int or options["n"] < 0:
        raise PlanError("misread option n", expected="0 or more", got=repr(options["n"]))
    return options


plugin = MisreadTask
