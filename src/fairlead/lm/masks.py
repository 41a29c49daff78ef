"""What attention may look at, in the form that a model takes it.

Fairlead lays out its own batches (padding on the left, a tree of continuations on the right), so it makes its
own masks. A model either sees the whole context in every layer, or the last `window` tokens in some or in all of
them. Which it is, is not told from a name: the model is run plainly on a few tokens, its window made so small for
that moment that it matters, and the form with which a padded batch gives the same logits is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fairlead.core.errors import LoadError
from fairlead.lm.probe import TOKENS, sample_ids

Form = Literal["full", "window", "mixed"]
FORMS: tuple[Form, ...] = ("full", "window", "mixed")
_TRIED = 2  # the window during the trial, in tokens
_PADDING = 3  # tokens put before the trial's row


@dataclass(frozen=True)
class Masks:
    """How a model is told what to look at: one mask for all layers, or one for each kind of layer ("mixed")."""

    form: Form = "full"
    window: int | None = None  # tokens, itself included, that a windowed layer sees

    def build(self, sees: Tensor, at: Tensor, keys: Tensor, dtype: torch.dtype) -> Any:
        """What to pass as `attention_mask`. `sees` bool [B, Q, S] is true where a token may look in a layer that
        sees the whole context; `at` [B, Q] and `keys` [B, S] are positions. Rows look at themselves at least."""
        if self.form == "full" or self.window is None:
            return _additive(sees, dtype)
        near = sees & (at[:, :, None] - keys[:, None, :] < self.window)
        if self.form == "window":
            return _additive(near, dtype)
        return {"full_attention": _additive(sees, dtype), "sliding_attention": _additive(near, dtype)}


def find_masks(model: Any, config: Any) -> Masks:
    """The form of masks that a model takes, tried on a padded row. LoadError where none reproduces the model alone:
    then it has layers that are neither full nor sliding attention (recurrent, chunked, linear)."""
    ids = sample_ids(model)
    window = getattr(config, "sliding_window", None)
    with torch.inference_mode(), _small_window(model, window):
        plain = model(input_ids=ids, use_cache=False).logits[0].float()
        found = [
            (_distance(plain, _padded(model, ids, Masks(form, _TRIED if window else None))), form)
            for form in (FORMS if window else FORMS[:1])
        ]
    distance, form = min(found)
    if distance < (1e-3 if model.dtype == torch.float32 else 0.1):
        return Masks(form, window if form != "full" else None)
    kinds = ", ".join(sorted(set(getattr(config, "layer_types", None) or ()))) or "unknown"
    raise LoadError(
        f"{type(model).__name__} has layers whose attention Fairlead cannot direct",
        expected="full attention or a sliding window in every layer",
        got=kinds,
        do="use another architecture; docs/real-models.md lists those that were verified",
    )


@contextmanager
def _small_window(model: Any, window: int | None) -> Iterator[None]:
    """The model with a window of _TRIED tokens, wherever one of its modules might read it."""
    found = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    held = [c for c in found.values() if window and getattr(c, "sliding_window", None) == window]
    for config in held:
        config.sliding_window = _TRIED
    try:
        yield
    finally:
        for config in held:
            config.sliding_window = window


def _padded(model: Any, ids: Tensor, masks: Masks) -> Tensor | None:
    """Logits [TOKENS, V] of the row behind padding; None where the model refuses masks of this form."""
    total = TOKENS + _PADDING
    row = torch.cat([ids.new_zeros(1, _PADDING), ids], dim=1)
    at = torch.arange(total, device=ids.device)[None] - _PADDING
    sees = torch.ones(1, total, total, dtype=torch.bool, device=ids.device).tril()
    sees[:, :, :_PADDING] = False
    sees |= torch.eye(total, dtype=torch.bool, device=ids.device)
    mask = masks.build(sees, at, at, model.dtype)
    try:
        out = model(input_ids=row, attention_mask=mask, position_ids=at.clamp(min=0), use_cache=False)
    except (AttributeError, TypeError, KeyError, ValueError, RuntimeError, IndexError):
        return None
    return out.logits[0, _PADDING:].float()


def _distance(plain: Tensor, other: Tensor | None) -> float:
    """How far logits are apart, as a share of their spread; infinite where there are none."""
    if other is None or other.shape != plain.shape:
        return float("inf")
    return float((plain - other).norm() / (plain - plain.mean(-1, keepdim=True)).norm())


def _additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """bool [B, Q, S] to what attention adds to its scores, [B, 1, Q, S]."""
    lowest = torch.finfo(dtype).min
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, lowest)[:, None]
