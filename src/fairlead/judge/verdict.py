"""From Records to supported, refuted or inconclusive, with every reason. Never loads a model.

Per model, in the deciding mode: **supported** when the claim's paired interval against each arm in `beat`, and
against the best of the baselines that the plan names, lies above 0, the estimate reaches the smallest effect of
interest and Holm's p is at most .05, and when the claim is above each control the same way (without the smallest
effect). The best baseline is the one that did best on validation, by what the fits recorded; where they recorded
nothing comparable, the claim must beat each of them. **Refuted** when an interval excludes the smallest effect from
above. **Inconclusive** otherwise, and always after a failed fairness check. The study's verdict is what more than
half of its models say. Whether a report may say that the claim beats its baselines is for the rubric.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fairlead.core import notebook
from fairlead.core.errors import RecordError
from fairlead.core.records import Run
from fairlead.judge.brittleness import Brittleness, Coverage, brittleness, coverage
from fairlead.judge.costs import ArmCost, costs
from fairlead.judge.evidence import Evidence
from fairlead.judge.fairness import Check, checks
from fairlead.judge.question import BASELINE, Question, Slice, rivals
from fairlead.judge.rubric import RubricRow, may_claim, rubric
from fairlead.judge.sequential import Sequential, sequential
from fairlead.judge.stats import benjamini_hochberg, equivalence, holm
from fairlead.judge.tables import Cells, Contrast, Row, contrasts, rows

SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"
ALPHA = 0.05
UNSTATED = "unstated"  # a validation score without its measure compares with nothing


@dataclass(frozen=True)
class ModelVerdict:
    """The verdict on one model. `format_only` names arms whose gain over none exists in free decoding only.
    `best` is the baseline that the primary contrast is taken against, `chosen` how it was chosen."""

    model: str
    status: str
    reasons: tuple[str, ...]
    format_only: tuple[str, ...]
    best: str | None = None
    chosen: str = ""


@dataclass(frozen=True)
class Verdict:
    """All that the judge says about a run; `to_json` is what verdict.json holds. Without `may_claim` no sentence
    of a report says that the claim beats its baselines: `claim_sentence` is the one to print."""

    status: str
    reasons: tuple[str, ...]
    question: Question
    models: tuple[ModelVerdict, ...]
    checks: tuple[Check, ...]
    contrasts: tuple[Contrast, ...]
    rows: tuple[Row, ...]
    costs: tuple[ArmCost, ...]
    warnings: tuple[str, ...]
    rubric: tuple[RubricRow, ...] = ()
    may_claim: bool = False
    claim_sentence: str = ""
    exploratory: bool = False
    brittleness: tuple[Brittleness, ...] = ()
    coverage: Coverage | None = None
    sequential: tuple[Sequential, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; None is not measured."""
        return asdict(self)

    def _repr_html_(self) -> str:
        asked = self.question
        key = (asked.claim, asked.primary, asked.decoding)
        told = []
        for c in self.contrasts:
            if (c.arm, c.measure, c.decoding) == key and c.where == asked.where:
                d, span = c.difference, c.difference.interval
                ends = (span.low, span.high) if span else (None, None)
                told.append((c.model, c.against, d.estimate, *ends, d.clusters, c.p_holm))
        head = ("model", f"{asked.claim} minus", f"Δ {asked.primary}", "low", "high", "clusters", "p (Holm)")
        title = f"{self.status}{' (exploratory)' if self.exploratory else ''}"
        lines = (notebook.line(text) for text in (self.claim_sentence, *self.reasons) if text)
        return notebook.box(title, *lines, notebook.table(head, told))


def judge(run: Run, question: Question | None = None) -> Verdict:
    """Judge a run by its plan's question, or pure Records by the question given."""
    if question is None:
        if run.plan is None:
            raise RecordError("these Records have no plan", do="pass judge a Question: claim, primary, smallest_effect")
        question = Question.of(run.plan)
    if not run.records:
        raise RecordError("there are no Records to judge", do="run the study first")
    cells = Cells(run.records)
    if not question.rivals:
        question = replace(question, rivals=rivals((a for g in cells.groups.values() for a in g), question.claim))
    models = tuple(dict.fromkeys(model for model, _ in cells.groups))
    best = {model: best_baseline(run, model, question.rivals) for model in models}
    found = _corrected(contrasts(cells, question), question, best)
    fair = checks(run, cells, question)
    failed = [f"{check.name}: {check.detail}" for check in fair if check.result == "fail"]
    verdicts = tuple(_model(model, found, question, failed, best[model]) for model in models)
    status, reason = _overall(verdicts)
    spent = tuple(costs(run, cells, question))
    seen = Evidence(
        run=run,
        cells=cells,
        question=question,
        status=status,
        contrasts=tuple(found),
        checks=fair,
        costs=spent,
        brittleness=brittleness(run, cells, question),
        coverage=coverage(run, cells, question),
    )
    judged = rubric(seen)
    allowed, sentence = may_claim(seen, judged)
    return Verdict(
        status=status,
        reasons=(reason, *(f"failed fairness check, {text}" for text in failed), *_headlines(verdicts)),
        question=question,
        models=verdicts,
        checks=fair,
        contrasts=tuple(found),
        rows=tuple(rows(cells, question.primary)),
        costs=spent,
        warnings=_warnings(fair, found),
        rubric=judged,
        may_claim=allowed,
        claim_sentence=sentence,
        exploratory=seen.exploratory,
        brittleness=seen.brittleness,
        coverage=seen.coverage,
        sequential=sequential(run, cells, question),
    )


