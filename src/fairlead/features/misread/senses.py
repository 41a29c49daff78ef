"""What a word is taken for, and what it should be taken for: latents at the word, by contrast and then by cause.

Where an item has a paraphrase in the intended sense, the latents at the misread word are set against those at the word
in its place. Otherwise wrong items are set against right ones on which the same latent fires. Latents that the
misreading has more of are `taken`, those it lacks are `meant`. Then they are patched in at the word, and together they
have to move P(right) by the least effect: what differs without doing anything may be anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairlead import steering
from fairlead.core.types import Messages
from fairlead.features.harvest import read_at
from fairlead.features.misread.peaks import Peaks
from fairlead.features.misread.spans import Words, first_difference, words_of
from fairlead.features.misread.triggers import Trigger
from fairlead.features.points import Point, measure
from fairlead.steering import Compare, Edit, Gate, Latent, Level, Op, Reading


@dataclass(frozen=True)
class Case:
    """One train item as the search sees it: its prompt, its decision, and the prompt in the intended sense, if any."""

    point: Point
    other: Messages | None = None

    @property
    def messages(self) -> Messages:
        return self.point.decision.messages


@dataclass(frozen=True)
class Sense:
    """A latent at the misread word. `change` is how much more of it the intended reading has (mean activation);
    `effect` what patching that in does to P(right) of the wrong items, averaged."""

    latent: int
    change: float
    effect: float


@dataclass(frozen=True)
class Senses:
    """`meant` are latents that the misreading lacks, `taken` those it has too much of, most effective first: those that
    move nothing by themselves stand last. `effect` is P(right) with all of them patched, less without; `by` says what
    was contrasted."""

    meant: tuple[Sense, ...]
    taken: tuple[Sense, ...]
    effect: float
    by: str
    items: int


@dataclass(frozen=True)
class Settings:
    """`tried` latents of either side are patched, together and one by one, on at most `items` wrong items; `least` is
    the least effect of all together."""

    tried: int = 8
    items: int = 48
    least: float = 0.1


def oriented(subject: Any, trigger: Trigger, peaks: Peaks, cases: Sequence[Case], slopes: Any, rows: Any) -> Trigger:
    """Of a pair, which latent says the word: the one that more often sits on the word that the paraphrase replaces;
    without paraphrases, the one whose removal at its token moves the decision more, to first order (`slopes` are what
    `attribution.gradients` gave for these cases)."""
    if trigger.beside is None:
        return trigger
    turned = trigger.turned()
    votes = {t: 0.0 for t in (trigger, turned)}
    for kind in votes:
        places = peaks.place(kind.at.latent)
        for i, case in enumerate(cases):
            if places[i] < 0:
                continue
            start = peaks.words[i].at(int(places[i])).start
            if case.other is not None:
                replaced = _replaced(subject, case, peaks.words[i])
                votes[kind] += float(replaced is not None and start == replaced[0])
            elif slopes is not None and i < len(slopes.gradients):
                g, x = slopes.gradients[i][places[i]].float(), float(peaks.values[i, kind.at.latent])
                votes[kind] += abs(float(g @ rows.decoder_rows([kind.at.latent])[0].float()) * x)
    return turned if votes[turned] > votes[trigger] else trigger


def senses(
    subject: Any,
    dictionary: Any,
    trigger: Trigger,
    wrong: tuple[Peaks, Sequence[Case]],
    right: tuple[Peaks, Sequence[Case]],
    settings: Settings | None = None,
) -> Senses | None:
    """The latents behind the misreading that `trigger` catches; None where nothing can be contrasted, or where
    patching does not help. `wrong` and `right` are the items it, or its first latent, fires on."""
    settings = settings or Settings()
    peaks, cases = wrong
    kept = list(range(len(cases)))[: settings.items]
    cases, peaks = [cases[i] for i in kept], peaks.rows(kept)
    change, by = _change(subject, dictionary, trigger, peaks, cases, right)
    if change is None:
        return None
    order = _ranked(dictionary, change)
    meant = [i for i in order if change[i] > 0 and i not in trigger.latents][: settings.tried]
    taken = [i for i in order if change[i] < 0][: settings.tried]
    points = [c.point for c in cases]
    bare = float(measure(subject, points).sigmoid().mean())

    def effect(edits: Sequence[Edit]) -> float:
        return float(measure(steering.apply(subject, edits, dictionary), points).sigmoid().mean()) - bare

    def each(latents: Sequence[int]) -> tuple[Sense, ...]:
        found = [Sense(i, float(change[i]), effect(patch(trigger, [(i, float(change[i]))]))) for i in latents]
        return tuple(sorted(found, key=lambda s: -s.effect))

    both = effect(patch(trigger, [(i, float(change[i])) for i in (*meant, *taken)]))
    if both < settings.least:
        return None
    return Senses(each(meant), each(taken), both, by, len(cases))


def patch(trigger: Trigger, changes: Sequence[tuple[int, float]]) -> tuple[Edit, ...]:
    """The intended reading written at the word: what it lacks is added, what it has too much of is set to nothing,
    where the trigger's latent fires."""
    gate = Gate(when=Compare(Reading(Latent(trigger.at.latent)), ">", Level(trigger.at.above)))
    return tuple(
        Edit(Latent(i), Op.ADD, c, gate=gate) if c > 0 else Edit(Latent(i), Op.ABLATE, 0.0, gate=gate)
        for i, c in changes
    )


