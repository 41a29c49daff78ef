"""The nouns, as frozen values. Nothing here imports torch; nothing here changes in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["pretrain", "train", "validation", "test"]
SPLITS: tuple[str, ...] = ("pretrain", "train", "validation", "test")
Needs = Literal["subject", "predictor", "claims"]
Json = Any  # a value that json.dumps(allow_nan=False) accepts


@dataclass(frozen=True)
class Message:
    """One chat turn. `role` is system, user or assistant."""

    role: str
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Item:
    """One thing a Task asks. `id` is unique in the task; Records of all arms are paired by it.

    `cluster` groups items whose outcomes are not independent (the on, off and inverse renderings of
    one shopping instance share a cluster); intervals and tests resample clusters, never items.
    `strata` are the columns a report may break results down by, e.g. {"category": "promo", "trap": "on"}.
    """

    id: str
    split: str
    cluster: str
    strata: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class EditReport:
    """What one edit did in one generation: how many token positions it fired on, of how many in scope,
    and the watched activation at the decision token before and after. None means not measured."""

    edit: str
    fired: int
    seen: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Rewrite:
    """One note put into a prompt before it was answered. `note` is the line that was added, right behind the line of
    the last user turn on which `span` (a word of it, at characters `start` to `start + len(span)`) stands; `by` says
    what asked for it (a latent, a probe, a gloss), and `plain` is what the same model answers to the prompt as it was,
    so that every annotated answer carries its own counterfactual. `tokens` is how many the note added to the prompt."""

    note: str
    span: str
    start: int
    by: str
    plain: str
    tokens: int


@dataclass(frozen=True)
class Generation:
    """What a Subject returns. `legal_logprobs[i]` is log p(legal[i] | prompt), summed over its tokens,
    in nats; None when decoding was free. `prompt_tokens` and `new_tokens` count real tokens."""

    text: str
    prompt_tokens: int
    new_tokens: int
    legal_logprobs: tuple[float, ...] | None = None
    edits: tuple[EditReport, ...] = ()
    rewrite: Rewrite | None = None


@dataclass(frozen=True)
class Decision:
    """One decision point met in an episode: the prompt as the Subject got it (before any method's own
    system line), the legal actions, the action taken, and which actions the task's oracle calls right or
    a trap there. Right and trap are labels: methods see them on train and validation only."""

    messages: Messages
    step: int
    legal: tuple[str, ...]
    chosen: str
    right: tuple[str, ...]
    trap: tuple[str, ...]
    logprobs: tuple[float, ...] | None = None
    edits: tuple[EditReport, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What happened on one item. `data` goes into the Record (small, JSON, the same on every machine);
    `decisions` and `trace` go into an artifact beside the Records (pages, distributions, activations)."""

    data: Mapping[str, Json] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    trace: Sequence[Json] = ()


@dataclass(frozen=True)
class Score:
    """Named measures. A value is a bool, a float, or None where it was not measured; never NaN."""

    values: Mapping[str, bool | float | None]


@dataclass(frozen=True, slots=True)
class Cost:
    """What something cost. FLOPs follow the ledger's formulas; seconds are wall time; `judge_calls` counts requests
    to another model (a proposer, a labeller, a judge). `peak_memory_bytes` is the largest memory the process held
    meanwhile, None where it was not measured: sums take the larger one, differences keep the later one."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    forwards: int = 0
    tuning_trials: int = 0
    judge_calls: int = 0
    peak_memory_bytes: int | None = None

    def __add__(self, other: Cost) -> Cost:
        peaks = [x for x in (self.peak_memory_bytes, other.peak_memory_bytes) if x is not None]
        return Cost(
            self.prompt_tokens + other.prompt_tokens,
            self.new_tokens + other.new_tokens,
            self.flops + other.flops,
            self.seconds + other.seconds,
            self.forwards + other.forwards,
            self.tuning_trials + other.tuning_trials,
            self.judge_calls + other.judge_calls,
            max(peaks, default=None),
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.prompt_tokens - other.prompt_tokens,
            self.new_tokens - other.new_tokens,
            self.flops - other.flops,
            self.seconds - other.seconds,
            self.forwards - other.forwards,
            self.tuning_trials - other.tuning_trials,
            self.judge_calls - other.judge_calls,
            self.peak_memory_bytes,
        )


@dataclass(frozen=True)
class Episode:
    """One item, run and scored; what a rollout hands to a Method while fitting."""

    item: Item
    outcome: Outcome
    score: Score


@dataclass(frozen=True)
class Trial:
    """The frozen coordinates of one unit of work: one arm, one model, one seed, one decoding mode.

    `key` is a content hash over plan, data manifest, weights, method configuration, seed and the source
    of the rooms the method imports; it is filled by `core.plan`.
    """

    key: str
    arm: str
    model: str
    dictionary: str | None
    decoding: str
    seed: int


@dataclass(frozen=True, slots=True)
class Record:
    """One item under one trial. Exactly one of `score` and `error` is set: a failure is never a zero."""

    trial: str
    arm: str
    model: str
    decoding: str
    seed: int
    item: str
    cluster: str
    split: str
    strata: Mapping[str, str]
    outcome: Mapping[str, Json] | None
    score: Mapping[str, bool | float | None] | None
    error: str | None
    cost: Cost
    trace: str | None = None  # sha256 of the trace artifact, None when none was kept
    lock: str | None = None  # sha256 of the study's lock, None when it was run without one
