"""A run that asks a language model is killed in the middle of its questions: what was answered is never asked again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = '''
import asyncio, json, os, signal, sys
from fairlead.core.ledger import Meter
from fairlead.core.types import Message
from fairlead.features.texts.labellers import KeptAnnotator
from fairlead.lm.cache import Cache

folder, last = sys.argv[1], int(sys.argv[2])
spends, pays = Meter(), Meter()

class Model:
    async def yes(self, messages):
        with open(f"{folder}/asked", "a") as file:
            file.write(messages[0].content + "\\n")
        spends.charge(prompt_tokens=3)
        if sum(1 for _ in open(f"{folder}/asked")) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return float(len(messages[0].content))

async def main():
    kept = KeptAnnotator(Model(), Cache(f"{folder}/kept.sqlite"), "model", spends, pays)
    questions = [(Message("user", f"question {i}"),) for i in range(40)]
    print(json.dumps([await asyncio.gather(*map(kept.yes, questions)), pays.judge_calls, pays.prompt_tokens]))

asyncio.run(main())
'''


@pytest.mark.soak
def test_nothing_is_asked_twice_after_a_kill(tmp_path: Path):
    ends = []
    for last in (7, 26, 0):
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(last)]
        ends.append(subprocess.run(command, capture_output=True, text=True, timeout=120))
    assert [e.returncode for e in ends[:2]] == [-signal.SIGKILL] * 2
    assert json.loads(ends[2].stdout) == [[float(len(f"question {i}")) for i in range(40)], 40, 120]
    asked = (tmp_path / "asked").read_text().splitlines()
    lost = {"question 6", "question 24"}  # under way when the process died: the only ones asked again
    assert sorted(asked) == sorted([*(f"question {i}" for i in range(40)), *lost])
