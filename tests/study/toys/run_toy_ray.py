"""`python run_toy_ray.py RUN_DIR ADDRESS [delay]`: the toy study on a running cluster, from a process to be killed."""

import sys
import time

import world

from fairlead.core.crew import Cluster, Crew
from fairlead.core.plan import parse_plan
from fairlead.study import run_study
from fairlead.study.ray_executor import OnRay


def told(replace):
    """Says on stderr when a worker is gone."""

    def replaced(self, seat, *rest):
        print("lost a worker" + (" at work" if seat.job is not None else ""), file=sys.stderr, flush=True)  # noqa: T201
        replace(self, seat, *rest)

    return replaced


if __name__ == "__main__":
    world.extend()
    Crew._replace = told(Crew._replace)
    delay = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    run_study(
        parse_plan(world.PLAN),
        sys.argv[1],
        executor=OnRay(world.outfit, Cluster(sys.argv[2], workers=2)),
        progress=lambda _: time.sleep(delay),
        text=world.PLAN,
    )
