"""The store: append-only, torn lines cut once, a full disk leaves nothing half-recorded."""

import errno
import gzip
import json
import math
import os
from dataclasses import replace

import pytest

from fairlead.core.errors import PlanChanged, RecordError
from fairlead.core.plan import parse_plan
from fairlead.core.records import COMPLETE, Run, Store, check_unchanged, to_line
from fairlead.core.types import Cost, Record

PLAN = parse_plan('question="q"\ntask="toy"\nmodel="m"\narms=["none"]\nprimary="strict"\nsmallest_effect=0.1\nn=2')
TRIAL = PLAN.trials()[0]


def record(item="a", **changes):
    base = Record(
        trial=TRIAL.key,
        arm="none",
        model="m",
        decoding="constrained",
        seed=0,
        item=item,
        cluster=item,
        split="test",
        strata={"trap": "on"},
        outcome={"steps": 1, "note": "ünïcode\u2028line"},
        score={"strict": True, "loose": None},
        error=None,
        cost=Cost(flops=1.5),
    )
    return replace(base, **changes)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "run") as store:
        store.begin(PLAN, PLAN.trials(), text="# as given")
        yield store


def test_what_is_written_is_read(store):
    digest = store.save_trace({"steps": [{"i": 0}]})
    store.append([record("a", trace=digest), record("b")])
    store.append([record("c", score=None, error="run: boom")])
    store.write_ledger(TRIAL.key, {"fit": None})
    assert Run.open(store.path).trials[0].status == "partial"
    store.finish(TRIAL.key, COMPLETE, planned=3)
    run = Run.open(store.path)
    assert run.records == (record("a", trace=digest), record("b"), record("c", score=None, error="run: boom"))
    assert run.trials[0].status == "complete" and run.trials[0].records == 3 and run.plan == PLAN
    assert run.ledgers == {TRIAL.key: {"fit": None}} and run.read_trace(digest) == {"steps": [{"i": 0}]}
    assert store.save_trace({"steps": [{"i": 0}]}) == digest and len(list((store.path / "traces").iterdir())) == 1


@pytest.mark.parametrize("cut", [1, 5, 200])
def test_a_torn_line_is_cut_once_and_said(store, cut):
    store.append([record("a"), record("b")])
    path = store.path / "trials" / f"{TRIAL.key}.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    assert [r.item for r in Run.open(store.path).records] == ["a"]  # reading changes nothing on disk
    size = path.stat().st_size
    assert [r.item for r in store.records(TRIAL.key)] == ["a"] and path.stat().st_size < size
    assert store.torn == {TRIAL.key}
    store.append([record("b")])
    assert [r.item for r in Run.open(store.path).records] == ["a", "b"]


def test_damage_in_the_middle_is_an_error(store):
    store.append([record("a"), record("b")])
    path = store.path / "trials" / f"{TRIAL.key}.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"arm"', b'"a"m"', 1))
    with pytest.raises(RecordError, match="line 1 is damaged"):
        Run.open(store.path)
    with pytest.raises(RecordError, match="line 1 is damaged"):
        store.records(TRIAL.key)


def test_what_is_refused(store):
    for bad in (
        record(score={"strict": math.nan}),
        record(outcome={"x": math.inf}),
        record(score=None),
        record(error="both"),
        record(cost=Cost(flops=math.nan)),
    ):
        with pytest.raises(RecordError):
            store.append([record("fine"), bad])
    assert store.records(TRIAL.key) == []  # not even the good one beside it


@pytest.mark.parametrize("after", [0, 1, 300])
def test_a_full_disk_leaves_nothing_half_recorded(store, monkeypatch, after):
    store.append([record("a")])
    path = store.path / "trials" / f"{TRIAL.key}.jsonl"
    whole, write, left = path.read_bytes(), os.write, [after]

    def full(handle, data):
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(handle, bytes(data)[: left[0]])
        left[0] -= done
        return done

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RecordError, match="disk is full") as caught:
        store.append([record("b"), record("c")])
    assert "free some space" in str(caught.value)
    assert path.read_bytes() == whole
    with pytest.raises(RecordError, match="disk is full"):
        store.save_trace({"a": "b" * 1000, "after": after})
    with pytest.raises(RecordError, match="disk is full"):
        store.finish(TRIAL.key, COMPLETE, planned=1)
    assert not store.status(TRIAL.key) and not list((store.path / "traces").iterdir())
    assert not list(store.path.rglob("*.tmp"))
    monkeypatch.undo()
    store.append([record("b")])
    assert [r.item for r in store.records(TRIAL.key)] == ["a", "b"]


def test_a_failed_fsync_is_undone(store, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RecordError, match="cannot record"):
        store.append([record("a")])
    assert (store.path / "trials" / f"{TRIAL.key}.jsonl").read_bytes() == b""


def test_a_changed_plan(store):
    changed = replace(PLAN, question="another")
    store.begin(changed, changed.trials())  # nothing recorded yet: a plan may still change
    store.append([record("a")])
    before = {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()}
    with pytest.raises(PlanChanged, match="new run directory"):
        store.begin(PLAN, PLAN.trials())
    with pytest.raises(PlanChanged):
        check_unchanged(store.path, PLAN)
    assert {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()} == before
    store.begin(changed, changed.trials())


