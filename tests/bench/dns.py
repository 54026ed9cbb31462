"""Names through the DNS proxy: how many it answers, and what fails when somebody dies.

dnsperf asks from a pod for names that the policy allows; the server, on the same node, is one that
costs next to nothing. Then, with one lookup after the other under way, the agent, Envoy and the
proxy are killed: for the first two no lookup may fail, the third is back soon.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.bench import load, report
from tests.bench.peers import inside, run
from tests.e2e.running import PYTHON, Lab, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAB = "bench"
LOOKUPS = str(Path(__file__).parents[1] / "e2e" / "lookups.py")
ROUNDS = 5
SECONDS = 3
OUTSTANDING = 100
NAMES = 200
PLAIN_PORT = 5353
WAIT_S = 8
PATIENCE_S = 2.0
"""After which a lookup has failed, where none may; resolvers have more."""
POLICY = f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: names, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: client}}}}
  egress:
  - toEndpoints: [{{matchLabels: {{app: names}}}}]
    toPorts:
    - ports: [{{port: "53", protocol: ANY}}]
      rules: {{dns: [{{matchPattern: "*.bench.test"}}]}}
    - ports: [{{port: "{PLAIN_PORT}", protocol: UDP}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: web, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: names}}}}
  ingress:
  - toPorts: [{{ports: [{{port: "53", protocol: ANY}}, {{port: "{PLAIN_PORT}", protocol: UDP}}]}}]
  - toPorts:
    - ports: [{{port: "80", protocol: TCP}}]
      rules: {{http: [{{method: GET}}]}}
"""


class Figure(NamedTuple):
    """One run of dnsperf."""

    per_s: float
    lost: int
    completed: int


def rows() -> Iterator[report.Row]:
    """Needs root and dnsperf; takes about a minute and a half."""
    binary = _build()
    lab = Lab(LAB)
    lab.cilium("lab", "up", "--name", LAB, "--nodes", "1", "--quiet")
    try:
        lab.add_pod("client", "--node", "node1", "-l", "app=client", command=False)
        server = lab.add_pod("names", "--node", "node1", "-l", "app=names", command=False)
        lab.cilium("apply", "-f", "-", stdin=POLICY)
        load.enforced(lab, "node1", 2)
        with subprocess.Popen(inside(f"cil-{LAB}-pod-default.names", str(binary))) as process:
            try:
                _wait(lab, server.ipv4)
                yield from _speed(lab, server.ipv4)
                yield from _outages(lab, server.ipv4)
            finally:
                process.kill()
    finally:
        lab.cilium("lab", "down", "--name", LAB, exit_code=None)


def _build() -> Path:
    binary = Path("build/nameserver").resolve()
    binary.parent.mkdir(exist_ok=True)
    run("gcc", "-O2", "-o", str(binary), str(Path(__file__).with_name("nameserver.c")))
    return binary


def _wait(lab: Lab, server: str) -> None:
    """Wait until the rules hold: a name is answered, another one refused."""

    def ask(name: str) -> str:
        return str(json.loads(run(*_inside_client(PYTHON, LOOKUPS, "ask", server, name))))

    eventually(lambda: ask("a.bench.test").startswith("NOERROR"), 20, "a name is answered")
    eventually(lambda: ask("a.other.test") == "REFUSED", 20, "a name is refused")
    eventually(lambda: _pid(lab, "envoy") is not None, 20, "Envoy runs")


def _inside_client(*command: str) -> list[str]:
    return inside(f"cil-{LAB}-pod-default.client", *command)


def _pid(lab: Lab, program: str) -> int | None:
    path = lab.folder / "node1" / "run" / "proxies" / f"{program}.pid"
    return int(json.loads(path.read_text())["pid"]) if path.exists() else None


# ---- speed ----


def _speed(lab: Lab, server: str) -> Iterator[report.Row]:
    names = Path("build/names.txt").resolve()
    names.write_text("".join(f"n{number}.bench.test A\n" for number in range(NAMES)))
    pid = _pid(lab, "dns-proxy")
    proxied, plain, per_core, lost = [], [], [], 0
    for _ in range(ROUNDS):
        cpu = _cpu_s(pid)
        figure = _dnsperf(server, 53, names)
        per_core.append(figure.completed / (_cpu_s(pid) - cpu))
        proxied.append(figure.per_s)
        lost += figure.lost
        plain.append(_dnsperf(server, PLAIN_PORT, names).per_s)
    yield report.absolute(
        "DNS through the proxy, for a second of its CPU", "queries", sorted(per_core)[ROUNDS // 2],
        ">=", 10_000,
    )  # fmt: skip
    yield report.compare(
        "DNS through the proxy", "queries/s", proxied, "no proxy", plain, ">=", 0.0
    )
    yield report.absolute("DNS through the proxy, lost", "queries", lost, "<=", 0)


def _dnsperf(server: str, port: int, names: Path) -> Figure:
    options = ["-s", server, "-p", str(port), "-d", str(names), "-l", str(SECONDS)]
    output = run(*_inside_client("dnsperf", *options, "-c", "8", "-q", str(OUTSTANDING)))
    values = [
        re.search(rf"{label}:\s+([\d.]+)", output)
        for label in ("Queries per second", "Queries lost", "Queries completed")
    ]
    if not all(values) or "REFUSED" in output:
        raise RuntimeError(f"dnsperf: not understood: {output}")
    per_s, lost, completed = (float(value[1]) for value in values if value)
    return Figure(per_s, int(lost), int(completed))


def _cpu_s(pid: int | None) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- outages ----


def _outages(lab: Lab, server: str) -> Iterator[report.Row]:
    def agent() -> None:
        lab.cilium("lab", "restart", "node1/agent")

    def proxy(name: str) -> None:
        if pid := _pid(lab, name):
            os.kill(pid, signal.SIGKILL)

    for name, kill in (("agent", agent), ("Envoy", lambda: proxy("envoy"))):
        outcome = _during(server, kill, PATIENCE_S)
        lab.cilium("lab", "wait")
        yield report.absolute(f"lookups that failed, {name} killed", "", outcome["failed"], "<=", 0)
    outcome = _during(server, lambda: proxy("dns-proxy"))
    yield report.absolute("no answers, DNS proxy killed", "s", outcome["longest_s"], "<=", 2)


def _during(server: str, kill: Callable[[], None], *patience: float) -> dict[str, Any]:
    """One lookup after the other, while somebody is killed."""
    with _lookups(server, *map(str, patience)) as process:
        time.sleep(WAIT_S / 4)
        kill()
        output, _ = process.communicate(timeout=WAIT_S * 4)
    outcome: dict[str, Any] = json.loads(output)
    return outcome


@contextmanager
def _lookups(server: str, *patience: str) -> Iterator[subprocess.Popen[str]]:
    words = ["load", server, "a.bench.test", str(WAIT_S), *patience]
    command = _inside_client(PYTHON, LOOKUPS, *words)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
