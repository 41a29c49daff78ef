"""Files that lie, and names that lead nowhere: refused with a clear message, and nothing of theirs is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tests.lm.tiny import write

from fairlead.core.errors import LoadError
from fairlead.lm import weights
from fairlead.lm.estimate import estimate_ref
from fairlead.lm.load import find, load


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def with_header(path: Path, header: bytes, body: bytes = b"", length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)


@pytest.mark.parametrize("length", [40_000_000_000, 2**63, 100_000_001, 0])
def test_a_header_that_claims_to_be_huge(copy, length):
    """Refused from eight bytes: nothing of that size is allocated or read."""
    with_header(copy / "model.safetensors", b"{}", length=length)
    with pytest.raises(LoadError, match="cannot be read"):
        load(copy)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [100_000, 100_000], "data_offsets": [0, 40_000_000_000]},
        {"dtype": "F32", "shape": [100_000, 100_000], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": "4", "data_offsets": [0]},
        {"shape": [4]},
        7,
    ],
)
def test_a_tensor_that_cannot_be_there(copy, entry):
    with_header(copy / "model.safetensors", json.dumps({"x": entry}).encode(), b"\0" * 16)
    with pytest.raises(LoadError):
        load(copy)


@pytest.mark.parametrize("header", [b"[1, 2]", b"not json", b"[" * 5000, b"\xff\xfe\x00\x01"])
def test_a_header_that_is_no_table(copy, header):
    with_header(copy / "model.safetensors", header)
    with pytest.raises(LoadError, match="cannot be read"):
        load(copy)


def test_pickles_are_not_opened_beside_or_instead_of_weights(copy, tmp_path):
    proof = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {proof}",)

    for name in ("pytorch_model.bin", "training_args.bin", "consolidated.00.pth", "optimizer.pt"):
        (copy / name).write_bytes(pickle.dumps(Evil()))
    load(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="pickles are never opened"):
        load(copy)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_link_out_of_the_folder(copy, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(copy / name, elsewhere / name)
    (copy / name).symlink_to(elsewhere / name)
    with pytest.raises(LoadError, match="link out of its folder"):
        load(copy)


def test_the_hubs_cache_may_link_to_its_own_files(copy, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(copy, snapshot)
    blobs.mkdir()
    shutil.move(snapshot / "model.safetensors", blobs / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert load(snapshot).sites


def sharded(copy: Path) -> dict[str, str]:
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, some in halves.items():
        save_file({n: tensors[n] for n in some}, copy / file, metadata={"format": "pt"})
    (copy / "model.safetensors").unlink()
    found = {name: file for file, some in halves.items() for name in some}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": found}))
    return found


def test_sharded_weights_are_whole_or_refused(copy, folder):
    sharded(copy)
    assert torch.equal(load(copy).model.lm_head.weight, load(folder).model.lm_head.weight)
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(LoadError, match="lacks weights files"):
        load(copy)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin"])
def test_an_index_that_points_elsewhere(copy, name):
    found = sharded(copy)
    found[next(iter(found))] = name
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": found}))
    with pytest.raises(LoadError, match="not beside it"):
        load(copy)


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 10**10}, {"num_hidden_layers": 10**7}, {"intermediate_size": 10**9}, {"hidden_size": -1}],
)
def test_a_config_that_describes_a_monster(copy, change):
    """Neither built nor allocated: the weights do not hold it."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(LoadError):
        load(copy)


def test_an_adapter_is_not_a_model(copy):
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    with pytest.raises(LoadError, match="holds an adapter"):
        load(copy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_is_found_in_any_piece(tmp_path, dtype, bad, monkeypatch):
    monkeypatch.setattr(weights, "PIECE", 64)
    for place in (0, 17, 99):
        rows = torch.ones(100, 7, dtype=dtype)
        rows[place, 3] = bad
        save_file({"a": torch.ones(3), "rows": rows, "whole": torch.arange(5)}, tmp_path / "model.safetensors")
        with pytest.raises(LoadError, match="1 of .* in rows"):
            weights.check_finite([tmp_path / "model.safetensors"])
    save_file({"rows": torch.ones(100, 7, dtype=dtype), "none": torch.empty(0)}, tmp_path / "model.safetensors")
    weights.check_finite([tmp_path / "model.safetensors"])


def test_gpt2_and_pythia_load_as_they_are_published(tmp_path):
    """Their files hold masks and frequencies that are not weights, and GPT-2's lack a prefix."""
    for name, buffers in (
        ("gpt2", ["h.{}.attn.bias"]),
        ("gpt_neox", ["gpt_neox.layers.{}.attention." + k for k in ("bias", "masked_bias", "rotary_emb.inv_freq")]),
    ):
        folder = write(tmp_path / name, name)
        tensors = {k.removeprefix("transformer."): v for k, v in load_file(folder / "model.safetensors").items()}
        tensors |= {key.format(i): torch.ones(1, 1, 512, 512) for key in buffers for i in range(3)}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert len(load(folder).sites) == 15


def test_a_hub_name_is_fetched_by_revision_and_named_so(folder, monkeypatch):
    asked = {}

    def snapshot(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load("org/tiny#abc123", token="secret").name == "org/tiny#abc123"
    assert (asked["name"], asked["revision"], asked["token"]) == ("org/tiny", "abc123", "secret")
    assert not any("bin" in p or p == "*" or p.endswith(".py") for p in asked["allow_patterns"])


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (GatedRepoError, "accept its licence"),
        (RepositoryNotFoundError, "check the name"),
        (LocalEntryNotFoundError, "hf download org/tiny --revision v1"),
        (OSError, "hf download org/tiny --revision v1"),
    ],
)
def test_a_hub_that_says_no(monkeypatch, error, what):
    def snapshot(*_, **__):
        raise error.__new__(error, "no")  # without the response that their constructors want

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(LoadError, match=what):
        find("org/tiny#v1")


def test_where_no_hub_answers_the_cache_is_asked_at_once(monkeypatch):
    """No retries: the client is told to look at its own files only."""
    asked = {}
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **o: asked.update(o) or "/none")
    with pytest.raises(LoadError):
        find("org/tiny")
    assert asked["local_files_only"]
    with pytest.raises(LoadError, match="cannot be reached"):
        estimate_ref("org/tiny")


def test_a_hub_model_is_sized_from_its_configuration_alone(folder, monkeypatch):
    class Found:
        parameter_count = {"BF16": 100, "F32": 1}

    monkeypatch.setattr("fairlead.lm.hub.reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(folder / "config.json"))
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda *_, **__: Found())
    found = estimate_ref("org/tiny", device="cuda")
    assert found.dtype == "bfloat16" and found.parameters == estimate_ref(str(folder)).parameters


def test_what_is_a_name_and_what_a_path(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    for ref in (tmp_path / "nowhere", "./org/name", "a/b/c", "name", "../x/y", "org/na me"):
        with pytest.raises(LoadError, match="no model directory"):
            find(ref)


@pytest.mark.parametrize(
    ("options", "package"), [({"quantize": "4bit"}, "bitsandbytes"), ({"device_map": "auto"}, "accelerate")]
)
def test_what_needs_an_extra_says_which(folder, monkeypatch, options, package):
    monkeypatch.setattr("fairlead.lm.load.find_spec", lambda name: None)
    with pytest.raises(LoadError, match=rf"{package} is not installed(.|\n)*fairlead\[large\]"):
        load(folder, **options)
    with pytest.raises(LoadError, match="unknown quantisation"):
        load(folder, quantize="3bit")
    with pytest.raises(LoadError, match="unknown dtype"):
        load(folder, dtype="int8")
