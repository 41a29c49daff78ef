"""Records as columns, so that a million of them are judged in array operations. One pass, nothing re-read.

Equal values become small codes; a measure is an array with NaN where it was not measured. A column knows which
rows hold a yes or no, because only those get Wilson intervals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.core.plan import REFERENCE
from fairlead.core.types import Record
from fairlead.judge.stats import Floats, Ints

Bools = NDArray[np.bool_]
FUNNEL = ("emitted", "valid", "grounded", "executed", "effective")
COSTS = ("prompt_tokens", "new_tokens", "flops", "seconds", "forwards")


@dataclass(frozen=True)
class Columns:
    """n Records as arrays [n]. `groups[(model, decoding)][arm]` holds row numbers; the reference model's rows are
    joined to every model. `unit` codes (item, seed), what arms are paired by. `strata[name]` is (values, codes),
    −1 where absent. `funnel` is 1 where a Record has a nested funnel, −1 where it is not nested, 0 where there
    is none. `trials` names the codes of `trial`."""

    n: int
    groups: Mapping[tuple[str, str], Mapping[str, Ints]]
    item: Ints
    seed: Ints
    unit: Ints
    cluster: Ints
    clusters: tuple[str, ...]
    trial: Ints
    trials: tuple[str, ...]
    strata: Mapping[str, tuple[tuple[str, ...], Ints]]
    measures: Mapping[str, Floats]
    yes_no: Mapping[str, Bools]
    scored: Bools
    funnel: Ints
    costs: Mapping[str, Floats]

    def within(self, rows: Ints, where: Mapping[str, str]) -> Ints:
        """The rows that have all strata values of a slice."""
        for name, value in where.items():
            values, codes = self.strata.get(name, ((), np.full(self.n, -1)))
            wanted = values.index(value) if value in values else -2
            rows = rows[codes[rows] == wanted]
        return rows

    def is_yes_no(self, rows: Ints, measure: str) -> bool:
        """True when the measure is a bool wherever it was measured in these rows, and was measured at all."""
        seen = ~np.isnan(self.measures[measure][rows])
        return bool(seen.any()) and bool(self.yes_no[measure][rows][seen].all())


def columns(records: Iterable[Record]) -> Columns:
    """Columns of Records. Equal strings, and score and strata tables that Records share, are looked at once."""
    rows = records if isinstance(records, Sequence) else list(records)
    n = len(rows)
    arms, arm = _coded(r.arm for r in rows)
    models, model = _coded(r.model for r in rows)
    modes, mode = _coded(r.decoding for r in rows)
    items, item = _coded(r.item for r in rows)
    seeds, seed = _coded(r.seed for r in rows)
    clusters, cluster = _coded(r.cluster for r in rows)
    trials, trial = _coded(r.trial for r in rows)
    scored = np.fromiter((r.score is not None for r in rows), dtype=bool, count=n)
    measures, yes_no = _measures(rows)
    return Columns(
        n=n,
        groups=_groups(arms, arm, models, model, modes, mode),
        item=item,
        seed=seed,
        unit=item * max(1, len(seeds)) + seed,
        cluster=cluster,
        clusters=clusters,
        trial=trial,
        trials=trials,
        strata=_strata(rows),
        measures=measures,
        yes_no=yes_no,
        scored=scored,
        funnel=_funnels(rows),
        costs=_costs(rows),
    )


def _coded(values: Iterable[Any]) -> tuple[tuple[Any, ...], Ints]:
    places: defaultdict[Any, int] = defaultdict(count().__next__)
    codes = np.array([places[value] for value in values], dtype=np.intp)
    return tuple(places), codes


def _tables(tables: Sequence[Any]) -> tuple[list[Any], Ints]:
    """Distinct objects (by identity) and the code of each row: loaders let equal tables be one object."""
    ids, codes = _coded(map(id, tables))
    first = dict(zip(reversed(list(map(id, tables))), reversed(tables), strict=True)) if len(ids) < len(tables) else {}
    return ([first[i] for i in ids] if first else list(tables)), codes


def _measures(rows: Sequence[Record]) -> tuple[dict[str, Floats], dict[str, Bools]]:
    tables, codes = _tables([r.score for r in rows])
    names = dict.fromkeys(name for table in tables if table for name in table)
    values = {name: np.full(len(tables), np.nan) for name in names}
    bools = {name: np.zeros(len(tables), dtype=bool) for name in names}
    for i, table in enumerate(tables):
        for name, value in (table or {}).items():
            if value is not None:
                values[name][i] = value
                bools[name][i] = value is True or value is False
    return {k: v[codes] for k, v in values.items()}, {k: v[codes] for k, v in bools.items()}


def _strata(rows: Sequence[Record]) -> dict[str, tuple[tuple[str, ...], Ints]]:
    tables, codes = _tables([r.strata for r in rows])
    found = {}
    for name in dict.fromkeys(name for table in tables for name in table):
        values, own = _coded(table.get(name) for table in tables)
        if None in values:  # absent is −1, and the values keep their order
            places = [v for v in values if v is not None]
            own = np.array([-1 if v is None else places.index(v) for v in values], dtype=np.intp)[own]
            values = tuple(places)
        found[name] = (values, own[codes])
    return found


def _funnels(rows: Sequence[Record]) -> Ints:
    funnels = [f if isinstance(f := (r.outcome or {}).get("funnel"), Mapping) else None for r in rows]
    tables, codes = _tables(funnels)
    seen = np.zeros(len(tables), dtype=np.intp)
    for i, table in enumerate(tables):
        if table is not None:
            levels = [table[name] for name in FUNNEL if table.get(name) is not None]
            seen[i] = -1 if any(b > a for a, b in zip(levels, levels[1:], strict=False)) else 1
    return seen[codes]


def _costs(rows: Sequence[Record]) -> dict[str, Floats]:
    get: dict[str, Callable[[Record], float]] = {
        "prompt_tokens": lambda r: r.cost.prompt_tokens,
        "new_tokens": lambda r: r.cost.new_tokens,
        "flops": lambda r: r.cost.flops,
        "seconds": lambda r: r.cost.seconds,
        "forwards": lambda r: r.cost.forwards,
    }
    return {name: np.fromiter(map(get[name], rows), dtype=np.float64, count=len(rows)) for name in COSTS}


def _groups(
    arms: Sequence[str], arm: Ints, models: Sequence[str], model: Ints, modes: Sequence[str], mode: Ints
) -> dict[tuple[str, str], dict[str, Ints]]:
    """Row numbers by (model, decoding) and arm, in the order in which they are first met."""
    code = (model * len(modes) + mode) * max(1, len(arms)) + arm
    order = np.argsort(code, kind="stable")
    met, starts = np.unique(code[order], return_index=True)
    pieces = np.split(order.astype(np.intp), starts[1:]) if len(met) else []
    found: dict[tuple[str, str], dict[str, Ints]] = {}
    references: list[tuple[str, Ints]] = []
    for rows in sorted(pieces, key=lambda rows: int(rows[0])):
        name, where = arms[arm[rows[0]]], (models[model[rows[0]]], modes[mode[rows[0]]])
        if name == REFERENCE:
            references.append((where[1], rows))
        else:
            found.setdefault(where, {})[name] = rows
    for decoding, rows in references:
        for (_, own), group in found.items():
            if own == decoding:
                group[REFERENCE] = np.concatenate([group[REFERENCE], rows]) if REFERENCE in group else rows
    return found
