"""What a model loses when a dictionary's reconstruction takes the place of its activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fairlead.core.errors import FairleadError
from fairlead.core.types import EditReport
from fairlead.dictionaries.base import SparseDictionary
from fairlead.lm.hooks import ForwardInfo

_PROMPTS = 16  # read at once


def ce_recovered(
    subject: Any,
    dictionary: SparseDictionary,
    prompts: Sequence[Any],
    continuations: Sequence[str] | None = None,
    *,
    baseline: str = "mean",
    site: str = "",
) -> dict[str, float]:
    """Cross-entropy in nats with the activations at the dictionary's site left alone (`clean`), replaced by
    their reconstruction (`spliced`), and replaced by their mean over these prompts or by zero (`ablated`;
    `baseline` is "mean" or "zero"). Every real token is replaced.

    Without `continuations` it is the next-token cross-entropy per token over the prompts' own tokens, the
    field's usual measure; with them, that of `continuations[i]` after `prompts[i]`, each as a whole.

    `recovered` is (ablated − spliced) / (ablated − clean): 1 when the reconstruction costs nothing, 0 when
    it is no better than the ablation. Raises FairleadError when ablating costs nothing, because then the
    share has no meaning.
    """
    site = site or dictionary.site
    dictionary.check_width(subject.d_model)
    level = torch.zeros(dictionary.d_in)
    if baseline == "mean":
        level = torch.cat(list(subject.activations(prompts, [site], tokens="all")[site])).mean(0)
    elif baseline != "zero":
        raise FairleadError("unknown baseline", expected="mean or zero", got=baseline)

    def spliced(x: Tensor) -> Tensor:
        return dictionary.decode(dictionary.encode(x)).to(x.dtype)

    def ablated(x: Tensor) -> Tensor:
        return level.to(x).expand_as(x)

    clean = _cross_entropy(subject, prompts, continuations)
    with_dictionary = _cross_entropy(_replaced(subject, site, spliced, dictionary.fingerprint), prompts, continuations)
    without = _cross_entropy(_replaced(subject, site, ablated, f"{baseline}-ablated"), prompts, continuations)
    if without - clean <= 1e-6:
        raise FairleadError(
            f"ablating {site} costs this model nothing here",
            expected="a cross-entropy above the clean one",
            got=f"{without:.4f} against {clean:.4f}",
            do="choose prompts that the model can do, or the zero baseline",
        )
    recovered = (without - with_dictionary) / (without - clean)
    return {"clean": clean, "spliced": with_dictionary, "ablated": without, "recovered": recovered}


class _Replacement:
    """A hook that puts `function` of the activations in their place at every real token."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function, self._requests = function, 0

    def hook(self, x: Tensor, info: ForwardInfo) -> Tensor:
        self._requests = max(self._requests, int(info.request.max()) + 1)
        return torch.where(info.real[..., None], self._function(x), x)

    def reports(self) -> list[tuple[EditReport, ...]]:
        """Nothing to say of any request of the batch just run."""
        empty: list[tuple[EditReport, ...]] = [()] * self._requests
        self._requests = 0
        return empty


def _replaced(subject: Any, site: str, function: Callable[[Tensor], Tensor], label: str) -> Any:
    replacement = _Replacement(function)
    return subject.edited({site: replacement.hook}, f"splice {site} {label}", replacement.reports)


def _cross_entropy(subject: Any, prompts: Sequence[Any], continuations: Sequence[str] | None) -> float:
    if continuations is None:
        return _next_token(subject, prompts)
    scores = subject.action_logprobs(prompts, [[text] for text in continuations])
    return -float(torch.cat(scores).mean())


@torch.inference_mode()
def _next_token(subject: Any, prompts: Sequence[Any]) -> float:
    """Mean over tokens, read off the last block's output through the model's own final norm and head."""
    last = f"resid.{subject.n_layers - 1}"
    norm, head = subject.model.base_model.norm, subject.model.get_output_embeddings()
    total, count = 0.0, 0
    for first in range(0, len(prompts), _PROMPTS):
        part = prompts[first : first + _PROMPTS]
        for prompt, hidden in zip(part, subject.activations(part, [last], tokens="all")[last], strict=True):
            ids = torch.as_tensor(subject.tokens(prompt).ids, device=hidden.device)
            logits = head(norm(hidden[:-1])).float()
            total += float(functional.cross_entropy(logits, ids[1:], reduction="sum"))
            count += len(ids) - 1
    return total / count
