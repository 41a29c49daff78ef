from __future__ import annotations

import json

import pytest

from fairlead import dictionaries

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
