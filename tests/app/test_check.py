"""`fairlead check-dictionary`: what it prints, and what it says of a dictionary that does not fit."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from tests.app.conftest import make_model

from fairlead import dictionaries
from fairlead.cli import main
from fairlead.dictionaries import random as random_dictionary


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    model = make_model(root / "tiny", layers=3)
    rows = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    dictionaries.save(random_dictionary.fit(rows, 24, name="r", site="resid.1"), root / "resid.1")
    (root / "bytes.txt").write_bytes(b"\xff\x00red")
    (root / "texts.txt").write_text("red blue green\n\nblue red\n" * 20)
    return root, model


def test_it_reports_and_warns(home):
    root, model = home
    words = ["check-dictionary", str(model), f"{root}@resid.1", "--limit", "40"]
    said = CliRunner().invoke(main, words, catch_exceptions=False)
    assert said.exit_code == 0 and "24 latents at resid.1, on 40 tokens" in said.stdout
    assert "explained variance" in said.stdout and "warning: it explains" in said.stdout
    got = CliRunner().invoke(main, [*words, "--texts", str(root / "texts.txt"), "--json"], catch_exceptions=False)
    found = json.loads(got.stdout)
    assert found["rows"] == 40 and found["ok"] is False and found["warnings"] and "at resid.2" in found["tried"]


@pytest.mark.parametrize("words, message", [
    (["nowhere", "nowhere@resid.1"], "no dictionary"),
    (["{model}", "{root}@resid.2"], "no dictionary"),
    (["{model}", "{root}@resid.1", "--texts", "none.txt"], "none.txt cannot be read"),
    (["{model}", "{root}@resid.1", "--texts", "{root}/bytes.txt"], "UTF-8"),
])  # fmt: skip
def test_bad_input_is_one_message(home, words, message):
    filled = [word.format(root=home[0], model=home[1]) for word in words]
    said = CliRunner().invoke(main, ["check-dictionary", *filled])
    assert said.exit_code == 2 and message in said.stderr and "Traceback" not in said.stderr
