"""Names of public dictionaries: what they resolve to with a hub at hand, without one, and through sae-lens."""

from __future__ import annotations

import shutil
import subprocess
import sys
import types
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from tests.dictionaries.layouts import NINE, write

from fairlead import dictionaries
from fairlead.core.errors import LoadError
from fairlead.dictionaries import files, formats, hookpoints, registry, saelens


class Hub:
    """A hub whose repositories are folders on this machine."""

    def __init__(self, repos: dict[str, Path]) -> None:
        self.repos, self.asked = repos, []

    def HfApi(self) -> Hub:
        return self

    def list_repo_files(self, repo: str) -> list[str]:
        root = self.repos[repo]
        return [p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.is_file()]

    def snapshot_download(self, repo: str, *, allow_patterns: list[str]) -> str:
        self.asked.append((repo, allow_patterns))
        files = [name for name in self.list_repo_files(repo) if any(fnmatch(name, p) for p in allow_patterns)]
        if not files:
            raise FileNotFoundError(f"nothing like {allow_patterns}")
        return str(self.repos[repo])


def test_every_entry_is_whole_and_every_format_is_known():
    entries = registry.entries()
    assert len({e.name for e in entries}) == len(entries) > 50
    for e in entries:
        assert e.format in formats.FORMATS and e.repo.count("/") == 1 and e.kind in hookpoints.KINDS, e
        assert len(e.layers) >= 1 and ("{layer}" in e.path or len(e.layers) == 1), e
        assert e.explained_variance is None and (e.l0 is None or e.source), e  # no figure that nobody published
    assert {e.model.split("/")[-1].split("-")[0].lower() for e in entries} >= {"llama", "gemma", "qwen3", "deepseek"}
    assert registry.named("goodfire/llama-3.1-8b-instruct").l0 == 91 and registry.named("nothing") is None


def test_a_name_is_fetched_and_carries_its_published_figures(tmp_path, monkeypatch):
    entry = registry.named("goodfire/llama-3.1-8b-instruct")
    made = write("goodfire", tmp_path / "made", layer=19)
    (tmp_path / "repo").mkdir()
    shutil.copy(made.ref, tmp_path / "repo" / entry.path)
    hub = Hub({entry.repo: tmp_path / "repo"})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    found = dictionaries.load("goodfire/llama-3.1-8b-instruct@resid.19")
    assert hub.asked == [(entry.repo, [entry.path])] and found.site == "resid.19"
    assert found.metadata["published"] == {"l0": 91, "explained_variance": None, "source": entry.source}
    assert dictionaries.load("goodfire/llama-3.1-8b-instruct").fingerprint == found.fingerprint
    with pytest.raises(LoadError, match="has no dictionary at resid.20"):
        dictionaries.load("goodfire/llama-3.1-8b-instruct@resid.20")


def test_where_a_layer_has_several_one_is_chosen_by_a_part_of_its_path(tmp_path):
    entry = replace(registry.named("gemma-scope/2b-pt-res"), sites="resid.0-3")
    root = tmp_path / "models--google--gemma-scope-2b-pt-res"
    for l0 in (20, 71):
        target = root / "layer_1" / "width_16k" / f"average_l0_{l0}"
        shutil.copytree(write("gemma-scope", tmp_path / str(l0)).ref, target)
    hub = Hub({entry.repo: root})
    path = registry.fetch(entry, "resid.1", "average_l0_71", hub)
    assert path == root / "layer_1" / "width_16k" / "average_l0_71"
    found = formats.read(path, site="resid.1")
    assert found.site == "resid.1" and found.metadata["published"]["l0"] == 71
    with pytest.raises(LoadError, match="2 dictionaries of gemma-scope/2b-pt-res fit") as caught:
        registry.fetch(entry, "resid.1", "", hub)
    assert "average_l0_20" in str(caught.value)
    with pytest.raises(LoadError, match="0 dictionaries"):
        registry.fetch(entry, "resid.2", "", hub)