def _ranked(dictionary: Any, change: Tensor) -> list[int]:
    """Latents that change, by the length of what they write."""
    live = change.nonzero()[:, 0]
    size = change[live].abs() * dictionary.decoder_rows(live).float().norm(dim=1).cpu()
    return [int(i) for i in live[size.argsort(descending=True, stable=True)]]


def _change(
    subject: Any, dictionary: Any, trigger: Trigger, peaks: Peaks, cases: Sequence[Case],
    right: tuple[Peaks, Sequence[Case]],
) -> tuple[Tensor | None, str]:  # fmt: skip
    """([m] mean latents of the intended reading less those of the misreading, at the word; what was contrasted)."""
    here, there = [], []
    for i, case in enumerate(cases):
        found = None if case.other is None else _replaced(subject, case, peaks.words[i])
        if found is not None and case.other is not None and found[1] is not None:
            last = peaks.words[i].last_token(found[0])
            if last is not None:
                here.append((case.messages, last))
                there.append((case.other, found[1]))
    if len(here) >= max(1, len(cases) // 2):
        return _mean(subject, dictionary, there) - _mean(subject, dictionary, here), "paraphrases"
    here = _at_words(peaks, cases, trigger)
    there = _at_words(*right, trigger)
    if not here or not there:
        return None, ""
    return _mean(subject, dictionary, there) - _mean(subject, dictionary, here), "right answers"


def _at_words(peaks: Peaks, cases: Sequence[Case], trigger: Trigger) -> list[tuple[Messages, int]]:
    """(prompt, last token of the word that the trigger's latent sits on) of the items where it fires."""
    places = peaks.place(trigger.at.latent)
    found = []
    for i, case in enumerate(cases):
        if places[i] >= 0:
            last = peaks.words[i].last_token(peaks.words[i].at(int(places[i])).start)
            if last is not None:
                found.append((case.messages, last))
    return found


def _replaced(subject: Any, case: Case, words: Words) -> tuple[int, int | None] | None:
    """(where the first word that the paraphrase changes begins, the last token of the word in its place)."""
    assert case.other is not None
    other = words_of(subject, case.other)
    place = first_difference(words.words, other.words)
    if place is None:
        return None
    return words.words[place].start, other.last_token(other.words[place].start)


def _mean(subject: Any, dictionary: Any, at: Sequence[tuple[Messages, int]]) -> Tensor:
    """[m]: the mean latents at one token of each prompt."""
    site = read_at(dictionary)
    with torch.inference_mode():
        read = subject.activations([prompt for prompt, _ in at], [site], "all")[site]
        x = torch.stack([h[t] for h, (_, t) in zip(read, at, strict=True)]).float()
        total = torch.zeros(dictionary.n_features)
        for part in x.split(64):
            total += dictionary.encode(part).sum(0).float().cpu()
        return total / len(at)

