"""A feature store filled by workers on Ray, one shard at a time; the process that asked writes, and leaves the bytes of
an inline harvest.

Plain actors, not Ray Data: which tokens share a forward is fixed by the store's header, so that bytes repeat. A shard
is therefore the smallest unit that may move, and Ray Data, which cuts blocks and batches to its own measure, would be
handed a list of shard numbers and add pandas.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fairlead.core.crew import Cluster, Crew, refuse_given_up
from fairlead.core.errors import WorkerError
from fairlead.features import store
from fairlead.features.harvest import Harvester, Plan, Progress
from fairlead.features.store import Array


class _Hand:
    """A harvester on its machine."""

    def __init__(self, make: Callable[[], Harvester]) -> None:
        self._make = make

    def hello(self) -> Plan:
        self._harvester = self._make()
        return self._harvester.plan

    def do(self, part: slice) -> dict[str, Array]:
        return self._harvester.shard(part)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _Shard:
    root: Path
    number: int
    part: slice
    told: Callable[[slice], None]
    likes: str = ""

    @property
    def key(self) -> str:
        return f"shard {self.number}"

    name = key

    def waits(self, unsettled: frozenset[str]) -> bool:  # noqa: ARG002
        return False

    def steps(self) -> Generator[slice, dict[str, Array], None]:
        if not store.has_shard(self.root, self.number):
            arrays = yield self.part
            store.keep_shard(self.root, self.number, arrays)
        self.told(self.part)


def fill(
    make: Callable[[], Harvester], out: str | Path, cluster: Cluster, *, progress: Progress | None = None
) -> Plan:
    """As `features.harvest.fill`, with a harvester that `make` makes on every worker (it is pickled); says what was
    harvested. Raises WorkerError where workers differ, or die again and again."""
    root, say, done = Path(out), progress or (lambda _phase, _done, _total: None), 0
    with Crew(partial(_Hand, make), cluster) as crew:
        plan: Plan = crew.hello()

        def accept(other: Plan) -> None:
            if other.header != plan.header:
                raise WorkerError(
                    "a worker would fill another store",
                    expected=str(plan.header),
                    got=str(other.header),
                    do="bring the same model, dictionary and texts to every machine",
                )

        def told(part: slice) -> None:
            nonlocal done
            done += sum(plan.lengths[part])
            say("tokens", done, plan.header.tokens)

        crew.accept = accept
        store.begin(root, plan.header, plan.vocabulary)
        refuse_given_up(crew.work([_Shard(root, i, part, told) for i, part in enumerate(plan.parts)]), "shards")
    return plan
