"""What a model is made of, found by running it on a few tokens instead of by the names of its parts.

One forward over a handful of tokens is watched: what each decoder block takes in and puts out, and what each of
its children computes. The two children whose outputs add up to the block's change of the residual stream,
out = in + attn + mlp, are its attention and its MLP; the one of them through which tokens see each other is
the attention. So the contribution is found where it is made: behind the post-norms of Gemma 2 and 3, beside each
other in the parallel blocks of GPT-NeoX and Phi, in the tuple that a mixture of experts returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from fairlead.core.errors import LoadError

TOKENS = 5


@dataclass(eq=False)
class Call:
    """One child's part in a forward of its block."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    taken: Tensor | None  # the tensor it read, the very object
    made: Tensor  # the tensor it returned, the very object
    value: Tensor  # a copy of what that held, in float64


@dataclass(eq=False)
class BlockRun:
    """One block's forward."""

    before: Tensor | None = None  # float64
    after: Tensor | None = None
    calls: list[Call] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules whose outputs a block adds to its stream; None where the block does more than add two of them.
    `mlp_in` is the one that reads what the MLP reads: the MLP itself, where `mlp` is a norm behind it."""

    attn: nn.Module | None
    mlp: nn.Module | None
    mlp_in: nn.Module | None = None


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The hidden states among a call's arguments: the first, or the one that is named so."""
    found = args[0] if args else kwargs.get("hidden_states")
    return found if isinstance(found, Tensor) else None


def find_blocks(model: Any, n_layers: int) -> list[nn.Module]:
    """The decoder blocks: the one ModuleList of `n_layers` in the text decoder."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for module in (decoder if isinstance(decoder, nn.Module) else model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return list(module)
    raise LoadError(
        "cannot find the decoder blocks of this model",
        expected=f"one ModuleList of {n_layers} blocks",
        got=type(model).__name__,
        do="use a decoder-only language model",
    )


def sample_ids(model: Any) -> Tensor:
    """[1, TOKENS] different tokens of the vocabulary, away from its ends, where special tokens are."""
    size = model.get_input_embeddings().weight.shape[0]
    return torch.tensor([[(i + 1) * size // (TOKENS + 1) for i in range(TOKENS)]], device=model.device)


def find_parts(model: Any, blocks: list[nn.Module]) -> list[Parts]:
    """The parts of every block, by one forward. With a model that cannot run, its own exception."""
    with torch.inference_mode():
        with _watched(blocks) as runs:
            model(input_ids=sample_ids(model), use_cache=False)
        return [_parts(run, torch.finfo(model.dtype).eps) for run in runs]


@contextmanager
def _watched(blocks: list[nn.Module]) -> Iterator[list[BlockRun]]:
    runs = [BlockRun() for _ in blocks]

    def entered(run: BlockRun) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            taken = first_tensor(args, kwargs)
            run.before = None if taken is None else taken.double()

        return hook

    def left(run: BlockRun) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            run.after = (output[0] if isinstance(output, tuple) else output).double()

        return hook

    def called(run: BlockRun, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            made = output[0] if isinstance(output, tuple) else output
            if isinstance(made, Tensor):
                run.calls.append(Call(name, module, args, kwargs, first_tensor(args, kwargs), made, made.double()))

        return hook

    with ExitStack() as stack:
        for block, run in zip(blocks, runs, strict=True):
            handles = [block.register_forward_pre_hook(entered(run), with_kwargs=True)]
            handles.append(block.register_forward_hook(left(run)))
            for name, child in block.named_children():
                handles.append(child.register_forward_hook(called(run, name), with_kwargs=True))
            for handle in handles:
                stack.callback(handle.remove)
        yield runs


def _parts(run: BlockRun, eps: float) -> Parts:
    """The first two calls, in the order they ran, that best explain what the block added."""
    if run.before is None or run.after is None:
        return Parts(None, None)
    counts = [call.name for call in run.calls]
    calls = [c for c in run.calls if c.value.shape == run.after.shape and counts.count(c.name) == 1]
    best: tuple[float, Parts] | None = None
    for attn, mlp in permutations(calls, 2):
        size = run.before.abs() + attn.value.abs() + mlp.value.abs()
        error = (run.after - run.before - attn.value - mlp.value).abs() / (size + 1e-30)
        worst = float(error.max())
        if worst > 4 * eps or (best is not None and worst >= best[0]):
            continue
        if _mixes(attn, calls, eps) and not _mixes(mlp, calls, eps):
            best = worst, Parts(attn.module, mlp.module, _reader(mlp, calls))
    return best[1] if best else Parts(None, None)


def _reader(call: Call | None, calls: list[Call]) -> nn.Module | None:
    """The module with weight matrices that made what `call` put out: itself, or what fed it. A norm has none."""
    while call is not None:
        if any(weight.ndim > 1 for weight in call.module.parameters()):
            return call.module if call.taken is not None and call.taken.shape == call.value.shape else None
        call = _fed(call, calls)
    return None


def _fed(call: Call, calls: list[Call]) -> Call | None:
    """The call whose output this one read."""
    return next((c for c in calls if c.made is call.taken and c is not call), None)


def _mixes(call: Call | None, calls: list[Call], eps: float) -> bool:
    """Whether a token's output depends on the tokens before it, in this call or in the one that fed it.
    Rounding does not count: in a mixture of experts it depends on which tokens are together."""
    while call is not None:
        taken, kwargs = call.taken, call.kwargs
        if taken is not None and taken.ndim == 3:
            other = taken.clone()
            other[:, :-1] = other[:, :-1].flip(-1) * 2 + 1
            args = (other, *call.args[1:]) if call.args else ()
            out = call.module(*args, **(kwargs if call.args else {**kwargs, "hidden_states": other}))
            now, then = (out[0] if isinstance(out, tuple) else out)[:, -1].double(), call.value[:, -1]
            if float((now - then).norm()) > 10 * eps * float(then.norm()):
                return True
        call = _fed(call, calls)
    return False
