"""The toy task and methods, findable as plugins while a test runs and gone afterwards."""

import sys
from pathlib import Path

import pytest

import fairlead.methods
import fairlead.tasks

TOYS = Path(__file__).parent / "toys"


@pytest.fixture
def toys(monkeypatch):
    for package in (fairlead.tasks, fairlead.methods):
        inside = TOYS / package.__name__.rpartition(".")[2]
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(inside)])
    monkeypatch.syspath_prepend(str(TOYS))
    yield TOYS
    for name in [
        n for n in sys.modules if n.startswith(("fairlead.tasks.toy", "fairlead.methods.toy")) or n == "world"
    ]:
        del sys.modules[name]
        package, _, short = name.rpartition(".")
        if package:
            delattr(sys.modules[package], short)
