"""What things cost: FLOP formulas, the meter that `lm` charges, and the cap every arm shares.

N is the number of matmul parameters: with the lm_head, without the embedding. T counts tokens, d is the
residual width, L the layers, S the context length. Formulas are for the full attention matrix; a causal
kernel may do half of the attention term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fairlead.core.errors import BudgetExceeded
from fairlead.core.types import Cost

DICTIONARY_SHARE = 0.10  # of a dictionary's training compute, charged to each arm that uses it


def forward_flops(*, n_matmul: float, tokens: float, context: float, n_layers: int, d_model: int) -> float:
    """One forward of `tokens` tokens that attend to `context` positions: 2NT + 4·L·S·d·T.

    A prefill of T tokens has context = T; decoding one token with a cache has tokens = 1.
    """
    return 2.0 * n_matmul * tokens + 4.0 * n_layers * context * d_model * tokens


def training_flops(*, n_matmul: float, tokens: float, context: float, n_layers: int, d_model: int) -> float:
    """Forward and backward of full fine-tuning: three forwards."""
    return 3.0 * forward_flops(n_matmul=n_matmul, tokens=tokens, context=context, n_layers=n_layers, d_model=d_model)


def adapter_flops(*, n_matmul: float, tokens: float, context: float, n_layers: int, d_model: int) -> float:
    """A LoRA step, or a gradient with respect to activations: two forwards (no base-weight gradients)."""
    return 2.0 * forward_flops(n_matmul=n_matmul, tokens=tokens, context=context, n_layers=n_layers, d_model=d_model)


def dictionary_training_flops(*, d_model: int, n_features: int, tokens: float, harvest: float = 0.0) -> float:
    """Training a dense dictionary of width M on T tokens, 10·d·M·T (no gradient of its input), plus `harvest`: the
    forwards that produced the activations (2NT up to the layer that is read)."""
    return 10.0 * d_model * n_features * tokens + harvest


def read_flops(*, d_model: int, n_rows: int, tokens: float) -> float:
    """Reading `n_rows` latents and writing their change: 2·d per row to read, 2·d per row to write."""
    return 4.0 * d_model * n_rows * tokens


@dataclass
class Meter:
    """A counter that `lm` charges on every forward. The only mutable thing in this room; one per loaded model.

    `guard` is called after each charge; while an arm is fitted it raises once the arm's cap is behind it."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    flops: float = 0.0
    forwards: int = 0
    seconds: float = 0.0
    judge_calls: int = 0
    guard: Callable[[], None] | None = None

    def charge(
        self,
        *,
        prompt_tokens: int = 0,
        new_tokens: int = 0,
        flops: float = 0.0,
        forwards: int = 0,
        seconds: float = 0.0,
        judge_calls: int = 0,
    ) -> None:
        """Add to the count. Raises what `guard` raises: the forward was made and is counted, its result is lost."""
        self.prompt_tokens += prompt_tokens
        self.new_tokens += new_tokens
        self.flops += flops
        self.forwards += forwards
        self.seconds += seconds
        self.judge_calls += judge_calls
        if self.guard is not None:
            self.guard()

    def snapshot(self) -> Cost:
        """All charges so far; the difference of two snapshots is what lay between them."""
        return Cost(
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            flops=self.flops,
            forwards=self.forwards,
            seconds=self.seconds,
            judge_calls=self.judge_calls,
        )


@dataclass(frozen=True)
class Budget:
    """The cap that every arm of a plan shares, for fitting. None means no cap was stated."""

    tuning_trials: int | None = None
    flops: float | None = None


class CapIgnored(BaseException):
    """A method caught BudgetExceeded again and again and went on. Not an Exception, so that it cannot catch this."""


PATIENCE = 20  # times that a method may be told before it is stopped
OVERSHOOT = 0.02  # of a cap: the batch that met it was made before its cost was known


