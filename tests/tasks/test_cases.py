"""The cases task, with a scripted subject: what is asked, what a decision is, and what a score says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.tasks.test_cases_read import GOOD, many, write

from fairlead.core import plugins
from fairlead.core.errors import LoadError, PlanError
from fairlead.core.fake import FakeSubject
from fairlead.core.types import Message, Outcome
from fairlead.tasks.cases import CasesTask, file_hash

CHOICE = {"prompt": "Red or blue?", "choices": ["blue", "red"], "trap": ["blue"], "check": {"exact": "red"}}


def task(folder: Path, *lines: Any, **options: Any) -> CasesTask:
    return plugins.get("tasks", "cases")({"file": str(write(folder, *lines)), "shares": [1, 0, 0], **options})


def run(one: CasesTask, policy: Any, place: int = 0) -> tuple[Outcome, dict[str, Any]]:
    item = one.items("train")[place]
    outcome = asyncio.run(one.run(item, FakeSubject(policy)))
    return outcome, dict(one.score(item, outcome).values)


def test_choices_are_the_legal_answers(tmp_path: Path):
    one = task(tmp_path, CHOICE)
    outcome, score = run(one, lambda messages, legal, step: "blue")
    decision = outcome.decisions[0]
    assert decision.legal == ("blue", "red") and decision.right == ("red",) and decision.trap == ("blue",)
    assert decision.chosen == "blue" and decision.logprobs is not None
    assert score == {"strict": False, "loose": False, "passed": 0.0} and one.chosen_only
    assert run(one, lambda m, legal, s: "red")[1] == {"strict": True, "loose": True, "passed": 1.0}


def test_free_decoding_asks_without_choices(tmp_path: Path):
    one = task(tmp_path, CHOICE, decoding="free")
    outcome, score = run(one, lambda messages, legal, step: "It is red" if legal is None else "blue")
    assert outcome.decisions[0].chosen == "It is red" and outcome.decisions[0].logprobs is None
    assert score == {"strict": False, "loose": True, "passed": 0.0} and not one.chosen_only


def test_free_text_is_compared_with_what_is_known_to_be_right(tmp_path: Path):
    one = task(tmp_path, *many(12))
    outcome, score = run(one, lambda m, legal, s: "no idea")
    decision = outcome.decisions[0]
    right = str(int(decision.messages[0].content.split()[2]) + 1)
    assert decision.right == (right,) and "no idea" in decision.legal and decision.chosen == "no idea"
    assert len(decision.legal) == 1 + 1 + 3 and not score["strict"]
    good, score = run(one, lambda m, legal, s: f"so {int(m[-1].content.split()[2]) + 1}")
    assert score["strict"] and good.decisions[0].right == (right, f"so {right}")
    assert len(good.decisions[0].legal) == 5  # three expected texts of others are wrong here


def test_a_check_with_nothing_known_has_no_candidates_but_what_was_said(tmp_path: Path):
    one = task(tmp_path, {"prompt": "Greet me.", "check": {"regex": "[Hh]ello"}, "wrong": "Go away"})
    assert run(one, lambda m, legal, s: "Hello")[0].decisions[0].legal == ("Hello", "Go away")
    bad = run(one, lambda m, legal, s: "What?")[0].decisions[0]
    assert bad.right == () and bad.legal == ("Go away", "What?")


def test_what_the_model_said_stands_in_later_prompts_unless_the_file_says_otherwise(tmp_path: Path):
    asked = {"role": "assistant", "check": {"exact": "1"}}
    users = [{"role": "user", "content": f"q{i}"} for i in range(3)]
    case = {"turns": [users[0], asked, users[1], {**asked, "content": "ONE"}, users[2], asked]}
    outcome, score = run(task(tmp_path, case), lambda m, legal, step: "1" if step < 2 else "2")
    last = outcome.decisions[-1].messages
    assert [m.content for m in last] == ["q0", "1", "q1", "ONE", "q2"] and outcome.decisions[-1].step == 2
    assert score == {"strict": False, "loose": False, "passed": 2 / 3}


def test_prompts_messages_and_system_lines(tmp_path: Path):
    spoken = {"messages": [{"role": "user", "content": "a"}], "system": "Be kind.", "check": {"exact": "x"}, "id": "k"}
    one = task(tmp_path, spoken)
    assert run(one, lambda m, legal, s: "x")[0].decisions[0].messages == (
        Message("system", "Be kind."),
        Message("user", "a"),
    )
    assert one.items("train")[0].id == "k" and one.items("test") == []


def test_a_check_that_cannot_be_made_is_an_error_and_never_a_zero(tmp_path: Path):
    one = task(tmp_path, {"prompt": "a", "check": {"regex": "^(a|aa)+$"}})
    with pytest.raises(Exception, match="took too long"):
        run(one, lambda m, legal, s: "a" * 5000 + "b")


def test_code_runs_only_where_the_user_says_so(tmp_path: Path):
    case = {"prompt": "a", "check": {"python": "tests.tasks.code_check:long_enough"}}
    with pytest.raises(LoadError, match="allow-code"):
        task(tmp_path, case)
    one = task(tmp_path, case, allow_code=True)
    assert run(one, lambda m, legal, s: "long enough")[1]["strict"]


def test_the_manifest_is_the_content(tmp_path: Path):
    (tmp_path / "b").mkdir()
    one, other = task(tmp_path, *many(9)), task(tmp_path / "b", *many(9))
    assert one.manifest("train") == other.manifest("train") != task(tmp_path, *many(8)).manifest("train")


def test_a_plan_keeps_its_file(tmp_path: Path):
    path = write(tmp_path, GOOD)
    kept = file_hash(path)
    assert CasesTask({"file": str(path), "sha256": kept}).items("train") is not None
    path.write_text(json.dumps({**GOOD, "prompt": "other"}))
    with pytest.raises(LoadError, match="not the file of this plan"):
        CasesTask({"file": str(path), "sha256": kept})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"file": ""}, "needs a file"),
        ({"fil": "x"}, "unknown"),
        ({"shares": [1, 1]}, "three numbers"),
        ({"decoding": "beam"}, "constrained or free"),
        ({"max_tokens": 0}, "1 or more"),
        ({"allow_code": 1}, "False"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], words: str):
    with pytest.raises(PlanError, match=words):
        CasesTask({"file": str(write(tmp_path, GOOD)), **options})
