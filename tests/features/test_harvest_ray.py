"""A store filled by workers that die on cue: the bytes of an inline harvest. No process starts."""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path

import pytest
from tests.core.fake_ray import ActorUnavailableError, FakeRay, RayActorError, use
from tests.features.test_store import WINDOW, Toy, everything, made, toy_corpus, toy_dictionary

from fairlead.core.crew import Cluster
from fairlead.core.errors import FairleadError, WorkerError
from fairlead.features.harvest import Harvester, indexed
from fairlead.features.harvest_ray import fill

COUNT = count()


def make() -> Harvester:
    return Harvester(Toy(), toy_dictionary(), toy_corpus()[0], window=WINDOW, shard_tokens=100, batch=3)


def other() -> Harvester:
    """Another dictionary on every machine."""
    return Harvester(Toy(), toy_dictionary("topk" if next(COUNT) % 2 else "relu"), toy_corpus()[0], shard_tokens=100)


def nothing() -> Harvester:
    return Harvester(Toy(), toy_dictionary(), toy_corpus(0)[0])


@pytest.mark.parametrize("seed", range(4))
def test_the_same_bytes_as_inline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    made(tmp_path / "inline")
    rng, told = random.Random(seed), list[int]()
    ray = use(FakeRay(lambda n, part: rng.choice([RayActorError, ActorUnavailableError])("lost")
                      if isinstance(part, slice) and rng.random() < 0.15 * seed else None), monkeypatch)  # fmt: skip
    for _ in range(20):
        try:
            plan = fill(make, tmp_path / "ray", Cluster(), progress=lambda _, done, total: told.append(done))
            break
        except WorkerError as error:
            assert "the same command goes on from here" in str(error)
    indexed(tmp_path / "ray", toy_dictionary())
    assert everything(tmp_path / "ray") == everything(tmp_path / "inline")
    assert told[-1] == plan.header.tokens and (ray.hired > 2) == (seed > 0)
    before = ray.asked.copy()
    fill(make, tmp_path / "ray", Cluster())
    assert not [step for step in ray.asked[len(before) :] if step != "hello"]  # whole shards are not read again


def test_workers_that_differ_and_nothing_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = use(FakeRay(), monkeypatch)
    with pytest.raises(WorkerError, match="another store"):
        fill(other, tmp_path / "s", Cluster(workers=2))
    with pytest.raises(FairleadError, match="nothing to harvest"):
        fill(nothing, tmp_path / "empty", Cluster())
    assert not (tmp_path / "empty").exists() and ray.killed == ray.hired
