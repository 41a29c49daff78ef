"""Records read in bulk are the Records that were written, and what is not plain is refused as before."""

import json
from dataclasses import asdict, replace

import pytest

from fairlead.core.errors import RecordError
from fairlead.core.reading import Reader
from fairlead.core.records import from_row, to_line
from fairlead.core.types import Cost, Record

ONE = Record(
    trial="t", arm="none", model="m", decoding="free", seed=1, item="i", cluster="c", split="test",
    strata={"trap": "on"}, outcome={"steps": 3, "funnel": {"emitted": 3, "valid": 2}, "note": "x" * 50},
    score={"strict": True, "fell": None}, error=None, cost=Cost(prompt_tokens=5, flops=1e6), trace=None, lock="ab",
)  # fmt: skip
OTHERS = [
    replace(ONE, score={"strict": 1, "fell": None}),
    replace(ONE, score={"strict": 1.0, "fell": None}),
    replace(ONE, score={"strict": False, "fell": 0.25}),
    replace(ONE, score=None, error="run: it broke"),
    replace(ONE, outcome=None, strata={}, trace="cd", lock=None, cost=Cost(peak_memory_bytes=9)),
    replace(ONE, outcome={"funnel": {}, "nested": {"a": [1, {"b": None}]}, "funnel2": {"emitted": True}}),
]


def test_records_come_back_as_they_were_written():
    reader = Reader(from_row)
    for record in [ONE, *OTHERS, ONE, *OTHERS]:
        found = reader.record(json.loads(to_line(record)))
        assert found == record and to_line(found) == to_line(record)
        kinds = {k: type(v) for k, v in (record.score or {}).items()}
        assert {k: type(v) for k, v in (found.score or {}).items()} == kinds, "True is not 1"


def test_equal_tables_and_texts_are_one_object():
    reader = Reader(from_row)
    one, two = (reader.record(json.loads(to_line(replace(ONE, item=f"i{k}")))) for k in range(2))
    assert one.score is two.score and one.strata is two.strata and one.arm is two.arm
    assert one.outcome["funnel"] is two.outcome["funnel"] and one.outcome is not two.outcome


@pytest.mark.parametrize(
    "change",
    [
        {"score": {"strict": "yes"}}, {"score": []}, {"strata": {"trap": 1}}, {"strata": None}, {"arm": 3},
        {"seed": "1"}, {"cost": {"flops": "many"}}, {"cost": {"unknown": 1}}, {"cost": None}, {"error": 4}, {"lock": 4},
        {"trace": []}, {"outcome": [1]}, {"more": 1}, {"item": None}, {"score": {"strict": [1]}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_record_is_refused(change):
    with pytest.raises(RecordError, match="no Record"):
        Reader(from_row).record({**asdict(ONE), **change})


@pytest.mark.parametrize("row", [None, [], "text", {"arm": "none"}])
def test_what_is_no_row_is_refused(row):
    with pytest.raises((RecordError, TypeError)):
        Reader(from_row).record(row)
