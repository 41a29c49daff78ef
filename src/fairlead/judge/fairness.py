"""The fairness checks that come before any verdict. A failed one makes every verdict inconclusive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fairlead.core.records import COMPLETE, NOT_APPLICABLE, Run
from fairlead.judge.question import BASELINE, Question, is_control
from fairlead.judge.stats import FEW_CLUSTERS, Ints, holm, paired
from fairlead.judge.tables import Cells, pair

Result = Literal["pass", "warn", "fail", "not measured"]
MISSING_PAIRS = 0.05  # share of pairs that may be missing
ERROR_GAP = 0.05  # difference in error rates that two compared arms may have


@dataclass(frozen=True)
class Check:
    """One fairness check, with what was found."""

    name: str
    result: Result
    detail: str


def checks(run: Run, cells: Cells, question: Question) -> tuple[Check, ...]:
    """All checks, in the order of a report."""
    todo: tuple[Callable[[Run, Cells, Question], Check], ...] = (
        _arms,
        _controls,
        _complete,
        _unique,
        _errors,
        _pairs,
        _budget,
        _dictionary,
        _strict_is_loose,
        _funnel,
        _clusters,
    )
    return tuple(check(run, cells, question) for check in todo)


def _arms(_run: Run, cells: Cells, question: Question) -> Check:
    needed = [question.claim, BASELINE, *question.beat]
    lost = [
        f"{arm} on {model}, {decoding}"
        for (model, decoding), arms in cells.groups.items()
        for arm in dict.fromkeys(needed)
        if arm not in arms
    ]
    if not cells.groups:
        lost = ["there are no Records"]
    return _verdict("arms", not lost, "the claim and what it must beat have Records", "; ".join(lost))


def _controls(run: Run, cells: Cells, question: Question) -> Check:
    have = {arm for arms in cells.groups.values() for arm in arms}
    present = [arm for arm in question.controls if arm in have]
    left_out = [
        f"{s.trial.arm} does not apply ({s.reason})"
        for s in run.trials
        if is_control(s.trial.arm) and s.status == NOT_APPLICABLE
    ]
    mine = [ledger for ledger in run.ledgers.values() if ledger["arm"] == question.claim]
    if not present and not left_out and mine and not any(ledger.get("dictionary") for ledger in mine):
        return Check("controls", "pass", "none, and the claim is charged for no dictionary: it says of no latent that "
                                         "it was needed")  # fmt: skip
    detail = ", ".join([*present, *dict.fromkeys(left_out)])
    return _verdict("controls", bool(present), detail, "no control arm: the feature is not shown to be needed")


def _complete(run: Run, _cells: Cells, question: Question) -> Check:
    judged = {question.claim, BASELINE, *question.family}
    open_trials = [s for s in run.trials if s.status not in (COMPLETE, NOT_APPLICABLE)]
    said = [f"{s.trial.arm} on {s.trial.model}, {s.trial.decoding}: {s.status} {s.reason}".strip() for s in open_trials]
    if any(s.trial.arm in judged for s in open_trials):
        return Check("complete", "fail", "; ".join(said))
    stale = f"; {run.stale} stale Records were ignored" if run.stale else ""
    if said:
        return Check("complete", "warn", "; ".join(said) + stale)
    return Check("complete", "pass", f"{len(run.trials)} trials{stale}")


def _unique(_run: Run, cells: Cells, _question: Question) -> Check:
    table = cells.columns
    keys = table.trial * (int(table.unit.max(initial=0)) + 1) + table.unit
    twice = table.n - len(np.unique(keys))
    return _verdict("unique", twice == 0, f"{table.n} Records, none twice", f"{twice} Records are there twice")


def _errors(_run: Run, cells: Cells, question: Question) -> Check:
    """Error rates are compared like any other measure: paired, by cluster, a sign-flip test, Holm over the arms."""
    bad, worst = [], 0.0
    table = cells.columns
    failed = (~table.scored).astype(float)
    for (model, decoding), arms in cells.groups.items():
        worst = max([worst, *(float(failed[rows].mean()) for rows in arms.values() if len(rows))])
        others = [arm for arm in dict.fromkeys((BASELINE, *question.family)) if arm in arms]
        mine = arms.get(question.claim)
        if mine is None:
            continue
        p_values = {}
        for arm in others:
            one, two, _ = pair(table, mine, arms[arm])
            found = paired(failed[one] - failed[two], table.cluster[one])
            p_values[arm] = 1.0 if found.p is None else found.p
        adjusted = holm(p_values)
        for arm in others:
            gap = abs(float(failed[mine].mean()) - float(failed[arms[arm]].mean()))
            if gap > ERROR_GAP or adjusted[arm] < 0.05:
                counts = [f"{int(failed[rows].sum())}/{len(rows)}" for rows in (mine, arms[arm])]
                bad.append(f"{question.claim} {counts[0]}, {arm} {counts[1]} on {model}, {decoding}")
    return _verdict("error parity", not bad, f"at most {worst:.1%} errors in an arm", "; ".join(bad))


def _pairs(run: Run, cells: Cells, question: Question) -> Check:
    bad, lost, total = [], 0, 0
    capped = {arm for arm in question.family if run.plan is not None and run.plan.n_of(arm) < run.plan.n}
    for model, decoding in cells.groups:
        mine = cells.get(model, decoding, question.claim, question.where)
        for arm in dict.fromkeys((BASELINE, *question.family)):
            theirs = cells.get(model, decoding, arm, question.where)
            if not len(theirs) or not len(mine):
                continue
            one, two, every = pair(cells.columns, mine, theirs)
            every = len(theirs) if arm in capped else every  # the plan runs it on fewer items
            x, y = cells.values(one, question.primary), cells.values(two, question.primary)
            both = int((~(np.isnan(x) | np.isnan(y))).sum())
            lost, total = lost + every - both, total + every
            if every - both > MISSING_PAIRS * every:
                bad.append(f"{arm} on {model}, {decoding}: {both} of {every} pairs")
    return _verdict("pairs", not bad, f"{total - lost} of {total} pairs measured in both arms", "; ".join(bad))


def _budget(run: Run, _cells: Cells, _question: Question) -> Check:
    if not run.ledgers:
        return Check("budget parity", "not measured", "no ledger in this run")
    over, used = [], []
    for ledger in run.ledgers.values():
        name = f"{ledger['arm']} on {ledger['model']}"
        cap = (ledger.get("budget") or {}).get("tuning_trials")
        fit = ledger.get("fit") or {}
        if ledger.get("over_budget") or (cap is not None and fit.get("tuning_trials", 0) > cap):
            over.append(name)
        used.append((float(fit.get("flops", 0.0)), name))
    if over:
        return Check("budget parity", "fail", "over the shared cap: " + "; ".join(dict.fromkeys(over)))
    caps = {str(sorted((ledger.get("budget") or {}).items())) for ledger in run.ledgers.values()}
    if len(caps) > 1:
        return Check("budget parity", "fail", f"arms had different caps: {'; '.join(sorted(caps))}")
    top = max(used)
    stated = any((ledger.get("budget") or {}).get("flops") is not None for ledger in run.ledgers.values())
    detail = f"one cap for all arms, kept; the largest fit was {top[1]} with {top[0]:.3g} FLOPs"
    return Check("budget parity", "pass" if stated else "warn", detail + ("" if stated else "; no FLOP cap was stated"))


def _dictionary(run: Run, _cells: Cells, _question: Question) -> Check:
    users = [ledger for ledger in run.ledgers.values() if ledger.get("dictionary")]
    unknown = {str(u["dictionary"]["ref"]) for u in users if u["dictionary"].get("share_flops") is None}
    if unknown:
        return Check("dictionary share", "not measured", "training FLOPs not stated by " + ", ".join(sorted(unknown)))
    return Check("dictionary share", "pass", f"10 % of its training charged to {len(users)} trials that use it")


def _strict_is_loose(_run: Run, cells: Cells, _question: Question) -> Check:
    measures = cells.columns.measures
    name = "strict implies loose"
    if "strict" not in measures or "loose" not in measures:
        return Check(name, "not measured", "no Record has both")
    strict, loose = measures["strict"], measures["loose"]
    both = int((~(np.isnan(strict) | np.isnan(loose))).sum())
    if not both:
        return Check(name, "not measured", "no Record has both")
    bad = int(((strict > 0) & (loose == 0)).sum())
    return _verdict(name, bad == 0, f"{both} Records", f"{bad} of {both} Records violate it")


def _funnel(_run: Run, cells: Cells, _question: Question) -> Check:
    funnel = cells.columns.funnel
    seen, bad = int((funnel != 0).sum()), int((funnel < 0).sum())
    if not seen:
        return Check("action funnel", "not measured", "no Record has one")
    return _verdict("action funnel", bad == 0, f"nested in {seen} Records", f"not nested in {bad} of {seen} Records")


def _clusters(_run: Run, cells: Cells, question: Question) -> Check:
    def count(rows: Ints) -> int:
        return len(np.unique(cells.columns.cluster[rows]))

    counts = [count(cells.get(*where, question.claim, question.where)) for where in cells.groups]
    fewest = min(counts, default=0)
    return Check("clusters", "pass" if fewest >= FEW_CLUSTERS else "warn", f"{fewest} at least; {FEW_CLUSTERS} wanted")


def _verdict(name: str, good: bool, when_good: str, when_bad: str) -> Check:
    return Check(name, "pass" if good else "fail", when_good if good else when_bad)
