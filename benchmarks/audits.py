"""The audits of the judge as a table: `python -m benchmarks.audits [STUDIES]` simulates that many studies (2,000) a
setting and prints false positives and coverage in percent. The limits are asserted by tests/judge/test_audits.py.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from tests.judge.test_audits import SETTINGS, naive_rejects
from tests.judge.worlds import differences, rate

from fairlead.core.stopping import first_stop
from fairlead.judge import power, stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", type=int, nargs="?", default=2_000)
    n = parser.parse_args().studies
    say = sys.stdout.write
    say("| clusters × size, rate, latent correlation | sign-flip | interval excludes 0 and p ≤ .05 | "
        "coverage, no effect | coverage, −20 points | TOST at the margin |\n|---|---|---|---|---|---|\n")  # fmt: skip
    for clusters, size, p, rho in SETTINGS:
        null = differences(n, clusters, size, p, p, rho)
        real = differences(n, clusters, size, p, p - 0.2, rho, seed=1)
        edge = differences(n, clusters, size, p, p - 0.1, rho, seed=5)
        cells = (
            rate(d.p <= 0.05 for d in null),
            rate(d.p <= 0.05 and (d.interval.low > 0 or d.interval.high < 0) for d in null),
            rate(d.interval.low <= 0 <= d.interval.high for d in null),
            rate(d.interval.low <= 0.2 <= d.interval.high for d in real),
            rate((stats.equivalence(d, 0.1) or 1.0) <= 0.05 for d in edge),
        )
        say(f"| {clusters} × {size}, {p}, {rho} | " + " | ".join(f"{100 * x:.1f}" for x in cells) + " |\n")
    for clusters in (40, 100):
        rare = differences(n, clusters, 3, 0.05, 0.05, 0.95, 0.0, seed=9)
        covered = rate(d.interval.low <= 0 <= d.interval.high for d in rare)
        told = rate(bool(d.warnings) for d in rare)
        say(f"a rate of 5 % in {clusters} clusters, correlation .95 in one arm and 0 in the other: coverage "
            f"{100 * covered:.1f} %, rejected {100 * rate(d.p <= 0.05 for d in rare):.1f} %, warned of "
            f"{100 * told:.0f} %\n")  # fmt: skip
    rng = np.random.default_rng(4)
    copies = [rng.integers(0, 2, (2, 60, 1)).repeat(3, axis=2) for _ in range(n)]
    naive = rate(naive_rejects(x, y) for x, y in copies)
    codes = np.repeat(np.arange(60), 3)
    ours = rate(stats.paired((x - y).ravel().astype(float), codes).p <= 0.05 for x, y in copies)
    covered = rate(w.low <= 0.5 <= w.high for w in (stats.wilson(int(x.sum()), x.size) for x, _ in copies))
    say(f"three copies of each outcome: naive Wilson rejects {100 * naive:.1f} % and covers {100 * covered:.1f} %, "
        f"the paired test rejects {100 * ours:.1f} %\n")  # fmt: skip
    pairs = [[x.tolist() for x in rng.integers(0, 2, (2, 400)) > 0] for _ in range(n)]
    stopped = rate(first_stop(zip(*one, strict=True))[0] is not None for one in pairs)
    say(f"anytime test, peeked at after each of 400 pairs: {100 * stopped:.1f} % false stops\n")
    for effect, assumed in ((0.15, power.Assumed(60, 3, 0.4, 0.5)), (0.1, power.Assumed(200, 3, 0.4, 0.8))):
        formula, found = power.power(effect, assumed), power.simulate(effect, assumed, worlds=4 * n)
        say(f"power for {100 * effect:.0f} points in {assumed.clusters} clusters: formula {100 * formula:.1f} %, "
            f"simulated {100 * found:.1f} % of {4 * n}\n")  # fmt: skip


if __name__ == "__main__":
    main()
