"""`fairlead doctor --model`, and the loading options of every verb that loads a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.lm.tiny import write

from fairlead.app import models
from fairlead.cli import main
from fairlead.lm import estimate


def run(*words: object) -> object:
    return CliRunner().invoke(main, [str(w) for w in words])


def test_a_model_is_sized_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path, "mixtral")
    monkeypatch.setattr("fairlead.lm.load.load", lambda *_, **__: pytest.fail("loaded it"))
    got = run("doctor", "--model", folder, "--rows", 4, "--tokens", 100, "--json")
    found = json.loads(got.stdout)
    assert got.exit_code == 0 and found["fits"] and found["about"]["rows"] == 4
    assert found["about"]["active_parameters"] < found["about"]["parameters"]
    text = run("doctor", "--model", folder, "--dtype", "bfloat16").output
    assert "MixtralForCausalLM" in text and "bfloat16" in text and "yes" in text
    monkeypatch.setattr(estimate, "free_memory", lambda device: 1000)
    assert run("doctor", "--model", folder).exit_code == 1


def test_a_model_that_is_not_there(tmp_path: Path):
    got = run("doctor", "--model", tmp_path / "none")
    assert got.exit_code == 2 and "no model directory" in got.output


def test_a_verb_loads_as_its_options_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, seen = write(tmp_path, "gpt2"), []

    def watched(ref: str, **options: object) -> object:
        seen.append((options, models.loading().max_batch))
        raise RuntimeError("enough")

    monkeypatch.setattr("fairlead.lm.load.load", watched)
    run("steer", "$x += 1 at last", "--model", folder, "--prompt", "x", "--dtype", "bfloat16", "--max-batch", 2)
    run("steer", "$x += 1 at last", "--model", folder, "--prompt", "x")
    (first, batch), (second, none) = seen
    assert (first["dtype"], first["device"], batch) == ("bfloat16", "cpu", 2)
    assert (second["dtype"], none) == (None, None)
