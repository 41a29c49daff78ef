"""A learned intervention of rank r on the residual stream, the model's weights frozen: representation finetuning.

reft       LoReFT: h + Rᵀ(W·h + b − R·h) with the r rows of R orthonormal
reft.relu  r learned latents: h + Σ relu(wᵢ·h + bᵢ)·rᵢ with unit rᵢ; the form of ReFT-r1 without its top-k over
           the sequence. It can act at some tokens and leave the others alone

Both are sums of rows that read and write, so what was learned is opened as edits of the one steering engine: a row of
LoReFT is a pair of latents, relu(z) − relu(−z) = z. Learned as in `lora`, from right actions (see _learned.py); every
site × rank × learning rate is one tuning attempt, the sites in an order that is spread over the depth.
Options: sites (default: every resid site), ranks, lrs, scope ("all" tokens, "prompt" or "last"), and epochs, batch,
patience, n_decisions, select, measure, balance, n_validation.

Source: Wu et al., ReFT, arXiv:2404.03592; ReFT-r1: Wu et al., AxBench, arXiv:2501.17148.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import PlanError
from fairlead.core.protocols import FitContext
from fairlead.dictionaries.base import SparseDictionary
from fairlead.lm.hooks import ForwardInfo
from fairlead.methods import _learned, _options, _steered
from fairlead.methods._steered import Steered
from fairlead.steering import Edit, Latent, Op, Scope

SCOPES = ("all", "prompt", "last")
DEFAULTS: dict[str, Any] = {
    "sites": [],
    "ranks": [16, 32, 4],
    "lrs": [3e-3, 1e-2],
    "scope": "all",
    **_learned.DEFAULTS,
}


@dataclass(frozen=True)
class Rows:
    """The learned tensors: `read` [r, d], `bias` [r], `write` [r, d]. They write Σ φ(readᵢ·h + biasᵢ)·writeᵢ."""

    read: Tensor
    bias: Tensor
    write: Tensor


class Intervention:
    """A Learner: one hook with parameters at one site. It starts out changing nothing (reft) or little (relu)."""

    def __init__(self, subject: Any, setting: Mapping[str, Any], kind: str, scope: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        rank, width, device = setting["rank"], subject.d_model, subject.model.device
        start = torch.linalg.qr(torch.randn(width, rank, generator=generator))[0].T.contiguous()
        self._raw = start.clone().to(device).requires_grad_(True)
        self._read = (start * (1.0 if kind == "" else 0.1)).to(device).requires_grad_(True)
        self._bias = torch.zeros(rank, device=device, requires_grad=True)
        self._kind, self._scope, self._batch = kind, scope, 0
        self.parameters = (self._raw, self._read, self._bias)
        flops = 4.0 * width * rank * (2 if kind == "" else 1)
        self.world = subject.edited({setting["site"]: self._hook}, "reft in training", self._reports, flops)

    def rows(self) -> Rows:
        """The rows as they are now, with gradients."""
        if self._kind == "":
            write = torch.linalg.qr(self._raw.T)[0].T
            write = write * (write * self._raw).sum(1, keepdim=True).sign().detach()
            return Rows(self._read - write, self._bias, write)
        return Rows(self._read, self._bias, self._raw / self._raw.norm(dim=1, keepdim=True))

    def state(self) -> Rows:
        rows = self.rows()
        return Rows(rows.read.detach().clone(), rows.bias.detach().clone(), rows.write.detach().clone())

    def _hook(self, hidden: Tensor, info: ForwardInfo) -> Tensor:
        rows, self._batch = self.rows(), len(info.step)
        z = hidden.float() @ rows.read.T + rows.bias
        change = (z if self._kind == "" else z.relu()) @ rows.write
        return hidden + (change * _where(info, self._scope)[..., None]).to(hidden.dtype)

    def _reports(self) -> list[tuple[()]]:
        return [()] * self._batch


def _where(info: ForwardInfo, scope: str) -> Tensor:
    """bool [B, T], the tokens that the steering engine has in this scope, too."""
    inside = {"all": info.real, "prompt": info.is_prompt, "last": info.is_last & info.real}[scope]
    return inside & (info.slot > 0)[:, None]


def as_edits(rows: Rows, kind: str, site: str, scope: str) -> tuple[tuple[Edit, ...], SparseDictionary]:
    """The learned rows in the engine's algebra: (edits that write every latent once more, a dictionary of them)."""
    signs = (1.0, -1.0) if kind == "" else (1.0,)
    read = torch.cat([s * rows.read for s in signs]).cpu()
    write = torch.cat([s * rows.write for s in signs]).cpu()
    bias = torch.cat([s * rows.bias for s in signs]).cpu()
    learned = SparseDictionary(
        "reft", site, read.T.contiguous(), write.contiguous(), bias, torch.zeros(read.shape[1]),
        apply_b_dec_to_input=False, training_flops=0.0,
    )  # fmt: skip
    edits = [Edit(Latent(i), Op.SCALE, 2.0, site=site, scope=Scope(scope)) for i in range(len(read))]  # type: ignore[arg-type]
    return tuple(edits), learned


@dataclass(frozen=True)
class ReftMethod:
    """See the module."""

    variant: str
    options: Mapping[str, Any]
    name: str = "reft"
    makes: str = "subject"
    uses_dictionary: bool = False

    async def fit(self, ctx: FitContext[Any]) -> Steered:
        _learned.check_local(ctx.subject)
        options, subject = self.options, ctx.subject
        sites = list(options["sites"]) or [f"resid.{layer}" for layer in spread(subject.n_layers)]
        settings = [
            {"site": site, "rank": int(rank), "lr": float(lr)}
            for rank in options["ranks"] if rank <= subject.d_model
            for lr in options["lrs"]
            for site in sites
        ]  # fmt: skip
        begin: Callable[[Mapping[str, Any], int], Intervention] = lambda setting, seed: Intervention(  # noqa: E731
            subject, setting, self.variant, options["scope"], seed
        )
        found = await _learned.learn(ctx, options, settings, begin)
        if found.state is None:
            return Steered("reft", (), None, {}, found.about())
        edits, rows = as_edits(found.state, self.variant, found.setting["site"], options["scope"])
        return Steered("reft", edits, rows, {}, found.about())

    def load(self, path: Path) -> Steered:
        return _steered.load(path, "reft")


def spread(n: int) -> Sequence[int]:
    """The numbers 0 to n − 1, each far from those before it: where a budget cuts the list, the whole depth was seen."""
    order = [n // 2]
    while len(order) < n:
        order.append(max((i for i in range(n) if i not in order), key=lambda i: (min(abs(i - j) for j in order), -i)))
    return order


def plugin(variant: str | None, options: Mapping[str, Any]) -> ReftMethod:
    """`reft` (LoReFT) or `reft.relu`."""
    read = _options.read(options, DEFAULTS, "reft")
    if read["scope"] not in SCOPES:
        raise PlanError("reft has no such scope", expected=", ".join(SCOPES), got=str(read["scope"]))
    return ReftMethod(_options.variant_of(variant, ("", "relu"), "reft"), read)
