"""Runs the load of traffic.c between two namespaces, on one processor."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.peers import PORT, Pair, inside, run
from tests.e2e.running import Lab, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# One processor for both ends of a connection: the figure is then the cost of the path, not of
# waking another processor. The other one is left to the services.
CPU = "1"
SECONDS = "1"
KINDS = {"stream": "Gbit/s", "rr": "transactions/s", "crr": "connections/s"}


def build() -> Path:
    """Compile traffic.c into build/. Raises RuntimeError with the compiler's words."""
    binary = Path("build/traffic").resolve()
    binary.parent.mkdir(exist_ok=True)
    run("gcc", "-O2", "-o", str(binary), str(Path(__file__).with_name("traffic.c")))
    return binary


@contextmanager
def serving(binary: Path, namespace: str, kind: str, port: int = PORT) -> Iterator[None]:
    """A server in a namespace for as long as the block runs."""
    mode = "sink" if kind == "stream" else "serve"
    command = inside(namespace, "taskset", "-c", CPU, str(binary), mode, str(port))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            yield
        finally:
            server.kill()


def measure(binary: Path, pair: Pair, kind: str) -> float:
    """One run between a client and a server that is already there; see KINDS for the unit."""
    command = ["taskset", "-c", CPU, str(binary), kind, pair.address, str(PORT), SECONDS]
    return float(run(*inside(pair.client, *command)))


def measure_services(binary: Path, client: Sequence[str], address: str, count: int) -> float:
    """Connections per second to so many addresses in no order; `client` is how to run a command."""
    command = ["taskset", "-c", CPU, str(binary), "crr", address, str(PORT), SECONDS, str(count)]
    return float(run(*client, *command))


def prepare(pair: Pair) -> None:
    """Let a client open connections for as long as the runs take without running out of ports."""
    run(*inside(pair.client, "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"))
    run(*inside(pair.client, "sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1"))


def enforced(lab: Lab, node: str, policies: int) -> None:
    """Return once a node knows so many policies and its endpoints enforce them."""
    eventually(
        lambda: len(lab.json("policy", "get", "--node", node)["policies"]) == policies,
        30,
        f"{node} knows {policies} policies",
    )
    revision = lab.json("policy", "get", "--node", node)["revision"]
    lab.cilium("policy", "wait", str(revision), "--node", node)
