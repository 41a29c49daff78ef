"""What is installed: tasks, methods, dictionary families, pocket models and their dictionaries, plans that ship."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import fairlead
from fairlead.core import plugins
from fairlead.core.errors import PlanError

PACKAGE = Path(fairlead.__file__).parent
GROUPS = ("tasks", "methods", "families", "models", "dictionaries", "studies")


@dataclass(frozen=True)
class Entry:
    """One thing that can be named on the command line or in a plan."""

    group: str
    name: str
    about: str


def entries(group: str) -> list[Entry]:
    """Everything of one group, sorted by name."""
    if group in ("tasks", "methods", "families"):
        room = "dictionaries" if group == "families" else group
        return [Entry(group, name, _about(PACKAGE / room, name)) for name in plugins.names(room)]
    if group == "studies":
        return [Entry(group, path.stem, _question(path)) for path in sorted(studies().glob("*.toml"))]
    models = pocket_models()
    if group == "models":
        return [Entry(group, f"pocket/{path.name}", _size(path)) for path in models]
    from fairlead.dictionaries import registry  # no torch

    shipped = [
        Entry(group, f"pocket/{model.name}@{path.name.replace('-', '#', 1)}", _size(path))
        for model in models
        for path in sorted((model / "dictionaries").glob("*"))
        if (path / "cfg.json").is_file()
    ]
    return shipped + [Entry(group, f"{e.name}@{e.sites}", e.about) for e in registry.entries()]


def pocket_models() -> list[Path]:
    """The directories of the pocket models that are installed."""
    from fairlead.dictionaries.refs import pocket_root  # torch: not before it is needed

    root = pocket_root()
    return sorted(p for p in root.iterdir() if (p / "config.json").is_file()) if root.is_dir() else []


def studies() -> Path:
    """Where the plans that ship lie: inside an installed package, or beside src in a checkout."""
    inside = PACKAGE / "studies"
    return inside if inside.is_dir() else PACKAGE.parents[1] / "studies"


def plan_path(ref: str) -> Path:
    """A plan file by path, or by the name of one that ships (`shop`, `demo`)."""
    given = Path(ref)
    if given.is_file():
        return given
    shipped = studies() / f"{given.name.removesuffix('.toml')}.toml"
    if given.name in (shipped.name, shipped.stem) and len(given.parts) == 1 and shipped.is_file():
        return shipped
    raise PlanError(
        f"no plan {ref!r}",
        expected="a TOML file, or one of " + ", ".join(sorted(p.stem for p in studies().glob("*.toml"))),
        got=str(ref),
        do="run `fairlead list studies`",
    )


def _about(folder: Path, name: str) -> str:
    """The first line of a module's docstring, read without importing it."""
    path = folder / f"{name}.py"
    path = path if path.is_file() else folder / name / "__init__.py"
    if not path.is_file():
        return "installed by another package"
    found = re.match(r'\s*"""(.+?)(?:"""|\n)', path.read_text(encoding="utf-8"))
    return found.group(1).strip() if found else ""


def _question(path: Path) -> str:
    found = re.search(r'^question\s*=\s*"(.*)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else ""


def _size(folder: Path) -> str:
    size = sum(p.stat().st_size for p in folder.glob("*") if p.is_file())
    return f"{size / 1e6:.1f} MB"
