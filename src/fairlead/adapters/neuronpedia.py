"""A feature store in the layout that Neuronpedia publishes and imports, and that layout read back.

    OUT/MODEL/SOURCE/model.jsonl, release.jsonl, sourceset.jsonl, source.jsonl
                    /features/batch-0.jsonl.gz      one latent a line: density, largest activation, neighbours
                    /activations/batch-0.jsonl.gz   one window a line: tokens, and the latent's value on each
                    /explanations/batch-0.jsonl.gz  one label a line

Field names and files are those of their own exporter (hijohnnylin/neuronpedia, utils, read on 2026-11-28; 1,024
latents a batch). What a store does not hold is empty, as in their own files: logits, histograms, correlations. Ids are
hashes of what they name, so the same store gives the same bytes but for `created`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fairlead.core.errors import FairleadError, LoadError
from fairlead.core.keys import canonical

BATCH = 1024  # latents of one file, as theirs
CREATOR = "fairlead"
MOST = 2**31  # bytes that one file may unpack to
_EMPTY = (
    "vector", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1", "correlated_features_indices",
    "correlated_features_pearson", "correlated_features_l1", "neg_str", "neg_values", "pos_str", "pos_values",
    "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "decoder_weights_dist",
)  # fmt: skip


@dataclass(frozen=True)
class Window:
    """Tokens in a row and one latent's activation on each."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Feature:
    """One latent as Neuronpedia has it. `neighbours` are (latent, cosine) pairs; `labels` its explanations."""

    index: int
    density: float
    largest: float
    neighbours: tuple[tuple[int, float], ...] = ()
    windows: tuple[Window, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What was read: one dictionary of one model, its latents by number."""

    model: str
    id: str
    features: dict[int, Feature] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What was written. `labels` counts those that hold on held-out windows; the others are left out."""

    path: str
    model: str
    source: str
    features: int
    windows: int
    labels: int


def export(
    store: Path, out: Path, *, model: str | None = None, source: str | None = None, release: str = "fairlead",
    threshold: float | None = None, created: datetime | None = None,
) -> Exported:  # fmt: skip
    """The store at `store` under OUT/MODEL/SOURCE, which must be new. `model` and `source` are Neuronpedia's ids;
    without them they are made of the store's own names (`shopper-s`, `1-resid-fairlead`). Labels come from labels.jsonl
    beside the store, those whose AUROC on held-out windows is at least `threshold` (default: the house's)."""
    from fairlead.features import labels
    from fairlead.features.index import Index
    from fairlead.features.store import Store

    opened = Store(store)
    index = Index(opened)
    model = model or _id(opened.header.model.rpartition("/")[2])
    source = source or _source_id(opened.header.site)
    for name in (model, source, release):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise FairleadError("not an id of Neuronpedia's", expected="letters, digits, . _ -", got=name[:80])
    home = out / model / source
    if home.exists():
        raise FairleadError(f"{home} is there already", do="choose another directory, or remove this one")
    file = store / "labels.jsonl"
    said = labels.read(file)[1] if file.is_file() else {}
    limit = labels.THRESHOLD if threshold is None else threshold
    when = (created or datetime.now(UTC)).isoformat()
    base = {"modelId": model, "layer": source, "creatorId": CREATOR, "createdAt": when}
    for part in ("features", "activations", "explanations"):
        (home / part).mkdir(parents=True)
    _write_about(home, opened.header, model, source, release, when)
    windows = kept = 0
    for number, first in enumerate(range(0, opened.n_features, BATCH)):
        block = range(first, min(first + BATCH, opened.n_features))
        acts = [row for i in block for row in _activations(opened, index, i, base)]
        told = [_explanation(said[i], base) for i in block if i in said and said[i].holds(limit)]
        _pack(home / "features" / f"batch-{number}.jsonl.gz", (_feature(index, i, base) for i in block))
        _pack(home / "activations" / f"batch-{number}.jsonl.gz", acts)
        if told:
            _pack(home / "explanations" / f"batch-{number}.jsonl.gz", told)
        windows, kept = windows + len(acts), kept + len(told)
    return Exported(str(home), model, source, opened.n_features, windows, kept)


def read(folder: Path) -> Source:
    """A source in Neuronpedia's layout: ours, or one that they publish. LoadError for what is no such thing."""
    about = next(iter(_lines(folder / "source.jsonl")), {})
    feature_files = sorted((folder / "features").glob("batch-*.jsonl*"))
    if not feature_files or "modelId" not in about:
        raise LoadError(
            f"{folder} is no source of Neuronpedia's", expected="source.jsonl and features/batch-*.jsonl.gz"
        )
    windows: dict[int, list[Window]] = {}
    said: dict[int, list[str]] = {}
    features: dict[int, Feature] = {}
    try:
        for row in _all(folder / "activations"):
            tokens, values = tuple(map(str, row["tokens"])), tuple(map(float, row["values"]))
            if len(tokens) != len(values):
                raise ValueError(f"{len(tokens)} tokens with {len(values)} values")
            windows.setdefault(int(row["index"]), []).append(Window(tokens, values))
        for row in _all(folder / "explanations"):
            said.setdefault(int(row["index"]), []).append(str(row["description"]))
        for row in _all(folder / "features"):
            i = int(row["index"])
            near = zip(row.get("topkCosSimIndices") or (), row.get("topkCosSimValues") or (), strict=True)
            features[i] = Feature(
                i, float(row["frac_nonzero"]), float(row["maxActApprox"]), tuple((int(j), float(c)) for j, c in near),
                tuple(windows.get(i, ())), tuple(said.get(i, ())),
            )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{folder} holds a line that cannot be read", got=f"{type(error).__name__}: {error}") from error
    return Source(str(about["modelId"]), str(about.get("id", folder.name)), features)


def save_labels(found: Source, out: Path) -> int:
    """Their explanations as a labels file of a feature store (`fairlead features show` reads it as DIR/labels.jsonl).
    They were not scored on this store's windows: `held` is empty, so none of them counts as one that holds."""
    from fairlead.features.labels import Label

    rows = [Label(f.index, f.labels[0], "neuronpedia", (), None, {}) for f in found.features.values() if f.labels]
    lines = [canonical({"from": "neuronpedia", "model": found.model, "source": found.id})]
    lines += [canonical(asdict(row)) for row in sorted(rows, key=lambda row: row.latent)]
    if out.exists():
        raise FairleadError(f"{out} is there already", do="choose another file: labels are never written over")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(rows)


def _write_about(home: Path, header: Any, model: str, source: str, release: str, when: str) -> None:
    made = {"creatorId": CREATOR, "createdAt": when}
    set_name = source.partition("-")[2]
    about = f"{header.dictionary} of {header.model}, read by Fairlead on {header.tokens} tokens"
    files = {
        "model": {"id": model, "instruct": False, "displayNameShort": model, "displayName": header.model,
                  "updatedAt": when, **made},
        "release": {"name": release, "description": about, "descriptionShort": release, "urls": [],
                    "creatorNameShort": CREATOR, "creatorName": CREATOR, **made},
        "sourceset": {"modelId": model, "name": set_name, "creatorName": CREATOR, "releaseName": release,
                      "description": about, "visibility": "PRIVATE", **made},
        "source": {"modelId": model, "setName": set_name, "id": source, "visibility": "PRIVATE", "dataset": "",
                   "num_prompts": header.sequences, "num_tokens_in_prompt": None, "hfRepoId": None, "hfFolderId": None,
                   "creatorId": CREATOR},
    }  # fmt: skip
    for name, row in files.items():
        (home / f"{name}.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")


def _feature(index: Any, latent: int, base: dict[str, Any]) -> dict[str, Any]:
    near: list[tuple[int, float]] = []
    if hasattr(index, "neighbours"):
        pairs = zip(index.neighbours[latent].tolist(), index.cosines[latent].tolist(), strict=True)
        near = [(int(i), float(c)) for i, c in pairs if i >= 0]
    return {
        **base, "index": str(latent), "sourceSetName": base["layer"].partition("-")[2],
        "maxActApprox": float(index.top_values[latent, 0]), "frac_nonzero": float(index.density[latent]),
        "hasVector": False, "vectorLabel": None, "hookName": None,
        "topkCosSimIndices": [i for i, _ in near], "topkCosSimValues": [c for _, c in near],
        **{name: [] for name in _EMPTY},
    }  # fmt: skip


def _activations(store: Any, index: Any, latent: int, base: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for token in (int(t) for t in index.top[latent] if t >= 0):
        span = store.window(token)
        values = store.activations(latent, span)
        yield {
            **base, "id": _cuid(base["layer"], latent, token), "index": str(latent), "tokens": store.texts(span),
            "values": values, "maxValue": max(values), "minValue": min(values),
            "maxValueTokenIndex": values.index(max(values)), "dataSource": None, "dfaValues": [], "dfaMaxValue": None,
            "dfaTargetIndex": None, "lossValues": [], "logitContributions": None, "binContains": None, "binMin": None,
            "binMax": None,
        }  # fmt: skip


def _explanation(label: Any, base: dict[str, Any]) -> dict[str, Any]:
    about = {k: v for k, v in base.items() if k != "creatorId"}
    return {
        **about, "id": _cuid(base["layer"], label.latent, label.text), "index": str(label.latent),
        "description": label.text, "authorId": CREATOR, "typeName": f"fairlead_{label.kind}",
        "explanationModelName": None, "embedding": None, "umap_x": 0, "umap_y": 0, "umap_cluster": 0,
        "umap_log_feature_sparsity": 0,
    }  # fmt: skip


def _cuid(*parts: object) -> str:
    return "c" + hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _id(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def _source_id(site: str) -> str:
    """resid.1 is `1-resid-fairlead`: theirs begin with the layer."""
    kind, _, layer = site.rpartition(".")
    return f"{layer}-{kind.replace('_', '-')}-fairlead"


def _pack(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode("utf-8", "replace"), mtime=0))


def _all(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("batch-*.jsonl*"), key=lambda f: (len(f.name), f.name)):
        yield from _lines(file)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        data = file.read_bytes()
        if file.suffix == ".gz":
            unpack = zlib.decompressobj(31)
            data = unpack.decompress(data, MOST)
            if not unpack.eof:
                raise ValueError("it is cut off, or unpacks to more than 2 GiB")
        for line in filter(None, data.decode("utf-8").split("\n")):
            row = json.loads(line, parse_constant=_no_constant)
            if not isinstance(row, dict):
                raise ValueError("a line is no JSON object")
            yield row
    except (OSError, ValueError, zlib.error, RecursionError) as error:
        raise LoadError(f"{file} cannot be read", expected="JSON lines as Neuronpedia writes them",
                        got=str(error)) from error  # fmt: skip


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
