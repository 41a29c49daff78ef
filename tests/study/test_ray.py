"""The toy study on a real Ray cluster of one node: what is recorded is what the inline executor records.

Ray takes some ten seconds to start, so it is started once. All else is tried on a Ray in this process that dies on cue;
machines that are killed for real are in tests/soak/test_kill_ray.py.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from tests.core.fake_ray import ActorUnavailableError, FakeRay, RayActorError, use
from tests.study.test_kill import without_seconds

from fairlead.core import crew
from fairlead.core.crew import Cluster
from fairlead.core.errors import LoadError, RecordError, WorkerError
from fairlead.core.plan import parse_plan
from fairlead.core.records import Run, Store
from fairlead.study import run_study
from fairlead.study.ray_executor import OnRay, unpack
from fairlead.study.steps import Fit

COUNT = count()
TOYS = Path(__file__).parent / "toys"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One node on loopback, which finds the toys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(TOYS)]))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray keeps its token there
        ray, leave = crew.join(Cluster())
        yield ray
        leave()
    assert not ray.is_initialized()


@pytest.fixture
def world(toys):
    import world

    return world


@pytest.fixture
def plan(world):
    return parse_plan(world.PLAN)


def on_ray(plan, path, world, outfit=None, **more):
    return run_study(plan, path, executor=OnRay(outfit or world.outfit, Cluster(workers=2)), **more)


@pytest.mark.slow
# a node that Ray gave up after 30 seconds, on a busy machine, runs until this process ends; the second one is used
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_the_same_records_as_inline(cluster, plan, world, tmp_path):
    run_study(plan, tmp_path / "inline", load_model=world.load_model, text=world.PLAN)
    told = []
    run = on_ray(plan, tmp_path / "ray", world, text=world.PLAN, progress=told.append)
    assert without_seconds(tmp_path / "ray") == without_seconds(tmp_path / "inline")
    assert set(Counter((r.trial, r.item) for r in run.records).values()) == {1} and len(run.records) == 32 * 22
    ended = [p.trial for p in told if p.phase in ("done", "not_applicable")]
    assert len(ended) == len(set(ended)) == 40 and told[-1].index == 39
    order = [t.arm for t in ended if t.model == "toy/a"]
    assert order != sorted(order, key=plan.arms.index)  # drawn, not the plan's


def failing_outfit(warn):
    import world

    world.outfit(warn)
    raise LoadError("weights are cut short")


def other_outfit(warn):
    import world

    world.outfit(warn)
    warn("look at this")
    mine = str(next(COUNT))

    def load(ref):
        found = world.load_model(ref)
        found.fingerprint += mine  # every worker has weights of its own
        return found

    return load, None


def test_what_goes_wrong_on_a_worker_is_told_as_it_is(plan, world, tmp_path, monkeypatch):
    ray = use(FakeRay(), monkeypatch)
    with pytest.raises(LoadError, match="weights are cut short"):
        on_ray(plan, tmp_path / "r", world, failing_outfit)
    assert not (tmp_path / "r").exists()
    warned = []
    with pytest.raises(WorkerError, match="another study") as told:
        run_study(plan, tmp_path / "r", executor=OnRay(other_outfit, Cluster(workers=2), warn=warned.append))
    assert "other weights" in str(told.value) and warned == ["look at this"]
    small = replace(plan, models=("toy/a",), dictionaries=(None,), arms=("toy_line", "toy_line.broken"), beat=(),
                    seeds=(0,), claim="toy_line")  # fmt: skip
    run = on_ray(small, tmp_path / "broken", world)
    assert ray.killed == ray.hired
    reasons = {s.trial.decoding: s.reason for s in run.trials if s.status == "failed"}
    assert reasons["constrained"] == "fit: ValueError: no fit today" and "no fit under" in reasons["free"]
    with Store(tmp_path / "held") as held, pytest.raises(RecordError, match="another process is recording"):
        on_ray(small, held.path, world)


@pytest.mark.parametrize("seed", range(2))
def test_workers_that_die_again_and_again(plan, world, tmp_path, monkeypatch, seed):
    """One answer in five is lost, now with the worker, now on its way; a trial or two may be given up, and the next run
    finishes them."""
    rng = random.Random(seed)

    def fate(n, sent):
        return rng.choice([RayActorError, ActorUnavailableError])("lost") if rng.random() < 0.2 else None

    plan = replace(plan, models=("toy/a",), dictionaries=(None,), seeds=(0,))
    run_study(plan, tmp_path / "inline", load_model=world.load_model, text=world.PLAN)
    ray = use(FakeRay(fate), monkeypatch)
    try:
        on_ray(plan, tmp_path / "ray", world, text=world.PLAN)
    except WorkerError as error:
        assert "the same command goes on from here" in str(error)
    use(FakeRay(), monkeypatch)
    run = on_ray(plan, tmp_path / "ray", world, text=world.PLAN)
    assert ray.hired > 5 and without_seconds(tmp_path / "ray") == without_seconds(tmp_path / "inline")
    assert set(Counter((r.trial, r.item) for r in run.records).values()) == {1}


def test_a_trial_on_which_workers_die_is_left_and_what_waits_for_it_too(plan, world, tmp_path, monkeypatch):
    def fate(n, sent):
        step = getattr(sent, "step", None)
        return RayActorError("out of memory") if isinstance(step, Fit) and step.trial.arm == "toy_line.tuned" else None

    small = replace(plan, models=("toy/a",), dictionaries=(None,), seeds=(0,))
    use(FakeRay(fate), monkeypatch)
    told = []
    with pytest.raises(WorkerError, match="4 of 10 trials were given up; all others are done") as error:
        on_ray(small, tmp_path / "ray", world, progress=told.append)
    assert "3 workers died on it: out of memory" in str(error.value)
    given = {(p.trial.arm, p.trial.decoding) for p in told if p.phase == "given_up"}
    run = Run.open(tmp_path / "ray")
    assert given == {(a, d) for a in ("toy_line.tuned", "toy_line.same") for d in plan.decoding}
    assert {(s.trial.arm, s.trial.decoding) for s in run.trials if s.status == "pending"} == given


def test_files_of_a_fit_stay_in_their_folder(tmp_path):
    for name in ("../escaped", "/tmp/escaped", "a/../../escaped"):
        with pytest.raises(RecordError, match="outside its folder"):
            unpack({name: b""}, tmp_path / "fit")
    
