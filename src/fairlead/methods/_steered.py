"""A fitted set of edits that carries all it needs: the edits, the dictionary rows and vectors they name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fairlead import steering
from fairlead.core.errors import LoadError
from fairlead.core.keys import content_key
from fairlead.features import excerpt
from fairlead.methods._saved import TENSORS, read_json, write_json
from fairlead.steering import Edit

WHOLE = "dictionary"


@dataclass(frozen=True, eq=False)
class Steered:
    """Opens a subject with `edits` applied, or as it is where there are none.

    `rows` is an Excerpt or a whole dictionary (None: no latent is named), `vectors` are [d] by name, and
    `about` is what `describe` tells beside the edit; `sample` [n, d] are activations in the edits' scope, for
    controls that must match the size of the change.
    """

    method: str
    edits: tuple[Edit, ...]
    rows: Any = None
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    sample: Tensor | None = None

    @property
    def fingerprint(self) -> str:
        dictionary = None if self.rows is None else self.rows.fingerprint
        vectors = {name: tensor_hash(v) for name, v in sorted(self.vectors.items())}
        return content_key([self.method, steering.to_json(self.edits), dictionary, vectors])

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        if not self.edits:
            return nullcontext(subject)
        return nullcontext(steering.apply(subject, self.edits, self.rows, self.vectors))

    def as_edits(self) -> tuple[tuple[Edit, ...], Any, Mapping[str, Tensor]]:
        """(edits, dictionary rows, vectors): all there is to it, so that a server may run it beside others."""
        return self.edits, self.rows, self.vectors

    def describe(self) -> dict[str, Any]:
        return {"edit": steering.format(self.edits), **self.about}

    def save(self, path: Path) -> None:
        tensors = {f"vector.{name}": v.contiguous() for name, v in self.vectors.items()}
        tensors |= save_rows(self.rows, path) | ({} if self.sample is None else {"sample": self.sample})
        data = {"edits": steering.to_json(self.edits), "about": dict(self.about), "rows": rows_json(self.rows)}
        write_tensors(tensors, path)
        write_json(path, self.method, data)


def load(path: Path, method: str) -> Steered:
    """The inverse of `Steered.save`. LoadError when a file is missing, truncated or another method's."""
    data = read_json(path, method)
    tensors = read_tensors(path)
    vectors = {n.removeprefix("vector."): t for n, t in tensors.items() if n.startswith("vector.")}
    edits = steering.from_json(data["edits"])
    return Steered(method, edits, load_rows(data["rows"], tensors, path), vectors, data["about"], tensors.get("sample"))


def rows_json(rows: Any) -> Any:
    """What `method.json` says of the dictionary rows: None, WHOLE, or the excerpt's short part."""
    if rows is None:
        return None
    return excerpt.to_json(rows) if isinstance(rows, excerpt.Excerpt) else WHOLE


def save_rows(rows: Any, path: Path) -> dict[str, Tensor]:
    """The excerpt's tensors; a whole dictionary goes to a folder of its own."""
    if isinstance(rows, excerpt.Excerpt):
        return {f"rows.{name}": t for name, t in excerpt.to_tensors(rows).items()}
    if rows is not None:
        excerpt.save_whole(rows, path / WHOLE)
    return {}


def load_rows(data: Any, tensors: Mapping[str, Tensor], path: Path) -> Any:
    if data is None:
        return None
    if data == WHOLE:
        return excerpt.load_whole(path / WHOLE)
    held = {n.removeprefix("rows."): t for n, t in tensors.items() if n.startswith("rows.")}
    return excerpt.from_parts(data, held)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    held = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    (path / TENSORS).write_bytes(safetensors.torch.save(held))


def read_tensors(path: Path) -> dict[str, Tensor]:
    file = path / TENSORS
    try:
        return safetensors.torch.load(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise LoadError("a fitted method's tensors cannot be read", expected=str(file), got=str(error)) from error


def tensor_hash(tensor: Tensor) -> str:
    """sha256 of the numbers, as float32."""
    return hashlib.sha256(tensor.detach().to("cpu").float().contiguous().numpy().tobytes()).hexdigest()
