"""The whole of `fairlead hypothesize` on labels that mean nothing: 200 runs, and how many report anything."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.app.test_hypothesize import save, table

from fairlead.app import hypothesize as verb

RUNS, ALLOWED = 200, 16  # 5 % of 200, and what chance adds once in twenty


@pytest.mark.soak
def test_labels_that_mean_nothing_explain_nothing(tmp_path: Path):
    """Table, split, embedding, dictionary, selection, words and tests, anew for each shuffling of the labels."""
    reported = 0
    for seed in range(RUNS):
        rows = table(300, seed=1)
        labels = [row["clicked"] for row in rows]
        random.Random(seed).shuffle(labels)
        rows = [{**row, "clicked": label} for row, label in zip(rows, labels, strict=True)]
        settings = verb.Settings(save(tmp_path / f"{seed}.csv", rows), ("headline",), "clicked", k=6,
                                 arms=("random",), runs=tmp_path / "runs")  # fmt: skip
        told = verb.execute(verb.prepare(settings), permutations=0)
        reported += told["lists"]["texts.labels"]["found"] > 0
    print(f"{reported} of {RUNS} runs report a hypothesis")  # noqa: T201
    assert reported <= ALLOWED
