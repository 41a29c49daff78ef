"""A transcoder: it reads activations at one site and explains those of another.

Its latents are read where it reads (`site_in`) and written where it writes (`site`), so an edit at one place
cannot both read and write them. What can be done: encode, decode, and add its decoder rows at `site`. What
cannot: clamp, scale or cap a latent, or condition on one; the edit language refuses that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import LoadError
from fairlead.dictionaries.base import (
    Activation,
    Ids,
    activated,
    checked_ids,
    checked_width,
    hashed,
    times,
    wide,
)


@dataclass(frozen=True, eq=False)
class Transcoder:
    """A fitted transcoder, as a frozen value.

    `pre = (x − b_dec·apply_b_dec_to_input) @ W_enc + b_enc` with x [..., d_in] at `site_in`, the activation
    as in SparseDictionary, and `reconstruct(x) = f @ W_dec + b_dec + x @ W_skip` [..., d_out] for what is at
    `site`. `W_skip` [d_in, d_out] is the affine skip connection (None: there is none).
    """

    name: str
    site_in: str
    site: str
    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    activation: Activation = "relu"
    threshold: Tensor | None = None
    k: int | None = None
    apply_b_dec_to_input: bool = False
    W_skip: Tensor | None = None
    max_activation: Tensor | None = None
    firing_rate: Tensor | None = None
    training_flops: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2 or self.W_dec.ndim != 2:
            raise LoadError("W_enc or W_dec is not a matrix", expected="[d_in, n_features], [n_features, d_out]")
        (d, m), d_out = self.W_enc.shape, self.W_dec.shape[1]
        shapes = [("W_dec", self.W_dec, (m, d_out)), ("b_enc", self.b_enc, (m,)), ("b_dec", self.b_dec, (d_out,))]
        shapes += [("threshold", self.threshold, (m,))] if self.threshold is not None else []
        shapes += [("W_skip", self.W_skip, (d, d_out))] if self.W_skip is not None else []
        for label, tensor, want in shapes:
            if tuple(tensor.shape) != want:
                raise LoadError(f"{label} does not fit W_enc", expected=str(want), got=str(tuple(tensor.shape)))
        if self.activation == "jumprelu" and self.threshold is None:
            raise LoadError("a jumprelu transcoder needs a threshold", expected=f"threshold [{m}]", got="none")
        if self.activation == "topk" and not (self.k is not None and 1 <= self.k <= m):
            raise LoadError("a topk transcoder needs k", expected=f"1 <= k <= {m}", got=str(self.k))
        if self.apply_b_dec_to_input and d != d_out:
            raise LoadError("b_dec cannot centre inputs of another width", expected=str(d_out), got=str(d))

    @property
    def d_in(self) -> int:
        """Width of what it reads."""
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """Width of what it writes."""
        return self.W_dec.shape[1]

    @property
    def n_features(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def exact_rows(self) -> bool:
        """Whether a latent depends on its own encoder row alone."""
        return self.activation in ("relu", "jumprelu")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that can change a result; the name is left out."""
        head = [self.site_in, self.site, self.activation, self.k, self.apply_b_dec_to_input, list(self.W_enc.shape)]
        tensors = (self.W_enc, self.W_dec, self.b_enc, self.b_dec, self.threshold, self.W_skip, self.max_activation)
        return hashed(head, tensors)

    def preactivations(self, x: Tensor) -> Tensor:
        """[..., m] values before the activation function."""
        x = x.to(wide(self.W_enc))
        return times(x - self.b_dec if self.apply_b_dec_to_input else x, self.W_enc) + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Latents [..., m] of x [..., d_in] at `site_in`."""
        return activated(self.preactivations(x), self.activation, self.threshold, self.k)

    def encode_rows(self, x: Tensor, ids: Ids) -> Tensor:
        """The latents `ids` of x, [..., len(ids)]."""
        return self.encode(x)[..., self.check_ids(ids)]

    def decode(self, f: Tensor) -> Tensor:
        """What the latents f [..., m] say of `site`, [..., d_out]; without the skip connection, which reads x."""
        return times(f.to(wide(self.W_dec)), self.W_dec) + self.b_dec

    def reconstruct(self, x: Tensor) -> Tensor:
        """The whole prediction of `site` [..., d_out] from x [..., d_in] at `site_in`."""
        found = self.decode(self.encode(x))
        return found if self.W_skip is None else found + x.to(found.dtype) @ self.W_skip.to(found.dtype)

    def decoder_rows(self, ids: Ids) -> Tensor:
        """What one unit of each latent adds at `site`, [len(ids), d_out]: vectors to steer with."""
        return self.W_dec[self.check_ids(ids)].to(wide(self.W_dec))

    def check_ids(self, ids: Ids) -> Tensor:
        """Latent ids as a LongTensor; EditError when one does not exist."""
        return checked_ids(ids, self.n_features, self.name, self.W_enc.device)

    def check_width(self, d_model: int) -> None:
        """LoadError unless activations of width `d_model` fit its input."""
        checked_width(self.name, self.d_in, d_model)

    def replace(self, **changes: Any) -> Transcoder:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to(self, device: str | torch.device) -> Transcoder:
        """A copy with every tensor on `device`."""
        tensors = {f.name: v for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return self.replace(**{label: tensor.to(device) for label, tensor in tensors.items()})
