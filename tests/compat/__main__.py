"""Compare Hubble's own client with ours, each put to our servers.

    python -m tests.compat PATH [--only TEXT]

PATH is a hubble client, `--only` a part of the name of a server or of a command line. Prints the
comparisons and every difference; the exit code is 0 when there was none.
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

from tests.compat.clients import compare, compare_followed, questions, serving

_FOLLOWED = (
    (40, ["observe", "-f", "-o", "json", "--last", "3"]),
    (40, ["observe", "-f", "--last", "3", "--use-default-field-masks=false"]),
    (20, ["observe", "-f", "-o", "jsonpb", "--last", "1", "--from-pod", "ns0/"]),
    (1, ["watch", "peers"]),
)
"""What does not end by itself, with the lines after which it is ended."""


async def main(client: Path, only: str) -> int:
    """Put all questions to all servers."""
    began, asked, differing = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="compat-") as folder:
        async with serving(Path(folder)) as scene:
            for place in scene.places:
                cases = [(words, compare(client, place, words)) for words in questions()]
                cases += [
                    (words, compare_followed(client, place, scene, lines, words))
                    for lines, words in _FOLLOWED
                ]
                for words, comparison in cases:
                    line = shlex.join(words)
                    if only not in f"{place.name}: {line}":
                        comparison.close()
                        continue
                    asked += 1
                    found = await comparison
                    if found:
                        differing += 1
                        print(f"{place.name}: hubble {line}\n  {found}", flush=True)
    took = time.monotonic() - began
    print(f"{asked} command lines in {took:.0f} s, {differing} differences")
    return 1 if differing else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="compat")
    parser.add_argument("client", type=Path)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    sys.exit(asyncio.run(main(given.client, given.only)))
