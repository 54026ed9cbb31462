"""`make fuzz`: judge random policies by oracle, resolver and kernel until the cases run out.

    python -m tests.fuzz [--cases N] [--seconds S] [--seed SEED] [--service-steps N]

Then services change at random, for that many steps of each machine of `service_states`.

Prints the cases, the seeds and every disagreement with the least policies that show it. The exit
code is 0 when there was none. A seed of a round plays that round alone: --seed SEED --cases 1.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from pathlib import Path

from tests.bpf.harness import Plane
from tests.fuzz.rounds import SIZES, play, shrunk
from tests.fuzz.service_states import MACHINES, play_machine

CACHE = Path(__file__).parents[2] / "build" / "templates"
_SHOWN = 5


def main() -> int:
    """Fuzz until the cases or the seconds run out."""
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    parser.add_argument("--service-steps", type=int, default=10_000)
    given = parser.parse_args()
    failed = judge(given)
    if given.service_steps:
        change_services(given.service_steps)
    return failed


def change_services(steps: int) -> None:
    """Play the machines of services; raises AssertionError with the steps to a divergence."""
    for machine in MACHINES:
        began = time.monotonic()
        played = play_machine(machine, steps)
        took = time.monotonic() - began
        print(f"{machine.__name__}: {played} steps in {took:.0f} s, no divergence, no leak")


def judge(given: argparse.Namespace) -> int:
    """Judge policies; returns 1 when there was a disagreement."""
    plane = Plane(CACHE, sizes=SIZES)
    began = time.monotonic()
    tally: Counter[str] = Counter()
    findings = 0
    try:
        for seed in itertools.count(given.seed):
            if tally.total() >= given.cases or time.monotonic() - began > given.seconds:
                break
            for finding in play(plane, seed, tally):
                findings += 1
                if findings <= _SHOWN:
                    print(f"\nDisagreement {findings}: {shrunk(plane, finding)}\n", flush=True)
            if sys.stderr.isatty():
                print(f"\r{tally.total()} cases", end="", file=sys.stderr)
    finally:
        plane.close()
    took = time.monotonic() - began
    kinds = ", ".join(f"{count} {kind}" for kind, count in tally.most_common())
    print(
        f"{tally.total()} cases ({kinds}) in {took:.0f} s, "
        f"seeds {given.seed} to {seed - 1}, {findings} disagreements"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
