"""`fairlead check-dictionary`: L0 and explained variance of a dictionary on a model's own tokens, and what is off."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.app.models import open_dictionary, open_model
from fairlead.app.train import shop_prompts
from fairlead.core.errors import LoadError


@dataclass(frozen=True)
class Checked:
    """What was found, as JSON; `ok` is False where something looks wrong."""

    dictionary: str
    model: str
    site: str
    n_features: int
    rows: int
    l0: float
    explained_variance: float
    dead: float
    published: dict[str, Any]
    ok: bool
    warnings: list[str]
    tried: dict[str, dict[str, float]]


def execute(
    model: str,
    ref: str,
    *,
    texts: Path | None = None,
    tokens: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> Checked:
    """Load both, read `tokens` tokens of `texts` (one text a line; default: the shop's prompts), compare."""
    from fairlead.dictionaries.check import self_check

    if texts is not None and not texts.is_file():
        raise LoadError(f"no file {texts}", expected="a text file, one text a line", got=str(texts))
    dictionary, subject = open_dictionary(ref), open_model(model)
    found = self_check(dictionary, subject, _texts(model, texts), tokens=tokens, progress=progress)
    tried = {
        label: {"l0": got.l0, "explained_variance": got.explained_variance} for label, got in found.tried.items()
    }
    return Checked(
        ref, model, found.site, dictionary.n_features, found.rows, found.l0, found.explained_variance, found.dead,
        dict(found.published), found.ok, list(found.warnings), tried,
    )  # fmt: skip


def _texts(model: str, texts: Path | None) -> Iterable[Any]:
    if texts is None:
        return shop_prompts(model, 0)
    return [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
