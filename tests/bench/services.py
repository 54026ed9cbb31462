"""Connections to a service, and services programmed: ours, kube-proxy's iptables, nftables.

A client connects, asks for one byte, and closes, to one service after the other of 1 to 10,000.
For every number of services and every contender there is a network of its own, all at once, so
that the runs can be interleaved; client, server and what is between them share one processor.
Ours is a lab's node, with its policy; the others only balance.

`socket` is a client in a pod, whose connections are translated once; `packet` one that the
programs at sockets do not see, such as one in a cgroup of another container runtime.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from cilium_cli.lab import places
from cilium_cli.lab.etcd import Gateway
from cilium_cli.lab.layouts import Layout
from cilium_core.resources.keys import key_of

from tests.bench import balancers, load, programming, report
from tests.bench.peers import PORT, inside, kernel_network, run
from tests.e2e.running import Lab, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

SIZES: Final = (1, 100, 1000, 10_000)
ROUNDS: Final = 10
AT_ONCE: Final = 100
"""Objects in one transaction of etcd."""
PROGRAMMED_S: Final = 120
RIVALS: Final[dict[str, Callable[[str], balancers.Balancer]]] = {
    "iptables": balancers.Iptables,
    "nftables": balancers.Nftables,
}

Client = list[str]
"""The beginning of a command line that runs the rest as the client."""
Figures = dict[tuple[str, int], list[float]]
"""Runs by contender and number of services."""


def rows() -> Iterator[report.Row]:
    """Check "services"; needs root, Debian's iptables, and some minutes."""
    yield from programming.rows(SIZES[-1])
    binary = load.build()
    took: dict[int, float] = {}
    with ExitStack() as stack:
        clients: dict[tuple[str, int], Client] = {}
        for size in SIZES:
            clients |= stack.enter_context(_ours(binary, size, took))
            for name in RIVALS:
                clients[name, size] = stack.enter_context(_theirs(binary, name, size))
        figures = _interleaved(binary, clients)
    for size, seconds in took.items():
        yield report.told(f"{_so_many(size)}, from objects in etcd to packets", "s", seconds)
    yield from _judge(figures)


@contextmanager
def _ours(
    binary: Path, size: int, took: dict[int, float]
) -> Iterator[dict[tuple[str, int], Client]]:
    lab = Lab(f"bench{size}")
    lab.cilium("lab", "up", "--name", lab.name, "--nodes", "1", "--quiet")
    try:
        lab.add_pod("client", command=False)
        server = lab.add_pod("server", command=False)
        netns = f"cil-{lab.name}-pod-default.client"
        per_packet = inside(netns)
        group = places.find(Layout(lab.name), "client").cgroup
        joined = ["sh", "-c", f'echo 0 >{group}/cgroup.procs && exec "$@"', "sh", *per_packet]
        _prepare(netns)
        with _serving(binary, f"cil-{lab.name}-pod-default.server"):
            started = time.monotonic()
            _store(Layout(lab.name), balancers.services(size, server.ipv4))
            eventually(lambda: _answers(binary, joined, size), PROGRAMMED_S, f"{size} services")
            took[size] = time.monotonic() - started
            yield {("socket", size): joined, ("packet", size): per_packet}
    finally:
        lab.cilium("lab", "down", "--name", lab.name, exit_code=None)


def _answers(binary: Path, client: Client, size: int) -> bool:
    """Whether the last service does."""
    last = str(balancers.SERVICES + size - 1)
    try:
        run(*client, "timeout", "1", str(binary), "crr", last, str(PORT), "0.01")
    except RuntimeError:
        return False
    return True


def _store(layout: Layout, services: Sequence[balancers.Service]) -> None:
    """Put Service and EndpointSlice objects into a lab's etcd, as controllers would."""
    documents = iter([document for service in services for document in objects(service)])
    etcd = Gateway(layout)
    try:
        while batch := list(islice(documents, AT_ONCE)):
            etcd.put({key_of(document): json.dumps(document).encode() for document in batch})
    finally:
        etcd.close()


def objects(service: balancers.Service) -> Iterable[dict[str, Any]]:
    """What Kubernetes' API has of a service: itself, and a slice for each port of its backends."""
    name = f"s{service.address.replace('.', '-')}"
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": service.address,
            "clusterIPs": [service.address],
            "ipFamilies": ["IPv4"],
            "ports": [{"port": PORT, "protocol": "TCP", "targetPort": PORT}],
        },
    }
    for number, (address, port) in enumerate(service.backends):
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{number}",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": [{"port": port, "protocol": "TCP"}],
        }


@contextmanager
def _theirs(binary: Path, name: str, size: int) -> Iterator[Client]:
    with kernel_network(f"{name[:3]}{size}", nftables=False) as network:
        pair = network.local
        node = pair.client.removesuffix("-a") + "-node1"
        RIVALS[name](node).program(balancers.services(size, pair.address))
        # their entries of closed connections last two minutes, in one table for all namespaces
        setting = "net.netfilter.nf_conntrack_tcp_timeout_time_wait=5"
        run(*inside(node, "sysctl", "-qw", setting))
        _prepare(pair.client)
        with _serving(binary, pair.server):
            yield inside(pair.client)


def _so_many(size: int) -> str:
    return f"{size:,} services" if size > 1 else "1 service"


def _prepare(client: str) -> None:
    run(*inside(client, "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"))
    run(*inside(client, "sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1"))


@contextmanager
def _serving(binary: Path, namespace: str) -> Iterator[None]:
    """All backends."""
    with ExitStack() as stack:
        for number in range(balancers.BACKENDS):
            stack.enter_context(load.serving(binary, namespace, "crr", PORT + number))
        yield


def _interleaved(binary: Path, clients: dict[tuple[str, int], Client]) -> Figures:
    figures: Figures = defaultdict(list)
    contenders = list(clients)
    for shift in range(ROUNDS):
        print(f"bench: services, round {shift + 1} of {ROUNDS}", file=sys.stderr, flush=True)
        # what a run leaves behind (caches, clocks) shall not always meet the same successor
        turn = shift * len(contenders) // ROUNDS
        for name, size in (*contenders[turn:], *contenders[:turn]):
            client, first = clients[name, size], str(balancers.SERVICES)
            figures[name, size].append(load.measure_services(binary, client, first, size))
    return figures


def _judge(figures: Figures) -> Iterator[report.Row]:
    unit = load.KINDS["crr"]
    for mine in ("socket", "packet"):
        # the programs at sockets are what is held to the bars; packets are what they save
        held = mine == "socket"
        for size in SIZES:
            for rival in RIVALS:
                ours, theirs = figures[mine, size], figures[rival, size]
                name = f"to {_so_many(size)}, {mine}"
                yield report.compare(name, unit, ours, rival, theirs, ">=", 1.0)
        few, many = figures[mine, SIZES[0]], figures[mine, SIZES[-1]]
        name = f"{SIZES[-1]:,} services, {mine}"
        limit = 0.95 if held else 0.9
        yield report.compare(name, unit, many, "1 service", few, ">=", limit)
