"""How much memory a model takes, before it is loaded: from its configuration and the headers of its files.

    weights      parameters x bytes of one (quantised: linear layers at 1 or 0.56 bytes, the rest at 2)
    cache        2 x layers x key-value heads x head size x bytes x tokens x rows
    activations  logits of the scored tokens (as computed, and in float32 twice), masks, attention scores where
                 attention is eager, and the stream with its MLP: an upper figure for one forward, not a measurement
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairlead.core.errors import LoadError
from fairlead.lm import hub, weights
from fairlead.lm.find import POCKET, find

ROWS, TOKENS, SCORED = 32, 1024, 64  # a batch, its longest prompt, and the tokens of its actions
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
QUANTISED = {"4bit": 0.56, "8bit": 1.0}  # bytes of one weight; four bits with their block constants
LAYERS = 2000  # no model has more


@dataclass(frozen=True)
class Estimate:
    """Bytes, and the sizes they come from. `free` is None where the machine does not say."""

    architecture: str
    parameters: int
    active_parameters: int  # of a mixture of experts, those that act on a token
    n_layers: int
    d_model: int
    context: int
    dtype: str
    quantize: str | None
    device: str
    rows: int
    tokens: int
    weights: int
    cache: int
    activations: int
    free: int | None
    flops_per_token: float  # 2 x active parameters, the attention's own part left out

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations

    @property
    def fits(self) -> bool | None:
        """Whether everything fits into what is free; None where that is not known."""
        return None if self.free is None else self.total <= self.free


@dataclass(frozen=True)
class Sizes:
    """What config.json and an empty copy of the model say."""

    architecture: str
    parameters: int
    active: int
    linear: int  # parameters of linear layers inside blocks: what quantisation makes small
    n_layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int  # the widest of the MLP's layers
    vocabulary: int
    context: int
    masks: int  # how many masks a forward makes
    eager: bool


def estimate(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    quantize: str | None = None,
    rows: int = ROWS,
    tokens: int = TOKENS,
) -> Estimate:
    """What loading the checkpoint in `folder` and running it on `rows` prompts of `tokens` tokens takes. No weight
    is read. LoadError where config.json and the weights cannot belong together."""
    stored = weights.headers(weights.files_of(folder))
    sizes, kept = sizes_of(folder, stored), stored_dtype(stored)
    return total_up(sizes, kept, device=device, dtype=dtype, quantize=quantize, rows=rows, tokens=tokens)


def estimate_ref(
    ref: str,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    quantize: str | None = None,
    rows: int = ROWS,
    tokens: int = TOKENS,
    token: str | None = None,
) -> Estimate:
    """As `estimate`, of a model by reference. Of a name on the hub only config.json and headers are fetched."""
    if not ref.startswith(POCKET) and not Path(ref).exists() and hub.is_name(ref):
        folder, counts = hub.described(ref, token)
        sizes = sizes_from(read_config(folder))
        stored = _STORED.get(max(counts, key=lambda d: counts[d]), "bfloat16") if counts else "float32"
        return total_up(sizes, stored, device=device, dtype=dtype, quantize=quantize, rows=rows, tokens=tokens)
    return estimate(find(ref), device=device, dtype=dtype, quantize=quantize, rows=rows, tokens=tokens)


def total_up(
    sizes: Sizes, stored: str, *, device: str, dtype: str | None, quantize: str | None, rows: int, tokens: int
) -> Estimate:
    """The arithmetic of `estimate`. `stored` is the dtype of the files, for where none is asked for."""
    dtype = chosen_dtype(dtype, device, stored)
    one, s = BYTES[dtype], sizes
    tokens = min(tokens, s.context)
    held = s.parameters * one
    if quantize:
        held = int((s.parameters - s.linear) * 2 + s.linear * QUANTISED[quantize])
    width = tokens + SCORED
    logits = rows * (SCORED + 1) * s.vocabulary * (one + 8)
    masks = rows * width * width * (1 + one * s.masks)
    scores = rows * s.heads * width * width * (one + 4) if s.eager else 0
    stream = rows * width * (4 * s.d_model + 3 * s.inner) * one
    return Estimate(
        architecture=s.architecture,
        parameters=s.parameters,
        active_parameters=s.active,
        n_layers=s.n_layers,
        d_model=s.d_model,
        context=s.context,
        dtype=dtype,
        quantize=quantize,
        device=device,
        rows=rows,
        tokens=tokens,
        weights=held,
        cache=2 * s.n_layers * s.kv_heads * s.head_size * one * rows * width,
        activations=logits + masks + max(scores, stream),
        free=free_memory(device),
        flops_per_token=2.0 * s.active,
    )


def sizes_of(folder: Path, stored: list[weights.Stored]) -> Sizes:
    """Builds the model without memory for its weights, and compares it with what the files hold."""
    raw = weights.read_json(folder / "config.json", "the architecture")
    config = read_config(folder)
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", 0)
    held = sum(t.numel for t in stored)
    if not isinstance(layers, int) or not 1 <= layers <= min(LAYERS, len(stored)):
        raise LoadError(
            f"{folder} describes layers that its weights do not have",
            expected=f"1 to {min(LAYERS, len(stored))} layers, for {len(stored)} tensors",
            got=f"num_hidden_layers = {layers}",
            do="use the config.json that was saved with these weights",
        )
    sizes = sizes_from(config)
    if "quantization_config" not in raw and sizes.parameters > 2 * held:
        raise LoadError(
            f"the weights of {folder} do not fit its config.json",
            expected=f"{sizes.parameters:,} parameters, as config.json describes",
            got=f"{held:,} numbers in the weights files",
            do="use the config.json that was saved with these weights",
        )
    return sizes


def sizes_from(config: Any) -> Sizes:
    """The sizes of a configuration, read off an empty copy of its model."""
    from transformers import AutoModelForCausalLM

    from fairlead.lm.checkpoint import matrices
    from fairlead.lm.probe import find_blocks

    text = config.get_text_config()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers and torch raise whatever a wrong configuration leads to
        raise LoadError(
            f"config.json describes no model that can be built: {error}",
            expected="a Hugging Face causal language model",
            got=getattr(config, "model_type", "?"),
        ) from error
    experts = getattr(text, "num_experts_per_tok", None)
    blocks = find_blocks(model, text.num_hidden_layers)
    all_of = sum(n for block in blocks for _, n in matrices(block, None))
    used = sum(n for block in blocks for _, n in matrices(block, experts))
    parameters = sum(p.numel() for p in model.parameters())  # tied weights once
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    heads = text.num_attention_heads
    inner = [getattr(text, key, None) or 0 for key in ("intermediate_size", "moe_intermediate_size", "n_inner")]
    windowed = bool(getattr(text, "sliding_window", None)) and len(set(getattr(text, "layer_types", None) or ())) > 1
    return Sizes(
        architecture=type(model).__name__,
        parameters=parameters,
        active=used + head.numel(),
        linear=all_of,
        n_layers=text.num_hidden_layers,
        d_model=text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        inner=max(*inner, 4 * text.hidden_size if not any(inner) else 0),
        vocabulary=embeddings.shape[0],
        context=text.max_position_embeddings,
        masks=2 if windowed else 1,
        eager=model.config._attn_implementation == "eager",
    )


def read_config(folder: Path) -> Any:
    """The configuration in a folder, without running code from it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        what = "a Hugging Face causal language model"
        raise LoadError(f"{folder} cannot be loaded: {error}", expected=what) from error


def stored_dtype(stored: list[weights.Stored]) -> str:
    """The dtype that most numbers of the files have; bfloat16 for any that is no plain float."""
    counts: dict[str, int] = {}
    for tensor in stored:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel
    return _STORED.get(max(counts, key=lambda d: counts[d]), "bfloat16") if counts else "float32"


def chosen_dtype(dtype: str | None, device: str, stored: str) -> str:
    """The dtype that is asked for; else float32 on the CPU, and elsewhere as stored."""
    if dtype is not None and dtype not in BYTES:
        raise LoadError("an unknown dtype", expected=", ".join(BYTES), got=dtype)
    return dtype or ("float32" if torch.device(device).type == "cpu" else stored)


def free_memory(device: str) -> int | None:
    """Bytes that can be had on a device now; None where the machine does not say."""
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    found = [n for n in (_available(), _left_in_group()) if n is not None]
    return min(found) if found else None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, OSError, ValueError):
            return None


def _left_in_group() -> int | None:
    """What a container's limit leaves (cgroup v2)."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        stat = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
        cached = next((int(line.split()[1]) for line in stat if line.startswith("inactive_file ")), 0)
        return None if limit == "max" else max(0, int(limit) - used + cached)
    except (OSError, ValueError):
        return None
