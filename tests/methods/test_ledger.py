"""Nothing a method does escapes the ledger: forwards counted on the model itself equal forwards charged."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.features import planted
from tests.methods.conftest import Bench
from tests.methods.test_conformance import ARMS, CLAIMS, fit
from torch.utils.flop_counter import FlopCounterMode

from fairlead.core import plugins
from fairlead.core.errors import NotApplicable
from fairlead.core.ledger import Meter


def every_variant() -> list[Any]:
    """The arms of the conformance test, and every variant that a method's module lists; these go with the soak tests,
    as they take the same ways as their kin. Arms that make claims about texts run no model; they are not here."""
    found: list[Any] = list(ARMS)
    for name in dict.fromkeys(arm[0] for arm in ARMS):
        module = sys.modules[plugins.get("methods", name).__module__]
        others = [(name, v) for v in getattr(module, "VARIANTS", ()) if (name, v) not in ARMS]
        found += [pytest.param(*arm, marks=pytest.mark.soak) for arm in others]
    return found


def test_no_method_is_left_out() -> None:
    assert {arm[0] for arm in (*ARMS, *CLAIMS)} == set(plugins.names("methods"))


@pytest.mark.parametrize(("name", "variant"), every_variant())
async def test_every_forward_of_fit_and_run_is_charged(
    bench: Bench, tmp_path: Path, name: str, variant: str | None
) -> None:
    meter, calls = Meter(), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    subject = bench.subject.metered(meter)
    metered = replace(bench, subject=subject, task=planted.ToyTask(subject))  # the toy task labels with the model too
    handle = bench.subject.model.register_forward_pre_hook(count)
    try:
        try:
            _, fitted = await fit(metered, name, variant, tmp_path)
        except NotApplicable:
            assert meter.snapshot().forwards == calls
            return
        with fitted.open(metered.subject) as world:
            await metered.play(world)
    finally:
        handle.remove()
    assert calls > 0
    assert meter.snapshot().forwards == calls


RELATED = ("none", "control", "stress", "winner")  # nothing to fit, or fitted from another arm's fit


@pytest.mark.soak
@pytest.mark.parametrize(("name", "variant"), [arm for arm in ARMS if arm[0] not in RELATED])
async def test_what_a_fit_is_charged_is_what_torch_counts(
    planted_model: Any, tmp_path: Path, name: str, variant: str | None
) -> None:
    """One row a batch, so that there is no padding: padding is work that is done and not charged, as it depends on
    what happens to share a batch."""
    meter = Meter()
    subject = planted_model.metered(meter)
    subject.max_batch = 1
    metered = Bench(subject, planted.ToyTask(subject), planted.dictionary(subject))
    with FlopCounterMode(display=False) as counter:
        await fit(metered, name, variant, tmp_path)
    assert meter.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.fixture(scope="module")
def planted_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The planted model under eager attention: a fused kernel's work is not counted."""
    found = planted.subject(tmp_path_factory.mktemp("eager"))
    found.model.set_attn_implementation("eager")
    return found
