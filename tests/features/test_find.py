"""The finder finds what was planted, whatever its number, and says when it stopped early."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.features.planted import PLANTED, M

from fairlead import steering
from fairlead.core.errors import NotApplicable
from fairlead.dictionaries.permuted import permute
from fairlead.features.find import Search, find
from fairlead.features.screen import Screen, add, suppress

SEARCH = Search(k=2, strengths=(0.5, 1.0), n_decisions=12, n_screen=6, shortlist=4, kept=2, seconds=None)


def place(edit: Any, new: dict[int, int]) -> int | None:
    """The latent that gates an edit, renumbered."""
    return None if edit.gate.when is None else new[edit.gate.when.left.direction.index]


def test_the_planted_latent_is_found(subject: Any, points: Any, dictionary: Any) -> None:
    found = find(subject, dictionary, points, SEARCH)
    best = found.candidates[0]
    assert best.edits[0].direction == steering.Latent(PLANTED) and best.edits[0].value > 0
    assert best.strata["on"] > found.bare.strata["on"] + 0.2
    assert found.kept[0].index == PLANTED and not found.stopped_early
    doses = found.kept[0].doses
    assert [row["strength"] for row in doses] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert doses[0]["on"]["value"] < doses[2]["on"]["value"] < doses[4]["on"]["value"]
    assert all(row["on"]["lo"] <= row["on"]["value"] <= row["on"]["hi"] for row in doses)


def test_permuting_the_latents_permutes_what_is_found(subject: Any, points: Any, dictionary: Any) -> None:
    order = torch.randperm(M, generator=torch.Generator().manual_seed(4))
    new = {int(old): place for place, old in enumerate(order)}
    a, b = find(subject, dictionary, points, SEARCH), find(subject, permute(dictionary, order), points, SEARCH)
    assert [new[i] for i in a.shortlist] == list(b.shortlist)
    assert [new[k.index] for k in a.kept] == [k.index for k in b.kept]
    for x, y in zip(a.candidates, b.candidates, strict=True):
        assert [(new[e.direction.index], e.op, e.value, place(e, new)) for e in x.edits] == [
            (e.direction.index, e.op, e.value, place(e, {i: i for i in new})) for e in y.edits
        ]
        assert x.score == pytest.approx(y.score, abs=1e-5)


def test_it_is_seeded(subject: Any, points: Any, dictionary: Any) -> None:
    a, b = (find(subject, dictionary, points, SEARCH) for _ in range(2))
    assert [c.edits for c in a.candidates] == [c.edits for c in b.candidates]
    assert [c.score for c in a.candidates] == [c.score for c in b.candidates]


def test_past_the_limit_it_goes_on_with_what_it_has(subject: Any, points: Any, dictionary: Any) -> None:
    from dataclasses import replace

    found = find(subject, dictionary, points, replace(SEARCH, seconds=1e-6))
    assert found.stopped_early and found.candidates == () and found.scored <= 2


def test_an_edit_that_avoids_everything_loses(subject: Any, points: Any, dictionary: Any) -> None:
    screen = Screen(subject, dictionary, points)
    strong = screen.effect((add(PLANTED, -3.0, "all"),))
    assert strong.strata["on"] < screen.bare.strata["on"] and strong.score < screen.bare.score
    assert screen.effect((suppress(0, "all"),)).edits[0].op is steering.Op.ABLATE


def test_without_failures_there_is_nothing_to_find() -> None:
    with pytest.raises(NotApplicable):
        find(None, None, [], SEARCH)


def test_unmeasured_dictionaries_are_measured(subject: Any, points: Any, dictionary: Any) -> None:
    bare = dictionary.replace(max_activation=None, firing_rate=None)
    found = find(subject, bare, points, SEARCH)
    assert found.dictionary.max_activation is not None and bare.max_activation is None
