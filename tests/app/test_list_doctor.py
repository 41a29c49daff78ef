from __future__ import annotations

import json

import pytest


def test_list_names_what_there_is(cli, pocket):
    for group, name in (("tasks", "shop"), ("families", "sae"), ("studies", "demo"), ("models", "pocket/tiny"),
                        ("dictionaries", "pocket/tiny@resid.0")):  # fmt: skip
        got = json.loads(cli("list", group, "--json").stdout)
        assert name in [entry["name"] for entry in got], group
    assert len(json.loads(cli("list", "families", "--limit", 1, "--json").stdout)) == 1
    assert "Shopping in a web shop" in cli("list", "tasks").stdout


@pytest.mark.browser
def test_doctor_is_content_with_a_whole_installation(cli, pocket):
    got = cli("doctor")
    assert got.exit_code == 0, got.output
    assert "pocket/tiny" in got.stdout and "MISSING" not in got.stdout


def test_doctor_says_what_is_missing_and_what_to_do(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRLEAD_POCKET", str(tmp_path / "nowhere"))
    monkeypatch.setenv("FAIRLEAD_CHROMIUM", str(tmp_path / "no-browser"))
    got = cli("doctor", "--json")
    assert got.exit_code == 1
    lacking = {c["name"]: c["do"] for c in json.loads(got.stdout) if not c["ok"]}
    assert set(lacking) == {"browser", "pocket models"} and all(lacking.values())


def test_every_verb_has_an_example_and_json(cli):
    from fairlead.cli import main

    verbs = {name: tuple(getattr(command, "commands", [()])) for name, command in main.commands.items()}
    assert verbs.keys() >= {"run", "steer", "judge", "report", "list", "doctor", "demo", "train-dictionary", "features"}
    for words in ((verb, *([name] if name else [])) for verb, names in verbs.items() for name in names):
        text = cli(*words, "--help").stdout
        assert f"Example: fairlead {' '.join(words)}" in text and "--json" in text, words


def test_what_ships_is_there_and_the_first_dictionary_is_the_default(cli, monkeypatch):
    monkeypatch.delenv("FAIRLEAD_POCKET", raising=False)
    models = {e["name"] for e in json.loads(cli("list", "models", "--json").stdout)}
    shoppers = {"pocket/shopper-s", "pocket/shopper-s2", "pocket/shopper-s3", "pocket/shopper-l"}
    assert models == {*shoppers, "pocket/reader-s", "pocket/reader-c"}
    found = {e["name"].partition("@")[0] for e in json.loads(cli("list", "dictionaries", "--json").stdout)}
    assert {name for name in found if name.startswith("pocket/")} == models - {"pocket/shopper-l"}
    assert "goodfire/llama-3.1-8b-instruct" in found  # and those that are fetched by name
    got = cli("steer", "12 += 1x", "--shop", "validation/promo/3/on", "--limit", 1, "--json")
    assert got.exit_code == 0 and json.loads(got.stdout)["steps"][0]["edits"][0]["fired"] > 0
