"""A study from its plan to its Records: look at the models, check, settle what does not apply, run what is missing.

Interrupted at any moment and run again, a study leaves the same Records but for seconds (study.journal), wherever its
trials are run (study.executors).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fairlead.core.lock import Lock, code, packages
from fairlead.core.lock import check as check_lock
from fairlead.core.plan import Facts, Plan, check_plan
from fairlead.core.records import FINAL, NOT_APPLICABLE, Run, Store, check_unchanged
from fairlead.core.types import Trial
from fairlead.study.executors import Executor, Inline
from fairlead.study.journal import Progress
from fairlead.study.studied import Study
from fairlead.study.subjects import LoadDictionary, LoadModel


def run_study(
    plan: Plan,
    run_dir: str | Path,
    *,
    load_model: LoadModel | None = None,
    load_dictionary: LoadDictionary | None = None,
    executor: Executor | None = None,
    progress: Callable[[Progress], None] | None = None,
    limit: int | None = None,
    text: str = "",
    adopt: Sequence[str | Path] = (),
    lock: Lock | None = None,
    why: str = "no lock was asked for",
    one_at_a_time: bool = False,
) -> Run:
    """Run what is missing of `plan` in `run_dir`, and return the Run.

    `load_model` and `load_dictionary` turn references into objects; study knows neither. `executor` runs the trials
    elsewhere and loads by itself. `limit` lowers n (another plan, with another hash). `text` is the TOML as given, kept
    beside the Records. Complete trials with the same key are copied from the runs in `adopt`. Records are made under
    `lock`, which the study must match (LockError); without one they are exploratory, and `why` is noted. Raises before
    anything is written when a name, the weights or the dictionary are wrong, or when Records of another plan are there
    (PlanChanged). With `one_at_a_time` models are in memory one after another, and each is loaded twice.
    """
    plan = plan.limited(limit)
    check_unchanged(Path(run_dir), plan)
    check_plan(plan)
    at = executor or _inline(load_model, load_dictionary, one_at_a_time)
    try:
        study = Study.of(plan, lambda needed: at.survey(plan, needed))
        if lock is not None:
            check_lock(lock, plan, study.known)
        study.lock = None if lock is None else lock.hash
        with Store(run_dir) as store:
            store.begin(plan, study.trials, text=text, facts=study.known)
            if any(store.status(trial.key).get("status") not in FINAL for trial in study.trials):
                store.session({"lock": study.lock, "why": "" if lock else why, "code": code(), "packages": packages()})
            for other in adopt:
                for trial in study.trials:
                    store.adopt(Path(other), trial.key)
            for trial in study.trials:  # said first: other arms may ask for a fit that does not apply by the plan
                if trial.arm in plan.not_applicable and store.status(trial.key).get("status") != NOT_APPLICABLE:
                    store.finish(trial.key, NOT_APPLICABLE, planned=0, reason=plan.not_applicable[trial.arm])
            at.run(study, store, progress or (lambda _: None))
    finally:
        at.close()
    return Run.open(run_dir)


def study_facts(
    plan: Plan, *, load_model: LoadModel, load_dictionary: LoadDictionary | None = None
) -> tuple[Facts, tuple[Trial, ...]]:
    """What a lock needs to know of a study: its facts, and its trials. Loads the models; runs nothing."""
    check_plan(plan)
    at = Inline(load_model, load_dictionary, one_at_a_time=True)
    study = Study.of(plan, lambda needed: at.survey(plan, needed))
    return study.known, study.trials


def _inline(load_model: LoadModel | None, load_dictionary: LoadDictionary | None, one_at_a_time: bool) -> Inline:
    if load_model is None:
        raise TypeError("run_study needs load_model, or an executor that loads by itself")
    return Inline(load_model, load_dictionary, one_at_a_time=one_at_a_time)
