"""FLOP formulas, the meter, and the cap that all arms share."""

import pytest

from fairlead.core import ledger
from fairlead.core.errors import BudgetExceeded
from fairlead.core.ledger import Allowance, Budget, Meter, dictionary_share

SHAPE = {"n_matmul": 1000.0, "n_layers": 2, "d_model": 8}


def test_formulas():
    assert ledger.forward_flops(tokens=10, context=10, **SHAPE) == 2 * 1000 * 10 + 4 * 2 * 10 * 8 * 10
    assert ledger.forward_flops(tokens=1, context=50, **SHAPE) == 2 * 1000 + 4 * 2 * 50 * 8
    assert ledger.training_flops(tokens=10, context=10, **SHAPE) == 3 * ledger.forward_flops(
        tokens=10, context=10, **SHAPE
    )
    assert ledger.adapter_flops(tokens=3, context=3, **SHAPE) == 2 * ledger.forward_flops(tokens=3, context=3, **SHAPE)
    assert ledger.dictionary_training_flops(d_model=4096, n_features=65536, tokens=1e9) == pytest.approx(
        2.684e18, rel=1e-3
    )
    assert ledger.read_flops(d_model=4096, n_rows=65536, tokens=1) / (2 * 7.505e9) == pytest.approx(0.072, abs=0.001)


def test_meter():
    meter = Meter()
    start = meter.snapshot()
    meter.charge(prompt_tokens=5, new_tokens=2, flops=10.0, forwards=1, seconds=0.5)
    meter.charge(flops=1.0)
    spent = meter.snapshot() - start
    assert (spent.prompt_tokens, spent.new_tokens, spent.flops, spent.forwards, spent.seconds) == (5, 2, 11.0, 1, 0.5)


def test_tuning_trials_are_capped():
    allowance = Allowance(Budget(tuning_trials=2), Meter().snapshot, arm="prompt")
    allowance.try_one()
    allowance.try_one()
    for _ in range(2):
        with pytest.raises(BudgetExceeded, match="'prompt' used its 2 tuning trials"):
            allowance.try_one()
    assert allowance.spent().tuning_trials == 2 and allowance.flops_left() is None


def test_flops_are_capped_with_the_dictionary_taken_off():
    meter = Meter(flops=1e6)  # earlier charges are not this arm's
    allowance = Allowance(Budget(flops=100.0), meter.snapshot, arm="feature", share=40.0)
    assert allowance.flops_left() == 60.0
    meter.charge(flops=60.0)
    allowance.try_one()
    meter.charge(flops=1.0)
    with pytest.raises(BudgetExceeded, match="spent its FLOPs"):
        allowance.try_one()
    with pytest.raises(BudgetExceeded):
        allowance.check()
    assert allowance.spent().tuning_trials == 1


def test_parts_of_a_chain_share_one_budget():
    meter = Meter()
    allowance = Allowance(Budget(tuning_trials=5, flops=100.0), meter.snapshot, arm="a+b", share=20.0)
    allowance.part(2)
    assert (allowance.trials_left(), allowance.flops_left()) == (2, 40.0)
    allowance.try_one()
    meter.charge(flops=10.0)
    allowance.part(1)
    assert (allowance.trials_left(), allowance.flops_left(), allowance.over) == (4, 70.0, False)
    meter.charge(flops=71.5)
    assert not allowance.over  # the batch that met the cap
    meter.charge(flops=1.0)
    assert allowance.over


def test_share():
    class Stated:
        training_flops = 1e12

    assert dictionary_share(None) == 0.0 and dictionary_share(Stated()) == 1e11
    assert dictionary_share(object()) is None  # unknown is not free