def test_one_writer(store):
    with pytest.raises(RecordError, match="another process is recording"), Store(store.path):
        pass


def test_who_lost_the_run_directory_writes_nothing_more(store):
    """What a network disk that keeps no locks does to us: another process gets in. The last one goes on."""
    store.append([record("a")])
    (store.path / "run.lock").unlink()
    with Store(store.path) as other:
        assert other.records(TRIAL.key) == [record("a")]
        for write in (
            lambda: store.append([record("b")]),
            lambda: store.finish(TRIAL.key, "complete", planned=1),
            lambda: store.save_fitted(TRIAL.key, lambda path: None, {}, {}),
        ):
            with pytest.raises(RecordError, match="another process has taken over"):
                write()
        other.append([record("c")])
        store.__exit__()  # and leaving does not let go of what is not its own
        other.append([record("d")])
    assert [r.item for r in Store(store.path).records(TRIAL.key)] == ["a", "c", "d"]
    assert (store.path / "run.lock").read_bytes() == b""


def test_fitted_appears_whole_or_not_at_all(store):
    def broken(path):
        (path / "half.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RecordError, match="disk is full"):
        store.save_fitted("k", broken, {}, {})
    assert store.fitted_dir("k") is None
    store.save_fitted("k", lambda p: (p / "w.json").write_text("1"), {"chosen": "x"}, {"spent": {}})
    assert (store.fitted_dir("k") / "w.json").read_text() == "1" and store.fit_cost("k") == {"spent": {}}
    store.share_fitted("k", "k2")
    assert json.loads((store.fitted_dir("k2") / "describe.json").read_text()) == {"chosen": "x"}


def test_stale_records_are_not_judged(store):
    store.append(
        [
            record("a"),
        ]
    )
    store.append([record("a", trial="f" * 32), record("b", trial="f" * 32)])
    run = Run.open(store.path)
    assert len(run.records) == 1 and run.stale == 2


def test_pure_records_of_someone_else(tmp_path):
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "theirs.jsonl").write_text(to_line(record("a")) + to_line(record("b")))
    run = Run.open(tmp_path)
    assert run.plan is None and len(run.records) == 2 and run.trials[0].trial.arm == "none"
    row = json.loads(to_line(record("a")))
    del row["split"]
    (tmp_path / "trials" / "theirs.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RecordError, match="no Record|damaged"):
        Run.open(tmp_path)
    with pytest.raises(RecordError, match="no run"):
        Run.open(tmp_path / "nowhere")


def test_traces_are_checked(store):
    digest = store.save_trace({"a": 1})
    path = store.path / "traces" / f"{digest}.json.gz"
    path.write_bytes(gzip.compress(b'{"a":2}'))
    with pytest.raises(RecordError, match="altered"):
        Run(store.path, None, (), (), {}, {}).read_trace(digest)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RecordError, match="cannot be read"):
        Run(store.path, None, (), (), {}, {}).read_trace(digest)


def test_adopting_a_complete_trial(store, tmp_path):
    digest = store.save_trace({"a": 1})
    store.append([record("a", trace=digest)])
    store.save_fitted(TRIAL.key, lambda _: None, {}, {})
    store.write_ledger(TRIAL.key, {"x": 1})
    with Store(tmp_path / "new") as new:
        assert not new.adopt(store.path, TRIAL.key)  # not complete yet
        store.finish(TRIAL.key, COMPLETE, planned=1)
        assert new.adopt(store.path, TRIAL.key) and not new.adopt(store.path, TRIAL.key)
        new.begin(PLAN, PLAN.trials())
    run = Run.open(tmp_path / "new")
    assert run.records == Run.open(store.path).records and run.read_trace(digest) == {"a": 1}


@pytest.mark.parametrize("name", ["plan.json", "trials.json", "trials/{}.done"])
@pytest.mark.parametrize("junk", ["[]", "5", "null", "[" * 3000, '{"a": 1}x', '["a"]'])
def test_a_damaged_side_file_is_named(store, name, junk):
    store.append([record("a")])
    path = store.path / name.format(TRIAL.key)
    path.write_text(junk)
    if (name, junk) == ("trials.json", "[]"):
        assert Run.open(store.path).stale == 1  # no trials: a value it may have
        return
    with pytest.raises(RecordError, match=path.name):
        Run.open(store.path)


@pytest.mark.parametrize(
    "change",
    [{"trial": []}, {"cost": 3}, {"score": 3}, {"score": {"strict": "yes"}}, {"strata": {"trap": 1}}, {"seed": "0"}],
)  # fmt: skip
def test_a_record_of_other_kinds_is_refused(store, change):
    row = {**json.loads(to_line(record("a"))), **change}
    (store.path / "trials" / f"{TRIAL.key}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RecordError, match="line 1 is damaged"):
        Run.open(store.path)
