"""The anytime-valid test by its formula, and the rule that a plan may name."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.errors import PlanError
from fairlead.core.stopping import Tally, first_stop, rule


def test_the_e_value_is_the_formula():
    beta = math.gamma(8) * math.gamma(4) / math.gamma(12)
    assert Tally(7, 3).e == pytest.approx(beta * 2**10)
    assert Tally().e == 1 and Tally(ties=50).e == 1


@given(st.integers(0, 200), st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_a_fair_coin_wins_nothing_on_average(b, c):
    """A martingale: the mean of E over the next pair, were it a fair coin, is E now."""
    now = Tally(b, c)
    following = [now.add(True, False).log_e, now.add(False, True).log_e]
    assert math.log(sum(math.exp(x - now.log_e) for x in following) / 2) == pytest.approx(0, abs=1e-9)


def test_swapping_arms_changes_nothing_but_the_sides():
    assert Tally(9, 2).log_e == Tally(2, 9).log_e


def test_it_stops_at_one_over_alpha():
    at, tally = first_stop([(True, False)] * 12)
    assert at == 8 and tally == Tally(12)  # 2^8 / 9 = 28.4, 2^7 / 8 = 16
    assert first_stop([(True, True)] * 100) == (None, Tally(ties=100))
    assert first_stop([(True, False)] * 12, alpha=0.001)[0] is None
    assert Tally(10_000, 0).e > 1e299


def test_the_rule_of_a_plan():
    assert rule({}) is None and rule({"rule": "none"}) is None
    assert rule({"rule": "anytime"}) == 0.05 and rule({"rule": "anytime", "alpha": 0.01}) == 0.01
    with pytest.raises(PlanError, match="unknown stopping rule"):
        rule({"rule": "when it looks good"})
    with pytest.raises(PlanError, match="no level"):
        rule({"rule": "anytime", "alpha": 2})
