"""Weights files before they are loaded: what their headers say, that every number is finite, and their hash.

Nothing here builds a model or runs code from a checkpoint. Headers are small JSON; tensors are read once, in
pieces, beside the hash of the bytes. On one busy core of a laptop-class CPU that took about 20 s for 16 GB,
most of it the hash (docs/real-models.md).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fairlead.core.errors import LoadError

HEADER = 100_000_000  # bytes; the format's own limit
PIECE = 1 << 25  # numbers that are looked at together
_HASHED = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
           "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja")  # fmt: skip
READ = (*_HASHED, "*.safetensors.index.json")  # every file of a checkpoint that may be opened
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
          "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor in a file."""

    name: str
    dtype: str  # as the header spells it: F32, BF16, ...
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * _SIZES.get(self.dtype, 1)

    @property
    def floating(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


def files_of(folder: Path) -> list[Path]:
    """The weights files of a checkpoint, all there and all inside it. LoadError otherwise, with what to do."""
    stay_inside(folder)
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = [p.name for ending in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in sorted(folder.glob(ending))]
        raise LoadError(
            f"{folder} has no weights",
            expected="model.safetensors",
            got=", ".join(pickled) or "no weights file",
            do="convert pickled weights to safetensors; pickles are never opened" if pickled else "fetch the weights",
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = _indexed(index)
        if missing := sorted(wanted - {file.name for file in found}):
            raise LoadError(f"{folder} lacks weights files", expected=", ".join(sorted(wanted)), got=f"no {missing}")
        found = [file for file in found if file.name in wanted]
    elif (folder / "model.safetensors").is_file():
        found = [folder / "model.safetensors"]
    return found


def stay_inside(folder: Path) -> None:
    """Raises when a file that would be read is a link to somewhere else. The hub's own cache keeps its files beside
    the snapshot, and may link there."""
    inside = folder.resolve()
    roots = [inside]
    if inside.parent.name == "snapshots":
        roots.append(inside.parent.parent / "blobs")
    for file in sorted({f for pattern in READ for f in folder.glob(pattern)}):
        real = file.resolve()
        if not any(real.is_relative_to(root) for root in roots):
            raise LoadError(
                f"{file} is a link out of its folder",
                expected=f"a file inside {folder}",
                got="a link to another place",
                do="copy the file into the folder if you trust it",
            )


def headers(files: list[Path]) -> list[Stored]:
    """Every tensor of some safetensors files, from their headers alone. LoadError for headers that cannot be true."""
    return [tensor for file in files for tensor in _header(file)]


def check_finite(files: list[Path]) -> None:
    """Reads every number once, in pieces. LoadError for a file that is cut short, or that holds NaN or infinity."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    for piece in _pieces(tensors, name):
                        low, high = torch.aminmax(piece)  # NaN comes through; many times as fast as isfinite
                        if not bool(torch.isfinite(low) & torch.isfinite(high)):
                            raise LoadError(
                                f"{file} holds NaN or infinite numbers",
                                expected="finite weights",
                                got=f"{int((~torch.isfinite(piece)).sum())} of {piece.numel()} in {name}",
                                do="fetch or train the weights again",
                            )
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, str(error)) from error


def fingerprint(folder: Path) -> str:
    """sha256 over the names and bytes of the weights, the configuration and the tokenizer."""
    total = hashlib.sha256()
    for file in sorted({f for pattern in _HASHED for f in folder.glob(pattern) if f.is_file()}):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.name}\n{digest}\n".encode())
    return total.hexdigest()


def checked(folder: Path) -> str:
    """The fingerprint of a checkpoint whose weights can be trusted to be numbers: check and hash, side by side."""
    files = files_of(folder)
    headers(files)
    with ThreadPoolExecutor(1) as beside:
        found = beside.submit(fingerprint, folder)
        check_finite(files)
        return found.result()


def read_json(file: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{file} cannot be loaded: {error}", expected=f"JSON, {what}") from error
    if not isinstance(found, dict):
        raise LoadError(f"{file} cannot be loaded", expected=f"a JSON object, {what}", got=type(found).__name__)
    return found


def _indexed(index: Path) -> set[str]:
    names = read_json(index, "which file holds which tensor").get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise LoadError(f"{index} cannot be loaded", expected="weight_map: tensor -> file", got=str(names)[:80])
    for name in names.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise LoadError(
                f"{index} names a file that is not beside it",
                expected="names of safetensors files in the same folder",
                got=name,
                do="fetch the checkpoint again",
            )
    return set(names.values())


def _header(file: Path) -> Iterator[Stored]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(HEADER, size - 8):
            raise _unreadable(file, f"a header of {length:,} bytes in a file of {size:,}")
        try:
            table = json.loads(stream.read(length))
        except (ValueError, RecursionError) as error:
            raise _unreadable(file, f"its header is not JSON: {error}") from error
    try:
        for name, entry in table.items():
            if name == "__metadata__":
                continue
            tensor = Stored(name, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
            begin, end = entry["data_offsets"]
            if min(tensor.shape, default=0) < 0 or not 0 <= begin <= end <= size - 8 - length:
                raise _unreadable(file, f"{name} would lie at bytes {begin:,} to {end:,} of {size - 8 - length:,}")
            yield tensor
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(file, f"its header is not one of safetensors: {error}") from error


def _pieces(tensors: Any, name: str) -> Iterator[torch.Tensor]:
    """A tensor's numbers, some rows at a time; nothing for whole numbers."""
    part = tensors.get_slice(name)
    shape = part.get_shape()
    if not str(part.get_dtype()).startswith(("F", "BF")) or math.prod(shape) == 0:
        return
    if not shape or math.prod(shape) <= PIECE:
        yield _plain(tensors.get_tensor(name))
        return
    rows = max(1, PIECE // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        yield _plain(part[start : min(start + rows, shape[0])])


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Eight-bit numbers, which torch cannot compare, as sixteen-bit ones."""
    return tensor.to(torch.bfloat16) if tensor.element_size() == 1 else tensor


def _unreadable(file: Path, why: str) -> LoadError:
    return LoadError(
        f"{file} cannot be read: {why}",
        expected="a whole safetensors file",
        got=f"{file.stat().st_size} bytes",
        do="fetch the weights again",
    )
