"""From answered items to misreadings: triggers by contrast, senses by cause, words by label. What is dropped is
counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fairlead.features import attribution
from fairlead.features.labellers import Labeller
from fairlead.features.labels import THRESHOLD, Coverage, Label, coverage
from fairlead.features.misread.naming import Gloss, name_latents, words_for
from fairlead.features.misread.outcome import Outcome, outcome
from fairlead.features.misread.peaks import Peaks, Progress, read_peaks
from fairlead.features.misread.senses import Case, Senses, Settings, oriented, patch, senses
from fairlead.features.misread.triggers import USUAL, Caught, Search, Trigger, search
from fairlead.steering import Edit

_WORD = re.compile(r"\w+")
SLOPES = 64  # wrong items that gradients are taken at, to tell which latent of a pair says the word


@dataclass(frozen=True)
class Misreading:
    """One word that is misread: when (`trigger`; `wrong` and `right` items of `clusters` clusters on which it fired at
    that word on train), what the word is taken for and what is meant (`senses`), and the note's words with the labels
    that they are of. `word` is in lower case; "" stands for all words that are too rare for a sense of their own."""

    trigger: Trigger
    word: str
    wrong: int
    right: int
    clusters: int
    senses: Senses
    gloss: Gloss
    edits: tuple[Edit, ...]
    labels: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {
            "trigger": asdict(self.trigger), "word": self.word, "wrong": self.wrong, "right": self.right,
            "clusters": self.clusters, "senses": asdict(self.senses),
            "gloss": asdict(self.gloss), "labels": {k: dict(v) for k, v in self.labels.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class Findings:
    """`misreadings`, as they were found; `dropped` triggers by reason; `coverage` of the latents that had to be
    named; how many items were wrong and right; and how many latents fired, and passed the contrast."""

    misreadings: tuple[Misreading, ...]
    dropped: Mapping[str, int]
    coverage: Coverage | None
    n_wrong: int
    n_right: int
    fired: int
    passed: int
    labels: Mapping[int, Label] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "misreadings": [m.to_json() for m in self.misreadings], "dropped": dict(self.dropped),
            "coverage": None if self.coverage is None else asdict(self.coverage), "wrong": self.n_wrong,
            "right": self.n_right, "latents": {"fired": self.fired, "passed": self.passed},
        }  # fmt: skip


async def find(
    subject: Any,
    dictionary: Any,
    cases: Sequence[Case],
    *,
    difficulty: Sequence[float] | None = None,
    triggers: Search | None = None,
    patching: Settings | None = None,
    label: float = THRESHOLD,
    known: Mapping[int, Label] | None = None,
    more: Sequence[Labeller] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Findings:
    """The misreadings of `subject` among `cases`. `known` are labels made elsewhere; others are made here."""
    triggers = triggers or Search()
    wrong = [case.point.failed for case in cases]
    clusters = [case.point.cluster for case in cases]
    peaks = read_peaks(subject, dictionary, [case.messages for case in cases], progress=progress)
    length = [len(subject.tokens(case.messages).ids) for case in cases]
    contrast = outcome(peaks.values, wrong, clusters, _covariates(length, difficulty))
    caught = search(peaks, wrong, clusters, contrast, triggers)
    places = [p for one in caught for p in _at_words(subject, dictionary, one, peaks, cases, wrong, triggers)]
    tried = [(p, _sense(subject, dictionary, p, peaks, cases, patching)) for p in places]
    found = [(p, sense) for p, sense in tried if sense is not None]
    dropped = Counter({"patching the sense does not help": len(places) - len(found)})
    avoid = _avoided(cases, [p.word for p in places])
    wanted = [s.latent for _, sense in found for s in (*sense.meant, *sense.taken)]
    labels = dict(known or {})
    if missing := [i for i in dict.fromkeys(wanted) if i not in labels]:
        texts = [m for case in cases for m in (case.messages, case.other) if m is not None]
        labels |= await name_latents(subject, dictionary, texts, missing, avoid=avoid, more=more, seed=seed)
    misreadings = []
    for place, sense in found:
        gloss, told = _gloss(sense, labels, avoid, label)
        if gloss is None:
            dropped["no label holds for the sense"] += 1
            continue
        held = len({clusters[i] for i in place.wrong})
        misreadings.append(
            Misreading(place.trigger, place.word, len(place.wrong), len(place.right), held, sense, gloss,
                       _edits(place.trigger, sense), told)
        )  # fmt: skip
    return Findings(
        tuple(misreadings), {k: n for k, n in dropped.items() if n},
        coverage([labels[i] for i in dict.fromkeys(wanted)], label) if wanted else None,
        contrast.n_wrong, contrast.n_right, int((contrast.fires > 0).sum()), _passed(contrast, triggers), labels,
    )  # fmt: skip


def _passed(contrast: Outcome, triggers: Search) -> int:
    return int(((contrast.q <= triggers.q) & (contrast.adjusted > 0.5)).sum())


def _covariates(length: Sequence[int], difficulty: Sequence[float] | None) -> Any:
    columns = [np.asarray(length, dtype=np.float64)]
    if difficulty is not None:
        columns.append(np.asarray(difficulty, dtype=np.float64))
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class _Place:
    """A trigger at a word: the wrong and the right items on which it fires there."""

    trigger: Trigger
    word: str
    wrong: tuple[int, ...]
    right: tuple[int, ...]


def _at_words(
    subject: Any, dictionary: Any, caught: Caught, peaks: Peaks, cases: Sequence[Case], wrong: Sequence[bool],
    settings: Search,
) -> list[_Place]:  # fmt: skip
    """A trigger word by word, where it is still precise: words that are often enough caught stand for themselves (one
    latent may mark several, that are misread in several ways), the rest together."""
    fired = np.flatnonzero(caught.trigger.fires(peaks)).tolist()
    bad = [i for i in fired if wrong[i]]
    mine = [cases[i] for i in bad]
    slopes = _slopes(subject, dictionary, caught.trigger, mine)
    trigger = oriented(subject, caught.trigger, peaks.rows(bad), mine, slopes, dictionary)
    if trigger.word:
        right = tuple(i for i in fired if not wrong[i])
        return [_Place(replace(trigger, word=""), trigger.word, tuple(bad), right)]
    at = peaks.place(trigger.at.latent)
    word = {i: peaks.words[i].at(int(at[i])).text.lower() for i in fired}
    often = [w for w, n in Counter(word[i] for i in bad).items() if n >= settings.support]
    found = []
    for name in (*often, ""):
        here = [i for i in fired if word[i] == name or (not name and word[i] not in often)]
        hit, miss = tuple(i for i in here if wrong[i]), tuple(i for i in here if not wrong[i])
        if len(hit) >= settings.support and len(hit) >= settings.precision * len(here):
            found.append(_Place(trigger, name, hit, miss))
    return found


def _sense(
    subject: Any, dictionary: Any, place: _Place, peaks: Peaks, cases: Sequence[Case], settings: Settings | None
) -> Senses | None:
    """What the word is taken for there. Where nothing is paraphrased, it is set against right items in which the
    trigger's first latent fires."""
    trigger, bad = place.trigger, list(place.wrong)
    fires = peaks.column(trigger.at.latent) > trigger.at.above
    right = [i for i in np.flatnonzero(fires).tolist() if not cases[i].point.failed]
    return senses(
        subject, dictionary, trigger, (peaks.rows(bad), [cases[i] for i in bad]),
        (peaks.rows(right), [cases[i] for i in right]), settings,
    )  # fmt: skip


