"""The fairness checks that come before any verdict. A failed one makes every verdict inconclusive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fairlead.core.records import COMPLETE, NOT_APPLICABLE, Run
from fairlead.judge.stats import FEW_CLUSTERS, fisher
from fairlead.judge.tables import BASELINE, Cells, Question, is_control

Result = Literal["pass", "warn", "fail", "not measured"]
MISSING_PAIRS = 0.05  # share of pairs that may be missing
ERROR_GAP = 0.05  # difference in error rates that two compared arms may have
FUNNEL = ("emitted", "valid", "grounded", "executed", "effective")


@dataclass(frozen=True)
class Check:
    """One line of the rubric, with what was found."""

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


def _unique(run: Run, _cells: Cells, _question: Question) -> Check:
    twice = len(run.records) - len({(r.trial, r.item, r.seed) for r in run.records})
    return _verdict("unique", twice == 0, f"{len(run.records)} Records, none twice", f"{twice} Records are there twice")


def _errors(_run: Run, cells: Cells, question: Question) -> Check:
    bad, worst = [], 0.0
    for (model, decoding), arms in cells.groups.items():
        rates = {arm: (sum(r.error is not None for r in found), len(found)) for arm, found in arms.items()}
        worst = max([worst, *(e / n for e, n in rates.values() if n)])
        if question.claim not in rates:
            continue
        mine, n = rates[question.claim]
        for arm in {BASELINE, *question.family} & set(rates):
            theirs, m = rates[arm]
            gap = abs(mine / n - theirs / m)
            if gap > ERROR_GAP or (gap > 0 and fisher(mine, n, theirs, m) < 0.05):
                bad.append(f"{question.claim} {mine}/{n}, {arm} {theirs}/{m} on {model}, {decoding}")
    return _verdict("error parity", not bad, f"at most {worst:.1%} errors in an arm", "; ".join(bad))


def _pairs(_run: Run, cells: Cells, question: Question) -> Check:
    bad, lost, total = [], 0, 0
    for model, decoding in cells.groups:
        mine = _measured(cells, model, decoding, question.claim, question)
        for arm in dict.fromkeys((BASELINE, *question.family)):
            theirs = _measured(cells, model, decoding, arm, question)
            if not theirs or not mine:
                continue
            every, both = set(mine) | set(theirs), {k for k in mine if mine[k] and theirs.get(k)}
            lost, total = lost + len(every) - len(both), total + len(every)
            if len(every) - len(both) > MISSING_PAIRS * len(every):
                bad.append(f"{arm} on {model}, {decoding}: {len(both)} of {len(every)} pairs")
    return _verdict("pairs", not bad, f"{total - lost} of {total} pairs measured in both arms", "; ".join(bad))


def _measured(cells: Cells, model: str, decoding: str, arm: str, question: Question) -> dict[Any, bool]:
    found = cells.get(model, decoding, arm, question.where)
    return {(r.item, r.seed): r.score is not None and r.score.get(question.primary) is not None for r in found}


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


def _strict_is_loose(run: Run, _cells: Cells, _question: Question) -> Check:
    scored: Sequence[Mapping[str, Any]] = [r.score for r in run.records if r.score is not None]
    both = [s for s in scored if s.get("strict") is not None and s.get("loose") is not None]
    bad = sum(bool(s["strict"]) and not s["loose"] for s in both)
    if not both:
        return Check("strict implies loose", "not measured", "no Record has both")
    return _verdict(
        "strict implies loose", bad == 0, f"{len(both)} Records", f"{bad} of {len(both)} Records violate it"
    )


def _funnel(run: Run, _cells: Cells, _question: Question) -> Check:
    seen = bad = 0
    for record in run.records:
        funnel = (record.outcome or {}).get("funnel")
        if isinstance(funnel, Mapping):
            levels = [funnel[name] for name in FUNNEL if funnel.get(name) is not None]
            seen += 1
            bad += any(b > a for a, b in zip(levels, levels[1:], strict=False))
    if not seen:
        return Check("action funnel", "not measured", "no Record has one")
    return _verdict("action funnel", bad == 0, f"nested in {seen} Records", f"not nested in {bad} of {seen} Records")


def _clusters(_run: Run, cells: Cells, question: Question) -> Check:
    counts = [
        len({r.cluster for r in cells.get(model, decoding, question.claim, question.where)})
        for model, decoding in cells.groups
    ]
    fewest = min(counts, default=0)
    return Check("clusters", "pass" if fewest >= FEW_CLUSTERS else "warn", f"{fewest} at least; {FEW_CLUSTERS} wanted")


def _verdict(name: str, good: bool, when_good: str, when_bad: str) -> Check:
    return Check(name, "pass" if good else "fail", when_good if good else when_bad)
