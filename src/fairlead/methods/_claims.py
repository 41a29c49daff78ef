"""What the arms of `texts` share: items as rows, the model that turns what holds of a text into a prediction, and the
world of claims it opens, saved as JSON and safetensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairlead.core.claims import Hypothesis, Prediction
from fairlead.core.errors import LoadError
from fairlead.core.keys import content_key
from fairlead.core.types import Item
from fairlead.dictionaries.base import SparseDictionary
from fairlead.features.texts import dictionary
from fairlead.features.texts.predicates import Predicate, Read, Tools, fires, from_json, to_json
from fairlead.features.texts.topics import Topics, topics
from fairlead.methods._logistic import binary
from fairlead.methods._saved import TENSORS, read_json, write_json

Array = Any
NAME = "texts"


@dataclass(frozen=True, eq=False)
class Rows:
    """Items as arrays. `texts` holds the first texts, then, of pairs, the second ones. `y` [n] is 0 and 1 or numbers;
    of classes [n, c]. `covariates` [n, q]."""

    texts: tuple[str, ...]
    kind: str
    classes: tuple[str, ...]
    y: Array
    covariates: Array
    groups: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def n(self) -> int:
        return len(self.groups)

    @property
    def pairs(self) -> bool:
        return self.kind == "pairwise"

    def part(self, at: Array) -> Rows:
        """The rows at `at`."""
        at = np.asarray(at, dtype=np.intp)
        texts = [self.texts[i] for i in (np.concatenate([at, at + self.n]) if self.pairs else at)]
        return replace(self, texts=tuple(texts), y=self.y[at], covariates=self.covariates[at],
                       groups=tuple(self.groups[i] for i in at), parts=tuple(self.parts[i] for i in at))  # fmt: skip

    def differ(self, z: Any) -> Any:
        """Rows of features of `texts` as rows of items: of pairs, first minus second."""
        return z[: self.n] - z[self.n :] if self.pairs else z


def rows(items: Sequence[Item], classes: Sequence[str] = ()) -> Rows:
    """`classes` are those of the fit, so that other items are laid out alike."""
    first = items[0].data if items else {}
    kind = "pairwise" if "texts" in first else _kind([item.data.get("label") for item in items])
    texts = [item.data["texts"][0] if kind == "pairwise" else item.data["text"] for item in items]
    texts += [item.data["texts"][1] for item in items] if kind == "pairwise" else []
    labels = [item.data.get("label") for item in items]
    if kind == "multiclass":
        classes = tuple(classes) or tuple(sorted({str(label) for label in labels}))
        y = np.array([[float(str(label) == c) for c in classes] for label in labels])
    else:
        y = np.array([float(label) if label is not None else 0.0 for label in labels])
    return Rows(
        tuple(texts), kind, tuple(classes), y, np.array([_covariates(item) for item in items]).reshape(len(items), -1),
        tuple(item.cluster for item in items), tuple(str(item.data.get("part", "")) for item in items),
    )  # fmt: skip


def _kind(labels: Sequence[Any]) -> str:
    known = [label for label in labels if label is not None]
    if any(isinstance(label, str) for label in known):
        return "multiclass"
    return "binary" if all(isinstance(label, bool) for label in known) else "numeric"


def _covariates(item: Item) -> list[float]:
    given = item.data.get("covariates") or {}
    return [float(given[k]) for k in sorted(given)] if isinstance(given, Mapping) else [float(v) for v in given]


# ---- from what holds of a text to the label


@dataclass(frozen=True, eq=False)
class Model:
    """x [n, f] to a prediction: weights [f, c] and biases [c]; c = 1 but for classes."""

    kind: str
    weights: Array
    bias: Array
    flops: float = 0.0

    def __call__(self, x: Array) -> Array:
        """[n, c]: probabilities (binary, pairwise, multiclass), or values (numeric)."""
        z = np.asarray(x, dtype=np.float64) @ self.weights + self.bias
        if self.kind == "numeric":
            return z
        p = 1.0 / (1.0 + np.exp(-np.clip(z, -40, 40)))
        return p / p.sum(1, keepdims=True) if self.kind == "multiclass" else p


def model(x: Array, y: Array, kind: str, c: float) -> Model:
    """Logistic or linear, with an L2 penalty of 1 / c on standardised inputs. Of pairs, each is joined by its swapped
    twin, so that there is no intercept; of classes, one model each, and their probabilities brought to sum 1."""
    x = np.asarray(x, dtype=np.float64)
    if kind == "numeric":
        return _ridge(x, y, c)
    wanted = y[:, None] if y.ndim == 1 else y
    if kind == "pairwise":
        x, wanted = np.vstack([x, -x]), np.vstack([wanted, 1 - wanted])
    if not x.shape[1]:
        rate = np.clip(wanted.mean(0), 1e-6, 1 - 1e-6)
        return Model(kind, np.zeros((0, wanted.shape[1])), np.log(rate / (1 - rate)))
    found = [binary(torch.from_numpy(x), torch.from_numpy(wanted[:, i]), c) for i in range(wanted.shape[1])]
    bias = np.zeros(len(found)) if kind == "pairwise" else np.array([f.bias for f in found])
    return Model(kind, np.column_stack([f.weight.double().numpy() for f in found]), bias, sum(f.flops for f in found))


def _ridge(x: Array, y: Array, c: float) -> Model:
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-9, scale, np.inf)
    z = (x - mean) / scale
    w = np.linalg.solve(z.T @ z + np.eye(x.shape[1]) / c, z.T @ (y - y.mean())) / scale
    return Model("numeric", w[:, None], np.array([y.mean() - mean @ w]), 2.0 * x.shape[0] * x.shape[1] ** 2)


def loss(made: Model, x: Array, y: Array) -> float:
    """Mean log loss, or mean squared error."""
    p = made(x)
    wanted = y[:, None] if y.ndim == 1 else y
    if made.kind == "numeric":
        return float(((p - wanted) ** 2).mean())
    p = np.clip(p, 1e-6, 1 - 1e-6)
    both = wanted * np.log(p) + (0.0 if made.kind == "multiclass" else (1 - wanted) * np.log(1 - p))
    return float(-both.sum(1).mean())


# ---- the world


@dataclass(frozen=True, eq=False)
class Source:
    """Where an arm's features come from: predicates; columns of a dictionary or of topics; or the embedding itself."""

    predicates: tuple[Predicate, ...] = ()
    levels: dictionary.Levels | None = None
    topics: Topics | None = None
    columns: tuple[int, ...] = ()
    dense: bool = False

    async def features(self, read: Read) -> Array:
        """[texts, f]"""
        if self.dense:
            return np.asarray(await read.rows(), dtype=np.float64)
        if self.topics is not None:
            return self.topics.encode(read.texts)[:, list(self.columns)].toarray()
        if self.levels is not None:
            return dictionary.encode(self.levels, await read.rows())[:, list(self.columns)].toarray()
        if not self.predicates:
            return np.zeros((len(read.texts), 0))
        return np.column_stack([await fires(p, read) for p in self.predicates]).astype(np.float64)


