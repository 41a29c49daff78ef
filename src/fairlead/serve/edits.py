"""The edits in a request's body: a line of the edit language or its JSON, within the limits, compiled once."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from fairlead import steering
from fairlead.core.errors import EditError
from fairlead.serve.limits import Limits
from fairlead.steering import Edit, Latent, Op
from fairlead.steering.slots import RowEdits, compile_row

KEPT = 512  # compiled sets


class Editor:
    """Compiles edits for one subject and the dictionaries that the server was started with (site -> dictionary)."""

    def __init__(self, subject: Any, dictionaries: Mapping[str, Any], limits: Limits) -> None:
        self.subject, self.dictionaries, self.limits = subject, dictionaries, limits
        self._kept: OrderedDict[str, RowEdits] = OrderedDict()

    def read(self, value: Any) -> tuple[Edit, ...]:
        """The edits a body asks for. EditError for what cannot be read, or is beyond the limits."""
        try:
            edits = steering.parse(value) if isinstance(value, str) else steering.from_json(value)
        except (TypeError, ValueError, OverflowError, KeyError, AttributeError, RecursionError) as error:
            raise EditError("these are no edits", expected="a line of the edit language, or its JSON") from error
        if len(edits) > self.limits.edits:
            raise EditError("too many edits", expected=f"at most {self.limits.edits}", got=str(len(edits)))
        for edit in edits:
            self._check_strength(edit)
        return edits

    def compiled(self, value: Any) -> RowEdits:
        """The same, as a row's tables."""
        key = json.dumps(value, sort_keys=True)
        if key not in self._kept:
            edits = self.read(value)
            shape = {"d_model": self.subject.d_model, "n_layers": self.subject.n_layers}
            self._kept[key] = compile_row(edits, self.dictionaries, None, **shape)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _check_strength(self, edit: Edit) -> None:
        size = abs(edit.value) / (1.0 if edit.unit == "max" or edit.op is Op.SCALE else self._largest(edit))
        if not size <= self.limits.strength:
            raise EditError(
                f"`{steering.format((edit,))}` is too strong",
                expected=f"at most {self.limits.strength:g} times the latent's largest activation",
                got=f"{size:.4g}",
                do="ask for less, or have the server started with a larger --max-strength",
            )

    def _largest(self, edit: Edit) -> float:
        """The latent's largest activation, 1 where it is not known."""
        site = edit.site or (next(iter(self.dictionaries)) if len(self.dictionaries) == 1 else None)
        known = getattr(self.dictionaries.get(site or ""), "max_activation", None)
        if known is None or not isinstance(edit.direction, Latent) or edit.direction.index >= len(known):
            return 1.0
        largest = float(known[edit.direction.index])
        return largest if 0.0 < largest < float("inf") else 1.0


def of_fitted(fitted: Any, subject: Any) -> RowEdits | None:
    """A Fitted that is nothing but edits, as a row's tables; None for one that is more and needs a world of its own."""
    parts = fitted.as_edits() if hasattr(fitted, "as_edits") else None
    if parts is None:
        return None
    edits, rows, vectors = parts
    return compile_row(
        edits, steering.by_site(rows), vectors, d_model=subject.d_model, n_layers=subject.n_layers
    )
