"""A crew of workers on Ray: one actor a device, jobs handed out step by step, and what a dead worker held is begun
again by another.

A worker only answers. It writes nothing that outlives it, so a worker that lives on after whoever asked is gone can
do no harm. Ray is imported when a crew is called together, and is the extra `fairlead[ray]`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from fairlead.core.errors import WorkerError

DEATHS = 3  # of workers on one job, with nothing done in between, before it is given up
PATIENCE = 300.0  # seconds in which some worker must come up
FAREWELL = 10.0  # seconds that workers have to close what they opened
STORE_BYTES = 128 * 2**20  # of shared memory for a cluster that is started here
LOOPBACK = "127.0.0.1"
CARRIED = ("FAIRLEAD_POCKET", "FAIRLEAD_CHROMIUM", "FAIRLEAD_CACHE")  # environment that a worker takes over
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leaves CUDA_VISIBLE_DEVICES alone where no GPU is asked for
}
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # or Ray puts the host's own address for 127.0.0.1


@dataclass(frozen=True)
class Cluster:
    """Where workers are. `address` is that of a running cluster; None starts one on this machine's loopback, which ends
    with this process. `workers` None: one a GPU where `gpu`, else one for every `cpus` CPUs."""

    address: str | None = None
    workers: int | None = None
    gpu: bool = False
    cpus: int = 1


class Worker(Protocol):
    """What runs on another machine."""

    def hello(self) -> Any:
        """What the caller checks before it gives work: who this is, and what it runs."""
        ...

    def do(self, step: Any) -> Any:
        """One step of a job."""
        ...

    def close(self) -> None:
        """Let go of everything. A worker that dies is not asked."""
        ...


class Job(Protocol):
    """Something that one worker does from beginning to end; begun again from what is kept when the worker dies."""

    @property
    def key(self) -> str:
        """Which job it is; `waits` is told keys."""
        ...

    @property
    def name(self) -> str:
        """What a message calls it."""
        ...

    @property
    def likes(self) -> str:
        """A worker that last did a job with the same word has what this one needs."""
        ...

    def waits(self, unsettled: frozenset[str]) -> bool:
        """Whether it needs one of the jobs that are not settled."""
        ...

    def steps(self) -> Generator[Any, Any, None]:
        """What is still to be done."""
        ...


@dataclass(frozen=True)
class GivenUp:
    """A job that is left as it is, and why."""

    job: Any
    why: str


def refuse_given_up(given_up: Sequence[GivenUp], what: str) -> None:
    """WorkerError where something was given up; all else is done by then."""
    if given_up:
        first = given_up[0]
        raise WorkerError(
            f"{len(given_up)} {what} were given up; all others are done",
            got=f"{first.job.name}: {first.why}",
            do="look at the workers' memory and Ray's logs; the same command goes on from here",
        )


@dataclass(eq=False)
class _Seat:
    """A place in the crew: a worker, what it was asked, and the job it is at."""

    actor: Any
    asked: Any
    up: bool = False
    job: Any = None
    steps: Generator[Any, Any, None] | None = None
    likes: str = ""


@dataclass(eq=False)
class Crew:
    """Workers that `make` makes, each in a process of its own. Use as a context manager: nothing of it is left running.

    `accept` sees what each worker says first, and raises where it must not work here.
    """

    make: Callable[[], Worker]
    cluster: Cluster = Cluster()
    accept: Callable[[Any], None] = lambda _hello: None
    patience: float = PATIENCE
    _seats: list[_Seat] = field(default_factory=list)
    _tried: dict[str, int] = field(default_factory=dict)
    _stillborn: int = 0
    _left: Callable[[], None] = lambda: None

    def __enter__(self) -> Crew:
        self._ray, self._left = join(self.cluster)
        try:
            self._size = _size(self._ray, self.cluster)
        except BaseException:
            self._left()
            raise
        needs = {"num_cpus": self.cluster.cpus, "num_gpus": int(self.cluster.gpu)}
        self._actor = self._ray.remote(**needs, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD")(_Hand)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            idle = [seat.actor.close.remote() for seat in self._seats if seat.up and seat.job is None]
            if idle and kind is None:
                self._ray.wait(idle, num_returns=len(idle), timeout=FAREWELL)
        finally:
            for seat in self._seats:
                self._dismiss(seat)
            self._seats.clear()
            self._left()

    def hello(self) -> Any:
        """What the first worker to come up says. It stays, and is the first to get work."""
        said: list[Any] = []
        keep, self.accept = self.accept, said.append
        while not said:
            self._hire(1)
            self._hear([], [])
        self.accept = keep
        return said[0]

    def work(self, jobs: Sequence[Job]) -> list[GivenUp]:
        """Do all jobs, in this order where nothing else decides; those whose workers died `DEATHS` times in a row, and
        those that wait for them, are returned as given up. Errors that a worker raises are raised here."""
        waiting, lost = list(jobs), list[GivenUp]()
        while waiting or self._busy:
            self._hire(min(self._size, len(waiting) + len(self._busy)))
            unsettled = frozenset(job.key for job in [*waiting, *self._busy, *(given.job for given in lost)])
            for seat in self._seats:
                if seat.up and seat.job is None and (job := _pick(waiting, unsettled, seat.likes)) is not None:
                    waiting.remove(job)
                    self._begin(seat, job)
                    break  # what is settled may have changed
            else:
                if any(seat.up for seat in self._seats) and not self._busy:
                    return lost + [GivenUp(job, "it waits for one that was given up") for job in waiting]
                self._hear(waiting, lost)
        return lost

    @property
    def _busy(self) -> list[Any]:
        return [seat.job for seat in self._seats if seat.job is not None]

    def _begin(self, seat: _Seat, job: Job) -> None:
        seat.job, seat.likes = job, job.likes
        seat.steps = job.steps()
        self._send(seat, None)

    def _send(self, seat: _Seat, answer: Any) -> None:
        """Give the answer to the job, and its next step to the worker; at the end of the job the seat is free."""
        assert seat.steps is not None
        try:
            seat.asked = seat.actor.do.remote(seat.steps.send(answer))
        except StopIteration:
            self._tried.pop(seat.job.key, None)
            seat.job = seat.steps = seat.asked = None

    def _hear(self, waiting: list[Any], lost: list[GivenUp]) -> None:
        """Wait for one answer, and act on it."""
        asked = {seat.asked: seat for seat in self._seats if seat.asked is not None}
        until = None if any(seat.up for seat in self._seats) else self.patience
        ready, _ = self._ray.wait(list(asked), num_returns=1, timeout=until)
        if not ready:
            raise WorkerError(
                f"no worker has come up in {self.patience:.0f} seconds",
                expected=f"{self.cluster.cpus} CPUs" + (" and a GPU" if self.cluster.gpu else "") + " for each",
                got=f"{self._ray.available_resources()} free in the cluster",
                do="look at `ray status`; another study may hold its machines",
            )
        seat = asked[ready[0]]
        try:
            answer = self._ray.get(ready[0])
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from error
        except self._ray.exceptions.RayError as error:  # RayActorError, ActorUnavailableError, an object or a node lost
            self._replace(seat, error, waiting, lost)
            return
        if not seat.up:
            self.accept(answer)
            seat.up, seat.asked, self._stillborn = True, None, 0
            return
        self._tried.pop(seat.job.key, None)
        self._send(seat, answer)

    def _replace(self, seat: _Seat, error: Exception, waiting: list[Any], lost: list[GivenUp]) -> None:
        """A worker is gone, or cannot be reached: its seat is free for another one, and its job goes back."""
        job, was_up = seat.job, seat.up
        if seat.steps is not None:
            seat.steps.close()
        self._dismiss(seat)
        self._seats.remove(seat)
        why = _first_line(error)
        if not was_up:
            self._stillborn += 1
        if self._stillborn >= DEATHS and any(other.up for other in self._seats):
            self._size, self._stillborn = len(self._seats), 0  # the others go on without it
        elif self._stillborn >= DEATHS:
            raise WorkerError(
                f"{DEATHS} workers died while they were loading",
                got=why,
                do="look at the machines' memory, and at Ray's logs (by default in /tmp/ray/session_latest/logs)",
            )
        if job is not None:
            tried = self._tried[job.key] = self._tried.get(job.key, 0) + 1
            if tried < DEATHS:
                waiting.append(job)
            else:
                lost.append(GivenUp(job, f"{tried} workers died on it: {why}"))

    def _hire(self, size: int) -> None:
        while len(self._seats) < size:
            actor = self._actor.remote(self.make, _environment(), os.getcwd())
            self._seats.append(_Seat(actor, actor.hello.remote()))

    def _dismiss(self, seat: _Seat) -> None:
        try:
            self._ray.kill(seat.actor, no_restart=True)
        except Exception:  # the cluster itself may be gone
            return


class _Hand:
    """The actor: makes the worker when first spoken to, so that what goes wrong in loading is told as it is."""

    def __init__(self, make: Callable[[], Worker], environment: dict[str, str], folder: str) -> None:
        os.environ.update(environment)
        if Path(folder).is_dir():
            os.chdir(folder)  # references may be relative paths
        self._make = make

    def hello(self) -> Any:
        self._worker = self._make()
        return self._worker.hello()

    def do(self, step: Any) -> Any:
        return self._worker.do(step)

    def close(self) -> None:
        self._worker.close()


def join(cluster: Cluster) -> tuple[Any, Callable[[], None]]:
    """Ray, connected to the cluster, and what leaves it again. A connection that was there is used, and stays."""
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    on_loopback = address == "local" or address.startswith((f"{LOOPBACK}:", "localhost:"))
    for name, value in {**QUIET, **(ON_LOOPBACK if on_loopback else {})}.items():
        os.environ.setdefault(name, value)  # Ray reads these when it is imported
    try:
        import ray
    except ImportError as error:
        raise WorkerError("ray is not installed", expected="the extra fairlead[ray]", got=str(error),
                          do="pip install 'fairlead[ray]', or leave out --executor ray") from error  # fmt: skip
    if ray.is_initialized():
        return ray, lambda: None
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if on_loopback:
        how["_node_ip_address"] = LOOPBACK
    if address == "local":
        return ray, _start(ray, how)
    try:
        ray.init(address=address, **how)
    except Exception as error:
        raise WorkerError(f"no Ray cluster at {address}", got=_first_line(error),
                          do="start one with `ray start --head`, or leave --ray-address out") from error  # fmt: skip
    return ray, ray.shutdown


def _start(ray: Any, how: dict[str, Any]) -> Callable[[], None]:
    """A cluster of this machine for this process, and what ends it. A second try: Ray gives its node 30 seconds, which
    a busy machine may exceed."""
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a short path: sockets lie in it

    def leave() -> None:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)

    how |= {"address": "local", "include_dashboard": False, "object_store_memory": STORE_BYTES, "_temp_dir": scratch}
    for last in (False, True):
        try:
            ray.init(**how)
            break
        except Exception as error:
            if last:
                leave()
                raise WorkerError(
                    "Ray does not start on this machine",
                    got=_first_line(error),
                    do="try again when it is less busy, or leave out --executor ray",
                ) from error
    return leave


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _size(ray: Any, cluster: Cluster) -> int:
    """How many workers to seat."""
    has = ray.cluster_resources()
    if cluster.gpu and not has.get("GPU"):
        raise WorkerError("no GPU in this cluster", expected="a GPU for each worker", got=str(has),
                          do="leave out --device cuda, or add a machine that has one")  # fmt: skip
    if cluster.workers is not None:
        return cluster.workers
    return max(1, int(has["GPU"] if cluster.gpu else has.get("CPU", 1) // cluster.cpus))


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in CARRIED if name in os.environ}


def _pick(waiting: Sequence[Any], unsettled: frozenset[str], likes: str) -> Any:
    """The next job for a worker: the first whose needs are met, rather one for which it has what is needed."""
    ready = [job for job in waiting if not job.waits(unsettled)]
    return next((job for job in ready if job.likes == likes), ready[0] if ready else None)
