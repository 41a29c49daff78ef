"""What every adapter's tests need: a prompt of the shop, a line of edits that changes its answer, a run with a fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fairlead import dictionaries, steering
from fairlead.core.plan import parse_plan
from fairlead.core.records import Store
from fairlead.methods._steered import Steered

MODEL, DICTIONARY = "pocket/shopper-s", "pocket/shopper-s@resid.1"
PROMPT = "goal: buy a lamp\n[1] button 'Add lamp'\n[2] button 'Deal of the day'"
EDITS = "12 += 8x"
PLAN = f"""
question = "Does the plan run?"
task = "shop"
model = "{MODEL}"
dictionary = "{DICTIONARY}"
arms = ["none", "feature"]
claim = "feature"
primary = "strict"
smallest_effect = 0.1
n = 2
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose arm `feature` holds EDITS."""
    home = tmp_path_factory.mktemp("runs") / "small"
    plan = parse_plan(PLAN)
    with Store(home) as store:
        store.begin(plan, plan.trials())
        for trial in plan.trials():
            if trial.arm == "feature":
                made = Steered("feature", tuple(steering.parse(EDITS)), dictionaries.load(DICTIONARY))
                store.save_fitted(trial.key, made.save, {}, {"fingerprint": made.fingerprint})
    return home
