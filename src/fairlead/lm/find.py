"""Where a model lies: a directory, "pocket/NAME" for one that ships, or "org/name[#revision]" on the hub."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from fairlead.core.errors import LoadError
from fairlead.lm import hub

POCKET = "pocket/"


def find(ref: str | Path, *, token: str | None = None) -> Path:
    """The directory of a checkpoint, with every file that loading needs; a hub name is fetched into the hub's cache.
    FAIRLEAD_POCKET moves the pocket models."""
    text = str(ref)
    if text.startswith(POCKET):
        path = _pocket(text)
    elif not Path(text).is_dir() and hub.is_name(text) and not Path(text).exists():
        path = hub.fetch(text, token)
    else:
        path = Path(text)
    if not path.is_dir():
        raise LoadError(
            f"no model directory at {path}",
            expected="a Hugging Face directory, pocket/NAME, or org/name[#revision] on the hub",
            got=text,
        )
    if (path / "adapter_config.json").is_file():
        raise LoadError(
            f"{path} holds an adapter, not a whole model",
            expected="a checkpoint with all its weights",
            got="adapter_config.json",
            do="merge the adapter into its base model and save that",
        )
    for name, why in (("config.json", "the architecture"), ("tokenizer.json", "the tokenizer")):
        if not (path / name).is_file() and not (name == "tokenizer.json" and (path / "merges.txt").is_file()):
            raise LoadError(f"{path} has no {name}", expected=f"{name}, {why}", do="save the checkpoint again")
    return path


def _pocket(text: str) -> Path:
    home = os.environ.get("FAIRLEAD_POCKET")
    root = Path(home) if home else Path(str(files("fairlead.worlds"))) / "weights"
    path = root / text.removeprefix(POCKET)
    have = sorted(p.name for p in root.iterdir() if (p / "config.json").is_file()) if root.is_dir() else []
    if not path.is_dir():
        raise LoadError(
            f"no pocket model named {text!r}",
            expected=", ".join(POCKET + name for name in have) or "a pocket model, but none is installed",
            got=text,
            do="run `fairlead list models`",
        )
    return path
