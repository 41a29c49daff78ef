"""Before a compiled loop serves anybody: one edit, one probe prompt, with and without the compiled step."""

from __future__ import annotations

import numpy as np
import torch

from fairlead import steering
from fairlead.core.errors import FairleadError
from fairlead.lm.probe import sample_ids
from fairlead.lm.rows import Piece
from fairlead.serve.batch import Batch
from fairlead.steering.slots import compile_row

_CLOSE = {torch.float32: 1e-3}  # distance of logits, as a share of their length; else 0.05


def prove(batch: Batch) -> None:
    """Raises where a compiled step does not do what the plain one does, or an edit's counter does not move in it. Row 0
    carries an edit, row 1 none; both read four tokens, then one that they generated."""
    graph, subject = batch.rows.graph, batch.subject
    if graph is None:
        return
    site = f"resid.{subject.checkpoint.shape.n_layers // 2}"
    vector = torch.linspace(-1, 1, subject.d_model)
    edits = compile_row(
        steering.parse(f"@{site}: $probe += 4 at generated"), {}, {"probe": vector}, d_model=subject.d_model,
        n_layers=subject.checkpoint.shape.n_layers,
    )  # fmt: skip
    ids = sample_ids(subject.model)[0].cpu().numpy()
    before = graph.steps
    plain, _ = _read(batch, ids, edits, False)
    found, fired = _read(batch, ids, edits, True)
    bare, _ = _read(batch, ids, None, False)
    close = _CLOSE.get(subject.model.dtype, 0.05)
    moved = float((bare - plain)[0].norm()) > 4 * close * float(plain[0].norm())
    same = [float((found - plain)[row].norm()) <= close * float(plain[row].norm()) for row in (0, 1)]
    if graph.steps == before or fired != [False] * 4 + [True] or not all(same) or not moved:
        raise FairleadError(
            "the compiled step did not act as the plain one: an edit on a probe prompt",
            expected="it fires at the generated token, and logits are those of the plain step",
            got=f"fired {fired}, rows alike {same}, the edit matters {moved}, compiled steps {graph.steps - before}",
            do="serve without --compile; nothing was served",
        )


def _read(batch: Batch, ids: np.ndarray, edits: object, compiled: bool) -> tuple[torch.Tensor, list[bool]]:
    """(logits [2, V] behind the fifth token, where the edit fired)."""
    rows, engine = batch.rows, batch.engine
    if edits is not None:
        engine.put(0, edits)  # type: ignore[arg-type]
    try:
        with batch.subject.checkpoint.lock:
            for start, stop in ((0, 4), (4, 5)):
                pieces = [Piece(ids[start:stop], start, 4, None, 0, row == 0) for row in (0, 1)]
                logits = rows.forward(
                    0, pieces, lambda span: engine.hooks(span, rows.room), 0.0, engine.traced if compiled else None
                )
        return logits.float(), engine.fired(0, 5)[:, 0].tolist() if edits is not None else []
    finally:
        engine.clear(0)
