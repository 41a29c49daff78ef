"""Steering: edits as data, the edit language, and the one hook engine.

from fairlead import steering
steered = steering.apply(subject, "812 = 0 at generated when 97 > 0.4", dictionary)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fairlead.steering.edit import (
    AllOf,
    AnyOf,
    Compare,
    Edit,
    Gate,
    Latent,
    Level,
    Op,
    Reading,
    Scope,
    Steps,
    StoredVector,
    fingerprint,
    from_json,
    to_json,
)
from fairlead.steering.engine import Engine, TopK, by_site, compile_edits, compile_sets
from fairlead.steering.language import format, parse

if TYPE_CHECKING:
    from fairlead.lm.subject import LocalSubject

__all__ = [
    "AllOf", "AnyOf", "Compare", "Edit", "Engine", "Gate", "Latent", "Level", "Op", "Reading", "Scope", "Steps",
    "StoredVector", "apply", "by_site", "compile_edits", "compile_sets", "fingerprint", "format", "from_json", "parse",
    "to_json",
]  # fmt: skip


def apply(
    subject: LocalSubject,
    edits: str | Sequence[Edit],
    dictionaries: Any = None,
    vectors: Mapping[str, Tensor] | None = None,
    *,
    topk: TopK = "exact",
) -> LocalSubject:
    """`subject` with `edits` applied to every row; `subject` itself stays as it was.

    `edits` is a line of the edit language or a sequence of Edit. `dictionaries` is one dictionary, several,
    or a mapping site -> dictionary; `vectors` are stored directions [d] by name. What each edit did comes
    back with every Generation. Raises EditError for what cannot be parsed or applied.
    """
    parsed = parse(edits) if isinstance(edits, str) else tuple(edits)
    engine = compile_edits(parsed, dictionaries, vectors, d_model=subject.d_model, n_layers=subject.n_layers, topk=topk)
    return subject.edited(engine.hooks, engine.fingerprint, engine.reports, engine.flops_per_token)
