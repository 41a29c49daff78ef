"""`python run_toy_ray.py RUN_DIR ADDRESS [delay]`: the toy study on a running cluster, from a process to be killed."""

import sys
import time

import world

from fairlead.core.crew import Cluster, Crew
from fairlead.core.plan import parse_plan
from fairlead.study import run_study
from fairlead.study.ray_executor import OnRay


class Watched(Crew):
    """Begins when both workers are up, and says on stderr when one is lost."""

    def work(self, jobs):
        self._hire(2)
        while not all(seat.up for seat in self._seats):
            self._hear([], [])
        return super().work(jobs)

    def _replace(self, seat, *rest):
        print("lost a worker" + (" at work" if seat.job is not None else ""), file=sys.stderr, flush=True)  # noqa: T201
        super()._replace(seat, *rest)


if __name__ == "__main__":
    world.extend()
    sys.modules["fairlead.study.ray_executor"].Crew = Watched
    delay = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    run_study(
        parse_plan(world.PLAN),
        sys.argv[1],
        executor=OnRay(world.outfit, Cluster(sys.argv[2], workers=2)),
        progress=lambda _: time.sleep(delay),
        text=world.PLAN,
    )
