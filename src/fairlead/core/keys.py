"""Content hashes and seeds: canonical JSON, sha256, and the source a result depends on.

A key never holds a worker, a machine, a time or a commit: the same content has the same key everywhere.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from datetime import date, time
from functools import lru_cache
from pathlib import Path
from typing import Any

from fairlead.core.errors import RecordError

PACKAGE = "fairlead"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; the text that is hashed and stored. NaN and infinities raise RecordError."""
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
        )
    except (ValueError, TypeError) as error:
        raise RecordError(
            "a value that cannot be recorded",
            expected="JSON without NaN or infinity (not measured is null)",
            got=f"{error} in {_shorten(repr(value))}",
            do="record None where nothing was measured",
        ) from error


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "keys") and hasattr(value, "__getitem__"):
        return {k: value[k] for k in value.keys()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, date | time):  # TOML knows dates
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _shorten(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[:limit] + " ..."


def sha256(data: str | bytes) -> str:
    """Hex digest of text (as UTF-8) or bytes."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def content_key(value: Any) -> str:
    """sha256 of the canonical JSON of `value`."""
    return sha256(canonical(value))


def derive_seed(*parts: Any) -> int:
    """A seed in [0, 2**63) from content alone, never from a worker or the order of work."""
    return int.from_bytes(hashlib.sha256(canonical(list(parts)).encode()).digest()[:8], "big") >> 1


def source_hash(modules: Iterable[str]) -> str:
    """sha256 over the source of `modules` and of everything they import from the same package.

    A package name stands for all its modules. Imports are read from the source, so nothing is executed
    and an import inside a function counts too.
    """
    return content_key([(name, sha256(text)) for name, text in sorted(_closure(tuple(sorted(set(modules)))))])


@lru_cache(maxsize=256)
def _closure(modules: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    seen: dict[str, str] = {}
    queue = [found for name in modules for found in _members(name)]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        path = _source_path(name)
        if path is None:
            continue
        seen[name] = path.read_text(encoding="utf-8")
        queue.extend(_imports(name, seen[name], path.name == "__init__.py"))
    return tuple(seen.items())


def _source_path(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _members(name: str) -> list[str]:
    path = _source_path(name)
    if path is None:
        raise RecordError(f"no source for module {name!r}", expected="an importable Python module", got=name)
    if path.name != "__init__.py":
        return [name]
    inside = [p.relative_to(path.parent).with_suffix("") for p in path.parent.rglob("*.py")]
    return [".".join([name, *[part for part in p.parts if part != "__init__"]]) for p in inside]


def _imports(name: str, text: str, is_package: bool) -> list[str]:
    root = name.split(".")[0]
    here = name.split(".") if is_package else name.split(".")[:-1]
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return [n for n in found if n.split(".")[0] in (root, PACKAGE)]
