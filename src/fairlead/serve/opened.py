"""What is served: a model as it is, and the Fitted of judged arms on it, each under a name of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.core.errors import FairleadError, LoadError, UnknownName
from fairlead.core.records import Run
from fairlead.serve.edits import of_fitted
from fairlead.steering.slots import RowEdits
from fairlead.study.arms import build

SHORT = 12  # hex digits of a fingerprint in a model's name


class CannotSample(FairleadError):
    """A request for sampling that this subject cannot answer."""


@dataclass(frozen=True)
class Served:
    """One model name. `fitted` is None for the bare model. `fingerprint` is the Fitted's, or the Subject's. `row_edits`
    are what a Fitted is where it is nothing but edits: it then needs no world of its own."""

    name: str
    fingerprint: str
    subject: Any
    fitted: Any = None
    row_edits: RowEdits | None = None

    @contextmanager
    def world(self, temperature: float, seed: int) -> Iterator[Any]:
        """What answers one request: the Fitted opened on the subject, sampled where `temperature` is above 0. Each
        request has a Subject of its own over the same weights: arms that ask in lockstep share no seats."""
        subject = self.subject.metered(self.subject.meter) if hasattr(self.subject, "metered") else self.subject
        if temperature > 0:
            if not hasattr(subject, "sampled"):
                raise CannotSample("this model cannot sample", expected="temperature 0", got=f"{temperature:g}")
            subject = subject.sampled(temperature, seed)
        if self.fitted is None:
            yield subject
            return
        with self.fitted.open(subject) as world:
            yield world


def bare(subject: Any, name: str) -> Served:
    """The model as it is."""
    return Served(name, str(subject.fingerprint), subject)


def fitted(subject: Any, name: str, ref: str | Path) -> Served:
    """The Fitted at `ref` on `subject`, which the run knows as `name`. `ref` is RUN/ARM, RUN/fitted/KEY, or RUN alone
    for the arm that is its claim.

    LoadError when it was fitted on another model, or its files are not those that were saved; a world that
    cannot be opened is found out here and not at the first request.
    """
    run, arm, key = _find(Path(ref), name)
    assert run.plan is not None
    found = build(run.plan, arm).load(run.fitted_dir(key))
    _unaltered(run.fitted_dir(key), found.fingerprint)
    rows = of_fitted(found, subject) if hasattr(subject, "checkpoint") else None
    served = Served(f"{name}+{arm}@{found.fingerprint[:SHORT]}", found.fingerprint, subject, found, rows)
    with served.world(0.0, 0) as world:
        if not hasattr(world, "generate"):
            raise LoadError(f"arm {arm!r} makes nothing that answers", expected="a method that makes a subject")
    return served


def named(models: Sequence[Served], name: str) -> Served:
    """The model of that name. UnknownName lists what there is."""
    for model in models:
        if model.name == name:
            return model
    raise UnknownName(f"no model {name!r}", expected=" or ".join(m.name for m in models), got=name)


def _find(path: Path, model: str) -> tuple[Run, str, str]:
    """(run, arm, trial key) of RUN, RUN/ARM or RUN/fitted/KEY."""
    if (path / "plan.json").is_file():
        plan = Run.open(path).plan
        path = path / (plan.claim if plan else "")
    direct = path.parent.name == "fitted" and path.is_dir()
    home = path.parent.parent if direct else path.parent
    if not (home / "plan.json").is_file():
        raise LoadError(
            f"no fitted arm at {path}", expected="RUN/ARM, such as runs/fix-1a2b3c4d/winner", do="list the run's folder"
        )
    run = Run.open(home)
    have = [s.trial for s in run.trials if run.fitted_dir(s.trial.key).is_dir()]
    trials = [t for t in have if (t.key if direct else t.arm) == path.name]
    if not trials:
        arms = ", ".join(dict.fromkeys(t.arm for t in have)) or "none"
        raise LoadError(f"{home} has no fitted arm {path.name!r}", expected=arms, got=path.name)
    mine = [t for t in trials if t.model == model]
    if not mine:
        raise LoadError(
            f"{path} was fitted on another model",
            expected=" or ".join(dict.fromkeys(t.model for t in trials)),
            got=model,
            do="serve the model that was judged",
        )
    return run, mine[0].arm, mine[0].key


def _unaltered(folder: Path, fingerprint: str) -> None:
    """The fingerprint that was written when the arm was fitted must be that of what was loaded."""
    try:
        stated = json.loads((folder / "cost.json").read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{folder} states no fingerprint", expected="cost.json", got=str(error)) from error
    if stated != fingerprint:
        raise LoadError(
            f"{folder} is not what was judged",
            expected=f"fingerprint {stated[:SHORT]}",
            got=fingerprint[:SHORT],
            do="restore the run's files, or run the study again",
        )
