"""A compiled step of decoding: the edits are in the function, and say the same as without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.lm.conftest import checkpoint
from tests.lm.tiny import write
from tests.serve.test_batch import EDITS, Asked, prompt, run

from fairlead.core.errors import FairleadError, NotApplicable
from fairlead.lm.load import load
from fairlead.serve.batch import Batch
from fairlead.serve.proof import prove
from fairlead.steering.rowmath import Acts


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    return load(checkpoint(tmp_path_factory.mktemp("compiled"), layers=3, width=32))


def answers(loaded: Any, backend: str | None) -> tuple[list[Any], Batch]:
    lines = [EDITS[i] if i % 3 else "" for i in range(6)]
    asked = [Asked(loaded, prompt(i), lines[i], limit=6 + i % 3) for i in range(6)]
    batch = Batch(loaded, rows=2, chunk=64, prefixes=0, backend=backend)
    run(batch, asked)
    return [one.answer for one in asked], batch


def test_greedy_tokens_and_what_fired_are_those_of_the_plain_loop(loaded: Any) -> None:
    plain, _ = answers(loaded, None)
    compiled, batch = answers(loaded, "aot_eager")
    graph = batch.rows.graph
    assert graph is not None and graph.steps > 10
    for got, want in zip(compiled, plain, strict=True):
        assert got.ids == want.ids
        assert [(e.edit, e.fired, e.seen) for e in got.edits] == [(e.edit, e.fired, e.seen) for e in want.edits]
    assert sum(e.fired for got in compiled for e in got.edits) > 20


def test_a_compiled_step_is_tried_before_it_serves(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the function lost its edits, nothing is served unsteered: the server does not start."""
    prove(Batch(loaded, rows=2, backend="eager"))

    monkeypatch.setattr(Acts, "__call__", lambda *_: {})
    with pytest.raises(FairleadError, match="did not act"):
        prove(Batch(loaded, rows=2, backend="eager"))


def test_a_model_without_a_lean_forward_is_refused(tmp_path: Any) -> None:
    with pytest.raises(NotApplicable, match="no compiled path"):
        Batch(load(write(tmp_path, "gpt2")), rows=2, backend="eager")