@dataclass(frozen=True, eq=False)
class World:
    """Claims about texts, and what they predict (`core.claims`)."""

    embedder: Any
    annotator: Any
    fitted: FittedClaims

    def claims(self) -> tuple[Hypothesis, ...]:
        return self.fitted.hypotheses

    async def predict(self, item: Item) -> Prediction:
        return (await self.predict_all([item]))[0]

    async def predict_all(self, items: Sequence[Item]) -> list[Prediction]:
        """As `predict`, for many at once."""
        fitted = self.fitted
        found = rows(items, fitted.classes)
        read = Read(found.texts, Tools(self.embedder, self.annotator))
        x = found.differ(await fitted.source.features(read))
        said = fitted.model(np.hstack([x, found.covariates]))
        fired = np.zeros((len(items), 0)) if fitted.source.dense else x
        return [self._prediction(p, tuple(float(v) for v in f)) for p, f in zip(said, fired, strict=True)]

    def _prediction(self, p: Array, fired: tuple[float, ...]) -> Prediction:
        if self.fitted.model.kind == "numeric":
            return Prediction(value=float(p[0]), fired=fired)
        if self.fitted.model.kind == "multiclass":
            classes = {c: float(v) for c, v in zip(self.fitted.classes, p, strict=True)}
            return Prediction(classes=classes, fired=fired)
        return Prediction(p=float(p[0]), fired=fired)


