"""The only door to weights. A checkpoint that is missing, truncated, hostile or holds NaN is refused here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fairlead.core.errors import LoadError
from fairlead.lm import weights
from fairlead.lm.chat import Chat
from fairlead.lm.checkpoint import Checkpoint, measure
from fairlead.lm.estimate import QUANTISED, Estimate, chosen_dtype, estimate, stored_dtype
from fairlead.lm.find import find
from fairlead.lm.masks import find_masks
from fairlead.lm.sites import Sites
from fairlead.lm.subject import LocalSubject
from fairlead.lm.weights import fingerprint

__all__ = ["find", "fingerprint", "load"]


def load(
    ref: str | Path,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    quantize: str | None = None,
    device_map: Any = None,
    token: str | None = None,
    check_memory: bool = True,
    meter: Any = None,
) -> LocalSubject:
    """Loads a Hugging Face checkpoint (a decoder-only language model, safetensors) as a Subject.

    `ref` is a directory, "pocket/NAME" for a model that ships with the package, or "org/name[#revision]" on the
    hub (`token`, or HF_TOKEN, for gated ones). `dtype` is float32, bfloat16 or float16; without it weights are
    float32 on the CPU and as stored elsewhere. `quantize` is "4bit" or "8bit" (bitsandbytes); `device_map` is
    transformers' ("auto" spreads a model over devices). Before anything is loaded, what it will take is compared
    with what is free: weights that do not fit are refused, a full batch that would not is warned of, and
    `check_memory` turns that off. No code from the checkpoint is run. Raises LoadError.
    """
    path = find(ref, token=token)
    _check_options(path, quantize, device_map)
    if check_memory:
        _check_memory(path, estimate(path, device=device, dtype=dtype, quantize=quantize), device_map)
    found = weights.checked(path)
    wanted = chosen_dtype(dtype, device, stored_dtype(weights.headers(weights.files_of(path))))
    model, tokenizer = _read(path, device, wanted, quantize, device_map)
    _check_fit(path, model, tokenizer)
    text = model.config.get_text_config()
    masks = find_masks(model, text)
    sites = Sites(model, text.num_hidden_layers)
    checkpoint = Checkpoint(
        name=path.name if Path(ref).is_dir() else str(ref),
        fingerprint=_variant(found, wanted, quantize),
        model=model,
        chat=Chat(tokenizer, _ends(model)),
        sites=sites,
        shape=measure(model, sites, text),
        masks=masks,
    )
    return LocalSubject(checkpoint, meter=meter)


def _check_options(path: Path, quantize: str | None, device_map: Any) -> None:
    if quantize is not None and quantize not in QUANTISED:
        raise LoadError("an unknown quantisation", expected=" or ".join(QUANTISED), got=str(quantize))
    for wanted, package in ((quantize, "bitsandbytes"), (quantize or device_map, "accelerate")):
        if wanted and find_spec(package) is None:
            raise LoadError(
                f"{path.name} cannot be loaded that way: {package} is not installed",
                expected="the extra for large models",
                got=f"{'quantize' if package == 'bitsandbytes' else 'device_map'} = {wanted}",
                do="pip install 'fairlead[large]', or leave that option out",
            )


def _check_memory(path: Path, found: Estimate, device_map: Any) -> None:
    """Refuses weights that cannot fit, and warns of a batch that may not. A device map is the user's own plan."""
    if found.free is None or device_map is not None:
        return
    told = f"{_gb(found.weights)} of weights in {found.quantize or found.dtype} on {found.device}"
    if found.weights > found.free:
        raise LoadError(
            f"{path} does not fit into memory",
            expected=f"at most {_gb(found.free)}, which is free now",
            got=told,
            do='use dtype="bfloat16", quantize="4bit" or another device; `fairlead doctor --model` shows each',
        )
    if found.total > found.free:
        warnings.warn(
            f"{path.name}: {told}, and up to {_gb(found.total - found.weights)} for {found.rows} prompts of "
            f"{found.tokens} tokens, is more than the {_gb(found.free)} that are free; lower max_batch",
            ResourceWarning,
            stacklevel=3,
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _variant(found: str, dtype: str, quantize: str | None) -> str:
    """The files' hash; with the precision behind it where that is not float32, since it changes what comes out."""
    if dtype == "float32" and quantize is None:
        return found
    return f"{found}+{dtype}{'+' + quantize if quantize else ''}"


def _read(path: Path, device: str, dtype: str, quantize: str | None, device_map: Any) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    local = {"local_files_only": True, "trust_remote_code": False}
    placed: dict[str, Any] = {"device_map": device_map} if device_map is not None else {}
    if quantize:
        from transformers import BitsAndBytesConfig

        four = quantize == "4bit"
        placed["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=four, load_in_8bit=not four, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        placed.setdefault("device_map", {"": device})
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(path, **local)
            model, report = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True,
                ignore_mismatched_sizes=True, **placed, **local,
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(path, **local)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, RuntimeError and its own
        raise LoadError(f"{path} cannot be loaded: {error}", expected="a Hugging Face causal language model") from error
    for kind in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        if report.get(kind):
            some = ", ".join(str(k) for k in sorted(report[kind], key=str)[:3])
            raise LoadError(
                f"the weights of {path} do not fit its config.json",
                expected="the tensors and shapes that config.json describes",
                got=f"{kind.replace('_', ' ')}: {some}",
                do="use the config.json that was saved with these weights",
            )
    return (model if placed else model.to(device)).eval().requires_grad_(False), tokenizer


def _ends(model: Any) -> tuple[int, ...]:
    """The ids at which the checkpoint's own generation settings stop."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return () if found is None else tuple(found) if isinstance(found, (list, tuple)) else (int(found),)


def _check_fit(path: Path, model: Any, tokenizer: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise LoadError(
            f"the tokenizer of {path} does not fit its weights",
            expected=f"at most {rows} tokens",
            got=f"{len(tokenizer)}",
            do="use the tokenizer that was saved with these weights",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from writing progress bars and loading tables; what it would say is checked instead."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
