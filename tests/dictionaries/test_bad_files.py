"""Broken and hostile files of every format: one message that says why, nothing executed, no memory asked for."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.dictionaries.layouts import NINE, Written, write

from fairlead import dictionaries
from fairlead.core.errors import LoadError

PICKLES = ("goodfire", "qwen-scope", "dictionary-learning")
HUGE = 10_000_000_000  # numbers: 40 GB of float32


def weights(written: Written) -> Path:
    """The one file that holds the tensors."""
    ref = Path(written.ref)
    if ref.is_file():
        return ref
    kinds = (".safetensors", ".npz", ".pt", ".pth")
    return next(p for p in sorted(ref.rglob("*")) if p.suffix in kinds)


def opened(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return {key: value.clone() for key, value in load_file(path).items()}
    if path.suffix == ".npz":
        return {key: torch.from_numpy(value) for key, value in np.load(path).items()}
    return dict(torch.load(path, weights_only=True))


def closed(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in tensors.items()})
    else:
        torch.save(tensors, path)


def largest(tensors: dict[str, torch.Tensor]) -> str:
    return max(tensors, key=lambda key: tensors[key].numel())


def bias(tensors: dict[str, torch.Tensor]) -> str:
    """The encoder's bias, under whatever name."""
    return next(k for k in ("b_enc", "encoder.bias", "encoder_linear.bias") if k in tensors)


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def poisoned(path: Path) -> None:
    tensors = opened(path)
    tensors[largest(tensors)].view(-1)[7] = float("nan")
    closed(path, tensors)


def narrowed(path: Path) -> None:
    tensors = opened(path)
    key = bias(tensors)
    closed(path, {**tensors, key: tensors[key][:-1].clone()})


def dropped(path: Path) -> None:
    tensors = opened(path)
    closed(path, {key: value for key, value in tensors.items() if key != bias(tensors)})


def promising(path: Path) -> None:
    """A header that speaks of 40 GB."""
    if path.suffix == ".safetensors":
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        key = next(k for k in header if k != "__metadata__")
        header[key] |= {"shape": [HUGE], "data_offsets": [0, 4 * HUGE]}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8:])
    elif path.suffix == ".npz":
        arrays = dict(np.load(path))
        with zipfile.ZipFile(path, "w") as archive:
            for key, value in arrays.items():
                raw = io.BytesIO()
                shape = (HUGE,) if key == "W_enc" else value.shape
                np.lib.format.write_array_header_1_0(raw, {"descr": "<f4", "fortran_order": False, "shape": shape})
                archive.writestr(f"{key}.npy", raw.getvalue() + value.tobytes())
    else:
        tensors = opened(path)
        key = largest(tensors)
        tiny = torch.zeros(1).expand(HUGE // 100_000, 100_000)  # stored as one number
        closed(path, {**tensors, key: tiny})


BREAKS: dict[str, tuple[Any, str]] = {
    "truncated": (truncated, "not a whole|promises|ends within"),
    "NaN": (poisoned, "holds NaN"),
    "narrow bias": (narrowed, "does not fit W_enc"),
    "missing key": (dropped, "lacks"),
    "40 GB header": (promising, "not a whole|promises more"),
}


@pytest.mark.parametrize("case", BREAKS)
@pytest.mark.parametrize("name", NINE)
def test_broken_weights_are_refused_with_a_reason(name, case, tmp_path):
    written = write(NINE[name], tmp_path)
    dictionaries.load(written.ref)
    do, message = BREAKS[case]
    do(weights(written))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LoadError, match=message) as caught:
        dictionaries.load(written.ref)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert "got:" in str(caught.value) or "expected:" in str(caught.value)


@pytest.mark.parametrize("name", NINE)
def test_a_dictionary_of_another_layer_or_width_is_refused(name, tmp_path):
    written = write(NINE[name], tmp_path, layer=1)
    assert dictionaries.load(f"{written.ref}@resid.1{'#k=6' if name == 'qwen-scope' else ''}").site == "resid.1"
    assert dictionaries.load(f"{written.ref}@resid_pre.2").site == "resid_pre.2"  # the same place by another name
    with pytest.raises(LoadError, match="was not trained at resid.2"):
        dictionaries.load(f"{written.ref}@resid.2")
    with pytest.raises(LoadError, match="width 64"):
        dictionaries.load(written.ref, d_in=64)