@dataclass(frozen=True, eq=False)
class FittedClaims:
    """A fitted arm of `texts`."""

    arm: str
    source: Source
    model: Model
    classes: tuple[str, ...]
    hypotheses: tuple[Hypothesis, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        parts = [] if self.source.levels is None else [p.fingerprint for p in self.source.levels.parts]
        return content_key([self.arm, [asdict(h) for h in self.hypotheses], list(self.source.columns), parts,
                            self.model.weights.tolist(), self.model.bias.tolist(), list(self.classes)])  # fmt: skip

    @contextmanager
    def open(self, subject: Any) -> Iterator[World]:
        """`subject` is an embedder, or has one in `.embedder`; `.annotator` where a language model is asked."""
        yield World(getattr(subject, "embedder", subject), getattr(subject, "annotator", None), self)

    def describe(self) -> dict[str, Any]:
        return {"arm": self.arm, **self.about, "hypotheses": [asdict(h) for h in self.hypotheses]}

    def save(self, path: Path) -> None:
        from safetensors.numpy import save_file

        source, tensors = self.source, {"weights": self.model.weights, "bias": self.model.bias}
        settings = []
        for i, part in enumerate(source.levels.parts if source.levels is not None else ()):
            settings.append({"name": part.name, "activation": part.activation, "k": part.k})
            for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "max_activation"):
                if (tensor := getattr(part, name)) is not None:
                    tensors[f"{i}.{name}"] = tensor.contiguous().numpy()
        if source.topics is not None:
            tensors |= {"topics.idf": source.topics.idf, "topics.parts": source.topics.parts}
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path / TENSORS)
        write_json(path, NAME, {
            "arm": self.arm, "kind": self.model.kind, "classes": self.classes, "about": self.about,
            "predicates": [to_json(p) for p in source.predicates], "columns": source.columns,
            "dense": source.dense, "levels": settings, "hypotheses": [asdict(h) for h in self.hypotheses],
            "levels_kind": "" if source.levels is None else source.levels.kind,
            "topics": None if source.topics is None else list(source.topics.terms.terms),
        })  # fmt: skip


def load(path: Path) -> FittedClaims:
    """What `save` left. LoadError where it is broken."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    data = read_json(path, NAME)
    try:
        tensors = load_file(path / TENSORS)
        parts = []
        for i, settings in enumerate(data["levels"]):
            mine: dict[str, Any] = {
                k.partition(".")[2]: torch.from_numpy(v) for k, v in tensors.items() if k.startswith(f"{i}.")
            }
            parts.append(SparseDictionary(site="", **settings, **mine))
        held = None
        if data["topics"] is not None:
            held = topics(data["topics"], tensors["topics.idf"], tensors["topics.parts"])
        source = Source(
            tuple(from_json(p) for p in data["predicates"]),
            dictionary.Levels(data["levels_kind"], tuple(parts)) if parts else None,
            held, tuple(int(c) for c in data["columns"]), bool(data["dense"]),
        )  # fmt: skip
        made = Model(str(data["kind"]), tensors["weights"], tensors["bias"])
        hypotheses = tuple(Hypothesis(**h) for h in data["hypotheses"])
        if not all(math.isfinite(h.weight) for h in hypotheses):
            raise ValueError("a weight is not finite")
        return FittedClaims(str(data["arm"]), source, made, tuple(data["classes"]), hypotheses, dict(data["about"]))
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise LoadError("fitted hypotheses cannot be read", expected=str(path), got=str(error)) from error
