"""HTTP through a policy: against no proxy at all, and against an Envoy that was set up by hand.

Three ways from one pod to another of the same node, side by side in one lab, with wrk:

    direct    port 8081, which the policy leaves alone
    ours      port 8080, where the policy allows GET below /public: redirected to our Envoy
    by hand   an Envoy on the node with the same rule as RBAC, asked by its own address, and going
              on to port 8082; as many workers as ours, and no access log, while ours has one
"""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cilium_agent.proxies import supervising

from tests.bench import load, report
from tests.bench.peers import inside, run
from tests.e2e.running import Lab, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

LAB = "bench"
ROUNDS = 7
SECONDS = 2
CONNECTIONS = 32
WORKERS = 2
OURS, DIRECT, BEHIND, BY_HAND = 8080, 8081, 8082, 18080
PATH = "/public/page"
POLICY = f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: web, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: client}}}}]
    toPorts:
    - ports: [{{port: "{OURS}", protocol: TCP}}]
      rules: {{http: [{{method: GET, path: "/public/.*"}}]}}
    - ports: [{{port: "{DIRECT}", protocol: TCP}}]
"""


class Figure(NamedTuple):
    """One run of wrk."""

    per_s: float
    p99_ms: float


def rows() -> Iterator[report.Row]:
    """Needs root and wrk; takes about a minute."""
    server_binary = _build()
    lab = Lab(LAB)
    lab.cilium("lab", "up", "--name", LAB, "--nodes", "1", "--quiet")
    try:
        lab.add_pod("client", "--node", "node1", "-l", "app=client", command=False)
        server = lab.add_pod("server", "--node", "node1", "-l", "app=server", command=False)
        lab.cilium("apply", "-f", "-", stdin=POLICY)
        load.enforced(lab, "node1", 1)
        client, node = f"cil-{LAB}-pod-default.client", f"cil-{LAB}-node1"
        ports = [str(port) for port in (OURS, DIRECT, BEHIND)]
        node_address = lab.json("node", "list", "--node", "node1")[0]["ipv4"]
        urls = {
            "ours": f"http://{server.ipv4}:{OURS}",
            "direct": f"http://{server.ipv4}:{DIRECT}",
            "by hand": f"http://{node_address}:{BY_HAND}",
        }
        with (
            _running(*inside(f"cil-{LAB}-pod-default.server", str(server_binary), *ports)),
            _envoy_by_hand(node, server.ipv4),
        ):
            for name, url in urls.items():
                _wait(client, url + PATH, "200", name)
                _wait(client, url + "/private", "200" if name == "direct" else "403", name)
            figures = _interleaved(client, urls)
    finally:
        lab.cilium("lab", "down", "--name", LAB, exit_code=None)
    yield from _judge(figures)


def _build() -> Path:
    binary = Path("build/webserver").resolve()
    binary.parent.mkdir(exist_ok=True)
    run("gcc", "-O2", "-o", str(binary), str(Path(__file__).with_name("webserver.c")))
    return binary


@contextmanager
def _running(*command: str, weight: int = 0) -> Iterator[None]:
    """A process that is killed at the end; what it prints is of no interest.

    It has a session of its own, as a daemon has: the kernel shares processors out among sessions,
    by the `weight` (a nice value) of each.
    """
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            if weight:
                with suppress(OSError):
                    Path(f"/proc/{process.pid}/autogroup").write_text(str(weight))
            yield
        finally:
            process.kill()


@contextmanager
def _envoy_by_hand(node: str, server: str) -> Iterator[None]:
    """An Envoy in the node's network, as one would write its configuration.

    It weighs as much as the agent's own, so that only what they do is compared.
    """
    import envoy

    binary = Path(next(iter(envoy.__path__))) / "_bin" / "envoy"
    path = Path("build/envoy-by-hand.json").resolve()
    path.write_text(json.dumps(_configuration(server)))
    options = ["--concurrency", str(WORKERS), "--log-level", "error", "--base-id", "4711"]
    command = inside(node, str(binary), "-c", str(path), *options)
    with _running(*command, weight=supervising.SESSION_NICE):
        yield


def _configuration(server: str) -> dict[str, Any]:
    kinds = "type.googleapis.com/envoy.extensions.filters"
    expression = {"safe_regex": {"regex": "/public/.*"}}
    allowed = [
        {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
        {"url_path": {"path": expression}},
    ]
    policy = {"permissions": [{"and_rules": {"rules": allowed}}], "principals": [{"any": True}]}
    rbac = {
        "@type": f"{kinds}.http.rbac.v3.RBAC",
        "rules": {"action": "ALLOW", "policies": {"public": policy}},
    }
    router = {"@type": f"{kinds}.http.router.v3.Router"}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "server"}}
    manager = {
        "@type": f"{kinds}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "by_hand",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "rbac", "typed_config": rbac},
            {"name": "router", "typed_config": router},
        ],
    }
    listener = {
        "name": "by hand",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": BY_HAND}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    target = {"address": {"socket_address": {"address": server, "port_value": BEHIND}}}
    cluster = {
        "name": "server",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "server",
            "endpoints": [{"lb_endpoints": [{"endpoint": target}]}],
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _wait(client: str, url: str, status: str, name: str) -> None:
    """Wait until a URL is answered with a status."""
    command = ["curl", "-s", "-o", "/dev/null", "-m", "2", "-w", "%{http_code}", url]

    def answered() -> bool:
        done = subprocess.run(inside(client, *command), capture_output=True, text=True, check=False)
        return done.stdout == status

    eventually(answered, 20, f"{name}: {url} answers {status}")


def _interleaved(client: str, urls: dict[str, str]) -> dict[str, list[Figure]]:
    figures: dict[str, list[Figure]] = {name: [] for name in urls}
    names = list(urls)
    for shift in range(ROUNDS):
        turn = shift % len(names)
        for name in (*names[turn:], *names[:turn]):
            figures[name].append(_measure(client, urls[name] + PATH))
    return figures


def _measure(client: str, url: str) -> Figure:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency", url]
    output = run(*inside(client, *command))
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"wrk {url}: {output}")
    per_s = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", output)
    if per_s is None or p99 is None:
        raise RuntimeError(f"wrk {url}: not understood: {output}")
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}[p99[2]]
    return Figure(float(per_s[1]), float(p99[1]) * scale)


def _judge(figures: dict[str, list[Figure]]) -> Iterator[report.Row]:
    per_s = {name: [figure.per_s for figure in runs] for name, runs in figures.items()}
    p99 = {name: [figure.p99_ms for figure in runs] for name, runs in figures.items()}
    mine, hand, direct = "ours", "by hand", "direct"
    yield report.compare(
        "HTTP through a policy", "requests/s", per_s[mine], "Envoy by hand", per_s[hand], ">=", 0.9
    )
    yield report.compare(
        "HTTP through a policy, p99", "ms", p99[mine], "Envoy by hand", p99[hand], "<=", 1.1
    )
    yield report.compare(
        "HTTP through a policy", "requests/s", per_s[mine], "no proxy", per_s[direct], ">=", 0.0
    )
    yield report.compare(
        "HTTP through a policy, p99", "ms", p99[mine], "no proxy", p99[direct], ">=", 0.0
    )