class Allowance:
    """One arm's budget while it is being fitted: caps, what was tried, what was spent.

    `share` is the arm's part of the dictionary's training compute in FLOPs; None when the dictionary does
    not state it, and then it is stated as unknown rather than counted as zero.
    """

    def __init__(self, budget: Budget, spent: Callable[[], Cost], *, arm: str, share: float | None = 0.0) -> None:
        self.tuning_trials, self.flops = budget.tuning_trials, budget.flops
        self.arm, self.share, self.tried = arm, share, 0
        self._spent, self._start = spent, spent()
        self._part_trials, self._part_flops = budget.tuning_trials, budget.flops
        self._told = 0
        self.seconds = 0.0  # set when fitting ends, as is the largest memory that was held
        self.peak: int | None = None

    def total(self) -> Cost:
        """What fitting cost, wall time and memory included; known when it has ended."""
        return replace(self.spent(), seconds=self.seconds, peak_memory_bytes=self.peak)

    def spent(self) -> Cost:
        """Charges since fitting began, with the tuning attempts made."""
        return self._spent() - self._start + Cost(tuning_trials=self.tried)

    def used_flops(self) -> float:
        """FLOPs charged to the arm so far, its share of the dictionary included."""
        return self.spent().flops + (self.share or 0.0)

    def flops_left(self) -> float | None:
        """FLOPs that may still be spent, the dictionary's share taken off; None without a cap."""
        return None if self._part_flops is None else self._part_flops - self.used_flops()

    def trials_left(self) -> int | None:
        """Tuning attempts that may still be made; None without a cap."""
        return None if self._part_trials is None else self._part_trials - self.tried

    @property
    def over(self) -> bool:
        """True when the arm spent more FLOPs than its whole cap, and more than the batch that met the cap explains."""
        return self.flops is not None and self.used_flops() > (1.0 + OVERSHOOT) * self.flops

    def part(self, parts_left: int) -> None:
        """Begin one part of `a+b`: it may use an equal share of what is left, so that a leaves b something."""
        if self.tuning_trials is not None:
            self._part_trials = self.tried + (self.tuning_trials - self.tried) // parts_left
        if self.flops is not None:
            used = self.used_flops()
            self._part_flops = used + (self.flops - used) / parts_left

    def try_one(self) -> None:
        """Count one tuning attempt. Raises BudgetExceeded when the cap is reached; the count then stays."""
        self.check()
        if self._part_trials is not None and self.tried >= self._part_trials:
            raise BudgetExceeded(
                f"arm {self.arm!r} used its {self._part_trials} tuning trials",
                do="keep the best found so far, or raise budget.tuning_trials for all arms",
            )
        self.tried += 1

    def check(self) -> None:
        """Raise BudgetExceeded when no FLOPs are left."""
        left = self.flops_left()
        if left is not None and left < 0:
            self._refuse(self._part_flops)

    def guard(self) -> None:
        """What a Meter calls after each charge: raises once the whole cap is spent, whoever made the forward."""
        if self.flops is not None and self.used_flops() > self.flops:
            self._refuse(self.flops)

    def _refuse(self, cap: float | None) -> None:
        said = f"arm {self.arm!r} spent its FLOPs"
        used = f"{self.used_flops():.3g}, {self.share or 0.0:.3g} of it for the dictionary"
        self._told += 1
        if self._told > PATIENCE:
            raise CapIgnored(f"{said} ({used}; cap {cap:.3g}) and went on")
        raise BudgetExceeded(
            said,
            expected=f"at most {cap:.3g}",
            got=used,
            do="keep the best found so far, or raise budget.flops for all arms",
        )


def dictionary_share(dictionary: Any | None, amortise: float = DICTIONARY_SHARE) -> float | None:
    """The plan's share (10 %) of the dictionary's training FLOPs: 0.0 without one, None where it states none."""
    if dictionary is None:
        return 0.0
    stated = getattr(dictionary, "training_flops", None)
    return None if stated is None else amortise * float(stated)
