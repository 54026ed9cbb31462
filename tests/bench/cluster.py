"""How fast a cluster comes up, and how fast a policy reaches the packets."""

from __future__ import annotations

import json
import subprocess
import time
from statistics import median, quantiles
from typing import TYPE_CHECKING

from tests.bench import report
from tests.e2e.running import BIN, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

LAB = "bench"
PODS = 20


def rows() -> Iterator[report.Row]:
    """Labs of 3 and 10 nodes, and pods one at a time; needs root."""
    for nodes, limit in ((3, 15), (10, 45)):
        lab = Lab(LAB)
        started = time.monotonic()
        try:
            lab.cilium("lab", "up", "--name", LAB, "--nodes", str(nodes), "--quiet")
            took = time.monotonic() - started
            yield report.absolute(f"lab up --nodes {nodes}", "s", took, "<=", limit)
            if nodes == 3:
                yield from _pods()
        finally:
            lab.cilium("lab", "down", "--name", LAB, exit_code=None)


def _pods() -> Iterator[report.Row]:
    times = []
    for number in range(PODS):
        command = [str(BIN / "cilium"), "lab", "pod", "add", f"p{number}", "--lab", LAB]
        started = time.monotonic()
        done = subprocess.run([*command, "-o", "json"], capture_output=True, check=True)
        times.append((time.monotonic() - started) * 1000)
        json.loads(done.stdout)
    yield report.absolute("pod add, p50", "ms", median(times), "<=", 150)
    yield report.told("pod add, p95", "ms", quantiles(times, n=20)[-1])
