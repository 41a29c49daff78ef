"""Train a pocket model: next-token loss on the text of its own grammar, actions weighted up.

Resumable: a checkpoint holds weights, optimiser state and the step; data are a pure function of
(source, seed, step), so a run that was killed and continued sees what an unbroken one would have seen.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fairlead.core.types import Messages
from fairlead.worlds import tokenizer as tk
from fairlead.worlds.muon import Muon

Progress = Callable[[str], None]
HELD_OUT = 999_999_937  # the seed of the text that accuracy is shown on while training


class Example(Protocol):
    """A prompt and the action that follows it. `tags` are what tokens have to say at the output of a block, {block:
    {token: token}}: deep supervision, for what is learned too slowly without."""

    @property
    def messages(self) -> Messages: ...
    @property
    def action(self) -> str: ...
    @property
    def tags(self) -> Mapping[int, Mapping[str, str]]: ...


class Source(Protocol):
    """Training text: endless, a pure function of seed and stage. `kind` names what accuracy is broken down by."""

    @property
    def name(self) -> str: ...
    def examples(self, seed: int, stage: tuple[int, ...]) -> Iterator[Any]: ...
    def kind(self, example: Any) -> str: ...


@dataclass(frozen=True)
class Size:
    """Shape of a pocket model; the default has about one million parameters."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 384


# The order matters: diluted among easy pages and traps, matching a name to its button was not learned in
# 1,000 steps; alone, with two products on the page, it takes 200.
@dataclass(frozen=True)
class Recipe:
    """How long and how hard. Learning rates: Muon for matrices, AdamW for embeddings and norms."""

    steps: int
    batch: int = 64
    matrix_rate: float = 0.02
    vector_rate: float = 6e-3
    warmup: int = 50
    hold: float = 0.6  # share of the steps before the rates fall
    prompt_weight: float = 0.1
    half: bool = True  # bfloat16 where torch sees fit; False where the processor has no units for it
    seed: int = 0
    tag_weight: float = 0.3
    tag_until: float = 0.0  # share of the steps with tags
    curriculum: tuple[tuple[float, tuple[int, ...]], ...] = ((1.01, (3, 4, 4)),)  # (until this share, stage)


def new_model(tokenizer: PreTrainedTokenizerFast, size: Size, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=512,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.08,
    )
    return LlamaForCausalLM(config)


def render(tokenizer: PreTrainedTokenizerFast, example: Example, recipe: Recipe) -> tuple[list[int], list[float]]:
    """(token ids, weight of predicting each). An action token weighs 1, a token of the prompt less."""
    encode = tokenizer.backend_tokenizer.encode  # the wrapper around it takes four times as long
    chat = [{"role": m.role, "content": m.content} for m in example.messages]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    head, tail = (encode(part, add_special_tokens=False).ids for part in (text, example.action + tk.END))
    return head + tail, [recipe.prompt_weight] * len(head) + [1.0] * len(tail)


def _stage(recipe: Recipe, step: int) -> tuple[int, ...]:
    share = step / recipe.steps
    return next(n for until, n in recipe.curriculum if share < until)