@pytest.mark.parametrize("name", [n for n in NINE if n not in ("goodfire", "gemma-scope", "qwen-scope")])
def test_settings_that_contradict_the_weights_are_refused(name, tmp_path):
    written = write(NINE[name], tmp_path)
    path = next(p for p in sorted(Path(written.ref).glob("*.json")))
    cfg = json.loads(path.read_text())
    inner = cfg["trainer"] if "trainer" in cfg else cfg
    changed = {"gemma-scope-2": ("architecture", "topk")}.get(name)
    key = changed[0] if changed else next(k for k in ("d_in", "d_model", "activation_dim") if k in inner)
    inner[key] = changed[1] if changed else 4 * 24
    path.write_text(json.dumps(cfg))
    with pytest.raises(LoadError, match="disagree on|another architecture"):
        dictionaries.load(written.ref)
    path.write_text("{" * 100)
    with pytest.raises(LoadError, match="cannot be read as JSON"):
        dictionaries.load(written.ref)


@pytest.mark.parametrize("name", NINE)
def test_a_link_out_of_the_folder_is_refused(name, tmp_path):
    written = write(NINE[name], tmp_path / "in")
    inside, outside = weights(written), tmp_path / "elsewhere"
    shutil.move(inside, outside)
    os.symlink(outside, inside)
    folder = inside.parent if Path(written.ref).is_file() else Path(written.ref)
    with pytest.raises(LoadError, match="is a link out of its folder"):
        dictionaries.load(folder)


def test_links_of_a_hub_cache_are_followed(tmp_path):
    """snapshots/REVISION/file is a link to blobs/HASH there."""
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc" / "layers.1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    written = write("sparsify", tmp_path / "made")
    for path in Path(written.ref).iterdir():
        shutil.move(path, blobs / path.name)
        os.symlink(blobs / path.name, snapshot / path.name)
    assert dictionaries.load(snapshot).site == "resid.1"
    assert dictionaries.load(f"{snapshot.parent}@resid.1").site == "resid.1"


