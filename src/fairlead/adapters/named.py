"""A model by name and options, as other tools pass them: as it is, under edits, or as an arm that was judged.

The name that comes back holds the fingerprint of the weights and of what was done to them:
`pocket/shopper-s@1a2b3c4d5e6f`, `pocket/shopper-s@1a2b3c4d5e6f+edits@...`, `...+feature@...`. Other tools keep answers
under a model's name; under this one no steered answer is ever taken for an unsteered one. A name that already has
its fingerprints is checked against what they stand for, so that a log can be run again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairlead.core.errors import FairleadError, LoadError
from fairlead.serve.opened import SHORT, Served, bare, fitted

_PRINT = f"[0-9a-f]{{{SHORT}}}"
_FULL = re.compile(rf"(?P<model>.+?)@{_PRINT}(\+[^+@]+@{_PRINT})?")


@dataclass(frozen=True)
class Wanted:
    """What was asked for. `edits` is a line of the edit language; `arm` is RUN/ARM, or RUN for its claim."""

    model: str
    dictionary: tuple[str, ...] = ()
    edits: str = ""
    vectors: str = ""
    arm: str = ""
    device: str = "cpu"
    dtype: str | None = None


def wanted(name: str, options: dict[str, Any]) -> Wanted:
    """Options as texts: edits, dictionary (one, a list, or several between commas), vectors, fitted, device, dtype. Any
    other is an error: a misspelt one would leave the model unsteered."""
    known = {"edits", "dictionary", "vectors", "fitted", "device", "dtype"}
    if unknown := sorted(set(options) - known):
        raise FairleadError("unknown model option", expected=", ".join(sorted(known)), got=", ".join(unknown))
    given = {key: value for key, value in options.items() if value is not None}
    refs = given.pop("dictionary", ())
    refs = refs.split(",") if isinstance(refs, str) else refs
    texts = [*given.values(), *(refs if isinstance(refs, list | tuple) else [refs])]
    if wrong := [value for value in texts if not isinstance(value, str)]:
        raise FairleadError("a model option is a text", got=repr(wrong[0])[:80])
    found = Wanted(
        name, tuple(ref.strip() for ref in refs if ref.strip()), given.get("edits", ""), given.get("vectors", ""),
        given.get("fitted", ""), given.get("device", "cpu"), given.get("dtype"),
    )  # fmt: skip
    if found.arm and (found.edits or found.vectors or found.dictionary):
        raise FairleadError(
            "a fitted arm brings its own edits", expected="fitted, or edits with their dictionary", got="both"
        )
    if (found.vectors or found.dictionary) and not found.edits:
        raise FairleadError("nothing to apply", expected="edits, a line of the edit language", do='edits="12 = 0"')
    return found


def opened(want: Wanted) -> Served:
    """The model behind the wish, loaded, under its full name. Raises LoadError when `want.model` is already a full
    name and stands for something else."""
    stated = want.model
    known = _FULL.fullmatch(stated)
    want = replace(want, model=known["model"]) if known else want
    found = _open(want)
    if known and found.name != stated:
        raise LoadError("this is not the model of that name", expected=stated, got=found.name,
                        do="give the options it was run with, or its plain name")  # fmt: skip
    return found


def _open(want: Wanted) -> Served:
    from fairlead.lm.load import load

    subject = load(want.model, device=want.device, dtype=want.dtype)
    name = f"{want.model}@{subject.fingerprint[:SHORT]}"
    if want.arm:
        found = fitted(subject, want.model, want.arm)
        return replace(found, name=f"{name}{found.name.removeprefix(want.model)}")
    if not want.edits:
        return bare(subject, name)
    from fairlead import steering
    from fairlead.app.steer import steered

    vectors = Path(want.vectors) if want.vectors else None
    changed = steered(subject, steering.parse(want.edits), want.model, want.dictionary, vectors)
    return Served(f"{name}+edits@{changed.fingerprint[:SHORT]}", changed.fingerprint, changed)

