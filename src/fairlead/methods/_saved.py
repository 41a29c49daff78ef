"""A Fitted on disk: `method.json` says what it is, safetensors hold what is long. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairlead.core.errors import LoadError
from fairlead.core.keys import canonical

JSON, TENSORS = "method.json", "method.safetensors"


def write_json(path: Path, method: str, data: Mapping[str, Any]) -> None:
    """Write `data` and the method's name. NaN is refused."""
    (path / JSON).write_text(canonical({"method": method, **data}), encoding="utf-8")


def read_json(path: Path, method: str) -> dict[str, Any]:
    """What `write_json` left. LoadError when it is missing, broken, or another method's."""
    file = path / JSON
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = data["method"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"cannot read the fitted {method}", expected=str(file), got=str(error)) from error
    if found != method:
        raise LoadError(f"{file} belongs to another method", expected=method, got=str(found))
    return data
