"""Ours against the kernel's own networking: one lab, two peers, all runs interleaved.

(a) plain   veth, routing, vxlan; no policy: the limit
(b) nft     the same, with nftables doing the policy and the masquerade
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

from tests.bench import load, report
from tests.bench.peers import PORT, Network, Pair, kernel_network
from tests.e2e.running import Lab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROUNDS = 10
LAB = "bench"
OFF = {"enable-hubble": "false"}
MEDIUM = {"enable-hubble": "true", "monitor-aggregation": "medium"}
NONE = {"enable-hubble": "true", "monitor-aggregation": "none"}

POLICY = f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: bench, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: client}}}}]
    toPorts: [{{ports: [{{port: "{PORT}", protocol: TCP}}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: bench-client, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: client}}}}
  egress:
  - toEndpoints: [{{matchLabels: {{app: server}}}}]
    toPorts: [{{ports: [{{port: "{PORT}", protocol: TCP}}]}}]
"""

Figures = dict[tuple[str, str, str], list[float]]
"""Runs by placement (local, remote), kind of load, and contender."""


def rows() -> Iterator[report.Row]:
    """All rows of check "pod to pod"; needs root and takes some minutes."""
    binary = load.build()
    with ExitStack() as stack:
        ours, configure = stack.enter_context(_lab())
        plain = stack.enter_context(kernel_network("plain", nftables=False))
        nft = stack.enter_context(kernel_network("nft", nftables=True))
        for network in (ours, plain, nft):
            load.prepare(network.local)
        figures = _interleaved(binary, ours, configure, plain, nft)
    yield from _judge(figures)


@contextmanager
def _lab() -> Iterator[tuple[Network, Callable[[dict[str, str]], None]]]:
    lab = Lab(LAB)
    lab.cilium("lab", "up", "--name", LAB, "--nodes", "2", "--quiet")
    try:
        lab.add_pod("client", "--node", "node1", "-l", "app=client", command=False)
        near = lab.add_pod("near", "--node", "node1", "-l", "app=server", command=False)
        far = lab.add_pod("far", "--node", "node2", "-l", "app=server", command=False)
        lab.cilium("apply", "-f", "-", stdin=POLICY)
        for node in ("node1", "node2"):
            load.enforced(lab, node, 2)

        def configure(options: dict[str, str]) -> None:
            for node in ("node1", "node2"):
                words = [f"{key}={value}" for key, value in options.items()]
                lab.cilium("config", "--node", node, *words)

        prefix = f"cil-{LAB}-pod-default."
        local = Pair(f"{prefix}client", f"{prefix}near", near.ipv4)
        yield Network("ours", local, Pair(f"{prefix}client", f"{prefix}far", far.ipv4)), configure
    finally:
        lab.cilium("lab", "down", "--name", LAB, exit_code=None)


def _interleaved(
    binary: Path,
    ours: Network,
    configure: Callable[[dict[str, str]], None],
    plain: Network,
    nft: Network,
) -> Figures:
    figures: Figures = defaultdict(list)
    contenders: list[tuple[str, Network, dict[str, str]]] = [
        ("ours", ours, MEDIUM),
        ("plain", plain, {}),
        ("off", ours, OFF),
        ("nft", nft, {}),
        ("none", ours, NONE),
    ]
    placements: tuple[Literal["local", "remote"], ...] = ("local", "remote")
    for placement in placements:
        for kind in load.KINDS:
            # what a run leaves behind (caches, clocks) shall not always meet the same successor
            for shift in range(ROUNDS):
                turn = shift % len(contenders)
                for name, network, options in (*contenders[turn:], *contenders[:turn]):
                    if kind == "stream" and network is ours and options is not MEDIUM:
                        continue
                    if options:
                        configure(options)
                    pair = network.local if placement == "local" else network.remote
                    with load.serving(binary, pair.server, kind):
                        figures[placement, kind, name].append(load.measure(binary, pair, kind))
    return figures


def _judge(figures: Figures) -> Iterator[report.Row]:
    limits = {"local": {"stream": 0.95}, "remote": {"stream": 0.9}}
    for placement, stream in limits.items():
        for kind, unit in load.KINDS.items():
            name = f"{kind} {'on one node' if placement == 'local' else 'across nodes'}"
            mine = figures[placement, kind, "ours"]
            against = "plain routing" if placement == "local" else "plain vxlan"
            limit = stream.get(kind, 0.9)
            theirs = figures[placement, kind, "plain"]
            yield report.compare(name, unit, mine, against, theirs, ">=", limit)
            theirs = figures[placement, kind, "nft"]
            yield report.compare(name, unit, mine, "nftables", theirs, ">=", 1.0)
            if off := figures.get((placement, kind, "off")):
                yield report.compare(name, unit, mine, "Hubble off", off, ">=", 0.97)
                none = figures[placement, kind, "none"]
                label = f"{name}, aggregation none"
                yield report.compare(label, unit, none, "Hubble off", off, ">=", 0.9)
