"""Every number of a run by arm, model, decoding and stratum, and the paired contrasts between arms."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from fairlead.core.plan import REFERENCE, Plan
from fairlead.core.types import Record
from fairlead.judge.stats import Difference, Interval, clustering, difference, mean_interval, wilson

BASELINE = "none"
Slice = Mapping[str, str]  # strata values that a record must have; empty is everything


@dataclass(frozen=True)
class Question:
    """What is judged: does `claim` beat each of `beat`, and each control, on `primary` within `where`, by at
    least `smallest_effect`? Decided in `decoding`, the constrained mode where there is one."""

    claim: str
    primary: str
    smallest_effect: float
    where: Slice = field(default_factory=dict)
    beat: tuple[str, ...] = (BASELINE,)
    controls: tuple[str, ...] = ()
    decoding: str = "constrained"

    @classmethod
    def of(cls, plan: Plan) -> Question:
        """The question as pre-registered. The family is `beat` and every arm named control."""
        return cls(
            claim=plan.claim,
            primary=plan.primary,
            smallest_effect=plan.smallest_effect,
            where=dict(plan.where),
            beat=plan.beat,
            controls=tuple(arm for arm in plan.arms if is_control(arm) and arm != plan.claim),
            decoding="constrained" if "constrained" in plan.decoding else plan.decoding[0],
        )

    @property
    def family(self) -> tuple[str, ...]:
        """The arms that the claim is tested against on each model: the stated family that Holm corrects over."""
        return tuple(dict.fromkeys((*self.beat, *self.controls)))


@dataclass(frozen=True)
class Row:
    """One measure of one arm on one slice. `n` counts items where it was measured; `not_measured` those
    scored without it, `errors` those without a score. `interval` is Wilson's at n (None for a measure that is
    not yes or no), `clustered` Wilson's at the effective n (a cluster bootstrap for other measures)."""

    model: str
    decoding: str
    arm: str
    where: Slice
    measure: str
    value: float | None
    successes: int | None
    n: int
    not_measured: int
    errors: int
    interval: Interval | None
    clustered: Interval | None
    clusters: int
    icc: float | None
    effective_n: float


@dataclass(frozen=True)
class Contrast:
    """`arm` − `against` on one measure and slice. `p_holm` is set for members of the stated family."""

    model: str
    decoding: str
    arm: str
    against: str
    measure: str
    where: Slice
    difference: Difference
    family: bool = False
    p_holm: float | None = None


