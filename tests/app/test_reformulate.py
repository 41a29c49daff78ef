"""`fairlead reformulate` from a table to its page, and what it says of a table that it cannot use."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from fairlead.core.records import Run

ASK = ("--prompt", "{text} Which?", "--answer", "answer", "--model", "pocket/tiny",
       "--dictionary", "pocket/tiny@resid.0")  # fmt: skip


def table(path: Path, n: int = 60, **first: str) -> Path:
    """Rows with a choice of two. `first` changes cells of the first row."""
    rows = [
        {"text": f"The {color} lamp number {i} .", "answer": color, "choices": "red|blue"}
        for i, color in enumerate((["red", "blue"] * n)[:n])
    ]
    rows[0] |= first
    with path.open("w", newline="") as file:
        sheet = csv.DictWriter(file, list(rows[0]))
        sheet.writeheader()
        sheet.writerows(rows)
    return path


def test_it_runs_to_its_page_and_says_what_it_left_out(pocket, cli):
    got = cli("reformulate", table(Path("q.csv"), text=""), *ASK, "--quick", "--json")
    assert got.exit_code == 0, got.output
    told = json.loads(got.stdout)
    assert sum(told["items"].values()) == 59 and any("line" in line for line in told["notes"])
    assert Path(told["page"]).is_file() and told["said"][-1].startswith("annotating helps")
    records = list(Run.open(told["run"]).records)
    assert {"none", "reformulate", "reformulate.self"} <= {r.arm for r in records}
    assert sum(r.arm == "none" for r in records) == told["items"]["test"] and all(r.error is None for r in records)
    again = json.loads(cli("reformulate", table(Path("q.csv"), text=""), *ASK, "--quick", "--json").stdout)
    assert len(list(Run.open(again["run"]).records)) == len(records)  # nothing is run twice


@pytest.mark.parametrize(
    ("rows", "first", "more", "said"),
    [
        (60, {"text": "long " * 2000}, (), "1 of 60 questions leave no room"),
        (6, {}, (), "too few questions"),
        (60, {}, ("--control", "prayer"), "no control 'prayer'"),
        (60, {}, ("--prompt", "Which?"), "does not hold the text"),
    ],
)
def test_what_cannot_be_asked_stops_before_anything_is_written(pocket, cli, rows, first, more, said):
    got = cli("reformulate", table(Path("q.csv"), rows, **first), *ASK, *more, "--quick")
    assert got.exit_code == 2 and said in got.output
    assert not Path("runs").exists()
