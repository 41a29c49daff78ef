"""Where a verb does its work: in this process, or by workers on a Ray cluster that load models as the verb would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from fairlead.app.models import Loading, choose_loading, loading, use_threads
from fairlead.core.crew import Cluster
from fairlead.core.errors import FairleadError


def cluster(executor: str, address: str | None, workers: int | None) -> Cluster | None:
    """What --executor, --ray-address and --workers ask for; None: this process. FairleadError where they contradict."""
    if executor == "ray":
        return Cluster(address, workers)
    if address is not None or workers is not None:
        option = "--ray-address" if address is not None else "--workers"
        raise FairleadError(f"{option} is for a cluster", expected="--executor ray", got=f"--executor {executor}")
    return None


def sized(where: Cluster, threads: int) -> Cluster:
    """The cluster with what each of its workers takes: a GPU where models go to one, and a CPU a thread."""
    device = loading().device or "cpu"
    if device.startswith("cuda:"):
        raise FairleadError("Ray chooses which GPU a worker gets", expected="--device cuda", got=f"--device {device}")
    return replace(where, gpu=device == "cuda", cpus=threads)


@dataclass(frozen=True)
class Settings:
    """How this process was told to load models, for a worker to do the same."""

    how: Loading
    threads: int

    @classmethod
    def here(cls, threads: int) -> Settings:
        return cls(loading(), threads)

    def wrap(self, load: Callable[..., Any]) -> Callable[..., Any]:
        """`load` under these settings, wherever and whenever it is called."""

        def loaded(ref: str, **more: Any) -> Any:
            use_threads(self.threads)
            choose_loading(**asdict(self.how))
            return load(ref, **more)

        return loaded
