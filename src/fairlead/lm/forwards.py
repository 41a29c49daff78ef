"""Batches of prompts, decoded, scored and read: every forward of every Subject runs here and is charged here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairlead.core.types import EditReport
from fairlead.lm.checkpoint import Checkpoint
from fairlead.lm.hooks import ROLE_ASSISTANT, ForwardInfo, SiteHook
from fairlead.lm.sampling import Sampling
from fairlead.lm.sites import Attached, stopped_behind
from fairlead.lm.tree import EMPTY, Ids, Tree

Reports = Callable[[], Sequence[tuple[EditReport, ...]]]


@dataclass(frozen=True, eq=False)
class Row:
    """One prompt of a batch. `roles` is None where the template gave no role spans."""

    ids: Ids  # [P]
    roles: Ids | None  # [P]
    step: int
    slot: int


@dataclass(frozen=True, eq=False)
class Packed:
    """Prompts padded on the left to P tokens, then one tree each padded on the right to K tokens; T = P + K."""

    ids: Tensor  # long [B, T]
    positions: Tensor  # long [B, T], -1 on padding
    sees: Tensor  # bool [B, T, S]; where a token may look among the S tokens so far, its own T included
    keys: Tensor  # long [B, S]; the positions of those, -1 on padding
    info: ForwardInfo
    width: int  # P
    lengths: list[int]  # real prompt tokens of each row
    nodes: list[int]  # tree tokens of each row


@dataclass(frozen=True, eq=False)
class Forwards:
    """Runs one model with one set of hooks. Every forward is charged to `meter` with real tokens only."""

    checkpoint: Checkpoint
    hooks: tuple[tuple[str, SiteHook], ...]
    meter: Any
    hook_flops: float = 0.0  # what the hooks add, per token

    def score(self, rows: Sequence[Row], trees: Sequence[Tree], spent: Callable[[list[Tensor]], int]) -> list[Tensor]:
        """log p of every continuation of every row, in one forward: a tensor [a] a row, in nats.
        `spent` tells from them how many new tokens the ledger is to count."""
        packed = pack(rows, trees, self.checkpoint.model)
        logits, charge = self._run(packed, keep=packed.ids.shape[1] - packed.width + 1)
        scores = add_up(logits, trees)
        charge(spent(scores))
        return scores

    def follow(self, rows: Sequence[Row], trees: Sequence[Tree]) -> list[tuple[float, bool]]:
        """Of trees of one continuation each: its log p in nats, and whether greedy decoding would say just that."""
        packed = pack(rows, trees, self.checkpoint.model)
        logits, charge = self._run(packed, keep=packed.ids.shape[1] - packed.width + 1)
        best = logits.argmax(-1).cpu().numpy()
        agrees = [bool((best[i, tree.before] == tree.token).all()) for i, tree in enumerate(trees)]
        charge(0)
        return list(zip([float(s[0]) for s in add_up(logits, trees)], agrees, strict=True))

    def read(
        self, rows: Sequence[Row], sites: Sequence[str], trees: Sequence[Tree] | None = None
    ) -> tuple[dict[str, Tensor], Packed]:
        """The activations at `sites` [B, T, d] of one forward over the prompts, after this Subject's edits; with
        `trees` over those too. The forward stops behind the last block that a site or an edit needs."""
        packed = pack(rows, trees or [EMPTY] * len(rows), self.checkpoint.model)
        found: dict[str, Tensor] = {}

        def keep(site: str) -> SiteHook:
            def hook(hidden: Tensor, _info: ForwardInfo) -> Tensor:
                found[site] = hidden
                return hidden

            return hook

        extra = tuple((site, keep(site)) for site in dict.fromkeys(sites))
        layers = max((self.checkpoint.sites.depth(site) for site, _ in (*self.hooks, *extra)), default=None)
        _, charge = self._run(packed, keep=1, extra=extra, layers=layers)
        charge(0)
        return found, packed

    def differentiate(
        self, rows: Sequence[Row], trees: Sequence[Tree], metric: Callable[[list[Tensor]], Tensor], site: str
    ) -> tuple[Tensor, Tensor, list[Tensor], Packed]:
        """d metric / d activation at `site`: (activations [B, T, d], gradients [B, T, d], scores, packing)."""
        packed = pack(rows, trees, self.checkpoint.model)
        leaf: list[Tensor] = []

        def cut(hidden: Tensor, _info: ForwardInfo) -> Tensor:
            leaf.append(hidden.detach().requires_grad_(True))
            return leaf[0] * 1.0

        with torch.enable_grad():
            keep = packed.ids.shape[1] - packed.width + 1
            logits, charge = self._run(packed, keep=keep, extra=((site, cut),), passes=2.0)
            started = time.perf_counter()
            scores = add_up(logits, trees)
            (gradient,) = torch.autograd.grad(metric(scores), leaf[0])
        charge(0, time.perf_counter() - started)
        return leaf[0].detach(), gradient, [s.detach() for s in scores], packed

    def decode(
        self, rows: Sequence[Row], limits: Sequence[int], stops: frozenset[int], sampling: Sampling | None = None
    ) -> list[list[int]]:
        """Continuations, each up to its limit or to the first token in `stops`, which it includes: greedy, or drawn."""
        from transformers import DynamicCache  # slow to import, and the model has done it by now

        device = self.checkpoint.model.device
        packed = pack(rows, [EMPTY] * len(rows), self.checkpoint.model)
        cache = DynamicCache()  # whole in every layer: the masks see to windows
        said: list[list[int]] = [[] for _ in rows]
        alive = list(range(len(rows)))
        keys = packed.positions
        chance = [sampling.stream(row.ids, row.step) for row in rows] if sampling else []
        logits, charge = self._run(packed, keep=1, cache=cache)
        while True:
            if sampling is None:
                tokens = logits[:, -1].argmax(-1).tolist()
            else:
                drawn = zip(logits[:, -1].float(), alive, strict=True)
                tokens = [sampling.choose(row, next(chance[r])) for row, r in drawn]
            charge(len(alive))
            for row, token in zip(alive, tokens, strict=True):
                said[row].append(token)
            going = [i for i, r in enumerate(alive) if said[r][-1] not in stops and len(said[r]) < limits[r]]
            if not going:
                return said
            if len(going) < len(alive):
                index = torch.tensor(going, device=device)
                alive = [alive[i] for i in going]
                keys = keys[index]
                cache.batch_select_indices(index)
            step = _one_more(rows, alive, said, keys, packed, device)
            keys = step.keys
            logits, charge = self._run(step, keep=1, cache=cache)

    def _run(
        self,
        packed: Packed,
        *,
        keep: int,
        cache: Any = None,
        extra: Sequence[tuple[str, SiteHook]] = (),
        passes: float = 1.0,
        layers: int | None = None,
    ) -> tuple[Tensor, Callable[..., None]]:
        """One forward; returns the last `keep` logits [B, keep, V] and what charges it, given the new tokens.
        `layers` is how many blocks need to run; the logits are empty where the forward stopped behind them."""
        started = time.perf_counter()
        layers = layers if self.checkpoint.sites.can_stop(layers) else None
        logits = torch.empty(0)
        with ExitStack() as stack:
            attached = Attached(stack, self.checkpoint.sites, (*self.hooks, *extra), packed.info)
            if layers is not None:
                stack.enter_context(stopped_behind(self.checkpoint.sites, layers))
            logits = self.checkpoint.model(
                input_ids=packed.ids,
                attention_mask=self.checkpoint.masks.build(
                    packed.sees, packed.positions, packed.keys, self.checkpoint.model.dtype
                ),
                position_ids=packed.positions.clamp(min=0),
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=keep,
            ).logits
        attached.check()
        seconds = time.perf_counter() - started
        decoding = packed.width == 0

        def charge(new_tokens: int, more_seconds: float = 0.0) -> None:
            if self.meter is None:
                return
            shape, flops = self.checkpoint.shape, 0.0
            for length, nodes in zip(packed.lengths, packed.nodes, strict=True):
                read = nodes if decoding else length + nodes
                flops += shape.flops(read, length + nodes, nodes if decoding else min(keep, 1 + nodes), layers)
                flops += self.hook_flops * read
            self.meter.charge(
                prompt_tokens=0 if decoding else sum(packed.lengths),
                new_tokens=new_tokens,
                flops=flops * passes,
                seconds=seconds + more_seconds,
                forwards=1,
            )

        return logits, charge


def pack(rows: Sequence[Row], trees: Sequence[Tree], model: Any) -> Packed:
    """Lays prompts and trees out as one batch. Padding sees only itself, and nothing sees padding."""
    lengths, nodes = [len(r.ids) for r in rows], [len(t.tokens) for t in trees]
    width, total, count = max(lengths), max(lengths) + max(nodes), len(rows)
    ids = np.zeros((count, total), dtype=np.int64)
    positions = np.full((count, total), -1, dtype=np.int64)
    role = np.zeros((count, total), dtype=np.int64)
    sees = np.zeros((count, total, total), dtype=bool)
    sees[:, :width, :width] = np.tri(width, dtype=bool)
    sees[:, width:, :width] = True
    for i, (row, tree) in enumerate(zip(rows, trees, strict=True)):
        start, end = width - lengths[i], width + nodes[i]
        ids[i, start:width], ids[i, width:end] = row.ids, tree.tokens
        positions[i, start:width] = np.arange(lengths[i])
        positions[i, width:end] = lengths[i] - 1 + tree.depth
        if row.roles is not None:
            role[i, start:width] = row.roles
            role[i, width:end] = ROLE_ASSISTANT
        sees[i, :, :start] = False
        sees[i, width:end, width:end] = tree.sees
    sees |= np.eye(total, dtype=bool)
    device = model.device
    real = positions >= 0
    column = np.arange(total)
    info = ForwardInfo(
        positions=_to(positions, device),
        is_prompt=_to(real & (column < width), device),
        is_last=_to(np.broadcast_to(column == width - 1, real.shape).copy(), device),
        real=_to(real, device),
        step=_to(np.array([r.step for r in rows]), device),
        slot=_to(np.array([r.slot for r in rows]), device),
        role=_to(role, device),
        roles_known=_to(np.array([r.roles is not None for r in rows]), device),
        request=torch.arange(count, device=device),
    )
    at = info.positions
    return Packed(_to(ids, device), at, _to(sees, device), at, info, width, lengths, nodes)


def add_up(logits: Tensor, trees: Sequence[Tree]) -> list[Tensor]:
    """Sums next-token log-probabilities along each continuation: logits [B, 1 + K, V] to a tensor [a] a row."""
    device = logits.device
    row = _to(np.repeat(np.arange(len(trees)), [len(t.token) for t in trees]), device)
    before = _to(np.concatenate([t.before for t in trees]), device)
    token = _to(np.concatenate([t.token for t in trees]), device)
    counts = [len(t.lengths) for t in trees]
    first = np.cumsum([0, *counts[:-1]])
    owner = _to(np.concatenate([t.owner + f for t, f in zip(trees, first, strict=True)]), device)
    logits = logits.float()
    step = logits[row, before, token] - torch.logsumexp(logits, dim=-1)[row, before]
    total = torch.zeros(sum(counts), device=device).index_add(0, owner, step)
    return list(torch.split(total, counts))


def _one_more(
    rows: Sequence[Row],
    alive: Sequence[int],
    said: Sequence[Sequence[int]],
    keys: Tensor,
    packed: Packed,
    device: torch.device,
) -> Packed:
    """The next decode step: the token each living row has just said, after those at `keys`."""
    count = len(alive)
    lengths = [packed.lengths[r] + len(said[r]) - 1 for r in alive]
    yes = torch.ones(count, 1, dtype=torch.bool, device=device)
    known = torch.tensor([rows[r].roles is not None for r in alive], device=device)
    positions = torch.tensor(lengths, device=device)[:, None]
    info = ForwardInfo(
        positions=positions,
        is_prompt=~yes,
        is_last=~yes,
        real=yes,
        step=torch.tensor([rows[r].step for r in alive], device=device),
        slot=torch.tensor([rows[r].slot for r in alive], device=device),
        role=(known * ROLE_ASSISTANT)[:, None],
        roles_known=known,
        request=torch.tensor(alive, device=device),
    )
    ids = torch.tensor([[said[r][-1]] for r in alive], device=device)
    keys = torch.cat([keys, positions], dim=1)
    return Packed(ids, positions, (keys >= 0)[:, None, :], keys, info, 0, lengths, [1] * count)


def _to(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
