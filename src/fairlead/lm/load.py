"""The only door to weights. A checkpoint that is missing, truncated, hostile or holds NaN is refused here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fairlead.core.errors import LoadError
from fairlead.lm.chat import Chat
from fairlead.lm.checkpoint import Checkpoint, measure
from fairlead.lm.masks import find_masks
from fairlead.lm.sites import Sites
from fairlead.lm.subject import LocalSubject

POCKET = "pocket/"
_HASHED = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
           "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja")  # fmt: skip


def load(ref: str | Path, *, device: str = "cpu", meter: Any = None) -> LocalSubject:
    """Loads a Hugging Face checkpoint (a decoder-only language model, safetensors) as a Subject.

    `ref` is a directory, or "pocket/NAME" for a model that ships with the package. Weights are float32 on
    the CPU, and as stored elsewhere. No code from the checkpoint is run. Raises LoadError.
    """
    path = find(ref)
    _check_weights(path)
    model, config, tokenizer = _read(path, device)
    _check_fit(path, model, tokenizer)
    text = model.config.get_text_config()
    masks = find_masks(model, text)
    sites = Sites(model, text.num_hidden_layers)
    checkpoint = Checkpoint(
        name=str(ref) if str(ref).startswith(POCKET) else path.name,
        fingerprint=fingerprint(path),
        model=model,
        chat=Chat(tokenizer, _ends(model)),
        sites=sites,
        shape=measure(model, sites, text),
        masks=masks,
    )
    return LocalSubject(checkpoint, meter=meter)


def find(ref: str | Path) -> Path:
    """The directory of a checkpoint, with every file that loading needs. FAIRLEAD_POCKET moves the pocket models."""
    text = str(ref)
    if text.startswith(POCKET):
        home = os.environ.get("FAIRLEAD_POCKET")
        root = Path(home) if home else Path(str(files("fairlead.worlds"))) / "weights"
        path = root / text.removeprefix(POCKET)
        have = sorted(p.name for p in root.iterdir() if (p / "config.json").is_file()) if root.is_dir() else []
        if not path.is_dir():
            raise LoadError(
                f"no pocket model named {text!r}",
                expected=", ".join(POCKET + name for name in have) or "a pocket model, but none is installed",
                got=text,
                do="run `fairlead list models`",
            )
    else:
        path = Path(text)
    if not path.is_dir():
        raise LoadError(f"no model directory at {path}", expected="a Hugging Face directory or pocket/NAME", got=text)
    for name, why in (("config.json", "the architecture"), ("tokenizer.json", "the tokenizer")):
        if not (path / name).is_file():
            raise LoadError(f"{path} has no {name}", expected=f"{name}, {why}", do="save the checkpoint again")
    return path


def fingerprint(path: Path) -> str:
    """sha256 over the names and bytes of the weights, the configuration and the tokenizer."""
    total = hashlib.sha256()
    for file in sorted({f for pattern in _HASHED for f in path.glob(pattern) if f.is_file()}):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.name}\n{digest}\n".encode())
    return total.hexdigest()


def _check_weights(path: Path) -> None:
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        pickled = [p.name for p in path.glob("*.bin")] + [p.name for p in path.glob("*.pt")]
        raise LoadError(
            f"{path} has no weights",
            expected="model.safetensors",
            got=", ".join(pickled) or "no weights file",
            do="convert pickled weights to safetensors; pickles are never opened" if pickled else "fetch the weights",
        )
    index = path / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(wanted - {w.name for w in weights}):
            raise LoadError(f"{path} lacks weights files", expected=", ".join(sorted(wanted)), got=f"no {missing}")
    for file in weights:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    tensor = tensors.get_tensor(name)
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        raise LoadError(
                            f"{file} holds NaN or infinite numbers",
                            expected="finite weights",
                            got=f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} in {name}",
                            do="fetch or train the weights again",
                        )
        except (SafetensorError, OSError) as error:
            raise LoadError(
                f"{file} cannot be read: {error}",
                expected="a whole safetensors file",
                got=f"{file.stat().st_size} bytes",
                do="fetch the weights again",
            ) from error


def _read(path: Path, device: str) -> tuple[Any, Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    local = {"local_files_only": True, "trust_remote_code": False}
    dtype = torch.float32 if device == "cpu" else "auto"
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(path, **local)
            model, report = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True,
                ignore_mismatched_sizes=True, **local,
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
    return model.to(device).eval().requires_grad_(False), config, tokenizer


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