def test_without_a_hub_the_message_says_what_to_fetch(monkeypatch):
    class Offline:
        def snapshot_download(self, repo: str, *, allow_patterns: list[str]) -> str:
            raise ConnectionError("name or service not known")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Offline())
    with pytest.raises(LoadError, match="cannot be fetched from the hub") as caught:
        dictionaries.load("qwen-scope/3-8b-base-w64k-l50@resid.5")
    assert "layer5.sae.pt of Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50" in str(caught.value)


def test_naming_the_registry_imports_no_torch():
    code = "import sys; from fairlead.dictionaries.registry import entries; entries(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NINE)
def test_the_dictionary_of_a_site_is_found_below_a_folder(name, tmp_path):
    for layer in (1, 2):
        write(NINE[name], tmp_path / f"part{layer}", layer=layer, seed=layer)
    for layer in (1, 2):
        found = dictionaries.load(f"{tmp_path}@resid.{layer}")
        assert found.site == f"resid.{layer}"
    with pytest.raises(LoadError, match="2 fit it"):
        dictionaries.load(tmp_path)
    with pytest.raises(LoadError, match="no dictionary"):
        dictionaries.load(f"{tmp_path}@resid.7")
    assert dictionaries.load(f"{tmp_path}#part2").site == "resid.2"


def test_a_file_that_says_no_site_takes_it_from_the_reference(tmp_path):
    path = tmp_path / "mine.pth"
    shutil.copy(write("goodfire", tmp_path).ref, path)
    with pytest.raises(LoadError, match="does not say which activations"):
        dictionaries.load(path)
    assert dictionaries.load(f"{path}@mlp.3").site == "mlp.3"
    folder = tmp_path / "at@home"  # an @ in a folder's name is no site
    folder.mkdir()
    shutil.copy(path, folder / "x-l4.pth")
    assert dictionaries.load(folder / "x-l4.pth").site == "resid.4"


def test_qwen_scope_takes_k_from_its_repository_or_the_reference(tmp_path):
    written = write("qwen-scope", tmp_path)
    assert dictionaries.load(written.ref).k == 6
    bare = tmp_path / "layer1.sae.pt"
    shutil.copy(written.ref, bare)
    with pytest.raises(LoadError, match="written nowhere"):
        dictionaries.load(bare)
    assert dictionaries.load(f"{bare}#k=9").k == 9 and dictionaries.load(f"{bare}@resid.1#k=9").k == 9
    cached = tmp_path / "models--Qwen--SAE-Res-Qwen3-8B-Base-W64K-L0_50" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    shutil.copy(written.ref, cached)
    assert dictionaries.load(cached / "layer1.sae.pt").k == 50


def test_the_long_tail_goes_through_saelens_or_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(LoadError, match="needs sae-lens") as caught:
        dictionaries.load("saelens:some-release/some-id")
    assert "pip install 'fairlead[saelens]'" in str(caught.value)
    written = write("saelens/gated", tmp_path)
    cfg = saelens._read_cfg(Path(written.ref))
    tensors = files.read_safetensors(Path(written.ref) / "sae_weights.safetensors")

    class SAE:
        @staticmethod
        def from_pretrained(release: str, sae_id: str) -> types.SimpleNamespace:
            assert (release, sae_id) == ("some-release", "blocks.1/id")
            return types.SimpleNamespace(cfg=types.SimpleNamespace(to_dict=lambda: cfg), state_dict=lambda: tensors)

    monkeypatch.setitem(sys.modules, "sae_lens", types.SimpleNamespace(SAE=SAE))
    found = dictionaries.load("saelens:some-release/blocks.1/id@resid.1")
    x = torch.randn(20, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.encode(x), written.forward(x)[0])
    with pytest.raises(LoadError, match="was not trained at resid.2"):
        dictionaries.load("saelens:some-release/blocks.1/id@resid.2")
