"""The arm's own table from the plan, over a method's defaults."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.core.errors import PlanError, UnknownName


def read(given: Mapping[str, Any], defaults: Mapping[str, Any], method: str) -> dict[str, Any]:
    """`given` over `defaults`. PlanError for an unknown key or a value of another kind than the default's."""
    for key, value in given.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, list(defaults), n=1, cutoff=0.4)
            raise PlanError(
                f"method {method!r} has no option {key!r}",
                expected=", ".join(defaults) or "no options",
                got=key,
                do=f"did you mean {near[0]!r}?" if near else f"remove it from [options.{method}]",
            )
        if not _fits(value, defaults[key]):
            expected = f"a value like {defaults[key]!r}"
            raise PlanError(f"option {key!r} of {method!r} has the wrong type", expected=expected, got=repr(value))
    return {**defaults, **given}


def _fits(value: Any, default: Any) -> bool:
    if default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, Sequence) and not isinstance(default, str):
        return isinstance(value, Sequence) and not isinstance(value, str)
    return isinstance(value, type(default))


def variant_of(variant: str | None, known: Sequence[str], method: str) -> str:
    """The variant, "" for none. UnknownName where the method has no such one."""
    if (variant or "") not in known:
        expected = ", ".join(f"{method}.{k}" if k else method for k in known)
        raise UnknownName(f"no arm {method}.{variant}", expected=expected, got=f"{method}.{variant}")
    return variant or ""
