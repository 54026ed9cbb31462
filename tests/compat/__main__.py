"""Compare Hubble's own client with ours, each put to our servers; its own relay with ours, too.

    python -m tests.compat PATH [--relay PATH] [--only TEXT]

PATH is a hubble client, `--relay` a hubble-relay that is run over our nodes beside ours: clients
are compared at it as at ours, and what the two relays say. `--only` is a part of the name of a
server or of a command line. Prints every difference; the exit code is 0 when there was none.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import tempfile
import time
from pathlib import Path

import structlog

from tests.compat.clients import (
    OURS,
    Scene,
    Side,
    compare,
    compare_followed,
    compare_states,
    questions,
    serving,
)

_FOLLOWED = (
    (40, ["observe", "-f", "-o", "json", "--last", "3"]),
    (40, ["observe", "-f", "--last", "3", "--use-default-field-masks=false"]),
    (20, ["observe", "-f", "-o", "jsonpb", "--last", "1", "--from-pod", "ns0/"]),
    (1, ["watch", "peers"]),
)
"""What does not end by itself, with the lines after which it is ended."""


class Comparing:
    """Comparisons, counted and with every difference printed."""

    def __init__(self, only: str) -> None:
        self._only = only
        self.asked = 0
        self.differing = 0

    def note(self, line: str, found: str) -> None:
        """One was made."""
        self.asked += 1
        if found:
            self.differing += 1
            print(f"{line}\n  {found}", flush=True)

    async def all(self, name: str, theirs: Side, ours: Side, scene: Scene) -> None:
        """Put every question to two sides."""
        cases = [(words, compare(theirs, ours, words)) for words in questions()]
        cases += [
            (words, compare_followed(theirs, ours, scene, lines, words))
            for lines, words in _FOLLOWED
        ]
        for words, comparison in cases:
            line = f"{name}: hubble {shlex.join(words)}"
            if self._only in line:
                self.note(line, await comparison)
            else:
                comparison.close()


async def main(client: Path, relay: Path | None, only: str) -> int:
    """Put all questions to all servers."""
    began, comparing = time.monotonic(), Comparing(only)
    with tempfile.TemporaryDirectory(prefix="compat-") as folder:
        async with serving(Path(folder), relay) as scene:
            for place in scene.places:
                await comparing.all(place.name, Side(client, place), Side(OURS, place), scene)
            for ours, theirs in scene.beside:
                sides = Side(client, theirs), Side(client, ours)
                await comparing.all(f"{theirs.name}, ours beside it", *sides, scene)
            if scene.beside and not only:
                async for line, found in compare_states(client, scene):
                    comparing.note(line, found)
    took = time.monotonic() - began
    print(f"{comparing.asked} command lines in {took:.0f} s, {comparing.differing} differences")
    return 1 if comparing.differing else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="compat", description="Compare Hubble's own programs with ours."
    )
    parser.add_argument("client", type=Path, help="a hubble client, compared with ours")
    parser.add_argument(
        "--relay",
        type=Path,
        help="a hubble-relay, run as `hubble-relay serve` with the flags that ours takes too: one"
        " more server to compare clients at, and compared with our relay over the same nodes",
    )
    parser.add_argument("--only", default="", help="part of a server's name or a command line")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    sys.exit(asyncio.run(main(given.client, given.relay, given.only)))
