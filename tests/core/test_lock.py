"""The lock as a value and as a file; the code it names; the count of evaluations."""

import json
import subprocess
from pathlib import Path

import pytest

from fairlead.core import evaluations
from fairlead.core import lock as locks
from fairlead.core.errors import LockError, PlanError
from fairlead.core.keys import canonical
from fairlead.core.lock import Lock, Witness
from fairlead.core.plan import Facts, parse_plan

PLAN = parse_plan("""
question = "Is it locked?"
task = "shop"
model = "m"
arms = ["none", "prompt"]
claim = "prompt"
primary = "strict"
smallest_effect = 0.1
n = 3
""")
FACTS = Facts({"test": "1"}, {"m": "2"}, {}, {"prompt": "3"}, {"prompt": ("none",)}, frozenset({"none", "prompt"}))


def test_the_hash_is_of_the_content_alone():
    one, two = Lock(locks.content(PLAN, FACTS)), Lock(locks.content(PLAN, FACTS))
    assert one.hash == two.hash and json.loads(one.line)["amends"] is None
    assert Lock({**one.content, "format": 2}).hash != one.hash
    assert Facts.from_json(json.loads(json.dumps(FACTS.to_json()))) == FACTS
    with pytest.raises(PlanError, match="facts.json"):
        Facts.from_json({"manifests": {}})


def test_a_study_is_checked_against_its_lock():
    lock = Lock(locks.content(PLAN, FACTS))
    locks.check(lock, PLAN, FACTS)
    with pytest.raises(LockError, match="plan.n: 3 -> 2"):
        locks.check(lock, PLAN.limited(2), FACTS)
    with pytest.raises(LockError, match="facts.weights.m: 2 -> 9"):
        locks.check(lock, PLAN, Facts(**{**FACTS.__dict__, "weights": {"m": "9"}}))


def test_differences_are_named():
    old = {"a": [1, 2], "b": {"c": True}, "d": "x"}
    assert locks.differences(old, old) == []
    assert locks.differences(old, {"a": [1, 3], "b": {"c": 1}, "e": None}) == [
        "a[1]: 2 -> 3", "b.c: true -> 1", "d: x -> null", "e: null -> null"]  # fmt: skip


def written(tmp_path, *lines):
    for line in lines:
        locks.append(tmp_path / "lock.jsonl", line)
    return tmp_path / "lock.jsonl"


def test_a_file_of_locks(tmp_path):
    first = Lock({"n": 1})
    second = Lock({"n": 2}, first.hash, "a better idea")
    path = written(tmp_path, first, Witness("rekor", "17", first.hash), second)
    found = locks.read(path)
    assert found.hashes == (first.hash, second.hash) and found.current == second and found.witness == "none"
    assert found.amendments() == ("the lock was amended: a better idea; changed: n: 1 -> 2",)
    locks.append(path, locks.witness("opentimestamps=lock.ots", second))
    assert locks.read(path).witness == "opentimestamps (lock.ots)" and locks.read(tmp_path / "none") is None


@pytest.mark.parametrize("fault", ["edited", "removed", "swapped", "spaces", "torn", "empty", "other", "nested"])
def test_an_altered_file_is_refused(tmp_path, fault):
    first = Lock({"n": 1})
    path = written(tmp_path, first, Lock({"n": 2}, first.hash, "why"))
    rows = path.read_text().splitlines()
    text = {
        "edited": rows[0].replace('"n":1', '"n":9') + "\n" + rows[1],
        "removed": rows[1],
        "swapped": rows[1] + "\n" + rows[0],
        "spaces": rows[0].replace(":", ": ") + "\n",
        "torn": rows[0] + "\n" + rows[1][:20],
        "empty": "",
        "other": '{"a":1}\n',
        "nested": "[" * 100_000,
    }[fault]
    path.write_text(text)
    with pytest.raises(LockError):
        locks.read(path)


@pytest.mark.parametrize("text", ["git-remote", "git-remote=", "notary=x", ""])
def test_a_witness_that_cannot_be_read(text):
    with pytest.raises(LockError, match="REFERENCE"):
        locks.witness(text, Lock({}))


def test_the_code_is_a_commit_in_a_checkout_and_a_hash_everywhere(tmp_path, monkeypatch):
    package = tmp_path / "repo" / "src" / "fairlead"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(locks, "package_folder", lambda: package)
    git = ["git", "-C", str(tmp_path / "repo"), "-c", "user.name=n", "-c", "user.email=e@x"]
    assert locks.code()["commit"] is None and locks.uncommitted() == []  # a source tree without git
    subprocess.run([*git, "init", "-q"], check=True)
    assert locks.code()["commit"] is None and locks.uncommitted() == []  # installed inside somebody's repository
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "m"], check=True)
    assert len(locks.code()["commit"]) == 40 and locks.uncommitted() == []
    (package / "new.py").write_text("x = 1\n")
    assert [Path(p).name for p in locks.uncommitted()] == ["new.py"]
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert locks.code()["commit"] is None and len(locks.code()["sources"]) == 64  # no git at all


def test_evaluations_are_counted_where_they_can_be(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRLEAD_STATE", str(tmp_path / "state"))
    counted = [evaluations.count(*one) for one in (("k", None, "r"), ("k", "l", "s"), ("k2", "l", "t"))]
    assert counted == [1, 2, 1]
    assert evaluations.count("k", "l", "s") == 2  # counted before a kill took its marker
    line = (tmp_path / "state" / evaluations.FILE).read_text().splitlines()[1]
    assert line == canonical({"lock": "l", "records": "s", "trial": "k"})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FAIRLEAD_STATE", str(tmp_path / "file" / "below"))
    assert evaluations.count("k", None, "r") is None  # a machine that cannot keep count does not stop a study
    monkeypatch.delenv("FAIRLEAD_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert evaluations.state_folder() == tmp_path / "xdg" / "fairlead"
