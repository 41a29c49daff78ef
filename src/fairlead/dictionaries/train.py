"""Training of sparse dictionaries on a stream of activations: ReLU with L1, TopK, BatchTopK, Matryoshka.

Every random choice comes from `config.seed`; two runs on the same machine give the same bytes. The
learning rate of 2e-3 is what a comparison on 2 million synthetic activations favoured over the usual
2e-4·√(2¹⁴/m) rule; it warms up and decays linearly. Latents that have not fired for a while learn the
residual error (AuxK) through their raw pre-activations: after the ReLU a dead latent's gradient is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from fairlead.core.errors import FairleadError
from fairlead.core.ledger import dictionary_training_flops
from fairlead.dictionaries import quality
from fairlead.dictionaries.base import SparseDictionary
from fairlead.dictionaries.sparse import Code, decode_at, encode_at
from fairlead.dictionaries.stream import Activations, Stream

Kind = Literal["topk", "batchtopk", "matryoshka", "relu"]
Progress = Callable[[int, int, dict[str, float]], None]
_REPORTS = 50  # progress calls in a run
_AUX_SHARE = 4  # the dead latents' loss reads one row in four


@dataclass(frozen=True)
class TrainConfig:
    """What to train and how long.

    `k` is the number of latents on per row (topk), or on average (batchtopk, matryoshka, which are saved
    as a jumprelu whose threshold is calibrated to k on held-out rows). `l1` is the penalty of the relu
    kind, in units where activations have variance 1 per coordinate. `groups` are the nested prefixes of
    matryoshka, as shares of `n_features`. A latent is dead after `dead_after` rows without firing.
    `warmup` and `decay` are shares of `steps`.
    """

    n_features: int
    kind: Kind = "topk"
    k: int = 32
    l1: float = 2.0
    groups: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5, 1.0)
    steps: int = 2000
    batch: int = 1024
    lr: float = 2e-3
    warmup: float = 0.05
    decay: float = 0.2
    unit_norm: bool = True
    dead_after: int = 50_000
    aux_weight: float = 1 / 32
    aux_k: int | None = None
    held_out: int = 8192
    buffer: int = 65_536
    seed: int = 0
    name: str = ""
    site: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise FairleadError("unknown kind of dictionary", expected=" or ".join(get_args(Kind)), got=self.kind)
        if not 1 <= self.k <= self.n_features:
            raise FairleadError("k does not fit", expected=f"1 to n_features = {self.n_features}", got=str(self.k))
        if self.steps < 1 or self.batch < 1:
            raise FairleadError(
                "nothing to train", expected="steps and batch above 0", got=f"{self.steps}, {self.batch}"
            )
        if list(self.groups) != sorted(self.groups) or self.groups[-1] != 1.0:
            raise FairleadError(
                "groups are not nested prefixes", expected="rising shares up to 1", got=str(self.groups)
            )


def train(
    activations: Activations, config: TrainConfig, progress: Progress | None = None, *, harvest_flops: float = 0.0
) -> SparseDictionary:
    """Fit a dictionary on `activations`: a tensor [n, d] (used for as many epochs as `steps` asks), or an
    iterable of such tensors (streamed; see `Stream`).

    `progress(step, steps, measures)` is called about 50 times. `harvest_flops`, what reading the
    activations cost, is added to `training_flops`. metadata["statistics"] holds explained variance, L0 and
    dead share on held-out rows. Raises FairleadError when the rows run out, LoadError on NaN.
    """
    generator = torch.Generator().manual_seed(config.seed * 2_654_435_761 % 2**63 + 40_503)
    stream = Stream(
        activations, batch=config.batch, held_out=config.held_out, buffer=config.buffer, generator=generator
    )
    trainer = Trainer(stream, config, generator)
    for step in range(config.steps):
        measures = trainer.step(step)
        if progress and (step % max(1, config.steps // _REPORTS) == 0 or step == config.steps - 1):
            progress(step + 1, config.steps, {label: float(value) for label, value in measures.items()})
    return _finished(trainer.dictionary(), stream, config, trainer.flops + harvest_flops)


def steps_flops(config: TrainConfig, d_model: int, rows: int) -> float:
    """FLOPs of training on `rows` rows, 10·d·M·n whatever the kernels: sparse ones save work that a FLOP counter does
    not see either, and a budget must not depend on them. `relu` has the gradient of its input bias on top, 2·d·M·n.
    What reviving dead latents costs is known only afterwards."""
    dense = dictionary_training_flops(d_model=d_model, n_features=config.n_features, tokens=rows)
    return (1.2 if config.kind == "relu" else 1.0) * dense


class Trainer:
    """The weights in training, in units where activations have variance 1 per coordinate."""

    def __init__(self, stream: Stream, config: TrainConfig, generator: torch.Generator) -> None:
        self.stream, self.config, self.flops, self.seen = stream, config, 0.0, 0
        first = stream.sample(4 * config.batch)
        mean = first.mean(0)
        self.scale = float(first.sub_(mean).square_().mean().sqrt().clamp_min(1e-12))
        d, m = stream.d_in, config.n_features
        directions = functional.normalize(torch.randn(m, d, generator=generator), dim=-1).to(first.device)
        self.encoder = directions.clone().requires_grad_()
        self.decoder = directions.clone().requires_grad_()
        self.b_enc = torch.zeros(m, device=first.device).requires_grad_()
        self.b_dec = (mean / self.scale).requires_grad_()
        weights = [self.encoder, self.decoder, self.b_enc, self.b_dec]
        self.optimizer = torch.optim.Adam(weights, lr=config.lr, fused=True)
        self.last_fired = torch.zeros(m, dtype=torch.long, device=first.device)
        self.aux_k = config.aux_k or min(d // 2 or 1, 4 * config.k)
        self.floor = 0.0  # a value safely below the last batchtopk cut
        edges = [0, *(max(1, round(share * m)) for share in config.groups)]
        self.groups = list(zip(edges[:-1], edges[1:], strict=True))

    def step(self, step: int) -> dict[str, Tensor]:
        """One update; what it measured on its batch."""
        config = self.config
        x = self.stream.next().div_(self.scale)
        self.seen += len(x)
        if config.kind == "relu":
            loss, error, active = self._dense_loss(x, min(1.0, (step + 1) / max(1.0, config.warmup * config.steps)))
        else:
            loss, error, active = self._sparse_loss(x)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * _schedule(step, config)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._update()
        dead = (self.seen - self.last_fired > config.dead_after).float().mean()
        unexplained = error.square().sum() / (x - x.mean(0)).square().sum()
        return {"explained_variance": 1.0 - unexplained, "l0": active / len(x), "dead": dead}

    def dictionary(self, *, shared: bool = False) -> SparseDictionary:
        """The weights so far in the activations' own units; selection by batch is not part of it yet. `shared`: the
        weights themselves, good until the next step, instead of a copy."""
        kind = self.config.kind
        return SparseDictionary(
            name=self.config.name or f"{kind}-{self.config.n_features}",
            site=self.config.site,
            W_enc=self.encoder.detach().T if shared else self.encoder.detach().T.contiguous(),
            W_dec=self.decoder.detach() if shared else self.decoder.detach().clone(),
            b_enc=self.b_enc.detach() * self.scale,
            b_dec=self.b_dec.detach() * self.scale,
            activation="relu" if kind == "relu" else "topk",
            k=None if kind == "relu" else self.config.k,
        )

    def _dense_loss(self, x: Tensor, ramp: float) -> tuple[Tensor, Tensor, Tensor]:
        """ReLU with L1: early codes are dense, so dense gradients are the cheap ones here."""
        pre = (x - self.b_dec) @ self.encoder.T + self.b_enc
        f = pre.relu()
        error = x - f @ self.decoder - self.b_dec
        norms = 1.0 if self.config.unit_norm else self.decoder.norm(dim=-1)
        loss = error.square().sum(-1).mean() + self.config.l1 * ramp * (f * norms).sum(-1).mean()
        fired = f.detach() > 0
        self.last_fired[fired.any(0)] = self.seen
        self.flops += steps_flops(self.config, x.shape[1], len(x))
        return loss + self._aux_loss(x, pre.detach(), error), error.detach(), fired.sum()

    def _sparse_loss(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            pre = torch.addmm(self.b_enc, x - self.b_dec, self.encoder.T)
            values, code = self._code(pre)
            self.last_fired[code.cols[values > 0]] = self.seen
        f = encode_at(x, self.encoder, self.b_enc, self.b_dec, values, code).relu()
        if self.config.kind == "matryoshka":
            loss, error = self._nested(x, f, code)
        else:
            error = x - decode_at(f, self.decoder, code) - self.b_dec
            loss = error.square().sum(-1).mean()
        self.flops += steps_flops(self.config, x.shape[1], len(x))
        return loss + self._aux_loss(x, pre, error), error.detach(), (values > 0).sum()

    def _code(self, pre: Tensor) -> tuple[Tensor, Code]:
        """The k largest pre-activations of each row, or the k·rows largest of the batch, and where they are."""
        rows, m = pre.shape
        if self.config.kind == "topk":
            top = pre.topk(self.config.k, sorted=False)
            starts = torch.arange(0, rows * self.config.k, self.config.k, device=pre.device)
            return top.values.flatten(), Code(top.indices.flatten(), starts, m)
        flat, wanted = pre.flatten(), rows * self.config.k
        where = (flat > self.floor).nonzero().squeeze(1)
        if len(where) < wanted:
            where = (flat > 0).nonzero().squeeze(1)
        values = flat[where]
        if len(values) > wanted:
            cut = values.kthvalue(len(values) - wanted + 1).values
            keep = values >= cut
            where, values, self.floor = where[keep], values[keep], 0.7 * float(cut)
        counts = torch.bincount(where // m, minlength=rows)
        return values, Code(where % m, torch.cumsum(counts, 0) - counts, m)

    def _nested(self, x: Tensor, f: Tensor, code: Code) -> tuple[Tensor, Tensor]:
        """Each prefix of the latents must reconstruct on its own: the mean of their losses, and the last error."""
        error, losses = x - self.b_dec, []
        for low, high in self.groups:
            keep = (code.cols >= low) & (code.cols < high)
            error = error - decode_at(f[keep], self.decoder, code.select(keep))
            losses.append(error.square().sum(-1).mean())
        return torch.stack(losses).mean(), error

    def _aux_loss(self, x: Tensor, pre: Tensor, error: Tensor) -> Tensor | float:
        """Dead latents predict the residual error through their raw pre-activations, so encoder and decoder learn."""
        dead = (self.seen - self.last_fired > self.config.dead_after).nonzero().squeeze(1)
        if not len(dead) or not self.config.aux_weight:
            return 0.0
        rows, k = max(1, len(x) // _AUX_SHARE), min(self.aux_k, len(dead))
        top = pre[:rows, dead].topk(k, sorted=False)
        starts = torch.arange(0, rows * k, k, device=x.device)
        code = Code(dead[top.indices].flatten(), starts, self.config.n_features)
        values = encode_at(x[:rows], self.encoder, self.b_enc, self.b_dec, top.values.flatten(), code)
        missed = error[:rows].detach() - decode_at(values, self.decoder, code)
        self.flops += 8.0 * len(code.cols) * x.shape[1]
        return self.config.aux_weight * min(1.0, len(dead) / self.aux_k) * missed.square().sum(-1).mean()

    @torch.no_grad()
    def _update(self) -> None:
        """One Adam step; with `unit_norm`, along the sphere and back onto it."""
        gradient = self.decoder.grad
        if self.config.unit_norm and gradient is not None:
            gradient.addcmul_((gradient * self.decoder).sum(-1, keepdim=True), self.decoder, value=-1)
        self.optimizer.step()
        if self.config.unit_norm:
            self.decoder /= self.decoder.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _schedule(step: int, config: TrainConfig) -> float:
    """The share of the learning rate at `step`: up over `warmup`, flat, down to 0 over `decay`."""
    up = (step + 1) / max(1.0, config.warmup * config.steps)
    down = (config.steps - step) / max(1.0, config.decay * config.steps)
    return min(1.0, up, down)


def _finished(dictionary: SparseDictionary, stream: Stream, config: TrainConfig, flops: float) -> SparseDictionary:
    """Calibrate on held-out rows, measure, and note how it was made."""
    if config.kind != "relu":
        dictionary = quality.calibrated(dictionary, stream.held_out)
    if config.kind in ("batchtopk", "matryoshka"):
        dictionary = dictionary.replace(activation="jumprelu", k=None)
    dictionary = quality.with_statistics(dictionary, torch.cat([stream.held_out, stream.sample(config.buffer)]))
    statistics = quality.evaluate(dictionary, stream.held_out)
    metadata = {"training": {**asdict(config), "groups": list(config.groups)}, "statistics": statistics}
    return dictionary.replace(training_flops=flops, metadata=metadata)
