"""From answered items to misreadings: triggers by contrast, senses by cause, words by label. What is dropped is
counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fairlead.features import attribution
from fairlead.features.labellers import Labeller
from fairlead.features.labels import THRESHOLD, Coverage, Label, coverage
from fairlead.features.misread.naming import Gloss, name_latents, words_for
from fairlead.features.misread.outcome import Outcome, outcome
from fairlead.features.misread.peaks import Peaks, Progress, read_peaks
from fairlead.features.misread.senses import Case, Senses, Settings, oriented, patch, senses
from fairlead.features.misread.triggers import Caught, Search, Trigger, search
from fairlead.steering import Edit

SLOPES = 64  # wrong items that gradients are taken at, to tell which latent of a pair says the word


@dataclass(frozen=True)
class Misreading:
    """One thing that is misread: when (`trigger`, with what it caught on train), at which words it fired there, what
    the word is taken for and what is meant (`senses`), and the note's words with the labels that they are of."""

    trigger: Trigger
    caught: Caught
    words: Mapping[str, int]
    senses: Senses
    gloss: Gloss
    edits: tuple[Edit, ...]
    labels: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {
            "trigger": asdict(self.trigger), "wrong": self.caught.wrong, "right": self.caught.right,
            "clusters": self.caught.clusters, "words": dict(self.words), "senses": asdict(self.senses),
            "gloss": asdict(self.gloss), "labels": {k: dict(v) for k, v in self.labels.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class Findings:
    """`misreadings`, most wrong items first; `dropped` triggers by reason; `coverage` of the latents that had to be
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
    found = _with_senses(subject, dictionary, caught, peaks, cases, wrong, patching or Settings())
    dropped = Counter({"patching the sense does not help": len(caught) - len(found)})
    avoid = _avoided(cases, [word for _, _, words, _ in found for word in words])
    wanted = [s.latent for _, _, _, sense in found for s in (*sense.meant, *sense.taken)]
    labels = dict(known or {})
    if missing := [i for i in dict.fromkeys(wanted) if i not in labels]:
        texts = [m for case in cases for m in (case.messages, case.other) if m is not None]
        labels |= await name_latents(subject, dictionary, texts, missing, avoid=avoid, more=more, seed=seed)
    misreadings = []
    for one, trigger, words, sense in found:
        gloss, told = _gloss(sense, labels, avoid, label)
        if gloss is None:
            dropped["no label holds for the sense"] += 1
            continue
        edits = _edits(trigger, sense)
        misreadings.append(Misreading(trigger, one, words, sense, gloss, edits, told))
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


def _with_senses(
    subject: Any, dictionary: Any, caught: Sequence[Caught], peaks: Peaks, cases: Sequence[Case],
    wrong: Sequence[bool], settings: Settings,
) -> list[tuple[Caught, Trigger, dict[str, int], Senses]]:  # fmt: skip
    """The triggers whose senses move P(right), each with the words that it fires on."""
    is_wrong = np.asarray(wrong, dtype=bool)
    found = []
    for one in caught:
        fired = one.trigger.fires(peaks)
        bad = np.flatnonzero(fired & is_wrong).tolist()
        held, mine = peaks.rows(bad), [cases[i] for i in bad]
        slopes = _slopes(subject, dictionary, one.trigger, mine)
        trigger = oriented(subject, one.trigger, held, mine, slopes, dictionary)
        same = np.flatnonzero((peaks.column(trigger.at.latent) > trigger.at.above) & ~is_wrong).tolist()
        right = peaks.rows(same), [cases[i] for i in same]
        sense = senses(subject, dictionary, trigger, (held, mine), right, settings)
        if sense is not None:
            places = held.place(trigger.at.latent)
            words = Counter(held.words[i].at(int(t)).text for i, t in enumerate(places) if t >= 0)
            found.append((one, trigger, dict(words.most_common()), sense))
    return found


def _slopes(subject: Any, dictionary: Any, trigger: Trigger, cases: Sequence[Case]) -> Any:
    """Gradients of the decision, for the first SLOPES cases, where no paraphrase says which word it is about."""
    if trigger.beside is None or any(case.other is not None for case in cases[:SLOPES]):
        return None
    return attribution.gradients(subject, dictionary.site, [case.point for case in cases[:SLOPES]])


def _avoided(cases: Sequence[Case], words: Sequence[str]) -> frozenset[str]:
    """Words that must name nothing: those that are misread, and those of any answer, which would tell it."""
    answers = {w.lower() for case in cases for answer in case.point.decision.legal for w in answer.split()}
    return frozenset({w.lower() for w in words} | answers)


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
