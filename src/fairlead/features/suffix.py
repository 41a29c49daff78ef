"""One prompt's last token, run from a site to the logits under many edits of that site at once.

The tokens before it are read once and kept (a KV cache); the blocks below the site are stood in for by what they put
out on the unedited prompt. So an edit costs one token through the blocks above its site, not a forward of the prompt.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fairlead.core.errors import FairleadError, NotApplicable
from fairlead.lm.sites import Attached


class Suffix:
    """The part of a forward above `site`, at the last of the tokens `ids`. The checkpoint's own weights: edits and
    system lines of `subject` play no part. NotApplicable where a model cannot be run in parts."""

    @torch.inference_mode()
    def __init__(self, subject: Any, ids: Sequence[int], site: str) -> None:
        if not len(ids):
            raise FairleadError("nothing to run", expected="a prompt of at least one token")
        self.checkpoint, self.meter, self.site = subject.checkpoint, subject.meter, site
        self.model, self.blocks = subject.model, subject.checkpoint.sites.blocks
        kind, _ = self.checkpoint.sites.place(site)
        layer = int(site.partition(".")[2])
        self.first = layer + 1 if kind == "resid" else layer  # the first block that runs
        self.length = len(ids)
        self.checkpoint.fits(self.length)
        device = self.model.device
        self._last = torch.tensor([[ids[-1]]], device=device)
        self._cache: Any = DynamicCache(config=self.model.config)
        with self.checkpoint.lock:
            if len(ids) > 1:
                before = torch.tensor([list(ids[:-1])], device=device)
                self.model(input_ids=before, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._below, self.activation, self.bare = self._clean()
        again = self.logits(torch.zeros_like(self.activation))[0]
        scale = float(self.bare.abs().max()) + 1e-6
        if float((again - self.bare).abs().max()) > (1e-3 if self.model.dtype == torch.float32 else 5e-2) * scale:
            raise NotApplicable(
                f"{type(self.model).__name__} cannot be run from {site} on alone",
                expected="blocks that take nothing from below but the residual stream",
            )

    @torch.inference_mode()
    def logits(self, change: Tensor) -> Tensor:
        """[B, V] float32 next-token logits with each row of `change` [B, d] added at the site."""
        started, count = time.perf_counter(), len(change)
        added = change.to(self.activation)[:, None]

        def edit(hidden: Tensor, _info: Any) -> Tensor:
            return hidden + added

        with self.checkpoint.lock, ExitStack() as stack:
            stack.enter_context(self._stubbed(count))
            attached = Attached(stack, self.checkpoint.sites, [(self.site, edit)], None)
            found = self._forward(count)
        attached.check()
        self._charge(count, time.perf_counter() - started)
        return found

    def _forward(self, count: int) -> Tensor:
        cache = copy.deepcopy(self._cache)
        if self.length > 1:
            cache.batch_repeat_interleave(count)
        position = torch.full((count, 1), self.length - 1, device=self._last.device)
        out = self.model(
            input_ids=self._last.expand(count, 1), position_ids=position, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _clean(self) -> tuple[Any, Tensor, Tensor]:
        """(what the last block below puts out, the activation [1, d] at the site, logits [V]) of the bare prompt."""
        below: list[Any] = [None]
        seen: list[Tensor] = []

        def keep_below(_module: nn.Module, _args: Any, output: Any) -> None:
            below[0] = output

        def keep(hidden: Tensor, _info: Any) -> Tensor:
            seen.append(hidden)
            return hidden

        with ExitStack() as stack:
            if self.first:
                stack.callback(self.blocks[self.first - 1].register_forward_hook(keep_below).remove)
            Attached(stack, self.checkpoint.sites, [(self.site, keep)], None)
            logits = self._forward(1)[0]
        return below[0], seen[0][0, -1:], logits

    @contextmanager
    def _stubbed(self, count: int) -> Iterator[None]:
        """Blocks below `first` replaced by what the last of them put out, for a batch of `count`."""
        found = self._below

        def wide(value: Any) -> Any:
            is_batch = isinstance(value, Tensor) and value.ndim == 3
            return value.expand(count, *value.shape[1:]) if is_batch else value

        out = tuple(wide(v) for v in found) if isinstance(found, tuple) else wide(found)
        kept = [(block, block.__dict__.get("forward")) for block in self.blocks[: self.first]]
        try:
            for block, _ in kept:
                block.forward = lambda *_args, **_more: out
            yield
        finally:
            for block, old in kept:
                if old is None:
                    block.__dict__.pop("forward", None)
                else:
                    block.forward = old

    def _charge(self, count: int, seconds: float) -> None:
        if self.meter is None:
            return
        shape = self.checkpoint.shape
        share = 1.0 - self.first / shape.n_layers
        flops = count * (share * (shape.flops(1, self.length, 0)) + 2.0 * shape.head)
        self.meter.charge(new_tokens=0, flops=flops, forwards=1, seconds=seconds)
