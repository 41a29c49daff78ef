"""Labels with the score they earn on windows that nobody used before: made on `shown`, chosen on `select`, scored on
`held` (see evidence.py). A label below the threshold is counted as none: coverage is part of the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.core.errors import FairleadError, LoadError
from fairlead.core.keys import canonical
from fairlead.features.detection import Detection, auroc, best_threshold, detection
from fairlead.features.evidence import Evidence
from fairlead.features.labellers import Candidate, Labeller

THRESHOLD = 0.7  # AUROC below which a label counts as none

Progress = Callable[[int, int], None]  # latents done, of how many


@dataclass(frozen=True)
class Label:
    """What one latent fires on, in words. `text` is "" where there were too few windows, or where no labeller had
    anything to say; `held` is then None. `tried` has the AUROC of every labeller on `select`."""

    latent: int
    text: str
    kind: str
    terms: tuple[str, ...]
    held: Detection | None
    tried: dict[str, float]

    def holds(self, threshold: float = THRESHOLD) -> bool:
        """Whether it does on held-out windows what it says."""
        return self.held is not None and self.held.auroc >= threshold


@dataclass(frozen=True)
class Coverage:
    """Of `latents`: how many have a label that holds, one that does not, and none for want of windows or words."""

    latents: int
    labelled: int
    below: int
    none: int
    threshold: float


async def label(evidence: Evidence, labellers: Sequence[Labeller]) -> Label:
    """The label that tells `select` apart best, with its score on `held`. Ties go to the earlier labeller."""
    nothing = Label(evidence.latent, "", "", (), None, {})
    if not evidence.enough:
        return nothing
    best: tuple[float, Candidate] | None = None
    tried: dict[str, float] = {}
    for labeller in labellers:
        candidate = await labeller.label(evidence)
        if candidate is None:
            continue
        part = evidence.select
        scores = await _scored(candidate, [e.text for e in part.all])
        value = auroc(scores[: len(part.positives)], scores[len(part.positives) :])
        tried[candidate.kind] = value
        if best is None or value > best[0]:
            best = value, candidate
    if best is None:
        return nothing
    chosen, held, n = best[1], evidence.held, len(evidence.held.positives)
    seen = evidence.shown
    shown = await _scored(chosen, [e.text for e in seen.all])
    threshold = best_threshold(shown[: len(seen.positives)], shown[len(seen.positives) :])
    scores = await _scored(chosen, [e.text for e in held.all])
    found = detection(scores[:n], scores[n:], threshold)
    return Label(evidence.latent, chosen.text, chosen.kind, chosen.terms, found, tried)


async def _scored(candidate: Candidate, texts: Sequence[str]) -> list[float]:
    scores = await candidate.scores(texts)
    if len(scores) != len(texts) or not np.isfinite(scores).all():
        what = f"the labeller {candidate.kind!r} scored badly"
        raise FairleadError(what, expected=f"{len(texts)} finite scores", got=str(scores)[:200])
    return scores


async def label_all(
    gather: Callable[[int], Evidence],
    latents: Sequence[int],
    labellers: Sequence[Labeller],
    *,
    about: dict[str, Any] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[Label]:
    """Labels of `latents`. With `out`, a JSONL file, each is written when it is made, and those in it are not made
    again; `about` (seed, labellers, ...) is its first line, and another `about` is refused."""
    done = _begin(out, about or {}) if out is not None else {}
    for count, latent in enumerate(latents, 1):
        if latent not in done:
            done[latent] = await label(gather(latent), labellers)
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(canonical(asdict(done[latent])) + "\n")
        if progress:
            progress(count, len(latents))
    return [done[latent] for latent in latents]


def coverage(labels: Sequence[Label], threshold: float = THRESHOLD) -> Coverage:
    """How many latents are said, and how many are not."""
    labelled = sum(found.holds(threshold) for found in labels)
    none = sum(found.held is None for found in labels)
    return Coverage(len(labels), labelled, len(labels) - labelled - none, none, threshold)


def read(file: Path) -> tuple[dict[str, Any], dict[int, Label]]:
    """(what the labels were made with, the labels by latent) of a JSONL file; a torn last line is left out."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines[:-1]]
        labels = [
            Label(**{**r, "terms": tuple(r["terms"]), "held": Detection(**r["held"]) if r["held"] else None})
            for r in rows[1:]
        ]
        return dict(rows[0]), {found.latent: found for found in labels}
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise LoadError(
            f"{file} cannot be read: {error}", expected="labels, one a line", do="remove it, and label again"
        ) from error


def _begin(out: Path, about: dict[str, Any]) -> dict[int, Label]:
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(canonical(about) + "\n", encoding="utf-8")
        return {}
    before, found = read(out)
    if before != json.loads(canonical(about)):
        raise FairleadError(
            f"{out} holds labels that were made otherwise",
            expected=canonical(before),
            got=canonical(about),
            do="choose another file, or remove this one",
        )
    text = out.read_text(encoding="utf-8")
    if not text.endswith("\n"):  # a write that was cut off
        out.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    return found