class Hostile:
    """Unpickled by plain pickle, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("protocol", ["zip", "bare"])
@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_is_refused_and_nothing_runs(name, protocol, tmp_path):
    written, mark = write(NINE[name], tmp_path), tmp_path / "ran"
    path = weights(written)
    tensors = opened(path)
    if protocol == "zip":
        torch.save({**tensors, "more": Hostile(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(LoadError, match="holds code or objects|not a whole torch file"):
        dictionaries.load(written.ref)
    assert not mark.exists()
    torch.load(path, weights_only=False) if protocol == "zip" else pickle.loads(path.read_bytes())
    assert mark.exists()  # it would have


@pytest.mark.parametrize("name", [n for n in NINE if n not in PICKLES])
def test_a_pickle_in_the_place_of_weights_is_refused(name, tmp_path):
    written, mark = write(NINE[name], tmp_path), tmp_path / "ran"
    weights(written).write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(LoadError, match="not a whole"):
        dictionaries.load(written.ref)
    assert not mark.exists()


def test_an_npz_of_objects_is_refused_and_nothing_runs(tmp_path):
    written, mark = write("gemma-scope", tmp_path), tmp_path / "ran"
    path = weights(written)
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "W_enc": np.array([Hostile(mark)], dtype=object)}, allow_pickle=True)
    with pytest.raises(LoadError, match="holds objects, not numbers"):
        dictionaries.load(written.ref)
    assert not mark.exists()


def test_a_compressed_npz_reads_and_a_bomb_does_not(tmp_path):
    written = write("gemma-scope", tmp_path)
    path, before = weights(written), dictionaries.load(written.ref).fingerprint  # read now: the file is mapped
    np.savez_compressed(path, **dict(np.load(path)))
    assert dictionaries.load(written.ref).fingerprint == before
    arrays = dict(np.load(path))
    np.savez_compressed(path, **{**arrays, "W_enc": np.zeros((3000, 4000), dtype=np.float32)})
    with pytest.raises(LoadError, match="promises more than the file holds"):
        dictionaries.load(written.ref)


UNSUPPORTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "inputs normalised per token": ("saelens", {"normalize_activations": "layer_norm"}, "not supported"),
    "inputs rescaled per token": ("saelens", {"normalize_activations": "constant_norm_rescale"}, "not supported"),
    "a scale that is not given": (
        "saelens", {"normalize_activations": "expected_average_only_in"}, "multiplies its inputs by a scale",
    ),
    "heads laid side by side": ("saelens", {"reshape_activations": "hook_z"}, "needs reshape_activations"),
    "temporal": ("saelens", {"architecture": "temporal"}, "unknown architecture"),
    "scaled per token": ("llama-scope", {"norm_activation": "token-wise"}, "normalises every activation by itself"),
    "a norm that is not given": (
        "llama-scope", {"dataset_average_activation_norm": None}, "average norm and does not give it",
    ),
    "a gated linear unit": ("llama-scope", {"use_glu_encoder": True}, "needs use_glu_encoder"),
    "a crosscoder": ("llama-scope-r1", {"sae_type": "crosscoder"}, "not a dictionary of one layer"),
    "groupmax": ("sparsify", {"activation": "groupmax"}, "needs activation"),
    "signed": ("sparsify", {"signed": True}, "needs signed"),
    "k in words": ("sparsify", {"k": "many"}, "not a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_is_said(case, tmp_path):
    name, change, message = UNSUPPORTED[case]
    written = write(name, tmp_path)
    path = next(p for p in sorted(Path(written.ref).glob("*.json")))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(LoadError, match=message):
        dictionaries.load(written.ref)


def test_a_scale_that_is_no_scale_is_refused(tmp_path):
    written = write("saelens/batchtopk training", tmp_path)
    for wrong in (0, -1.0, "1.7"):
        (Path(written.ref) / "activation_scaler.json").write_text(json.dumps({"scaling_factor": wrong}))
        with pytest.raises(LoadError, match="scaling_factor"):
            dictionaries.load(written.ref)


def test_unknown_classes_embeddings_and_folders_are_said(tmp_path):
    written = write("dictionary-learning/AutoEncoder", tmp_path)
    path = Path(written.ref) / "config.json"
    cfg = json.loads(path.read_text())
    path.write_text(json.dumps({"trainer": {**cfg["trainer"], "dict_class": "IdentityDict"}}))
    with pytest.raises(LoadError, match="names an unknown class"):
        dictionaries.load(written.ref)
    embedding = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"
    shutil.copytree(write("gemma-scope", tmp_path).ref, embedding)
    with pytest.raises(LoadError, match="dictionary of embeddings"):
        dictionaries.load(f"{embedding}@resid_pre.0")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("none")
    with pytest.raises(LoadError, match="no dictionary"):
        dictionaries.load(tmp_path / "other")
    from fairlead.dictionaries import formats

    with pytest.raises(LoadError, match="no dictionary of a known format") as caught:
        formats.read(tmp_path / "other")
    for name in ("SAELens", "Goodfire", "Gemma Scope 2", "Llama Scope", "Qwen Scope", "sparsify"):
        assert name in str(caught.value)


def replaced(value: Any, path: tuple[str, ...], new: Any) -> Any:
    return new if not path else {**value, path[0]: replaced(value[path[0]], path[1:], new)}


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if path else []
    return found + [p for key in value for p in places(value[key], (*path, key))] if isinstance(value, dict) else found


WITH_SETTINGS = [n for n in NINE if n not in ("goodfire", "gemma-scope", "qwen-scope")]
WITH_SETTINGS += ["saelens/transcoder", "saelens/batchtopk training", "saelens/topk", "sparsify/transcoder"]


@pytest.mark.parametrize("name", [*WITH_SETTINGS, "gemma-scope-2/affine transcoder"])
def test_settings_of_any_kind_load_or_are_refused(name, tmp_path):
    """Every value in every settings file, replaced by every kind of value: never anything but a LoadError."""
    written = write(NINE.get(name, name), tmp_path)
    path = next(p for p in sorted(Path(written.ref).glob("*.json"), reverse=True))
    cfg = json.loads(path.read_text())
    for place in places(cfg):
        for new in (None, [], {}, "x", -1, 0, 1.5, True, {"a": 1}, 10**30):
            path.write_text(json.dumps(replaced(cfg, place, new)))
            try:
                found = dictionaries.load(written.ref)
                found.encode(torch.zeros(2, 24))
            except LoadError:
                continue


@pytest.mark.soak
@pytest.mark.parametrize("name", NINE)
def test_flipped_bytes_load_or_are_refused(name, tmp_path):
    written = write(NINE[name], tmp_path)
    path = weights(written)
    data, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        spoiled = bytearray(data)
        for at in generator.integers(0, min(len(data), 4000), 3):
            spoiled[at] = int(generator.integers(256))
        path.write_bytes(bytes(spoiled))
        try:
            dictionaries.load(written.ref)
        except LoadError:
            continue