class Cells:
    """Records by (model, decoding, arm). The reference model's arm is joined to every model."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
        references: list[Record] = []
        for record in records:
            if record.arm == REFERENCE:
                references.append(record)
            else:
                arms = self.groups.setdefault((record.model, record.decoding), {})
                arms.setdefault(record.arm, []).append(record)
        for record in references:
            for (_, decoding), arms in self.groups.items():
                if decoding == record.decoding:
                    arms.setdefault(REFERENCE, []).append(record)

    def get(self, model: str, decoding: str, arm: str, where: Slice) -> list[Record]:
        """The Records of an arm on a slice; empty when there are none."""
        found = self.groups.get((model, decoding), {}).get(arm, [])
        return [r for r in found if within(r, where)]

    def measures(self, first: str) -> list[str]:
        """All measures met, the primary one first."""
        names = {
            name: None
            for arms in self.groups.values()
            for records in arms.values()
            for record in records
            for name in record.score or ()
        }
        return [first, *(name for name in names if name != first)]


def is_control(arm: str) -> bool:
    """`control`, `control.random` ...; not a chain that holds one."""
    return arm.partition(".")[0] == "control" and "+" not in arm


def within(record: Record, where: Slice) -> bool:
    """True when a Record has all strata values of a slice."""
    return all(record.strata.get(key) == value for key, value in where.items())


def slices(records: Sequence[Record]) -> list[tuple[dict[str, str], list[Record]]]:
    """Everything, each stratum value, and each pair of values of two strata, with the Records in it."""
    found: dict[tuple[tuple[str, str], ...], list[Record]] = {(): []}
    for record in records:
        values = sorted(record.strata.items())
        for key in ((), *((v,) for v in values), *combinations(values, 2)):
            found.setdefault(key, []).append(record)
    return [(dict(key), found[key]) for key in sorted(found, key=lambda key: (len(key), key))]


def rows(cells: Cells, primary: str) -> list[Row]:
    """The whole table. Measures that are not yes or no are left out where two strata cross."""
    names, found = cells.measures(primary), []
    for (model, decoding), arms in cells.groups.items():
        for arm, records in arms.items():
            yes_no = {name for name in names if _is_yes_no(records, name)}
            for where, chosen in slices(records):
                for name in names:
                    if name in yes_no or len(where) < 2:
                        found.append(_row(model, decoding, arm, where, name, chosen, name in yes_no))
    return found


def _row(model: str, decoding: str, arm: str, where: Slice, name: str, records: Sequence[Record], yes_no: bool) -> Row:
    scored = [r for r in records if r.score is not None]
    measured = [(float(v), r.cluster) for r in scored if (v := (r.score or {}).get(name)) is not None]
    values, clusters = [v for v, _ in measured], [c for _, c in measured]
    group = clustering(values, clusters)
    value = sum(values) / len(values) if values else None
    interval = clustered = None
    if value is not None and yes_no:
        interval = wilson(sum(values), len(values))
        clustered = wilson(value * group.effective_n, group.effective_n)
    elif value is not None:
        clustered = mean_interval(values, clusters)
    return Row(
        model=model,
        decoding=decoding,
        arm=arm,
        where=dict(where),
        measure=name,
        value=value,
        successes=int(sum(values)) if yes_no and values else None,
        n=len(values),
        not_measured=len(scored) - len(values),
        errors=len(records) - len(scored),
        interval=interval,
        clustered=clustered,
        clusters=group.clusters,
        icc=group.icc,
        effective_n=group.effective_n,
    )


def _is_yes_no(records: Sequence[Record], name: str) -> bool:
    values = [v for r in records if r.score is not None and (v := r.score.get(name)) is not None]
    return bool(values) and all(isinstance(v, bool) for v in values)


def contrast(cells: Cells, model: str, decoding: str, arm: str, against: str, measure: str, where: Slice) -> Contrast:
    """The paired difference of two arms, by item and seed, clusters resampled."""
    a = cells.get(model, decoding, arm, where)
    b = cells.get(model, decoding, against, where)
    cluster_of: dict[Hashable, Hashable] = {(r.item, r.seed): r.cluster for r in (*a, *b)}
    found = difference(_values(a, measure), _values(b, measure), cluster_of)
    return Contrast(model, decoding, arm, against, measure, dict(where), found)


def _values(records: Sequence[Record], measure: str) -> dict[Hashable, float | None]:
    values: dict[Hashable, float | None] = {}
    for record in records:
        value = None if record.score is None else record.score.get(measure)
        values[(record.item, record.seed)] = None if value is None else float(value)
    return values


def contrasts(cells: Cells, question: Question) -> list[Contrast]:
    """Every arm − none, and the claim − every other arm, on the primary measure within `where` and on its
    counterparts (the other values of the same strata); other yes-or-no measures for − none within `where`."""
    found = []
    for (model, decoding), arms in cells.groups.items():
        places = [question.where, *_counterparts(arms, question.where)]
        others = [name for name in cells.measures(question.primary)[1:] if _yes_no_anywhere(arms, name)]
        for arm, against in _pairs(arms, question):
            for where in places:
                found.append(contrast(cells, model, decoding, arm, against, question.primary, where))
            if against == BASELINE:
                for name in others:
                    found.append(contrast(cells, model, decoding, arm, against, name, question.where))
    return found


def _pairs(arms: Mapping[str, Sequence[Record]], question: Question) -> Iterator[tuple[str, str]]:
    if BASELINE in arms:
        yield from ((arm, BASELINE) for arm in arms if arm != BASELINE)
    if question.claim in arms:
        yield from ((question.claim, arm) for arm in arms if arm not in (question.claim, BASELINE))


def _counterparts(arms: Mapping[str, Sequence[Record]], where: Slice) -> list[dict[str, str]]:
    found = []
    for key, value in where.items():
        seen = dict.fromkeys(r.strata[key] for records in arms.values() for r in records if key in r.strata)
        found += [{**where, key: other} for other in seen if other != value]
    return found


def _yes_no_anywhere(arms: Mapping[str, Sequence[Record]], name: str) -> bool:
    return any(_is_yes_no(records, name) for records in arms.values())
