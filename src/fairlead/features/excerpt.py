"""The few rows of a dictionary that a set of edits needs, with their numbers kept.

A fitted method is a file of its own: it carries its rows, so that opening it needs no dictionary. Only
dictionaries whose latents are read row by row can be cut; of others the whole is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairlead import dictionaries
from fairlead.core.errors import EditError, LoadError
from fairlead.dictionaries.base import SparseDictionary

Ids = Sequence[int] | Tensor


class _ById(Mapping[int, float]):
    """A value per latent, read by the latent's own number."""

    def __init__(self, ids: Sequence[int], values: Tensor) -> None:
        self._values = dict(zip(ids, values.tolist(), strict=True))

    def __getitem__(self, index: int) -> float:
        return self._values[int(index)]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True, eq=False)
class Excerpt:
    """Rows of a relu or jumprelu dictionary of `n_features` latents. Reads exactly what the whole reads.

    Shapes: `ids` n latents; `encoder` [n, d] and `bias` [n] with input centring folded in; `decoder` [n, d];
    `thresholds`, `largest` (max activations) and `rates` (firing rates) [n], or None.
    """

    name: str
    site: str
    n_features: int
    fingerprint: str
    activation: str
    ids: tuple[int, ...]
    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    thresholds: Tensor | None = None
    largest: Tensor | None = None
    rates: Tensor | None = None

    @property
    def d_in(self) -> int:
        return self.decoder.shape[1]

    @property
    def exact_rows(self) -> bool:
        return True

    @property
    def threshold(self) -> Mapping[int, float] | None:
        return None if self.thresholds is None else _ById(self.ids, self.thresholds)

    @property
    def max_activation(self) -> Mapping[int, float] | None:
        return None if self.largest is None else _ById(self.ids, self.largest)

    def encoder_rows(self, ids: Ids) -> tuple[Tensor, Tensor]:
        at = self._places(ids)
        return self.encoder[at], self.bias[at]

    def decoder_rows(self, ids: Ids) -> Tensor:
        return self.decoder[self._places(ids)]

    def encode_rows(self, x: Tensor, ids: Ids) -> Tensor:
        """The latents `ids` of x [..., d], as [..., len(ids)]."""
        at = self._places(ids)
        pre = x @ self.encoder[at].T + self.bias[at]
        return pre.relu() if self.thresholds is None else pre.relu() * (pre > self.thresholds[at])

    def _places(self, ids: Ids) -> list[int]:
        wanted = [int(i) for i in ids]
        known = {latent: place for place, latent in enumerate(self.ids)}
        missing = [i for i in wanted if i not in known]
        if missing:
            raise EditError(
                f"latent {missing[0]} is not in this excerpt of {self.name}",
                expected=", ".join(map(str, self.ids)),
                got=str(missing[0]),
                do="fit again, or apply the edit with the whole dictionary",
            )
        return [known[i] for i in wanted]


def cut(dictionary: Any, ids: Sequence[int]) -> Any:
    """The rows `ids` of `dictionary`, or the whole of it where rows alone do not say what fires."""
    if not dictionary.exact_rows:
        return dictionary
    kept = tuple(dict.fromkeys(int(i) for i in ids))
    encoder, bias = dictionary.encoder_rows(kept)
    if isinstance(dictionary, Excerpt):
        raise LoadError("an excerpt is not cut again", expected="a whole dictionary", got=dictionary.name)

    def pick(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[list(kept)].detach().clone()

    is_jump = dictionary.activation == "jumprelu"
    return Excerpt(
        dictionary.name, dictionary.site, dictionary.n_features, dictionary.fingerprint, dictionary.activation, kept,
        encoder.detach().clone(), bias.detach().clone(), dictionary.decoder_rows(kept).detach().clone(),
        pick(dictionary.threshold) if is_jump else None, pick(dictionary.max_activation),
        pick(dictionary.firing_rate),
    )  # fmt: skip


def to_tensors(excerpt: Excerpt) -> dict[str, Tensor]:
    """The long part of an excerpt, for safetensors."""
    parts = {"encoder": excerpt.encoder, "bias": excerpt.bias, "decoder": excerpt.decoder}
    more = {"thresholds": excerpt.thresholds, "largest": excerpt.largest, "rates": excerpt.rates}
    return {k: v.contiguous() for k, v in {**parts, **more}.items() if v is not None}


def to_json(excerpt: Excerpt) -> dict[str, Any]:
    """The short part."""
    names = ("name", "site", "n_features", "fingerprint", "activation")
    return {**{k: getattr(excerpt, k) for k in names}, "ids": list(excerpt.ids)}


def from_parts(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Excerpt:
    """The inverse of `to_json` and `to_tensors`."""
    try:
        parts: dict[str, Any] = {**data, "ids": tuple(data["ids"]), **tensors}
        excerpt = Excerpt(**parts)
        rows = {len(t) for t in tensors.values()}
    except (TypeError, KeyError) as error:
        raise LoadError("saved dictionary rows cannot be read", got=str(error)) from error
    if rows != {len(excerpt.ids)} or not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise LoadError("saved dictionary rows are not whole", expected=f"{len(excerpt.ids)} finite rows")
    return excerpt


def save_whole(dictionary: SparseDictionary, path: Path) -> None:
    """A dictionary that cannot be cut, beside the method."""
    dictionaries.save(dictionary, path)


def load_whole(path: Path) -> SparseDictionary:
    return dictionaries.load_sparse(path)
