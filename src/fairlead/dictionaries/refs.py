"""Where a dictionary lies: `load("pocket/shopper-s@resid.2#seed1")`, `load("some/directory@resid.19")`, or a name
of the registry such as `goodfire/llama-3.1-8b-instruct@resid.19`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch

from fairlead.core.errors import LoadError
from fairlead.dictionaries import formats, hookpoints, registry, saelens
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.transcoder import Transcoder

_FORMS = "pocket/NAME@SITE[#REVISION], PATH or PATH@SITE, a name of the registry, or saelens:RELEASE/ID"


@dataclass(frozen=True)
class Located:
    """A dictionary's file or folder, and what the reference says beside it."""

    path: Path
    site: str = ""
    k: int | None = None


def load(
    ref: str | Path, *, d_in: int | None = None, device: str | torch.device = "cpu"
) -> SparseDictionary | Transcoder:
    """The dictionary that `ref` names: `name[@site][#revision]`, or the path of a file or folder in any of the
    formats of `fairlead.dictionaries.formats`.

    `pocket/NAME@SITE#REVISION` is `NAME/dictionaries/SITE-REVISION` among the weights that ship with the
    package (the environment variable FAIRLEAD_POCKET puts another directory in their place). `PATH@SITE` is the
    dictionary at PATH, which must not say that it belongs elsewhere, or the one of that site in or below PATH
    (and PATH/dictionaries); `#` and a part of its folder's name chooses among several, and `#k=50` says how many
    latents are on where the format does not store it. The site may be left out where there is one dictionary
    that says it. Raises LoadError when nothing lies there, when it is not whole, or when `d_in` is given and
    does not fit.
    """
    text = str(ref)
    if text.startswith("saelens:"):
        from fairlead.dictionaries import saelens_hub

        dictionary: SparseDictionary | Transcoder = saelens_hub.load(text)
    else:
        found = locate(ref)
        dictionary = registry.with_figures(formats.read(found.path, site=found.site, k=found.k), text)
    if d_in is not None:
        dictionary.check_width(d_in)
    return dictionary if str(device) == "cpu" else dictionary.to(device)


def load_sparse(ref: str | Path, *, d_in: int | None = None) -> SparseDictionary:
    """As `load`, for what needs to read and write at one place: LoadError for a transcoder."""
    found = load(ref, d_in=d_in)
    if isinstance(found, Transcoder):
        raise LoadError(
            f"{ref} is a transcoder",
            expected="a dictionary that reads and writes at one site",
            got=f"it reads {found.site_in} and explains {found.site}",
            do="steer with its decoder rows as vectors, or choose a dictionary of the residual stream",
        )
    return found


def save(dictionary: SparseDictionary | Transcoder, path: str | Path) -> Path:
    """Write `dictionary` to directory `path` in the SAELens layout; returns the directory."""
    saelens.write(dictionary, Path(path))
    return Path(path)


def locate(ref: str | Path) -> Located:
    """The file or folder that `ref` names."""
    text = str(ref)
    if Path(text).exists() and formats.of(Path(text)):
        return Located(Path(text))
    rest, _, revision = text.partition("#")
    base, site = _split(rest)
    counted = re.fullmatch(r"k=(\d+)", revision)
    revision = "" if counted else revision
    k = int(counted[1]) if counted else None
    root = pocket_root() / base.removeprefix("pocket/") if base.startswith("pocket/") else Path(base)
    if not root.exists() and not base.startswith("pocket/") and (entry := registry.named(base)):
        return Located(registry.fetch(entry, site, revision), site, k)
    if root.exists() and formats.of(root):
        return Located(root, site, k)
    if not root.is_dir():
        raise LoadError(
            f"no dictionary {text!r}",
            expected=_FORMS,
            got=f"no directory {root}" if not root.exists() else f"{root}, a file of no known format",
            do="run `fairlead list dictionaries`",
        )
    return Located(_among(root, text, base, site, revision), site, k)


def pocket_root() -> Path:
    """The directory of the weights that ship with the package, or FAIRLEAD_POCKET."""
    override = os.environ.get("FAIRLEAD_POCKET")
    return Path(override) if override else Path(str(files("fairlead.worlds"))) / "weights"


def _split(text: str) -> tuple[str, str]:
    """(path or name, site): what stands behind the last @, unless that is a part of a path."""
    base, at, site = text.rpartition("@")
    return (base, site) if at and "/" not in site else (text, "")


def _among(root: Path, text: str, base: str, site: str, revision: str) -> Path:
    """The one dictionary below `root` that fits: by its folder's name, else by what it says of its place."""
    inside = root / "dictionaries" if (root / "dictionaries").is_dir() else root
    found = {path.relative_to(inside).as_posix(): path for path in formats.below(inside)}
    ending = f"-{revision}" if revision else ""
    matches = [name for name in found if (name == site + ending if site else name.endswith(ending))]
    if len(matches) != 1:
        matches = [
            name
            for name, path in found.items()
            if revision in name and (not site or hookpoints.same(formats.site(path), site))
        ]
    if len(matches) == 1:
        return found[matches[0]]
    several = len(matches) > 1
    listed = ", ".join(sorted(matches if several else found)[:20])
    raise LoadError(
        f"no dictionary {text!r}" + (f": {len(matches)} fit it" if several else ""),
        expected=f"one of {listed}" if found else f"{saelens.CFG}, or another known format, in {inside}",
        got=site + ending or "no site",
        do=(f"write {base}@SITE#PART-OF-ITS-NAME" if several else f"write {base}@SITE")
        if found
        else f"train one, and save it under {inside}",
    )
