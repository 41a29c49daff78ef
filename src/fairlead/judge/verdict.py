"""From Records to supported, refuted or inconclusive, with every reason. Never loads a model.

Per model, in the deciding mode: **supported** when the claim's paired interval against each arm in `beat` lies
above 0, the estimate reaches the smallest effect of interest and Holm's p is at most .05, and when the claim
is above each control the same way (without the smallest effect). **Refuted** when an interval excludes the
smallest effect from above. **Inconclusive** otherwise, and always after a failed fairness check. The study's
verdict is what more than half of its models say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fairlead.core.errors import RecordError
from fairlead.core.records import Run
from fairlead.core.types import Cost
from fairlead.judge.fairness import Check, checks
from fairlead.judge.stats import holm
from fairlead.judge.tables import BASELINE, Cells, Contrast, Question, Row, Slice, contrasts, rows

SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"
ALPHA = 0.05


@dataclass(frozen=True)
class ArmCost:
    """What an arm cost to run on the test items within `where`, per success too, and to fit (from the ledger).

    None is not measured: no success to divide by, or no ledger."""

    model: str
    decoding: str
    arm: str
    run: Cost
    successes: int
    flops_per_success: float | None
    tokens_per_success: float | None
    fit: Cost | None
    dictionary_flops: float | None


@dataclass(frozen=True)
class ModelVerdict:
    """The verdict on one model. `format_only` names arms whose gain over none exists in free decoding only."""

    model: str
    status: str
    reasons: tuple[str, ...]
    format_only: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """All that the judge says about a run; `to_json` is what verdict.json holds."""

    status: str
    reasons: tuple[str, ...]
    question: Question
    models: tuple[ModelVerdict, ...]
    checks: tuple[Check, ...]
    contrasts: tuple[Contrast, ...]
    rows: tuple[Row, ...]
    costs: tuple[ArmCost, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; None is not measured."""
        return asdict(self)


def judge(run: Run, question: Question | None = None) -> Verdict:
    """Judge a run by its plan's question, or pure Records by the question given."""
    if question is None:
        if run.plan is None:
            raise RecordError("these Records have no plan", do="pass judge a Question: claim, primary, smallest_effect")
        question = Question.of(run.plan)
    if not run.records:
        raise RecordError("there are no Records to judge", do="run the study first")
    cells = Cells(run.records)
    found = _with_family(contrasts(cells, question), question)
    fair = checks(run, cells, question)
    failed = [f"{check.name}: {check.detail}" for check in fair if check.result == "fail"]
    models = tuple(_model(model, found, question, failed) for model in dict.fromkeys(m for m, _ in cells.groups))
    status, reason = _overall(models)
    return Verdict(
        status=status,
        reasons=(reason, *(f"failed fairness check, {text}" for text in failed), *_headlines(models)),
        question=question,
        models=models,
        checks=fair,
        contrasts=tuple(found),
        rows=tuple(rows(cells, question.primary)),
        costs=tuple(_costs(run, cells, question)),
        warnings=_warnings(fair, found),
    )


def _with_family(found: Sequence[Contrast], question: Question) -> list[Contrast]:
    """Mark the stated family (the claim against `beat` and the controls, all models) and correct over it."""
    marked = [replace(c, family=_in_family(c, question)) for c in found]
    p_values = {i: c.difference.p for i, c in enumerate(marked) if c.family and c.difference.p is not None}
    adjusted = holm({i: p for i, p in p_values.items() if p is not None})
    return [replace(c, p_holm=adjusted.get(i)) for i, c in enumerate(marked)]


def _in_family(c: Contrast, question: Question) -> bool:
    return (
        c.arm == question.claim
        and c.against in question.family
        and c.decoding == question.decoding
        and c.measure == question.primary
        and dict(c.where) == dict(question.where)
    )


def _model(model: str, found: Sequence[Contrast], question: Question, failed: Sequence[str]) -> ModelVerdict:
    family = [c for c in found if c.family and c.model == model]
    against = {c.against for c in family}
    reasons, states = [], []
    for contrast in family:
        state, text = _one(contrast, question)
        states.append(state)
        reasons.append(text)
    lost = [arm for arm in question.family if arm not in against]
    if lost:
        states.append(INCONCLUSIVE)
        reasons.append(f"not compared with {', '.join(lost)}: no Records")
    format_only = _format_only(model, found, question)
    if question.claim in format_only:
        reasons.append(f"the gain of {question.claim} exists in free decoding only: it is format")
    if failed or not states:
        status = INCONCLUSIVE
    elif REFUTED in states:
        status = REFUTED
    else:
        status = SUPPORTED if set(states) == {SUPPORTED} else INCONCLUSIVE
    return ModelVerdict(model, status, tuple(reasons), format_only)


