"""`fairlead features` end to end on a tiny model: harvest, show, label, screen; and what it says to bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.app.conftest import FEATURES, SITE
from tests.lm.endpoint import chat, serving

Cli = Callable[..., Result]
MODEL, DICTIONARY = "pocket/tiny", f"pocket/tiny@{SITE}"
WORDS = ("buy a red lamp", "find two blue cups", "the shop has nothing", "add it to the cart", "go back to the list")


def texts(n: int = 150) -> str:
    return "\n".join(f"{WORDS[i % 5]} {i}" for i in range(n)) + "\n\n"


@pytest.fixture
def store(cli: Cli, pocket: Path) -> Path:
    Path("texts.txt").write_text(texts())
    got = cli("features", "harvest", MODEL, DICTIONARY, "--texts", "texts.txt", "--out", "store", "--json")
    assert got.exit_code == 0, got.output
    return Path("store")


def test_from_harvest_to_labels_and_scores(cli: Cli, store: Path) -> None:
    again = json.loads(cli("features", "harvest", MODEL, DICTIONARY, "--texts", "texts.txt", "--out", store,
                           "--json").stdout)  # fmt: skip
    assert again["sequences"] == 150 and again["n_features"] == FEATURES and again["tokens"] > 500
    pages = [json.loads(cli("features", "show", store, i, "--json").stdout) for i in range(FEATURES)]
    bare = next(page for page in pages if 20 < page["windows"] < 130)
    dead = next(page for page in pages if not page["windows"])
    assert dead["top"] == [] and dead["largest"] == 0 and bare["label"] is None and bare["output"] is None
    assert bare["top"][0]["value"] == bare["largest"] == max(bare["top"][0]["values"])
    assert len(bare["neighbours"]) == 8

    these = ("--latent", bare["latent"], "--latent", 3, "--model", MODEL, "--dictionary", DICTIONARY)
    said = json.loads(cli("features", "label", store, *these, "--json").stdout)
    assert said["coverage"]["latents"] == 2 == len(said["labels"]) and (store / "labels.jsonl").is_file()
    assert {kind for one in said["labels"] for kind in one["tried"]} == {"peaks", "terms", "phrase", "lens"}

    table = cli("features", "screen", MODEL, DICTIONARY, "--out", store, "--limit", "3")
    assert table.exit_code == 0 and "Δ confidence" in table.stdout and f"{FEATURES} latents" in table.stdout
    shown = cli("features", "show", store, said["labels"][0]["latent"])
    assert "label: " in shown.stdout and "output score" in shown.stdout and "[[" in shown.stdout


def test_texts_that_are_cut_are_counted(cli: Cli, pocket: Path) -> None:
    Path("long.txt").write_text("buy\n" + "buy a red lamp " * 5 + "\n")
    words = ("features", "harvest", MODEL, DICTIONARY, "--texts", "long.txt", "--out", "store", "--max-tokens", "6")
    said = cli(*words)
    assert said.exit_code == 0 and "1 texts reach the length" in said.stdout
    assert json.loads(cli(*words, "--json").stdout)["cut"] == 1


def test_without_texts_it_reads_the_shop(cli: Cli, pocket: Path) -> None:
    got = cli("features", "harvest", MODEL, DICTIONARY, "--out", "store", "--limit", "3", "--no-neighbours")
    assert got.exit_code == 0 and "tokens of 3 texts" in got.stdout
    assert json.loads(cli("features", "show", "store", "0", "--json").stdout)["neighbours"] is None


def test_an_endpoint_may_label(cli: Cli, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path / "cache"))

    def answer(_path: str, body: Any) -> Any:
        return chat("yes" if "Answer yes or no" in body["messages"][0]["content"] else "lamps")

    with serving(answer) as server:
        ask = ("--ask", server.url, "--ask-model", "m", "--embed", "none", "--out", "asked.jsonl")
        got = cli("features", "label", store, "--limit", "12", *ask, "--json")
    assert got.exit_code == 0 and len(server.asked) > 4
    assert any("asked" in one["tried"] for one in json.loads(got.stdout)["labels"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("show", "nowhere", "1"), "is not a feature store"),
        (("show", "store", "999"), "no latent 999"),
        (("label", "store", "--ask", "http://x/v1"), "--ask needs --ask-model"),
        (("label", "store", "--model", MODEL), "needs both"),
        (("label", "store", "--embed", "nowhere"), "no sentence embedding model"),
        (("label", "store", "--latent", "-1"), "no latent -1"),
        (("harvest", MODEL, DICTIONARY, "--texts", "none.txt", "--out", "x"), "cannot be read"),
        (("harvest", MODEL, DICTIONARY, "--texts", "empty.txt", "--out", "x"), "no text in it"),
        (("harvest", MODEL, DICTIONARY, "--texts", "latin.txt", "--out", "x"), "UTF-8"),
        (("harvest", MODEL, DICTIONARY, "--texts", "odd.jsonl", "--out", "x"), 'objects with "text"'),
        (("harvest", MODEL, DICTIONARY, "--texts", "other.txt", "--out", "store"), "another harvest"),
    ],
)
def test_bad_input_is_one_message(cli: Cli, store: Path, args: tuple[str, ...], message: str) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    Path("odd.jsonl").write_text('{"words": "x"}\n')
    Path("other.txt").write_text("other\n")
    got = cli("features", *args)
    assert got.exit_code == 2 and message in got.stderr and "Traceback" not in got.output
