from __future__ import annotations

import math

import pytest
import torch

from fairlead.core.errors import NotApplicable
from fairlead.core.types import Decision, Episode, Item, Message, Outcome, Score
from fairlead.features.points import (
    Point,
    balanced,
    by_stratum,
    choose,
    climbed,
    log_odds,
    needed,
    points,
    with_intervals,
)

LEGAL = ("a", "b", "c")


def decision(
    chosen: str = "a", right: tuple[str, ...] = ("a",), trap: tuple[str, ...] = (), text: str = "x"
) -> Decision:
    return Decision((Message("user", text),), 0, LEGAL, chosen, right, trap)


def many(n: int, stratum: str, *, trap: bool = False, failed: bool = False) -> list[Point]:
    made = decision("b" if failed else "a", trap=("b",) if trap else ())
    return [Point(made, stratum, f"{stratum}/{i}") for i in range(n)]


def test_an_episode_counts_up_to_its_first_failure_and_only_where_there_is_a_choice() -> None:
    item = Item("i", "train", "c", {"trap": "on"})
    steps = (decision(right=LEGAL), decision(right=()), decision("a"), decision("b"), decision("a"))
    found = points([Episode(item, Outcome({}, steps), Score({}))])
    assert [(p.decision.chosen, p.stratum, p.failed) for p in found] == [("a", "on", False), ("b", "on", True)]
    bare = points([Episode(Item("i", "train", "c"), Outcome({}, steps[:3]), Score({}))])
    assert [p.stratum for p in bare] == ["all"]


def test_wrong_means_the_traps_where_there_are_any() -> None:
    assert Point(decision(trap=("c",))).wrong == [False, False, True]
    assert Point(decision()).wrong == [False, True, True]
    assert Point(decision(trap=("a",))).wrong == [False, True, True]  # a trap that is right is not wrong


def test_right_probability_is_normalised_over_the_legal_actions() -> None:
    found = log_odds([(math.log(0.02), math.log(0.06), math.log(0.02))], [Point(decision(right=("a", "c")))])
    assert float(found.sigmoid()[0]) == pytest.approx(0.4)


def test_a_search_sees_what_is_still_wrong_and_not_what_is_surer() -> None:
    found = [*many(1, "on"), *many(1, "off")]
    bare = climbed(torch.tensor([-12.0, 9.0]), found)
    assert climbed(torch.tensor([-8.0, 9.0]), found) == bare + 2.0  # though P(right) hardly moved
    assert climbed(torch.tensor([-12.0, 3.0]), found) == bare == climbed(torch.tensor([-12.0, 99.0]), found)
    assert climbed(torch.tensor([9.0, -12.0]), found) == bare  # trading one stratum for another wins nothing


def test_strata_count_alike_so_that_avoiding_everything_loses() -> None:
    found = [*many(8, "on"), *many(2, "off"), *many(1, "inverse")]
    values = torch.tensor([1.0] * 8 + [0.5] * 2 + [0.0])
    assert by_stratum(values, found) == {"inverse": 0.0, "off": 0.5, "on": 1.0, "all": 0.5}
    assert balanced(values, found) == 0.5


def test_choosing_is_even_over_strata_seeded_and_mostly_traps() -> None:
    found = [*many(50, "on", trap=True, failed=True), *many(50, "on"), *many(40, "off"), *many(3, "inverse")]
    picked = choose(found, 33, 5)
    count = {name: sum(p.stratum == name for p in picked) for name in ("on", "off", "inverse")}
    assert count == {"inverse": 3, "off": 15, "on": 15}
    assert sum(p.critical for p in picked if p.stratum == "on") == 12
    assert picked == choose(found, 33, 5) != choose(found, 33, 6)
    assert len(choose(found, 1000, 0)) == len(found)
    few = choose([*many(3, "on", trap=True), *many(30, "on")], 10, 0)
    assert sum(p.critical for p in few) == 3 and len(few) == 10


def test_failures_without_a_trap_count_for_their_share() -> None:
    found = [*many(10, "off", failed=True), *many(90, "off")]
    failed = [sum(p.failed for p in choose(found, 20, seed)) for seed in range(40)]
    assert 1 < sum(failed) / len(failed) < 3


def test_intervals_resample_clusters() -> None:
    found = [Point(decision(), "on", f"c{i // 4}") for i in range(40)]
    values = torch.tensor([float(i // 4 % 2) for i in range(40)])
    got = with_intervals(values, found, seed=1, resamples=400)["on"]
    assert got["value"] == pytest.approx(0.5)
    assert got["lo"] < 0.3 and got["hi"] > 0.7  # ten clusters, not forty decisions: 0.35 to 0.65
    assert with_intervals(values, found, seed=1) == with_intervals(values, found, seed=1)


def test_no_points_is_said() -> None:
    with pytest.raises(NotApplicable, match="no decision points on train"):
        needed([], "train")
