"""From `cilium apply` returning to the first packet treated anew, in a cluster with much policy.

A client sends a datagram a millisecond to a server whose policy is switched to and fro. The change
took effect at the first datagram whose fate differs from that of those before.
"""

from __future__ import annotations

import bisect
import json
import signal
import subprocess
import time
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

from tests.bench import load, report
from tests.bench.peers import inside
from tests.e2e.running import PYTHON, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

LAB = "bench"
PODS = 100
POLICIES = 100
SWITCHES = 60
PORT = 5353
PAUSE_S = 0.5
PROBE = str(Path(__file__).with_name("probe.py"))
MS = 1_000_000


def _policy(name: str, subject: str, peer: str, ports: str) -> str:
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {name}, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: {subject}}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: {peer}}}}}]
    toPorts: [{{ports: [{{port: "{ports}", protocol: ANY}}]}}]
---
"""


def rows() -> Iterator[report.Row]:
    """Needs root; takes about a minute."""
    lab = Lab(LAB)
    try:
        lab.cilium("lab", "up", "--name", LAB, "--nodes", "2", "--quiet")
        names = [f"pod-{number}" for number in range(PODS - 2)]
        for kind in range(10):
            group = names[kind::10]
            lab.cilium("lab", "pod", "add", *group, "-l", f"app=kind{kind}")
        lab.add_pod("client", "--node", "node1", "-l", "app=client", command=False)
        server = lab.add_pod("server", "--node", "node2", "-l", "app=server", command=False)
        text = "".join(
            _policy(f"policy-{n}", f"kind{n % 10}", f"kind{n // 10}", str(1000 + n))
            for n in range(POLICIES)
        )
        lab.cilium("apply", "-f", "-", stdin=text)
        for node in ("node1", "node2"):
            load.enforced(lab, node, POLICIES)
        delays = _switch(lab, server.ipv4)
    finally:
        lab.cilium("lab", "down", "--name", LAB, exit_code=None)
    yield report.absolute("policy to packet, p50", "ms", median(delays), "<=", 50)
    yield report.absolute("policy to packet, p99", "ms", quantiles(delays, n=100)[-1], "<=", 300)


def _switch(lab: Lab, address: str) -> list[float]:
    pods = f"cil-{LAB}-pod-default."
    receiver = subprocess.Popen(
        inside(f"{pods}server", PYTHON, PROBE, "receive", str(PORT)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert receiver.stdout is not None
    receiver.stdout.readline()
    sender = subprocess.Popen(
        inside(f"{pods}client", PYTHON, PROBE, "send", address, str(PORT)),
    )
    applied = []
    try:
        for number in range(SWITCHES):
            port = str(PORT) if number % 2 else "9"
            lab.cilium("apply", "-f", "-", stdin=_policy("switched", "server", "client", port))
            applied.append(time.monotonic_ns())
            time.sleep(PAUSE_S)
    finally:
        sender.kill()
        sender.wait()
        receiver.send_signal(signal.SIGTERM)
        output, _ = receiver.communicate(timeout=10)
    return _delays(json.loads(output), applied)


def _delays(arrived: list[int], applied: list[int]) -> list[float]:
    """Milliseconds from each change to its effect; changes shut and open in turn.

    A change is in effect before `apply` returns when the agent was faster: that counts as 0.
    """
    delays = []
    for number, moment in enumerate(applied):
        end = moment + int(PAUSE_S * 0.9e9)
        between = arrived[bisect.bisect_left(arrived, moment) : bisect.bisect_left(arrived, end)]
        if number % 2:  # opens
            effect = between[0] if between else end
        else:
            effect = between[-1] if between else moment
        delays.append(max(0.0, (effect - moment) / MS))
    return delays