def _slopes(subject: Any, dictionary: Any, trigger: Trigger, cases: Sequence[Case]) -> Any:
    """Gradients of the decision, for the first SLOPES cases, where no paraphrase says which word it is about."""
    if trigger.beside is None or any(case.other is not None for case in cases[:SLOPES]):
        return None
    return attribution.gradients(subject, dictionary.site, [case.point for case in cases[:SLOPES]])


def _avoided(cases: Sequence[Case], words: Sequence[str]) -> frozenset[str]:
    """Words that must name nothing: those that are misread, those of any answer, which would tell it, and those that
    stand in a fifth of all prompts, which tell nothing."""
    answers = {w.lower() for case in cases for answer in case.point.decision.legal for w in answer.split()}
    counts = Counter(w for case in cases for w in {x.lower() for m in case.messages for x in _WORD.findall(m.content)})
    usual = {w for w, n in counts.items() if n > USUAL * len(cases)}
    return frozenset({w.lower() for w in words if w} | answers | usual)


def _gloss(
    sense: Senses, labels: Mapping[int, Label], avoid: frozenset[str], threshold: float
) -> tuple[Gloss | None, dict[str, Mapping[str, Any]]]:
    meant, m = words_for([s.latent for s in sense.meant], labels, avoid, threshold)
    taken, t = words_for([s.latent for s in sense.taken], labels, avoid, threshold)
    if m is None or t is None or meant == taken:
        return None, {}
    return Gloss(meant, taken), {"meant": asdict(labels[m]), "taken": asdict(labels[t])}


def _edits(trigger: Trigger, sense: Senses) -> tuple[Edit, ...]:
    return patch(trigger, [(s.latent, s.change) for s in (*sense.meant, *sense.taken)])
