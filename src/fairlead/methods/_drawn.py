"""A control that is drawn afresh for every item: random live latents, or noise, of the same size as an edit."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairlead import steering
from fairlead.core.errors import FairleadError
from fairlead.core.keys import content_key, derive_seed
from fairlead.core.types import Item
from fairlead.features.change import is_open, norm
from fairlead.methods._saved import read_json, write_json
from fairlead.methods._steered import load_rows, read_tensors, rows_json, save_rows, tensor_hash, write_tensors
from fairlead.steering import Edit, Latent, Op, StoredVector

Draw = tuple[tuple[Edit, ...], dict[str, Tensor]]  # edits, and the vectors they name


@dataclass(frozen=True, eq=False)
class Drawn:
    """Opens a world in which item i gets draw(i), seeded by `seed` and the item's id alone.

    `template` are the edits to match; `rows` hold their latents and those of `pools`; `pools[e]` are the
    latents that may stand for edit e (empty: noise); `sample` [n, d] are activations that sizes are
    measured on; `size` is the template's mean ‖Δh‖ there.
    """

    kind: str
    template: tuple[Edit, ...]
    rows: Any
    pools: tuple[tuple[int, ...], ...]
    sample: Tensor
    size: float
    seed: int
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        edits = steering.to_json(self.template)
        parts = [self.kind, edits, self.rows.fingerprint, self.pools, self.size, self.seed, tensor_hash(self.sample)]
        return content_key(parts)

    def open(self, subject: Any) -> AbstractContextManager[Any]:
        return nullcontext(PerItem(subject, self))

    def draw(self, item: str) -> Draw:
        """The edits of one item, with mean ‖Δh‖ = `size` on the sample."""
        seed = derive_seed(self.seed, item)
        return self._noise(seed) if self.kind == "noise" else (self._latents(random.Random(seed)), {})

    def _noise(self, seed: int) -> Draw:
        """One direction per edit, at its tokens, as long there as what the edit writes on average."""
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(len(self.template), self.sample.shape[1], generator=generator)
        names = [f"noise_{seed:x}_{i}" for i in range(len(self.template))]
        return in_place_of(self.template, self.rows, self.sample, self.size, directions, names)

    def _latents(self, rng: random.Random) -> tuple[Edit, ...]:
        drawn: list[Edit] = []
        for edit, pool in zip(self.template, self.pools, strict=True):
            taken = {e.direction for e in drawn}
            other = rng.choice([i for i in pool if Latent(i) not in taken])
            drawn.append(self._in_place_of(edit, other))
        factor = self.size / norm(drawn, self.rows, self.sample)
        return tuple(_times(edit, factor) for edit in drawn)

    def _in_place_of(self, edit: Edit, latent: int) -> Edit:
        """The same operation on another latent, of the same size: an added amount keeps its sign; a clamp or
        scaling becomes a scaling, since another latent's activation is another number."""
        other = replace(edit, direction=Latent(latent), unit="raw")
        if edit.op is Op.ADD:
            unit = replace(other, value=1.0)
            sign = 1.0 if edit.value > 0 else -1.0
            return replace(other, value=sign * self._size(edit) / self._size(unit))
        whole = replace(other, op=Op.SCALE, value=0.0)  # takes all of it away
        return replace(whole, value=1.0 - self._size(edit) / max(self._size(whole), 1e-6))

    def _size(self, edit: Edit) -> float:
        return norm((edit,), self.rows, self.sample)

    def describe(self) -> dict[str, Any]:
        examples = [steering.format(self.draw(f"example/{i}")[0]) for i in range(3)]
        return {"edit": f"drawn per item, e.g. {examples[0]}", "examples": examples, "size": self.size, **self.about}

    def save(self, path: Path) -> None:
        write_tensors({"sample": self.sample, **save_rows(self.rows, path)}, path)
        write_json(path, "control", {
            "kind": self.kind, "template": steering.to_json(self.template), "rows": rows_json(self.rows),
            "pools": [list(p) for p in self.pools], "size": self.size, "seed": self.seed, "about": dict(self.about),
        })  # fmt: skip


def in_place_of(
    template: Sequence[Edit], rows: Any, sample: Tensor, size: float, directions: Tensor, names: Sequence[str]
) -> Draw:
    """One of `directions` [e, d] added in the place of every edit, at its tokens and behind its gate, as long there as
    what the edit writes on average, and all together with mean ‖Δh‖ = `size` on the sample."""
    always = torch.ones(len(sample))
    where = torch.stack([always if e.gate.when is None else is_open(e, rows, sample) for e in template], dim=1)
    lengths = torch.tensor([norm((e,), rows, sample) for e in template]) / where.mean(0).clamp_min(1e-6)
    directions = directions * (lengths / directions.norm(dim=1))[:, None]
    directions = directions * (size / float((where @ directions).norm(dim=1).mean()))
    edits = tuple(
        Edit(StoredVector(name), Op.ADD, 1.0, site=rows.site, scope=e.scope, gate=e.gate)
        for name, e in zip(names, template, strict=True)
    )
    return edits, dict(zip(names, directions, strict=True))


def load(path: Path) -> Drawn:
    """The inverse of `Drawn.save`."""
    data, tensors = read_json(path, "control"), read_tensors(path)
    return Drawn(
        data["kind"], steering.from_json(data["template"]), load_rows(data["rows"], tensors, path),
        tuple(tuple(p) for p in data["pools"]), tensors["sample"], data["size"], data["seed"], data["about"],
    )  # fmt: skip


def _times(edit: Edit, factor: float) -> Edit:
    value = edit.value * factor if edit.op is Op.ADD else 1.0 + (edit.value - 1.0) * factor
    return replace(edit, value=value)


class PerItem:
    """A world that differs from item to item; `for_items` gives one in which a batch of them runs in lockstep."""

    def __init__(self, subject: Any, drawn: Drawn) -> None:
        self.subject, self.drawn = subject, drawn
        self.name, self.meter = subject.name, subject.meter
        self.fingerprint = content_key([subject.fingerprint, drawn.fingerprint])

    def for_items(self, items: Sequence[Item]) -> Chunk:
        """The world of these items: seat i is item i's."""
        draws = [self.drawn.draw(item.id) for item in items]
        vectors = {name: v for _, named in draws for name, v in named.items()}
        engine = steering.compile_sets(
            [edits for edits, _ in draws], self.drawn.rows, vectors,
            d_model=self.subject.d_model, n_layers=self.subject.n_layers,
        )  # fmt: skip
        edited = self.subject.edited(engine.hooks, engine.fingerprint, engine.reports, engine.flops_per_token)
        return Chunk(edited)

    def prompted(self, system: str) -> PerItem:
        return PerItem(self.subject.prompted(system), self.drawn)

    def seat(self, order: int) -> Any:
        raise FairleadError(f"seat {order} of a world that differs by item", do="call for_items(items) first")


class Chunk:
    """The items' rows of one edited subject: seat i reads with slot i + 1."""

    def __init__(self, subject: Any) -> None:
        self.subject = subject

    def seat(self, order: int) -> Any:
        return self.subject.seat(order, slot=order + 1)
