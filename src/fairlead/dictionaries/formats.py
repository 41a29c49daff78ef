"""Which public format a path is, and its reader. One module per format; none of them runs what it reads.

A format module offers FILES (what it looks like), `find(path)` (the file or folder it would read at a path, or
None), `site(found)` (what its settings or names say of the place in the model, "" when nothing) and
`read(found, site=..., k=...)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from fairlead.core.errors import LoadError
from fairlead.dictionaries import (
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    hookpoints,
    llama_scope,
    llama_scope_r1,
    qwen_scope,
    saelens,
    sparsify,
)
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.transcoder import Transcoder

FORMATS: dict[str, ModuleType] = {
    "saelens": saelens,
    "goodfire": goodfire,
    "gemma-scope": gemma_scope,
    "gemma-scope-2": gemma_scope_2,
    "llama-scope": llama_scope,
    "llama-scope-r1": llama_scope_r1,
    "qwen-scope": qwen_scope,
    "dictionary-learning": dictionary_learning,
    "sparsify": sparsify,
}
_DEPTH = 6  # folders below the one named: REPOSITORY/layer_20/width_16k/average_l0_71, and two more


def of(path: Path) -> str | None:
    """The name of the format at `path` (a file or a folder), or None."""
    return next((name for name, module in FORMATS.items() if module.find(path) is not None), None)


def site(path: Path) -> str:
    """What the dictionary at `path` says of its own place; "" when it says nothing."""
    name = of(path)
    return str(FORMATS[name].site(FORMATS[name].find(path))) if name else ""


def read(path: Path, *, site: str = "", k: int | None = None) -> SparseDictionary | Transcoder:
    """The dictionary at `path`. `site` is what the caller's reference says: it complements the file, and must not
    contradict it; `k` is for formats that do not store it. LoadError when no format fits."""
    name = of(path)
    if name is None:
        shapes = "; ".join(str(module.FILES) for module in FORMATS.values())
        held = ", ".join(sorted(p.name for p in path.iterdir())[:12]) if path.is_dir() else path.name
        raise LoadError(
            f"{path} is no dictionary of a known format",
            expected=shapes,
            got=held or "an empty folder",
            do="check that the download is whole; the reference of formats is docs/dictionaries.md",
        )
    module = FORMATS[name]
    found, said = module.find(path), FORMATS[name].site(FORMATS[name].find(path))
    ours = name == "saelens" and not said and not site  # what was written here without a site stays without
    place = "" if ours else hookpoints.chosen(path, said, site)
    dictionary: SparseDictionary | Transcoder = module.read(found, site=place, k=k)
    return dictionary.replace(metadata={**dictionary.metadata, "format": name}) if name != "saelens" else dictionary


def below(root: Path) -> Iterator[Path]:
    """Every dictionary in `root` or the folders below it, in order of name."""
    yield from _below(root, _DEPTH)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if of(path) is not None:
                yield path
            elif depth > 1 and not path.name.startswith("."):
                yield from _below(path, depth - 1)
        elif path.name.endswith((".sae.pt", ".pth")) and of(path) is not None:
            yield path
