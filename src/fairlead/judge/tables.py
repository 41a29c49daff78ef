"""Every number of a run by arm, model, decoding and stratum, and the paired contrasts between arms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from fairlead.core.types import Record
from fairlead.judge.columns import Columns, columns
from fairlead.judge.question import BASELINE, Question, Slice, is_control, is_stress
from fairlead.judge.stats import Difference, Floats, Interval, Ints, clustering, mean_interval, paired, wilson

NEUTRAL = "neutral"  # measures of what an edit costs on unrelated text, such as neutral_text_loss
MOST_VALUES = 50  # a stratum with more values than this is an identifier, and no table is broken down by it


@dataclass(frozen=True)
class Row:
    """One measure of one arm on one slice. `n` counts items where it was measured; `not_measured` those
    scored without it, `errors` those without a score. `interval` is Wilson's at n (None for a measure that is
    not yes or no), `clustered` Wilson's at the effective n (a cluster t interval for other measures)."""

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
    """`arm` − `against` on one measure and slice. `p_holm` is set for members of the stated family, `q`
    (Benjamini–Hochberg over the scan) for all others. `p_equivalent` is the TOST p within ± the smallest effect."""

    model: str
    decoding: str
    arm: str
    against: str
    measure: str
    where: Slice
    difference: Difference
    family: bool = False
    p_holm: float | None = None
    q: float | None = None
    p_equivalent: float | None = None


