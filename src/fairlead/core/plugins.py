"""The file name is the plugin name: `get("tasks", "shop")` imports `fairlead.tasks.shop`.

Packages elsewhere register entry points in the groups `fairlead.tasks`, `fairlead.methods` and
`fairlead.dictionaries`. A module offers its object under the attribute `plugin`.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fairlead.core.errors import UnknownName

GROUPS = ("tasks", "methods", "dictionaries")


def names(group: str) -> list[str]:
    """All plugins of a group, built in and installed, sorted."""
    found = {e.name for e in entry_points(group=f"fairlead.{group}")}
    package = importlib.import_module(f"fairlead.{group}")
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_") and _offers_plugin(f"fairlead.{group}.{info.name}"):
            found.add(info.name)
    return sorted(found)


def _offers_plugin(dotted: str) -> bool:
    """Whether the module's source binds `plugin` at top level; read, not imported, so listing stays cheap."""
    spec = importlib.util.find_spec(dotted)
    if spec is None or spec.origin is None:
        return False
    return re.search(r"^(def |class )?plugin\b|\bas plugin$", Path(spec.origin).read_text("utf-8"), re.M) is not None


def get(group: str, name: str) -> Any:
    """The plugin object. An unknown name lists what there is."""
    if group not in GROUPS:
        raise UnknownName(f"no plugin group {group!r}", expected=" or ".join(GROUPS), got=group)
    if name.isidentifier() and not name.startswith("_"):
        dotted = f"fairlead.{group}.{name}"
        if _offers_plugin(dotted):
            return importlib.import_module(dotted).plugin
    for entry in entry_points(group=f"fairlead.{group}", name=name):
        return entry.load()
    raise UnknownName(
        f"no {group.removesuffix('s')} named {name!r}",
        expected="one of " + ", ".join(names(group)),
        got=name,
        do=f"run `fairlead list {group}`, or add src/fairlead/{group}/{name}.py (see CONTRIBUTING.md)",
    )
