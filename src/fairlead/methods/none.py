"""The model as it is: the arm everything is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.core.keys import content_key
from fairlead.core.protocols import FitContext
from fairlead.methods import _options
from fairlead.methods._saved import read_json, write_json


@dataclass(frozen=True)
class Unchanged:
    """The fitted `none`: opens the subject as it is."""

    @property
    def fingerprint(self) -> str:
        return content_key(["none"])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        return nullcontext(subject)

    def describe(self) -> dict[str, Any]:
        return {}

    def save(self, path: Path) -> None:
        write_json(path, "none", {})


@dataclass(frozen=True)
class NoneMethod:
    """Fits nothing and spends nothing."""

    name: str = "none"
    makes: str = "subject"
    uses_dictionary: bool = False

    async def fit(self, ctx: FitContext[Any]) -> Unchanged:  # noqa: ARG002
        return Unchanged()

    def load(self, path: Path) -> Unchanged:
        read_json(path, "none")
        return Unchanged()


def plugin(variant: str | None, options: Mapping[str, Any]) -> NoneMethod:
    """`none`; it has no variants and no options."""
    _options.variant_of(variant, ("",), "none")
    _options.read(options, {}, "none")
    return NoneMethod()
