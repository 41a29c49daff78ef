"""Two Ray nodes on loopback: one is killed in the middle of a sweep, then the driver, and the study is run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.study.test_kill import TOYS, size, without_seconds

from fairlead.core.crew import ON_LOOPBACK, QUIET
from fairlead.core.records import Run

pytestmark = [
    pytest.mark.soak,
    # Ray's own processes: its cluster_utils drops their handles and leaves the rest to the garbage collector
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]
NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20, "include_dashboard": False}
PATIENCE = 300


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of one node, which finds the toys; more can be added. Nothing of it is left."""
    for name, value in {**QUIET, **ON_LOOPBACK, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TOYS)])))
    from ray._private import services
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(services, "get_node", patient(services.get_node))
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Ray gives a node 30 seconds to register, which a busy machine exceeds, and a node that it gave up would come up
    later all the same, as one that the test does not know of."""

    def found(*where: Any) -> Any:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return get_node(*where)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    return found


@pytest.fixture
def drivers() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts drivers, none of which is left."""
    started: list[subprocess.Popen[bytes]] = []

    def start(run_dir: Path, address: str, delay: float, log: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(TOYS / "run_toy_ray.py"), str(run_dir), address, str(delay)]
        with log.open("ab") as file:
            started.append(subprocess.Popen(command, stderr=file, stdout=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(process: subprocess.Popen[bytes], reached: Callable[[], bool], log: Path) -> None:
    """Wait for what is on disk, so that the moment is met on a fast machine and on a slow one."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)


def test_a_node_and_then_the_driver_are_killed(
    nodes: Any, drivers: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    subprocess.run([sys.executable, str(TOYS / "run_toy.py"), str(whole)], check=True, timeout=PATIENCE)
    want, total = without_seconds(whole), size(whole)
    second = nodes.add_node(**NODE)

    driver = drivers(killed, nodes.address, 0.05, log)
    until(driver, lambda: size(killed) > 0.2 * total, log)
    nodes.remove_node(second, allow_graceful=False)
    until(driver, lambda: "lost a worker at work" in log.read_text(), log)
    until(driver, lambda: size(killed) > 0.5 * total, log)
    assert driver.poll() is None
    driver.send_signal(signal.SIGKILL)
    driver.wait(timeout=PATIENCE)
    before = Run.open(killed)
    done = sum(state.status == "complete" for state in before.trials)
    assert 0 < done < 32 and 0 < len(before.records) < 32 * 22

    nodes.add_node(**NODE)
    driver = drivers(killed, nodes.address, 0.0, log)  # at once: the dead driver's workers may still be there
    assert driver.wait(timeout=PATIENCE) == 0, log.read_text()
    assert without_seconds(killed) == want
    records = Run.open(killed).records
    assert len(records) == 32 * 22 and set(Counter((r.trial, r.item) for r in records).values()) == {1}
    assert "Traceback" not in log.read_text()
    assert log.read_text().count("lost a worker at work") == 1
