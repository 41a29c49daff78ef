"""One latent as JSON: what a store knows of it, what a run's card says, and what its rows say. Missing is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairlead.features import labels
from fairlead.features.index import NOWHERE, QUANTILES, Index
from fairlead.features.output import NAMES
from fairlead.features.store import Store, load_array


def described(
    store: Store, index: Index, latent: int, *, said: labels.Label | None, screen: Path | None, examples: int = 5
) -> dict[str, Any]:
    """Figures, strongest windows, partners, neighbours; its label, and its output scores where `screen` has them."""
    latent = index.check(latent)
    windows = []
    for token in [int(t) for t in index.top[latent] if t != NOWHERE][:examples]:
        span = store.window(token)
        values, at = store.activations(latent, span), token - span.start
        windows.append({"tokens": store.texts(span), "values": values, "highlight": at, "value": values[at]})

    def related(ids: str, values: str) -> list[list[Any]] | None:
        if not hasattr(index, ids):
            return None
        pairs = zip(getattr(index, ids)[latent], getattr(index, values)[latent], strict=True)
        return [[int(i), float(v)] for i, v in pairs if i != NOWHERE]

    quantiles = index.quantiles[latent].tolist()
    return {
        "latent": latent,
        "site": store.header.site,
        "dictionary": store.header.dictionary,
        "label": None if said is None else asdict(said),
        "density": float(index.density[latent]),
        "tokens": int(index.count[latent]),
        "windows": int(index.windows[latent]),
        "mean": float(index.mean[latent]),
        "largest": float(index.top_values[latent, 0]),
        "quantiles": {str(share): float(v) for share, v in zip(QUANTILES, quantiles, strict=True)},
        "top": windows,
        "partners": related("partners", "partner_shares"),
        "neighbours": related("neighbours", "cosines"),
        "output": None if screen is None else screened(screen, latent),
    }


def screened(place: Path, latent: int) -> dict[str, float] | None:
    """The scores of one latent, where all were screened at `place`."""
    for block in sorted(p for p in place.glob("[0-9]*") if p.is_dir() and p.suffix != ".part"):
        latents = load_array(block / "latents.npy")
        found = (latents == latent).nonzero()[0]
        if len(found):
            return {name: float(load_array(block / f"{name}.npy")[found[0]]) for name in NAMES}
    return None


def words_of(card: Mapping[str, Any]) -> str:
    """The label of a run's card, "" where it has none."""
    label = card.get("label")
    return label if isinstance(label, str) else ""
