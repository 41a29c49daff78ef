"""The one concrete dictionary: a linear encoder, a sparsifying activation, a linear decoder.

Every family here (SAEs, k-means, PCA, random controls) is a setting of it, so steering, features and
the disk format know one class. Shapes: d = `d_in`, m = `n_features`, x is [..., d], latents are [..., m].
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fairlead.core.errors import EditError, LoadError

Activation = Literal["relu", "jumprelu", "topk", "onehot"]
Ids = Sequence[int] | Tensor
_BLOCK = 1 << 23  # weights of a half-precision matrix widened at once
_HASHED = 1 << 24  # bytes hashed at once


@dataclass(frozen=True, eq=False)
class SparseDictionary:
    """A fitted dictionary, as a frozen value.

    `pre = (x − b_dec·apply_b_dec_to_input) @ W_enc + b_enc`, then one of
    relu:     max(pre, 0)
    jumprelu: max(pre, 0) where pre > threshold, else 0
    topk:     the k largest of max(pre, 0) in each row, the rest 0
    onehot:   1 at the largest pre, else 0 (nearest centroid)
    and `decode(f) = f @ W_dec + b_dec`.

    `threshold` [m] is part of a jumprelu; on a topk it is the calibrated stand-in used by
    `threshold_rows`. `max_activation` and `firing_rate` [m] are measured after fitting (None: not
    measured); steering takes strengths in units of `max_activation`. `training_flops` is what fitting
    cost, by the formula in `train.py` (None: unknown). W_enc and W_dec may be half precision and
    memory-mapped; the arithmetic is in float32. Raises LoadError when shapes do not agree.
    """

    name: str
    site: str
    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    activation: Activation = "relu"
    threshold: Tensor | None = None
    k: int | None = None
    apply_b_dec_to_input: bool = True
    max_activation: Tensor | None = None
    firing_rate: Tensor | None = None
    training_flops: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2:
            raise LoadError("W_enc is not a matrix", expected="[d_in, n_features]", got=str(tuple(self.W_enc.shape)))
        d, m = self.W_enc.shape
        per_latent = {"b_enc": self.b_enc, "threshold": self.threshold}
        per_latent |= {"max_activation": self.max_activation, "firing_rate": self.firing_rate}
        shapes = [("W_dec", self.W_dec, (m, d)), ("b_dec", self.b_dec, (d,))]
        shapes += [(label, tensor, (m,)) for label, tensor in per_latent.items() if tensor is not None]
        for label, tensor, want in shapes:
            if tuple(tensor.shape) != want:
                raise LoadError(f"{label} does not fit W_enc", expected=str(want), got=str(tuple(tensor.shape)))
        if self.activation not in get_args(Activation):
            raise LoadError("unknown activation", expected=" or ".join(get_args(Activation)), got=self.activation)
        if self.activation == "jumprelu" and self.threshold is None:
            raise LoadError("a jumprelu dictionary needs a threshold", expected=f"threshold [{m}]", got="none")
        if self.activation == "topk" and not (self.k is not None and 1 <= self.k <= m):
            raise LoadError("a topk dictionary needs k", expected=f"1 <= k <= {m}", got=str(self.k))

    @property
    def d_in(self) -> int:
        """Width of the activations it reads and writes."""
        return self.W_enc.shape[0]

    @property
    def n_features(self) -> int:
        """Number of latents, dead ones included."""
        return self.W_enc.shape[1]

    @property
    def exact_rows(self) -> bool:
        """Whether a latent depends on its own encoder row alone, so that reading only watched rows is exact."""
        return self.activation in ("relu", "jumprelu")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that can change a result; the name is left out."""
        head = [self.site, self.activation, self.k, self.apply_b_dec_to_input, list(self.W_enc.shape)]
        tensors = (self.W_enc, self.W_dec, self.b_enc, self.b_dec, self.threshold, self.max_activation)
        return hashed(head, tensors)

    def preactivations(self, x: Tensor) -> Tensor:
        """[..., m] values before the activation function."""
        return times(self._centred(x), self.W_enc) + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Latents of x, [..., m], non-negative."""
        return activated(self.preactivations(x), self.activation, self.threshold, self.k)

    def decode(self, f: Tensor) -> Tensor:
        """Reconstruction of latents f [..., m] as activations [..., d]."""
        return times(f.to(wide(self.W_dec)), self.W_dec) + self.b_dec

    def encode_rows(self, x: Tensor, ids: Ids) -> Tensor:
        """The latents `ids` of x, [..., len(ids)], always equal to `encode(x)[..., ids]`.

        With `exact_rows` only those encoder rows are read; otherwise the whole dictionary is.
        """
        index = self.check_ids(ids)
        if not self.exact_rows:
            return self.encode(x)[..., index]
        pre = times(self._centred(x), self.W_enc[:, index]) + self.b_enc[index]
        return pre.relu() if self.threshold is None else pre.relu() * (pre > self.threshold[index])

    def threshold_rows(self, x: Tensor, ids: Ids) -> Tensor:
        """Approximate `encode_rows` of a topk that reads only those rows: on above the calibrated threshold."""
        index = self.check_ids(ids)
        if self.threshold is None:
            raise EditError(
                f"{self.name} has no calibrated threshold, so its latents cannot be read row by row",
                do="use the exact mode, or `dictionaries.calibrated(dictionary, activations)` first",
            )
        pre = times(self._centred(x), self.W_enc[:, index]) + self.b_enc[index]
        return pre.relu() * (pre > self.threshold[index])

    def encoder_rows(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """(rows [n, d], biases [n]) with `pre[..., ids] = x @ rows.T + biases`; input centring is folded in."""
        index = self.check_ids(ids)
        rows = self.W_enc[:, index].T.to(wide(self.W_enc)).contiguous()
        biases = self.b_enc[index].to(rows.dtype)
        return rows, biases - rows @ self.b_dec.to(rows.dtype) if self.apply_b_dec_to_input else biases

    def decoder_rows(self, ids: Ids) -> Tensor:
        """What one unit of each latent adds to the activation, [len(ids), d]."""
        return self.W_dec[self.check_ids(ids)].to(wide(self.W_dec))

    def check_ids(self, ids: Ids) -> Tensor:
        """Latent ids as a LongTensor; EditError when one does not exist."""
        return checked_ids(ids, self.n_features, self.name, self.W_enc.device)

    def check_width(self, d_model: int) -> None:
        """LoadError unless activations of width `d_model` fit."""
        checked_width(self.name, self.d_in, d_model)

    def replace(self, **changes: Any) -> SparseDictionary:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to(self, device: str | torch.device) -> SparseDictionary:
        """A copy with every tensor on `device`."""
        tensors = {f.name: v for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return self.replace(**{label: tensor.to(device) for label, tensor in tensors.items()})

    def _centred(self, x: Tensor) -> Tensor:
        x = x.to(wide(self.W_enc))
        return x - self.b_dec if self.apply_b_dec_to_input else x


def activated(pre: Tensor, activation: Activation, threshold: Tensor | None, k: int | None) -> Tensor:
    """The latents [..., m] of pre-activations [..., m]; the formulas are those of SparseDictionary."""
    if activation == "relu":
        return pre.relu()
    if activation == "jumprelu" and threshold is not None:
        return pre.relu() * (pre > threshold)
    top = pre.topk((k or 1) if activation == "topk" else 1, dim=-1)
    values = torch.ones_like(top.values) if activation == "onehot" else top.values.relu()
    return torch.zeros_like(pre).scatter(-1, top.indices, values)


def wide(weights: Tensor) -> torch.dtype:
    """The type to compute in: float64 for float64 weights, else float32."""
    return torch.float64 if weights.dtype == torch.float64 else torch.float32


def times(x: Tensor, weights: Tensor) -> Tensor:
    """x [..., a] @ weights [a, b] in the type of `wide`. Half-precision weights are widened a block at a time,
    so that a matrix of gigabytes is never copied whole; blocks that meet only zeros of x are left out."""
    a, b = weights.shape
    if weights.dtype == wide(weights):
        return x @ weights
    if a <= b:
        step = max(1, _BLOCK // max(1, a))
        return torch.cat([x @ weights[:, i : i + step].to(x.dtype) for i in range(0, b, step)], dim=-1)
    step, total = max(1, _BLOCK // max(1, b)), x.new_zeros(*x.shape[:-1], b)
    for i in range(0, a, step):
        part = x[..., i : i + step]
        if bool(part.any()):
            total = total + part @ weights[i : i + step].to(x.dtype)
    return total


def hashed(head: Sequence[Any], tensors: Sequence[Tensor | None]) -> str:
    """sha256 over `head` and the tensors' bytes, read a block of rows at a time."""
    digest = hashlib.sha256(json.dumps(head).encode())
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
            continue
        for piece in _pieces(tensor.detach()):
            digest.update(piece.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    rows = max(1, _HASHED // max(1, tensor[0].numel() * tensor.element_size())) if tensor.ndim and len(tensor) else 1
    yield from tensor.split(rows) if tensor.ndim else [tensor.reshape(1)]


def checked_ids(ids: Ids, n_features: int, name: str, device: torch.device) -> Tensor:
    """Latent ids as a LongTensor; EditError when one does not exist."""
    index = torch.as_tensor(ids, dtype=torch.long, device=device).reshape(-1)
    wrong = index[(index < 0) | (index >= n_features)]
    if len(wrong):
        raise EditError(
            f"latent {int(wrong[0])} is not in dictionary {name}",
            expected=f"0 to {n_features - 1}",
            got=str(int(wrong[0])),
            do="run `fairlead find` to list latents of this dictionary",
        )
    return index


def checked_width(name: str, d_in: int, d_model: int) -> None:
    """LoadError unless activations of width `d_model` fit a dictionary of width `d_in`."""
    if d_model != d_in:
        raise LoadError(
            f"dictionary {name} does not fit this model",
            expected=f"a dictionary of width {d_model} (the model's residual stream)",
            got=f"width {d_in}",
            do="choose a dictionary trained on this model",
        )
