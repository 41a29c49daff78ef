from __future__ import annotations

import json
from itertools import islice

import pytest

from fairlead import dictionaries
from fairlead.app.train import own_prompts

SMALL = ("--model", "pocket/tiny", "--site", "resid.1", "--features", 20, "--k", 4, "--steps", 5, "--batch", 32)


@pytest.mark.usefixtures("pocket")
class TestTrainDictionary:
    def test_a_dictionary_is_trained_on_texts_and_read_back(self, cli, tmp_path):
        texts = tmp_path / "texts.txt"
        texts.write_text("\n".join(f"line {i} of a text about shops and lamps" for i in range(60)))
        got = cli("train-dictionary", *SMALL, "--limit", 900, "--texts", texts, "--out", "new", "--json")
        assert got.exit_code == 0, got.output
        said = json.loads(got.stdout)
        assert said["path"] == "new" and said["training_flops"] > 0
        found = dictionaries.load("new")
        assert (found.site, found.d_in, found.n_features) == ("resid.1", 16, 20)

    def test_an_existing_directory_is_not_touched(self, cli, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.txt").write_text("mine")
        got = cli("train-dictionary", *SMALL, "--out", tmp_path / "full")
        assert got.exit_code == 2 and "there already" in got.stderr
        assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]

    def test_a_site_the_model_lacks_is_named(self, cli):
        got = cli("train-dictionary", "--model", "pocket/tiny", "--site", "resid.9", "--out", "new")
        assert got.exit_code == 2 and "resid.1" in got.stderr


def test_the_preview_is_what_the_ledger_gets(pocket, tmp_path):
    """But for the length of the prompts that are read, and for reviving dead latents."""
    from fairlead.app.train import TrainConfig, execute, prepare

    config = TrainConfig(n_features=48, kind="topk", k=4, steps=300, batch=64, dead_after=10**9)
    job = prepare("pocket/tiny", "resid.0", config, rows=400, out=tmp_path / "new")
    done = execute(job)
    assert job.flops == pytest.approx(done.training_flops, rel=0.3)
    dense = 10 * 16 * 48 * 300 * 64
    assert done.training_flops > dense and job.flops > dense


def test_a_pocket_model_reads_what_it_was_trained_on():
    def first(model):
        return next(own_prompts(model, 0))[-1].content

    assert "Note" in " ".join(m[-1].content for m in islice(own_prompts("pocket/reader-s", 0), 20))
    assert first("pocket/reader-s") != first("pocket/reader-c")
    assert first("a/model") != first("pocket/shopper-s") and "goal" in first("a/model").lower()
