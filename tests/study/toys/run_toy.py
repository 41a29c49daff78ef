"""`python run_toy.py RUN_DIR [delay]`: the toy study in its own process, to be killed."""

import sys
import time

import world

from fairlead.core.plan import parse_plan
from fairlead.study import run_study

if __name__ == "__main__":
    world.extend()
    delay = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    run_study(
        parse_plan(world.PLAN),
        sys.argv[1],
        load_model=world.load_model,
        progress=lambda _: time.sleep(delay),
        text=world.PLAN,
    )