class Cells:
    """Records by (model, decoding, arm). The reference model's arm is joined to every model. Stress arms are
    apart, in `stress`: they are judged for brittleness only."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.columns: Columns = columns(records)
        everything = self.columns.groups
        self.groups: dict[tuple[str, str], dict[str, Ints]] = {
            where: kept for where, arms in everything.items() if (kept := _without_stress(arms))
        }
        self.stress: dict[tuple[str, str], dict[str, Ints]] = {
            where: {arm: rows for arm, rows in arms.items() if is_stress(arm)} for where, arms in everything.items()
        }

    def get(self, model: str, decoding: str, arm: str, where: Slice) -> Ints:
        """The row numbers of an arm on a slice; empty when there are none."""
        found = self.groups.get((model, decoding), {}).get(arm)
        return np.empty(0, dtype=np.intp) if found is None else self.columns.within(found, where)

    def measures(self, first: str) -> list[str]:
        """All measures met, the primary one first."""
        return [first, *(name for name in self.columns.measures if name != first)]

    def values(self, rows: Ints, measure: str) -> Floats:
        """A measure in some rows; NaN where it was not measured."""
        found = self.columns.measures.get(measure)
        return np.full(len(rows), np.nan) if found is None else found[rows]


def _without_stress(arms: Mapping[str, Ints]) -> dict[str, Ints]:
    return {arm: rows for arm, rows in arms.items() if not is_stress(arm)}


def within(record: Record, where: Slice) -> bool:
    """True when a Record has all strata values of a slice."""
    return all(record.strata.get(key) == value for key, value in where.items())


def slices(table: Columns, rows: Ints) -> Iterator[tuple[dict[str, str], Ints]]:
    """Everything, each stratum value, and each pair of values of two strata, with the rows in it."""
    yield {}, rows
    names = sorted(name for name, (values, _) in table.strata.items() if len(values) <= MOST_VALUES)
    single: dict[tuple[str, str], Ints] = {}
    for name in names:
        values, codes = table.strata[name]
        own = codes[rows]
        for place in sorted(range(len(values)), key=values.__getitem__):
            chosen = rows[own == place]
            if len(chosen):
                single[(name, values[place])] = chosen
    for (name, value), chosen in single.items():
        yield {name: value}, chosen
    for (one, a), (two, b) in combinations(single, 2):
        if one != two:
            values, codes = table.strata[two]
            chosen = single[(one, a)]
            chosen = chosen[codes[chosen] == values.index(b)]
            if len(chosen):
                yield {one: a, two: b}, chosen


def rows(cells: Cells, primary: str) -> list[Row]:
    """The whole table. Measures that are not yes or no are left out where two strata cross."""
    names, found = cells.measures(primary), []
    for (model, decoding), arms in cells.groups.items():
        for arm, own in arms.items():
            yes_no = {name for name in names if name in cells.columns.measures and cells.columns.is_yes_no(own, name)}
            for where, chosen in slices(cells.columns, own):
                for name in names:
                    if name in yes_no or len(where) < 2:
                        found.append(_row(cells, (model, decoding, arm), where, name, chosen, name in yes_no))
    return found


def _row(cells: Cells, arm: tuple[str, str, str], where: Slice, name: str, rows: Ints, yes_no: bool) -> Row:
    x = cells.values(rows, name)
    seen = ~np.isnan(x)
    scored = int(cells.columns.scored[rows].sum())
    values, clusters = x[seen], cells.columns.cluster[rows][seen]
    group = clustering(values, clusters)
    value = float(values.sum()) / len(values) if len(values) else None
    interval = clustered = None
    if value is not None and yes_no:
        interval = wilson(float(values.sum()), len(values))
        clustered = wilson(value * group.effective_n, group.effective_n)
    elif value is not None:
        clustered = mean_interval(values, clusters)
    return Row(
        model=arm[0],
        decoding=arm[1],
        arm=arm[2],
        where=dict(where),
        measure=name,
        value=value,
        successes=int(values.sum()) if yes_no and len(values) else None,
        n=len(values),
        not_measured=scored - len(values),
        errors=len(rows) - scored,
        interval=interval,
        clustered=clustered,
        clusters=group.clusters,
        icc=group.icc,
        effective_n=group.effective_n,
    )


def contrast(cells: Cells, model: str, decoding: str, arm: str, against: str, measure: str, where: Slice) -> Contrast:
    """The paired difference of two arms, by item and seed, clusters resampled."""
    a = cells.get(model, decoding, arm, where)
    b = cells.get(model, decoding, against, where)
    return Contrast(model, decoding, arm, against, measure, dict(where), compare(cells, a, b, measure))


def compare(cells: Cells, a: Ints, b: Ints, measure: str) -> Difference:
    """The paired difference of two sets of rows on a measure."""
    one, two, either = pair(cells.columns, a, b)
    x, y = cells.values(one, measure), cells.values(two, measure)
    both = ~(np.isnan(x) | np.isnan(y))
    return paired((x - y)[both], cells.columns.cluster[one][both], missing=either - int(both.sum()))


def pair(table: Columns, a: Ints, b: Ints) -> tuple[Ints, Ints, int]:
    """Rows of both sets with the same item and seed, side by side in the order of a, and how many items and seeds
    either has. Where one is there twice the last counts (the fairness checks say so)."""
    units, codes = np.unique(np.concatenate([table.unit[a], table.unit[b]]), return_inverse=True)
    place_a, place_b = np.full(len(units), -1), np.full(len(units), -1)
    place_a[codes[: len(a)]] = a
    place_b[codes[len(a) :]] = b
    both = np.flatnonzero((place_a >= 0) & (place_b >= 0))
    both = both[np.argsort(place_a[both], kind="stable")]
    return place_a[both], place_b[both], len(units)


def contrasts(cells: Cells, question: Question) -> list[Contrast]:
    """Every arm − none, and the claim − every other arm, on the primary measure within `where` and on its
    counterparts (the other values of the same strata); other yes-or-no measures, and what an arm costs on neutral
    text, for − none within `where`."""
    found = []
    for (model, decoding), arms in cells.groups.items():
        places = [question.where, *counterparts(cells, arms, question.where)]
        others = [
            name
            for name in cells.measures(question.primary)[1:]
            if name.startswith(NEUTRAL) or _yes_no_anywhere(cells, arms, name)
        ]
        for arm, against in _pairs(arms, question):
            for where in places:
                found.append(contrast(cells, model, decoding, arm, against, question.primary, where))
            if against == BASELINE:
                for name in others:
                    found.append(contrast(cells, model, decoding, arm, against, name, question.where))
    return found


def _pairs(arms: Mapping[str, Ints], question: Question) -> Iterator[tuple[str, str]]:
    if BASELINE in arms:
        yield from ((arm, BASELINE) for arm in arms if arm != BASELINE)
    if question.claim in arms:
        yield from ((question.claim, arm) for arm in arms if arm not in (question.claim, BASELINE))


def counterparts(cells: Cells, arms: Mapping[str, Ints], where: Slice) -> list[dict[str, str]]:
    """The other values of the strata that a slice fixes: trap off and inverse beside trap on."""
    found = []
    for key, value in where.items():
        if key not in cells.columns.strata:
            continue
        values, codes = cells.columns.strata[key]
        met = dict.fromkeys(values[c] for rows in arms.values() for c in _first_met(codes[rows]))
        found += [{**where, key: other} for other in met if other != value]
    return found


def _first_met(codes: Ints) -> list[int]:
    met, first = np.unique(codes, return_index=True)
    return [int(c) for c in met[np.argsort(first)] if c >= 0]


def _yes_no_anywhere(cells: Cells, arms: Mapping[str, Ints], name: str) -> bool:
    return name in cells.columns.measures and any(cells.columns.is_yes_no(rows, name) for rows in arms.values())


__all__ = [
    "BASELINE", "Cells", "Contrast", "Question", "Row", "Slice", "compare", "contrast", "contrasts", "counterparts",
    "is_control", "is_stress", "pair", "rows", "slices", "within",
]  # fmt: skip
