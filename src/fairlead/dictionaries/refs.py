"""Where a dictionary lies: `load("pocket/shopper-s@resid.2#seed1")` or `load("some/directory")`."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import torch

from fairlead.core.errors import LoadError
from fairlead.dictionaries import saelens
from fairlead.dictionaries.base import SparseDictionary


def load(ref: str | Path, *, d_in: int | None = None, device: str | torch.device = "cpu") -> SparseDictionary:
    """The dictionary that `ref` names: `name[@site][#revision]`, or a directory in the SAELens layout.

    `pocket/NAME@SITE#REVISION` is `NAME/dictionaries/SITE-REVISION` among the weights that ship with the
    package (the environment variable FAIRLEAD_POCKET puts another directory in their place); `DIR@SITE`
    is `DIR/dictionaries/SITE` or `DIR/SITE`. The site may be left out where there is one dictionary only.
    Raises LoadError when nothing lies there, when it is not whole, or when `d_in` is given and does not fit.
    """
    dictionary = saelens.read(locate(ref))
    if d_in is not None:
        dictionary.check_width(d_in)
    return dictionary if str(device) == "cpu" else dictionary.to(device)


def save(dictionary: SparseDictionary, path: str | Path) -> Path:
    """Write `dictionary` to directory `path` in the SAELens layout; returns the directory."""
    saelens.write(dictionary, Path(path))
    return Path(path)


def locate(ref: str | Path) -> Path:
    """The directory that `ref` names."""
    text = str(ref)
    if (Path(text) / saelens.CFG).exists():
        return Path(text)
    rest, _, revision = text.partition("#")
    base, _, site = rest.partition("@")
    root = pocket_root() / base.removeprefix("pocket/") if base.startswith("pocket/") else Path(base)
    if not root.is_dir():
        raise LoadError(
            f"no dictionary {text!r}",
            expected="pocket/NAME@SITE[#REVISION], DIRECTORY or DIRECTORY@SITE",
            got=f"no directory {root}",
            do="run `fairlead list dictionaries`",
        )
    found = {path.name: path for path in _candidates(root)}
    ending = f"-{revision}" if revision else ""
    matches = [name for name in found if (name == site + ending if site else name.endswith(ending))]
    if len(matches) == 1:
        return found[matches[0]]
    raise LoadError(
        f"no dictionary {text!r}",
        expected="one of " + ", ".join(sorted(found)) if found else f"{saelens.CFG} in {root}",
        got=site + ending or "no site",
        do=f"write {base}@SITE" if found else f"train one, and save it under {root}",
    )


def pocket_root() -> Path:
    """The directory of the weights that ship with the package, or FAIRLEAD_POCKET."""
    override = os.environ.get("FAIRLEAD_POCKET")
    return Path(override) if override else Path(str(files("fairlead.worlds"))) / "weights"


def _candidates(root: Path) -> list[Path]:
    inside = root / "dictionaries" if (root / "dictionaries").is_dir() else root
    return sorted(path for path in inside.iterdir() if (path / saelens.CFG).exists())
