"""What the docs say is run here: every Python block, and every `fairlead` command, against tiny random models.

A block is left out only with a reason, in a comment before it: <!-- not run: why -->. A TOML block that begins
with a file name is saved under it; a Python block that begins with `# src/fairlead/...` is installed as a plugin.
"""

from __future__ import annotations

import glob
import importlib
import json
import os
import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tests.app.conftest import make_model

from fairlead import dictionaries
from fairlead.cli import main
from fairlead.core import plugins
from fairlead.dictionaries import random as random_dictionary

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE
)
SITE, READER_SITE = (tomllib.loads((ROOT / "studies" / name).read_text())["dictionary"].partition("@")[2]
                     for name in ("demo.toml", "misread.toml"))  # fmt: skip
MODELS = ("shopper-s", "shopper-s2", "shopper-s3", "shopper-l")


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    why: str | None


def blocks(page: Path) -> list[Block]:
    return [Block(m["kind"], m["text"], m["why"]) for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random models under the names of the shipped ones, each with a dictionary at the demo's site."""
    root = tmp_path_factory.mktemp("pocket")
    first = make_model(root / MODELS[0], layers=4)
    rows = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    fitted = random_dictionary.fit(rows, 24, name=f"tiny@{SITE}", site=SITE)
    dictionaries.save(fitted, first / "dictionaries" / SITE)
    for name in MODELS[1:]:
        shutil.copytree(first, root / name)
    return root


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty working directory, the tiny models, and a folder for plugins that goes away afterwards."""
    monkeypatch.setenv("FAIRLEAD_POCKET", str(models))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fairlead.core.lock.uncommitted", list)  # the pages are tried while the code is being changed
    for group in plugins.GROUPS:
        package = importlib.import_module(f"fairlead.{group}")
        inside = tmp_path / "plugins" / group
        inside.mkdir(parents=True)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(inside)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "fairlead", f"only fairlead commands can be run here: {line}"
    words = [hit for word in words[1:] for hit in (sorted(glob.glob(word)) if "*" in word else [word])]
    got = CliRunner().invoke(main, words, catch_exceptions=False)
    assert got.exit_code == 0, f"{line}\n{got.output}"


def run_block(block: Block, place: Path, names: dict[str, object]) -> None:
    head = block.text.partition("\n")[0]
    if block.kind == "bash":
        for line in block.text.splitlines():
            run_command(line)
    elif block.kind == "toml" and head.startswith("# "):
        (place / head.removeprefix("# ")).write_text(block.text)
    elif block.kind == "python" and head.startswith("# src/fairlead/"):
        (place / "plugins" / head.removeprefix("# src/fairlead/")).write_text(block.text)
        importlib.invalidate_caches()
    elif block.kind == "python":
        exec(compile(block.text, head, "exec"), names)  # the docs are ours


@pytest.mark.browser
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_the_page_says_can_be_done(page: Path, place: Path):
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.why is None:
            run_block(block, place, names)


def test_the_readme_has_a_short_python_example():
    found = [b for b in blocks(ROOT / "README.md") if b.kind == "python"]
    assert found and len(found[0].text.split("\n\n", 1)[1].strip().splitlines()) <= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_docs_name_the_dictionary_that_ships():
    for page in PAGES:
        for model, found in re.findall(r"pocket/([a-z0-9-]+)@([a-z_]+\.\d+)", page.read_text(encoding="utf-8")):
            assert found == (READER_SITE if model.startswith("reader") else SITE), page.name


def verbs() -> list[list[str]]:
    """Every command, those of a group after it."""
    found = []
    for name, command in sorted(main.commands.items()):
        found += [[name], *([name, inner] for inner in sorted(getattr(command, "commands", {})))]
    return found


def help_text(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    parts = []
    for verb in verbs():
        got = CliRunner().invoke(main, [*verb, "--help"], prog_name="fairlead", terminal_width=100)
        parts.append(f"### fairlead {' '.join(verb)}\n\n```text\n{got.stdout.strip()}\n```\n")
    return "\n".join(parts)


def written(page: Path, name: str, text: str) -> None:
    """The part of `page` between the marks of `name` is `text`; with FAIRLEAD_WRITE_DOCS it is made so."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    now = page.read_text(encoding="utf-8")
    head, _, rest = now.partition(begin)
    wanted = f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
    if os.environ.get("FAIRLEAD_WRITE_DOCS"):
        page.write_text(wanted, encoding="utf-8")
    found = page.read_text(encoding="utf-8")
    assert found == wanted, "run: FAIRLEAD_WRITE_DOCS=1 python -m pytest tests/test_docs.py"


def test_the_reference_holds_the_help_of_every_command(monkeypatch: pytest.MonkeyPatch):
    written(ROOT / "docs" / "reference.md", "help", help_text(monkeypatch))


def figures() -> str:
    """The pocket models' cards as one table."""
    heads = (
        "Model",
        "off strict",
        "on strict",
        "on fell",
        "inverse strict",
        "moved",
        "dictionary: variance, cross-entropy",
    )
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for path in sorted(ROOT.glob("src/fairlead/worlds/weights/*/card.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        if "behaviour" not in card:
            continue
        seen = card["behaviour"]
        cells = [seen[trap][name] for trap, name in (("off", "strict"), ("on", "strict"), ("on", "fell"))]
        shares = [f"{100 * share:.0f} % of {n}" for share, n in [*cells, seen["inverse"]["strict"]]]
        moved, steer = "", card.get("steerability")
        if steer:
            best = max(found["on"][0] for found in steer["vector"].values())
            moved = f"{100 * steer['none']['on'][0]:.0f} to {100 * best:.0f} %"
        dictionary = "; ".join(
            f"`{name}` {d['explained_variance']:.3f}, {d['recovered']:.3f}" for name, d in card["dictionaries"].items()
        )
        rows.append(f"| `pocket/{card['name']}` | {' | '.join(shares)} | {moved} | {dictionary} |")
    return "\n".join(rows)


def readers() -> str:
    """The pocket readers' cards as one table: shares of right answers."""
    paths = sorted(ROOT.glob("src/fairlead/worlds/weights/reader-*/card.json"), reverse=True)
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    heads = ("Items, and the line put behind their text", *(f"`pocket/{card['name']}`" for card in cards))
    found = [card["reading"] for card in cards]
    every = {"all": [f["base"] for f in found]}
    every |= {reading: [f["by_reading"][reading] for f in found] for reading in found[0]["by_reading"]}
    every |= {
        "planted, the true note": [f["true_note"]["planted"] for f in found],
        "dominant and strong, the true note": [f["true_note"]["others"] for f in found],
        "ambiguous words read rightly, a wrong note": [f["wrong_note"]["read_right_without"] for f in found],
        "all, generic advice": [f["generic_note"] for f in found],
        "all, a note about a word that is not there": [f["idle_note"] for f in found],
    }
    rows = [f"| {what} | {' | '.join(f'{100 * s:.1f} % of {n}' for s, n in pairs)} |" for what, pairs in every.items()]
    quality = ["; ".join(f"`{name}` {d['explained_variance']:.3f}, {d['recovered']:.3f}"
                         for name, d in card["dictionaries"].items()) for card in cards]  # fmt: skip
    rows.append(f"| dictionary: variance explained, cross-entropy recovered | {' | '.join(quality)} |")
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows])


def test_the_figures_of_the_pocket_models_are_those_of_their_cards():
    written(ROOT / "docs" / "misread.md", "figures", readers())
    written(ROOT / "docs" / "pocket-models.md", "figures", figures())


def test_every_key_of_a_plan_is_in_the_reference():
    from fairlead.core.plan import _KEYS

    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for key in _KEYS:
        assert f"`{key}`" in text or f"[{key}" in text, key