def best_baseline(run: Run, model: str, names: Sequence[str]) -> tuple[str | None, str]:
    """The baseline with the best validation score that its fit recorded, and how it was found. None when not every
    one recorded such a score by the same measure: the claim then has to beat each."""
    scores: dict[str, float] = {}
    kinds = set()
    for arm in names:
        told = [run.fitted[s.trial.key] for s in run.trials
                if (s.trial.model, s.trial.arm) == (model, arm) and s.trial.key in run.fitted]  # fmt: skip
        found = [v for about in told if (v := validation_score(about)) is not None]
        if not found:
            return None, "each, because not every fit recorded a validation score"
        scores[arm] = sum(score for score, _ in found) / len(found)
        kinds |= {kind for _, kind in found}
    if not scores:
        return None, ""
    if UNSTATED in kinds:
        return None, "each, because not every fit says by which measure it scored itself on validation"
    if len(kinds) > 1:
        return None, f"each, because the fits recorded different validation measures ({', '.join(sorted(kinds))})"
    top = max(scores, key=lambda arm: scores[arm])
    return top, f"best on validation: {', '.join(f'{arm} {score:.3f}' for arm, score in scores.items())}"


def validation_score(about: Mapping[str, Any]) -> tuple[float, str] | None:
    """What a fit says of its choice on validation, from its description: `validation_score`, or the best `score` of
    what it `tried`, and the measure it is by, `selected_by`. For a chain, its last part's."""
    if isinstance(about.get("parts"), list | tuple) and about["parts"]:
        return validation_score(about["parts"][-1])
    tried = [t.get("score") for t in about.get("tried") or () if isinstance(t, Mapping)]
    stated = about.get("validation_score")
    numbers = [float(s) for s in ([stated] if stated is not None else tried)
               if isinstance(s, int | float) and not isinstance(s, bool)]  # fmt: skip
    return (max(numbers), str(about.get("selected_by", UNSTATED))) if numbers else None


def _corrected(
    found: Sequence[Contrast], question: Question, best: Mapping[str, tuple[str | None, str]]
) -> list[Contrast]:
    """Mark the stated family (the claim against `beat`, the baselines and the controls, all models) and correct
    over it by Holm; over everything else, which is a scan, by Benjamini–Hochberg."""
    marked = [replace(c, family=_in_family(c, question, best[c.model][0])) for c in found]
    family = {i: c.difference.p for i, c in enumerate(marked) if c.family and c.difference.p is not None}
    scan = {i: c.difference.p for i, c in enumerate(marked) if not c.family and c.difference.p is not None}
    adjusted = holm({i: p for i, p in family.items() if p is not None})
    discovered = benjamini_hochberg({i: p for i, p in scan.items() if p is not None})
    return [
        replace(
            c,
            p_holm=adjusted.get(i),
            q=discovered.get(i),
            p_equivalent=equivalence(c.difference, question.smallest_effect),
        )
        for i, c in enumerate(marked)
    ]


def _in_family(c: Contrast, question: Question, best: str | None) -> bool:
    return (
        c.arm == question.claim
        and c.against in family(question, best)
        and c.decoding == question.decoding
        and c.measure == question.primary
        and dict(c.where) == dict(question.where)
    )


def family(question: Question, best: str | None) -> tuple[str, ...]:
    """The arms of the confirmatory family on one model: of the named baselines, the best on validation alone where
    that is known."""
    if best is None or best not in question.baselines:
        return question.family
    spared = set(question.baselines) - {best} - set(question.beat)
    return tuple(arm for arm in question.family if arm not in spared)


def _model(
    model: str, found: Sequence[Contrast], question: Question, failed: Sequence[str], best: tuple[str | None, str]
) -> ModelVerdict:
    members = [c for c in found if c.family and c.model == model]
    against = {c.against for c in members}
    reasons, states = [], []
    for contrast in members:
        state, text = _one(contrast, question)
        states.append(state)
        reasons.append(text)
    lost = [arm for arm in family(question, best[0]) if arm not in against]
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
    return ModelVerdict(model, status, tuple(reasons), format_only, *best)


def _one(c: Contrast, question: Question) -> tuple[str, str]:
    d, wanted = c.difference, question.smallest_effect
    name = f"{c.arm} − {c.against} on {c.measure}{_place(c.where)}"
    if d.estimate is None or d.interval is None or c.p_holm is None:
        return INCONCLUSIVE, f"{name}: not measured"
    text = (
        f"{name}: {100 * d.estimate:+.1f} points, 95 % [{100 * d.interval.low:+.1f}, {100 * d.interval.high:+.1f}], "
        f"p (Holm) = {c.p_holm:.4f}, {d.pairs} pairs in {d.clusters} clusters"
    )
    if d.mde is not None:
        text += f", smallest detectable {100 * d.mde:.1f}"
    needed = wanted if c.against in question.must_reach else 0.0
    if d.interval.low > 0 and d.estimate >= needed and c.p_holm <= ALPHA:
        return SUPPORTED, text
    if c.p_equivalent is not None and c.p_equivalent <= ALPHA:
        text += f"; equivalent within ±{100 * wanted:g} points (TOST p = {c.p_equivalent:.3f})"
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


def _warnings(fair: Sequence[Check], found: Sequence[Contrast]) -> tuple[str, ...]:
    texts = [f"{check.name}: {check.detail}" for check in fair if check.result in ("warn", "not measured")]
    texts += [f"{c.arm} − {c.against}: {w}" for c in found if c.family for w in c.difference.warnings]
    return tuple(dict.fromkeys(texts))


def _place(where: Slice) -> str:
    return " (" + ", ".join(f"{k} = {v}" for k, v in where.items()) + ")" if where else ""
