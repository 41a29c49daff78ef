"""Files of other people's dictionaries, read without running anything that lies in them.

safetensors, npz and torch's zip files are memory-mapped: a matrix that is only asked for a few rows is never
copied. Pickles go through torch's weights-only reader, which knows tensors and containers and no code; npz
arrays of objects are refused. What a header promises is compared with the size of the file before memory is
asked for. Everything wrong is a LoadError.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fairlead.core.errors import LoadError

_JSON_LIMIT = 1 << 26  # bytes; settings are kilobytes
_CHUNK = 1 << 22  # numbers checked at once
_INFLATED = 64  # a compressed array may be this many times the file; weights hardly compress
_KEPT = (torch.float32, torch.float16, torch.bfloat16)
_AGAIN = "fetch the file again; it may be truncated"


def inside(folder: Path, name: str) -> Path:
    """`folder/name`, which must lie in the folder once links are followed. The links of a Hugging Face cache
    (`snapshots/REVISION/file` to `blobs/...`) stay inside their repository's own folder and are fine."""
    path = folder / name
    real, roots = path.resolve(), [folder.resolve()]
    roots += [parent.parent.resolve() for parent in folder.absolute().parents if parent.name == "snapshots"]
    if folder.name == "snapshots":
        roots.append(folder.parent.resolve())
    if not any(real.is_relative_to(root) for root in roots):
        raise LoadError(
            f"{path} is a link out of its folder",
            expected=f"a file inside {folder}",
            got=str(real),
            do="put the file itself there, or name its real folder",
        )
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`."""
    if not path.is_file():
        raise LoadError(f"no {path.name} at {path.parent}", expected=path.name, got="no such file")
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise ValueError(f"{path.stat().st_size:,} bytes are too many for settings")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise LoadError(f"{path} cannot be read as JSON", got=str(error), do="fetch the file again") from error
    if not isinstance(found, dict):
        raise LoadError(f"{path} is not a JSON object", expected="{...}", got=type(found).__name__)
    return found


def table(cfg: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """The JSON object under `key`, empty when absent."""
    found = cfg.get(key) or {}
    if not isinstance(found, dict):
        raise LoadError(f"{path}: {key} is not an object", expected="{...}", got=repr(found)[:80])
    return found


def whole(cfg: Mapping[str, Any], key: str, path: Path, default: int | None = None) -> int | None:
    """The whole number above 0 under `key`, or `default` when absent."""
    found = cfg.get(key)
    if found is None:
        return default
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise LoadError(f"{path}: {key} is not a whole number above 0", expected="1, 2, ...", got=repr(found)[:80])
    return found


def number(cfg: Mapping[str, Any], key: str, path: Path) -> float:
    """The finite number under `key`."""
    found = cfg.get(key)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise LoadError(f"{path}: {key} is not a number", expected="a finite number", got=repr(found)[:80])
    return float(found)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped, finite."""
    _exists(path)
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise LoadError(f"{path} is not a whole safetensors file", got=str(error)[:200], do=_AGAIN) from error
    return _finite(found, path)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch pickle; a dictionary inside the dictionary ("state_dict", "ae", "sae") is unwrapped.

    Read twice: once for shapes alone, so that a tensor that promises more than the file holds is refused
    before any memory is asked for, then memory-mapped where the file is a zip."""
    _exists(path)
    promised, size = _unpickled(path, "meta", mmap=False), path.stat().st_size
    for label, tensor in promised.items():
        if tensor.numel() * tensor.element_size() > size:
            raise LoadError(
                f"{label} in {path} promises more than the file holds",
                expected=f"at most {size:,} bytes",
                got=f"{tuple(tensor.shape)} {tensor.dtype}",
                do=_AGAIN,
            )
    return _finite(_unpickled(path, "cpu", mmap=zipfile.is_zipfile(path)), path)


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an npz file, memory-mapped where they are stored uncompressed, finite."""
    _exists(path)
    found: dict[str, Tensor] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    found[entry.filename.removesuffix(".npy")] = _array(member, entry, path)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise LoadError(f"{path} is not a whole npz file", got=str(error)[:200], do=_AGAIN) from error
    return _finite(found, path)


def need(tensors: Mapping[str, Tensor], keys: Iterable[str], path: Path) -> None:
    """LoadError unless every key is there."""
    wanted = list(keys)
    missing = [key for key in wanted if key not in tensors]
    if missing:
        held = ", ".join(map(str, sorted(map(str, tensors))[:20])) or "nothing"
        raise LoadError(f"{path} lacks {', '.join(missing)}", expected=", ".join(wanted), got=held)


def matrix(tensors: Mapping[str, Tensor], key: str, path: Path) -> Tensor:
    """A matrix as it is stored: float32, float16 and bfloat16 are kept, other types become float32."""
    found = tensors[key]
    if found.ndim != 2:
        raise LoadError(f"{key} in {path} is not a matrix", expected="two dimensions", got=str(tuple(found.shape)))
    return found if found.dtype in _KEPT else found.to(torch.float32)


def vector(tensors: Mapping[str, Tensor], key: str, path: Path, length: int | None = None) -> Tensor:
    """A vector in float32; one number is repeated when `length` is given."""
    found = tensors[key].to(torch.float32)
    if found.ndim == 0 and length is not None:
        return found.expand(length).clone()
    if found.ndim != 1:
        raise LoadError(f"{key} in {path} is not a vector", expected="one dimension", got=str(tuple(found.shape)))
    return found


def agree(path: Path, sizes: Mapping[str, tuple[Any, int]]) -> None:
    """LoadError where the settings beside the weights promise another size than the weights have."""
    for label, (said, size) in sizes.items():
        if said is not None and said != size:
            raise LoadError(
                f"{path}: settings and weights disagree on {label}",
                expected=str(said)[:80],
                got=str(size),
                do="fetch both files again, from one folder",
            )


def _exists(path: Path) -> None:
    if not path.is_file():
        raise LoadError(f"no weights at {path}", expected=path.name, got="no such file")


def _finite(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for label, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        rows = tensor if tensor.ndim > 1 else tensor.reshape(1, -1)
        step = max(1, _CHUNK // max(1, rows[0].numel())) if len(rows) else 1
        for piece in rows.split(step):
            wide = piece if piece.dtype in _KEPT or piece.dtype == torch.float64 else piece.float()
            if not bool(torch.isfinite(wide).all()):
                raise LoadError(
                    f"{label} in {path} holds NaN or infinity", expected="finite numbers", do="fetch the file again"
                )
    return tensors


def _unpickled(path: Path, device: str, *, mmap: bool) -> dict[str, Tensor]:
    try:
        held = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except Exception as error:  # the reader raises many kinds; each means: not plain tensors, or not whole
        hostile = "global" in str(error).lower() or "unsupported" in str(error).lower()
        raise LoadError(
            f"{path} holds code or objects, not tensors alone" if hostile else f"{path} is not a whole torch file",
            expected="a pickle of tensors, dictionaries and numbers",
            got=str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__,
            do="do not load it by other means; ask its author for safetensors" if hostile else _AGAIN,
        ) from error
    return _state(held, path)


def _state(held: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(held, Mapping):
        raise LoadError(f"{path} is not a state dictionary", expected="names and tensors", got=type(held).__name__)
    for key in ("state_dict", "ae", "sae", "model"):
        if isinstance(held.get(key), Mapping):
            held = held[key]
    found = {str(key): value.detach() for key, value in held.items() if isinstance(value, Tensor)}
    sparse = [key for key, value in found.items() if value.layout != torch.strided or value.is_quantized]
    if sparse or not found:
        raise LoadError(f"{path} holds no plain tensors", expected="dense tensors", got=", ".join(sparse) or "none")
    return found


def _array(member: Any, entry: zipfile.ZipInfo, path: Path) -> Tensor:
    """One array of an npz, its header read and checked before its data."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = read(member)
    if kind.hasobject or kind.kind not in "fiu":
        raise LoadError(
            f"{entry.filename} in {path} holds objects, not numbers", expected="an array of floats", got=str(kind)
        )
    start, length = member.tell(), math.prod(shape) * kind.itemsize
    if start + length != entry.file_size or entry.file_size > max(_CHUNK, _INFLATED * path.stat().st_size):
        raise LoadError(
            f"{entry.filename} in {path} promises more than the file holds",
            expected=f"{entry.file_size - start:,} bytes",
            got=f"{shape} {kind}: {length:,} bytes",
            do=_AGAIN,
        )
    order: Any = "F" if fortran else "C"
    if entry.compress_type == zipfile.ZIP_STORED and length:
        offset = _data_offset(path, entry) + start
        if offset + length > path.stat().st_size:
            raise LoadError(f"{path} ends within {entry.filename}", expected=f"{offset + length:,} bytes", do=_AGAIN)
        array: Any = np.memmap(path, dtype=kind, mode="c", offset=offset, shape=shape, order=order)
    else:
        array = np.frombuffer(bytearray(member.read(length)), dtype=kind).reshape(shape, order=order)
    native = array if kind.isnative else array.astype(kind.newbyteorder("="))
    return torch.from_numpy(native)


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: behind its local header, whose name and extra field may differ."""
    with path.open("rb") as raw:
        return _after_header(raw, entry.header_offset)


def _after_header(raw: BinaryIO, offset: int) -> int:
    raw.seek(offset + 26)
    lengths = raw.read(4)
    return offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