def _one(c: Contrast, question: Question) -> tuple[str, str]:
    d, wanted = c.difference, question.smallest_effect
    name = f"{c.arm} − {c.against} on {c.measure}{_place(c.where)}"
    if d.estimate is None or d.interval is None or c.p_holm is None:
        return INCONCLUSIVE, f"{name}: not measured"
    text = (
        f"{name}: {100 * d.estimate:+.1f} points, 95 % [{100 * d.interval.low:+.1f}, {100 * d.interval.high:+.1f}], "
        f"p (Holm) = {c.p_holm:.4f}, {d.pairs} pairs in {d.clusters} clusters"
    )
    needed = wanted if c.against in question.beat and c.against not in question.controls else 0.0
    if d.interval.low > 0 and d.estimate >= needed and c.p_holm <= ALPHA:
        return SUPPORTED, text
    if d.interval.high < wanted:
        return REFUTED, f"{text}: an effect of {100 * wanted:g} points is excluded"
    why = "the interval reaches 0" if d.interval.low <= 0 else "it is below the smallest effect of interest"
    if d.interval.low > 0 and d.estimate >= needed:
        why = "p is above .05"
    return INCONCLUSIVE, f"{text}: {why}"


def _format_only(model: str, found: Sequence[Contrast], question: Question) -> tuple[str, ...]:
    """Arms above none in free decoding but not in constrained, where both modes were run."""
    low: dict[tuple[str, str], float] = {}
    for c in found:
        here = (c.model, c.against, c.measure) == (model, BASELINE, question.primary)
        if here and dict(c.where) == dict(question.where) and c.difference.interval is not None:
            low[(c.arm, c.decoding)] = c.difference.interval.low
    arms = dict.fromkeys(arm for arm, _ in low)
    return tuple(arm for arm in arms if low.get((arm, "free"), 0.0) > 0 and low.get((arm, "constrained"), 1.0) <= 0)


def _overall(models: Sequence[ModelVerdict]) -> tuple[str, str]:
    counts = Counter(m.status for m in models)
    said = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    status = next((s for s in (SUPPORTED, REFUTED) if 2 * counts[s] > len(models)), INCONCLUSIVE)
    return status, f"{len(models)} model{'s' if len(models) != 1 else ''}: {said}"


def _headlines(models: Sequence[ModelVerdict]) -> list[str]:
    """One line per model: the first contrast of the family and how many of them hold."""
    return [f"{m.model}: {m.status}; {m.reasons[0]}" for m in models if m.reasons]


def _costs(run: Run, cells: Cells, question: Question) -> list[ArmCost]:
    found = []
    for (model, decoding), arms in cells.groups.items():
        for arm in arms:
            records = cells.get(model, decoding, arm, question.where)
            cost = sum((r.cost for r in records), Cost())
            wins = sum(bool(r.score and r.score.get(question.primary)) for r in records)
            tokens = cost.prompt_tokens + cost.new_tokens
            keys = {r.trial for r in records}
            ledgers = [run.ledgers[k] for k in keys if k in run.ledgers]
            fits = [Cost(**ledger["fit"]) for ledger in ledgers if ledger.get("fit")]
            shares = [ledger["dictionary"]["share_flops"] for ledger in ledgers if ledger.get("dictionary")]
            found.append(
                ArmCost(
                    model=model,
                    decoding=decoding,
                    arm=arm,
                    run=cost,
                    successes=wins,
                    flops_per_success=cost.flops / wins if wins and cost.flops else None,
                    tokens_per_success=tokens / wins if wins and tokens else None,
                    fit=sum(fits, Cost()) if fits else None,
                    dictionary_flops=None if None in shares else sum(shares) if ledgers else None,
                )
            )
    return found


def _warnings(fair: Sequence[Check], found: Sequence[Contrast]) -> tuple[str, ...]:
    texts = [f"{check.name}: {check.detail}" for check in fair if check.result in ("warn", "not measured")]
    texts += [f"{c.arm} − {c.against}: {w}" for c in found if c.family for w in c.difference.warnings]
    return tuple(dict.fromkeys(texts))


def _place(where: Slice) -> str:
    return " (" + ", ".join(f"{k} = {v}" for k, v in where.items()) + ")" if where else ""
