"""The crew against a Ray that dies on cue: who is asked again, who is given up, who is sent away. No process starts."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from tests.core.fake_ray import ActorUnavailableError, FakeRay, RayActorError, RayError, use

from fairlead.core import crew
from fairlead.core.crew import Cluster, Crew
from fairlead.core.errors import LoadError, WorkerError


class Doubler:
    def hello(self) -> str:
        return "doubler"

    def do(self, step: int) -> int:
        if step == 13:
            raise LoadError("no thirteen")
        return 2 * step

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Numbers:
    """Doubles its numbers, keeping each answer, and never one twice."""

    name: str
    numbers: tuple[int, ...]
    kept: dict[tuple[str, int], int]
    needs: tuple[str, ...] = ()
    likes: str = ""

    @property
    def key(self) -> str:
        return self.name

    def waits(self, unsettled: frozenset[str]) -> bool:
        return bool(unsettled & set(self.needs))

    def steps(self) -> Generator[int, int, None]:
        for n in self.numbers:
            if (self.name, n) not in self.kept:
                found = yield n
                assert (self.name, n) not in self.kept
                self.kept[self.name, n] = found


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeRay], FakeRay]:
    return partial(use, patch=monkeypatch)


def work(*jobs: Numbers, **how: Any) -> list[crew.GivenUp]:
    with Crew(Doubler, Cluster(**how)) as found:
        assert found.hello() == "doubler"
        return found.work(jobs)


WANT = {("a", 1): 2, ("a", 2): 4, ("b", 5): 10}


@pytest.mark.parametrize("kind", [RayActorError, ActorUnavailableError, RayError])
@pytest.mark.parametrize("when", range(1, 8))
def test_a_worker_lost_at_any_moment_changes_nothing(on, when, kind):
    kept: dict[tuple[str, int], int] = {}
    ray = on(FakeRay(lambda n, step: kind("gone") if n == when else None))
    assert work(Numbers("a", (1, 2), kept), Numbers("b", (5,), kept)) == [] and kept == WANT
    assert ray.killed == ray.hired and ray.left == 1 and ray.closed  # nobody is left, and who could close has closed


def test_a_job_on_which_workers_die_is_given_up_and_the_others_go_on(on):
    kept: dict[tuple[str, int], int] = {}
    ray = on(FakeRay(lambda n, step: RayActorError("out of memory\nand more") if step == 7 else None))
    jobs = [Numbers("bad", (1, 7, 8), kept), Numbers("after", (3,), kept, needs=("bad",)), Numbers("a", (1, 2), kept)]
    lost = work(*jobs, Numbers("b", (5,), kept))
    assert [(g.job.name, g.why) for g in lost] == [
        ("bad", "3 workers died on it: out of memory"), ("after", "it waits for one that was given up")]  # fmt: skip
    assert kept == {**WANT, ("bad", 1): 2} and ray.asked.count(7) == crew.DEATHS and ray.left == 1


def test_what_gets_on_between_deaths_is_not_given_up(on):
    kept: dict[tuple[str, int], int] = {}
    died: list[int] = []

    def fate(n: int, step: Any) -> Exception | None:
        if step != "hello" and died.count(step) < crew.DEATHS - 1:
            died.append(step)
            return ActorUnavailableError("a machine was taken away")
        return None

    on(FakeRay(fate))
    assert work(Numbers("a", tuple(range(5)), kept)) == [] and len(kept) == 5 and len(died) == 5 * (crew.DEATHS - 1)


def test_order_needs_and_likes(on):
    begun: list[str] = []

    class Told(Numbers):
        def steps(self) -> Generator[int, int, None]:
            begun.append(self.name)
            return super().steps()

    kept: dict[tuple[str, int], int] = {}
    on(FakeRay())
    one = {"kept": kept, "numbers": (1,)}
    jobs = [Told("needy", needs=("x",), likes="m1", **one), Told("p", likes="m1", **one), Told("q", likes="m2", **one),
            Told("r", likes="m1", **one), Told("x", likes="m2", **one)]  # fmt: skip
    assert work(*jobs, workers=1) == []
    assert begun == ["p", "r", "q", "x", "needy"]  # the model in memory first, then the given order; needs before all


def test_a_worker_that_runs_other_code_is_refused(on):
    ray = on(FakeRay())

    def accept(hello: str) -> None:
        raise WorkerError("a worker would run another study")

    with pytest.raises(WorkerError, match="another study"), Crew(Doubler, Cluster(), accept) as found:
        found.work([Numbers("a", (1,), {})])
    assert ray.killed == ray.hired > 0 and ray.left == 1


def test_what_a_worker_raises_is_raised_and_all_are_sent_home(on):
    ray = on(FakeRay())
    with pytest.raises(LoadError, match="no thirteen"):
        work(Numbers("a", (1, 13), {}), Numbers("b", (1, 2, 3), {}))
    assert ray.killed == ray.hired and ray.left == 1


def test_nobody_comes(on):
    ray = on(FakeRay(up=False))
    with pytest.raises(WorkerError, match="no worker has come up") as told:
        work(Numbers("a", (1,), {}))
    assert "ray status" in str(told.value) and ray.killed == ray.hired == 1
    ray = on(FakeRay(lambda n, step: RayActorError("killed while loading")))
    with pytest.raises(WorkerError, match="3 workers died while they were loading"):
        work(Numbers("a", (1,), {}))
    assert ray.killed == ray.hired == crew.DEATHS


def test_one_worker_goes_on_where_no_other_comes_up(on):
    kept: dict[tuple[str, int], int] = {}
    ray = on(FakeRay(lambda n, step: RayActorError("no memory") if step == "hello" and n > 1 else None))
    assert work(*(Numbers(str(i), (i, i + 1), kept) for i in range(20, 26))) == []
    assert len(kept) == 12 and ray.hired == 1 + crew.DEATHS and ray.killed == ray.hired


@pytest.mark.parametrize(
    ("has", "asked", "seats"),
    [
        ({"CPU": 8.0}, {}, 8),
        ({"CPU": 8.0}, {"cpus": 3}, 2),
        ({"CPU": 1.0}, {"cpus": 4}, 1),
        ({"CPU": 8.0}, {"workers": 3}, 3),
        ({"CPU": 64.0, "GPU": 4.0}, {"gpu": True}, 4),
    ],
)
def test_how_many_are_hired(on, has, asked, seats):
    kept: dict[tuple[str, int], int] = {}
    ray = on(FakeRay(resources=has))
    work(*(Numbers(str(i), (i,), kept) for i in range(20, 40)), **asked)
    assert ray.hired == seats and len(kept) == 20
    work(Numbers("one", (1,), kept), **asked)
    assert ray.hired == seats + 1  # no more than there are jobs


def test_a_gpu_that_is_not_there(on):
    ray = on(FakeRay())
    with pytest.raises(WorkerError, match="no GPU"):
        work(gpu=True)
    assert ray.left == 1


def test_without_ray_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(WorkerError, match=r"fairlead\[ray\]"):
        crew.join(Cluster())