def batches(
    tokenizer: PreTrainedTokenizerFast, source: Source, recipe: Recipe, start: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(ids [B, T], weights [B, T], tags [blocks, B, T]) from step `start` on; a tag is what a token has to say at the
    output of a block, or -1.
    Sixteen batches are drawn and sorted by length together."""
    block = 16
    for first in range(start - start % block, recipe.steps, block):
        stream = source.examples(recipe.seed * 1_000_003 + first, _stage(recipe, first))
        drawn = list(itertools.islice(stream, block * recipe.batch))
        tagged = first < recipe.tag_until * recipe.steps
        rows = [(*render(tokenizer, e, recipe), e.tags if tagged else {}) for e in drawn]
        rows.sort(key=lambda r: len(r[0]))
        order = torch.randperm(block, generator=torch.Generator().manual_seed(first)).tolist()
        for j, i in enumerate(order):
            if start <= first + j < recipe.steps:
                part = rows[i * recipe.batch : (i + 1) * recipe.batch]
                yield *_pad([row[:2] for row in part]), _tags(tokenizer, [(row[0], row[2]) for row in part])


def _pad(rows: Sequence[tuple[list[int], list[float]]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    weights = torch.zeros(len(rows), longest)
    for i, (row, weight) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row)] = torch.tensor(weight)
    weights[:, 0] = 0.0
    return ids, weights / len(rows)


def _tags(
    tokenizer: PreTrainedTokenizerFast, rows: Sequence[tuple[list[int], Mapping[int, Mapping[str, str]]]]
) -> torch.Tensor:
    """[blocks, B, T]: for every token that is a key of a block's tags, the id of its value."""
    blocks = 1 + max((block for _, tags in rows for block in tags), default=-1)
    out = torch.full((blocks, len(rows), max(len(ids) for ids, _ in rows)), -1, dtype=torch.long)
    vocabulary = tokenizer.get_vocab()
    for i, (ids, tags) in enumerate(rows):
        for block, pairs in tags.items():
            found = {vocabulary[key]: vocabulary[value] for key, value in pairs.items()}
            out[block, i, : len(ids)] = torch.tensor([found.get(token, -1) for token in ids])
    return out


def loss_of(
    model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor, tags: torch.Tensor, tag_weight: float
) -> torch.Tensor:
    """Weighted next-token loss (logits are made where a token weighs anything), and where there are tags, that of
    reading each off its block's output, at its own token."""
    out = model.model(input_ids=ids, output_hidden_states=len(tags) > 0)
    counted = weights[:, 1:] != 0
    logits = model.lm_head(out.last_hidden_state[:, :-1][counted])
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    loss = (losses * weights[:, 1:][counted]).sum()
    for block, wanted in enumerate(tags):
        there = wanted >= 0
        if there.any():
            logits = model.lm_head(model.model.norm(out.hidden_states[block + 1][there]))
            missed = torch.nn.functional.cross_entropy(logits, wanted[there], reduction="sum")
            loss = loss + tag_weight * missed / len(ids)
    return loss


def optimisers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon if recipe.half else Muon
    return [
        muon(matrices, lr=recipe.matrix_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.vector_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _rate(recipe: Recipe, step: int) -> float:
    """Warm up, hold, then fall linearly."""
    up = min(1.0, (step + 1) / recipe.warmup)
    return up * (1.0 if recipe.hold >= 1 else min(1.0, max(0.02, (1 - step / recipe.steps) / (1 - recipe.hold))))


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    source: Source,
    recipe: Recipe,
    checkpoint: Path,
    progress: Progress,
    *,
    every: int = 200,
) -> LlamaForCausalLM:
    """Train in place and return the model. `checkpoint` is written every `every` steps."""
    opts = optimisers(model, recipe)
    bases = [g["lr"] for o in opts for g in o.param_groups]
    start = 0
    if checkpoint.exists():
        saved: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location=next(model.parameters()).device)
        model.load_state_dict(saved["model"])
        for o, state in zip(opts, saved["optimisers"], strict=True):
            o.load_state_dict(state)
        start = saved["step"]
    model.train()
    device = next(model.parameters()).device
    began, running = time.monotonic(), math.nan
    for step, (ids, weights, tags) in enumerate(batches(tokenizer, source, recipe, start), start):
        factor = _rate(recipe, step)
        for group, base in zip((g for o in opts for g in o.param_groups), bases, strict=True):
            group["lr"] = base * factor
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.half):
            loss = loss_of(model, ids.to(device), weights.to(device), tags.to(device), recipe.tag_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            state = {"model": model.state_dict(), "optimisers": [o.state_dict() for o in opts], "step": step + 1}
            partial = checkpoint.with_suffix(".part")
            torch.save(state, partial)
            partial.replace(checkpoint)
            accuracy = quick_accuracy(model, tokenizer, source, recipe.curriculum[-1][1])
            progress(
                f"{source.name} step {step + 1}/{recipe.steps} loss {running:.3f} "
                f"{(time.monotonic() - began) / (step + 1 - start):.3f} s/step  {accuracy}"
            )
    return model.eval()


@torch.inference_mode()
def quick_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, source: Source, stage: tuple[int, ...], n: int = 256
) -> str:
    """Share of held-out training-text decisions whose action tokens are all the argmax, by kind."""
    model.eval()
    stream = source.examples(HELD_OUT, stage)
    found = [next(stream) for _ in range(n)]
    rows = [render(tokenizer, e, Recipe(1, prompt_weight=0.0)) for e in found]
    hits: dict[str, list[bool]] = {}
    for first in range(0, n, 64):
        ids, weights = _pad(rows[first : first + 64])
        right = model(input_ids=ids.to(model.device)).logits.cpu()[:, :-1].argmax(-1) == ids[:, 1:]
        good = (right | (weights[:, 1:] == 0)).all(-1).tolist()
        for e, ok in zip(found[first : first + 64], good, strict=True):
            hits.setdefault(source.kind(e), []).append(ok)
    model.train()
    return " ".join(f"{k} {sum(v) / len(v):.2f}" for k, v in sorted(hits.items()))
