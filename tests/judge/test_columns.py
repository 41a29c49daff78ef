"""Columns say what the Records say, whether or not tables are shared."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from tests.judge.fair import fair_plan, fair_run

from fairlead.judge.columns import columns
from fairlead.judge.tables import Cells, compare, pair, slices


@pytest.fixture(scope="module")
def records():
    plan = fair_plan(arms=("none", "feature", "control.pca", "stress.dose_2"), baselines=(), seeds=(0, 1))
    found = list(fair_run(plan, n=10).records)
    found[0] = replace(found[0], score={"strict": None, "share": 0.5})
    found[1] = replace(found[1], score=None, error="run: it broke")
    found[2] = replace(found[2], strata={}, outcome={"funnel": {"emitted": 1, "valid": 2}})
    found[3] = replace(found[3], outcome={"funnel": {"emitted": 2, "valid": 2, "executed": None}})
    return found


def test_each_row_is_its_record(records):
    table = columns(records)
    for i, r in enumerate(records):
        for name, values in table.measures.items():
            value = None if r.score is None else r.score.get(name)
            assert np.isnan(values[i]) if value is None else values[i] == value
            assert table.yes_no[name][i] == isinstance(value, bool)
        for name, (values, codes) in table.strata.items():
            assert (values[codes[i]] if codes[i] >= 0 else None) == r.strata.get(name)
        assert table.scored[i] == (r.score is not None) and table.clusters[table.cluster[i]] == r.cluster
        assert table.trials[table.trial[i]] == r.trial and table.costs["flops"][i] == r.cost.flops
    assert list(table.funnel[:4]) == [0, 0, -1, 1]
    units = {(r.item, r.seed): set() for r in records}
    for i, r in enumerate(records):
        units[(r.item, r.seed)].add(int(table.unit[i]))
    assert all(len(codes) == 1 for codes in units.values()) and len({min(c) for c in units.values()}) == len(units)


def test_shared_tables_change_nothing(records):
    apart = columns([copy.deepcopy(r) for r in records])
    shared: dict[str, object] = {}
    joined = columns([
        replace(r, score=shared.setdefault(repr(r.score), r.score), strata=shared.setdefault(repr(r.strata), r.strata))
        for r in records
    ])  # fmt: skip
    for name in apart.measures:
        assert np.array_equal(apart.measures[name], joined.measures[name], equal_nan=True)
    for name, (values, codes) in apart.strata.items():
        assert joined.strata[name][0] == values and np.array_equal(joined.strata[name][1], codes)


def test_groups_hold_the_reference_in_every_model_and_keep_stress_apart(records):
    cells = Cells([*records, *(replace(r, model="n") for r in records if r.arm == "none")])
    assert list(cells.groups) == [("m", "constrained"), ("n", "constrained")]
    assert list(cells.groups[("m", "constrained")]) == ["none", "feature", "control.pca", "reference"]
    assert list(cells.groups[("n", "constrained")]) == ["none", "reference"]
    assert list(cells.stress[("m", "constrained")]) == ["stress.dose_2"]


def test_slices_are_everything_each_value_and_each_pair(records):
    more = [replace(r, strata={**r.strata, "trap": "on" if i % 3 else "off"}) for i, r in enumerate(records)]
    table = columns(more)
    found = {tuple(where.items()): len(rows) for where, rows in slices(table, np.arange(len(more)))}
    assert found[()] == len(more) and found[(("trap", "off"),)] == sum(r.strata["trap"] == "off" for r in more)
    both = {"category": "promo", "trap": "on"}
    assert found[tuple(both.items())] == sum(all(r.strata.get(k) == v for k, v in both.items()) for r in more)


def test_pairs_are_by_item_and_seed_and_the_last_of_two_counts(records):
    cells = Cells(records)
    a, b = (cells.get("m", "constrained", arm, {}) for arm in ("feature", "none"))
    one, two, every = pair(cells.columns, a, b)
    assert len(one) == every == 20
    assert all(records[i].item == records[j].item and records[i].seed == records[j].seed
               for i, j in zip(one, two, strict=True))  # fmt: skip
    found = compare(cells, a, b, "strict")
    assert found.pairs == 18 and found.missing == 2, "not measured and an error are missing, not zero"
    assert compare(cells, a, b, "no such measure").estimate is None
    twice = Cells([*records, replace(records[5], score={"strict": True, "loose": True})])
    rows = twice.get("m", "constrained", records[5].arm, {})
    assert len(pair(twice.columns, rows, rows)[0]) == 20 and pair(twice.columns, rows, rows)[0].max() == len(records)
