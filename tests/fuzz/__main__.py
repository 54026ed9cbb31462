"""`make fuzz`: judge random policies by oracle, resolver and kernel until the cases run out.

    python -m tests.fuzz [--cases N] [--seconds S] [--seed SEED] [--service-steps N]
                         [--selections N] [--hubble PATH]

Then services change at random, for that many steps of each machine of `service_states`, and random
filters of flows select from random flows, so many of each, as Hubble's own client does. Its path is
given here or in $HUBBLE; without it only what was recorded of it is compared, as the tests do.

Prints the cases, the seeds and every disagreement with the least policies that show it. The exit
code is 0 when there was none. A seed of a round plays that round alone: --seed SEED --cases 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from tests.bpf.harness import Plane
from tests.fuzz.rounds import SIZES, play, shrunk
from tests.fuzz.selecting import Client, as_json, record, rounds
from tests.fuzz.service_states import MACHINES, play_machine
from tests.fuzz.test_selections import (
    EXPECTED,
    test_random_filters_select_what_hubble_selects,
)

CACHE = Path(__file__).parents[2] / "build" / "templates"
_SHOWN = 5
_RECORDED = 40
"""Requests recorded for each file of answers."""


def main() -> int:
    """Fuzz until the cases or the seconds run out."""
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    parser.add_argument("--service-steps", type=int, default=10_000)
    parser.add_argument("--selections", type=int, default=20_000, help="pairs of flow and filter")
    parser.add_argument("--hubble", type=Path, default=os.environ.get("HUBBLE") or None)
    parser.add_argument("--record", action="store_true", help="write what tests expect of filters")
    given = parser.parse_args()
    if given.record:
        return record_selections(given)
    failed = judge(given) if given.cases else 0
    if given.service_steps:
        change_services(given.service_steps)
    if given.selections:
        failed |= select(given)
    return failed


def record_selections(given: argparse.Namespace) -> int:
    """Write what the client selects, for tests that run without it."""
    if given.hubble is None:
        print("there is nothing to record without a client: --hubble PATH")
        return 2
    client = Client(given.hubble)
    rows = [row for seed in (1, 2) for row in record(client, seed, _RECORDED)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    EXPECTED.write_text(text, "utf-8")
    return 0


def select(given: argparse.Namespace) -> int:
    """Compare what filters select; returns 1 when there was a difference."""
    if given.hubble is None:
        test_random_filters_select_what_hubble_selects()
        print("filters: no client (--hubble PATH or $HUBBLE); what was recorded of it still holds")
        return 0
    client, began = Client(given.hubble), time.monotonic()
    pairs = findings = matching = 0
    for one in rounds(given.seed):
        if pairs >= given.selections:
            break
        theirs = client.select(one)
        pairs += len(one.answers)
        matching += len(theirs.flows)
        if one.ours.agrees(theirs):
            continue
        findings += 1
        if findings <= _SHOWN:
            allow, deny = ([*map(as_json, each)] for each in (one.allow, one.deny))
            print(f"\nDifference {findings}: seed {one.seed}, {one.kind}, {allow=}, {deny=}")
            print(f"  ours {one.ours}\n  the client's {theirs}")
            for number in sorted({*one.ours.flows} ^ {*theirs.flows})[:1]:
                print(f"  {as_json(one.answers[number])}", flush=True)
    took = time.monotonic() - began
    print(
        f"filters: {pairs} pairs of flow and filter, {matching} let through, in {took:.0f} s, "
        f"seeds from {given.seed}, {findings} differences"
    )
    return 1 if findings else 0


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
