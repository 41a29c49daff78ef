"""Nothing a method does escapes the ledger: forwards counted on the model itself equal forwards charged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.features import planted
from tests.methods.conftest import Bench
from tests.methods.test_conformance import ARMS, fit

from fairlead.core.ledger import Meter


@pytest.mark.parametrize(("name", "variant"), ARMS)
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
        _, fitted = await fit(metered, name, variant, tmp_path)
        with fitted.open(metered.subject) as world:
            await metered.play(world)
    finally:
        handle.remove()
    assert calls > 0
    assert meter.snapshot().forwards == calls
