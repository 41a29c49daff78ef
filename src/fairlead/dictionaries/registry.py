"""Names for public dictionaries of Llama, Gemma and Qwen models: which repository, which file, which site.

The names are in `registry.json`. A name is resolved through the Hugging Face hub, when it can be reached; a path
always works. Figures are those that we have seen published; unknown is null. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from fairlead.core.errors import LoadError


@dataclass(frozen=True)
class Entry:
    """One line of the registry. `path` is a pattern over the repository's files, in which {layer} is the site's
    layer and * is what `#` may choose; `sites` is "KIND.FIRST-LAST" or "KIND.FIRST-LAST/STEP"; `l0` and
    `explained_variance` are published figures or None."""

    name: str
    repo: str
    path: str
    sites: str
    format: str
    model: str
    l0: float | None = None
    explained_variance: float | None = None
    source: str = ""

    @property
    def about(self) -> str:
        """One line for `fairlead list dictionaries`."""
        figure = f", L0 {self.l0:g}" if self.l0 is not None else ""
        return f"hub: {self.model}, {self.format}{figure}"

    @property
    def layers(self) -> range:
        """The layers it covers."""
        span, _, step = self.sites.rpartition(".")[2].partition("/")
        first, _, last = span.partition("-")
        return range(int(first), int(last or first) + 1, int(step or 1))

    @property
    def kind(self) -> str:
        """Its kind of site."""
        return self.sites.rpartition(".")[0]

    @property
    def example(self) -> str:
        """A reference with a site that exists."""
        return f"{self.name}@{self.kind}.{self.layers[len(self.layers) // 2]}"


@cache
def entries() -> tuple[Entry, ...]:
    """Everything in the registry, sorted by name."""
    text = (files("fairlead.dictionaries") / "registry.json").read_text(encoding="utf-8")
    return tuple(sorted((Entry(**line) for line in json.loads(text)), key=lambda entry: entry.name))


def named(name: str) -> Entry | None:
    """The entry of that name."""
    return next((entry for entry in entries() if entry.name == name), None)


def fetch(entry: Entry, site: str, choice: str = "", hub: Any = None) -> Path:
    """The dictionary of `entry` at `site` on this machine, fetched from the hub when it is not there yet.

    `choice` is a part of its path, where a layer has several. `hub` stands in for the module huggingface_hub.
    LoadError when the site does not exist, when several fit, or when the hub cannot be reached."""
    kind, _, layer = site.rpartition(".")
    if not site and len(entry.layers) == 1:
        kind, layer = entry.kind, str(entry.layers[0])
    if kind != entry.kind or not layer.isdigit() or int(layer) not in entry.layers:
        raise LoadError(
            f"{entry.name} has no dictionary at {site or 'no site'}", expected=entry.sites, got=site or "no site",
            do=f"write {entry.example}",
        )  # fmt: skip
    pattern = entry.path.replace("{layer}", layer)
    if hub is None:
        import huggingface_hub as hub
    try:
        name = _only(entry, pattern, choice, hub) if "*" in pattern else pattern
        single = re.search(r"\.(pth?|npz|safetensors)$", name)
        root = Path(hub.snapshot_download(entry.repo, allow_patterns=[name if single else f"{name}/*"]))
    except LoadError:
        raise
    except Exception as error:  # the hub's client raises many kinds: offline, gated, renamed, rate-limited
        raise LoadError(
            f"{entry.name} cannot be fetched from the hub",
            expected=f"{entry.repo}, reachable (and its licence accepted)",
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}",
            do=f"fetch {pattern} of {entry.repo} by other means, and give its path: PATH@{kind}.{layer}",
        ) from error
    return root / name


def with_figures(dictionary: Any, ref: str) -> Any:
    """`dictionary` with the registry's published figures in its metadata, where it has none of its own."""
    entry = named(ref.partition("#")[0].partition("@")[0])
    if entry is None or (entry.l0 is None and entry.explained_variance is None):
        return dictionary
    told: Mapping[str, Any] = dictionary.metadata.get("published") or {}
    figures = {"l0": entry.l0, "explained_variance": entry.explained_variance, "source": entry.source}
    return dictionary.replace(metadata={**dictionary.metadata, "published": {**figures, **told}})


def _only(entry: Entry, pattern: str, choice: str, hub: Any) -> str:
    """The one folder of the repository that the pattern and the choice name."""
    listed: Sequence[str] = hub.HfApi().list_repo_files(entry.repo)
    depth = pattern.count("/") + 1
    folders = sorted({"/".join(name.split("/")[:depth]) for name in listed})
    found = [name for name in folders if fnmatch(name, pattern) and choice in name]
    if len(found) == 1:
        return found[0]
    raise LoadError(
        f"{len(found)} dictionaries of {entry.name} fit",
        expected="one of " + ", ".join(found[:20]) if found else f"something like {pattern}",
        got=f"#{choice}" if choice else "no choice",
        do=f"write {entry.example}#{found[0].rpartition('/')[2] if found else 'PART-OF-THE-PATH'}",
    )
