"""A baseline that crashes, end to end: its items are error rows, never zeros, and error-rate parity fails the claim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.app.conftest import PLAN

import fairlead.methods
from fairlead.core.records import Run

pytestmark = pytest.mark.usefixtures("pocket")

CRASHER = '''
from contextlib import contextmanager
from pathlib import Path


class Broken:
    """A world whose every answer is an exception."""

    name, fingerprint = "broken", "broken"

    def __init__(self, subject):
        self.subject = subject

    async def generate(self, prompt, **_):
        raise ValueError("out of luck")

    async def logprobs(self, prompt, continuations, **_):
        raise ValueError("out of luck")

    def prompted(self, system):
        return self


class Fitted:
    fingerprint = "crasher"

    @contextmanager
    def open(self, subject):
        yield Broken(subject)

    def describe(self):
        return {}

    def save(self, path):
        (path / "method.json").write_text("{}")


class Method:
    name, makes, uses_dictionary = "crasher", "subject", False

    def __init__(self, variant):
        self.variant = variant

    async def fit(self, ctx):
        if self.variant == "unfit":
            raise RuntimeError("no fit today")
        return Fitted()

    def load(self, path):
        return Fitted()


def plugin(variant, options):
    return Method(variant)
'''


@pytest.fixture
def crasher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "crasher.py").write_text(CRASHER)
    monkeypatch.setattr(fairlead.methods, "__path__", [*fairlead.methods.__path__, str(folder)])
    yield
    sys.modules.pop("fairlead.methods.crasher", None)


def planned(plan: Path, arm: str) -> Path:
    changed = PLAN.replace('["none", "prompt"]', f'["none", "prompt", "{arm}"]')
    plan.write_text(changed.replace('primary = "strict"', f'primary = "strict"\nbeat = ["none", "{arm}"]'))
    return plan


def test_a_baseline_that_crashes_on_its_items(cli, plan, crasher):
    got = cli("run", planned(plan, "crasher"), "--exploratory", "--json")
    assert got.exit_code == 0, got.output
    run = Path(json.loads(got.stdout)["run"])
    broken = [r for r in Run.open(run).records if r.arm == "crasher"]
    assert len(broken) == 6 and all(r.score is None and r.error == "run: ValueError: out of luck" for r in broken)
    verdict = json.loads(cli("judge", run, "--json").stdout)
    check = next(c for c in verdict["checks"] if c["name"] == "error parity")
    assert check["result"] == "fail" and "crasher 6/6" in check["detail"]
    assert verdict["status"] == "inconclusive" and not verdict["may_claim"]
    row = next(r for r in verdict["rows"] if r["arm"] == "crasher" and r["measure"] == "strict" and not r["where"])
    assert (row["value"], row["n"], row["errors"]) == (None, 0, 6)
    assert "error" in cli("report", run).stdout


def test_a_baseline_that_cannot_be_fitted(cli, plan, crasher):
    got = cli("run", planned(plan, "crasher.unfit"), "--exploratory")
    assert got.exit_code == 2 and "a trial failed" in got.stderr and "no fit today" in got.stdout
    run = next(Path("runs").iterdir())
    verdict = json.loads(cli("judge", run, "--json").stdout)
    assert next(c for c in verdict["checks"] if c["name"] == "complete")["result"] == "fail"
    assert verdict["status"] == "inconclusive"
