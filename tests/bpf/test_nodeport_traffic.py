"""Real connections from outside to services: by each way that leads to a backend."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath import syscalls
from cilium_agent.datapath.models import ServiceConfig
from cilium_core import abi
from cilium_core.policy.ports import Protocol
from cilium_core.services.models import (
    Backend,
    Frontend,
    FrontendKind,
    L4Address,
    Scope,
    ServiceName,
)

from tests.bpf.clusters import WORLD4, WORLD6, netlink, socket_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bpf.clusters import Cluster
    from tests.bpf.harness import Namespace

VIP = {4: "203.0.113.80", 6: "2001:db8:80::80"}
NODE_PORT, TARGET_PORT, VIP_PORT = 30080, 8080, 80
SERVICES = ServiceConfig(nodes=True, pods=True, maglev_size=251)
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
WAYS = {
    "local pod": (10, {}),
    "remote pod": (20, {}),
    "remote pod, direct": (20, {"dsr_tcp": True, "dsr_udp": True}),
    "own process": (0, {}),
    "remote process": (1, {}),
    "remote process, direct": (1, {"dsr_tcp": True, "dsr_udp": True}),
}
"""Number of the backend (a pod, or of a node's process) and fields of ServiceConfig."""


def world(family: int) -> str:
    return WORLD4 if family == 4 else WORLD6


def backend_at(cluster: Cluster, number: int, family: int) -> tuple[Namespace, str]:
    if number in cluster.pods:
        return cluster.pods[number].namespace, cluster.pods[number].address(family)
    host = 11 + number
    address = f"172.30.0.{host}" if family == 4 else f"fd00:30::{host}"
    return cluster.nodes[number], address


@contextlib.contextmanager
def served(
    cluster: Cluster, number: int, family: int, config: dict[str, Any]
) -> Iterator[list[tuple[str, int]]]:
    """The first node serves a NodePort and an external address; what the client asks.

    The others know the services too, the NodePort by its port alone.
    """
    plane, node = cluster.planes[0], cluster.nodes[0]
    _, address = backend_at(cluster, number, family)
    frontends = []
    asked = [("172.30.0.11" if family == 4 else "fd00:30::11", NODE_PORT), (VIP[family], VIP_PORT)]
    for text, port in asked:
        for protocol in (Protocol.TCP, Protocol.UDP):
            at = L4Address(ipaddress.ip_address(address), TARGET_PORT, protocol)
            backend = Backend(at, local=number in (0, 10))
            frontends.append(
                Frontend(
                    L4Address(ipaddress.ip_address(text), port, protocol),
                    Scope.EXTERNAL,
                    FrontendKind.NODE_PORT,
                    ServiceName("default", "web"),
                    backends=(backend,),
                    eligible=(backend,),
                )
            )
    for each, namespace in zip(cluster.planes, cluster.nodes, strict=True):
        services = replace(SERVICES, **config)
        namespace.call(each.start_sync, replace(each.config, services=services))
    anywhere = ipaddress.ip_address("0.0.0.0" if family == 4 else "::")
    known = [
        replace(each, at=replace(each.at, address=anywhere)) if each.at.port == NODE_PORT else each
        for each in frontends
    ]
    node.call(plane.services.apply, frontends)
    others = list(zip(cluster.planes, cluster.nodes, strict=True))[1:]
    for each, namespace in others:
        namespace.call(each.services.apply, known)
    try:
        yield asked
    finally:
        node.call(plane.services.apply, [], [(each.at, each.scope) for each in frontends])
        for each, namespace in others:
            namespace.call(each.services.apply, [], [(one.at, one.scope) for one in known])


def exchange(
    cluster: Cluster,
    server: tuple[Namespace, str],
    asked: tuple[str, int],
    kind: str,
    family: int,
    rounds: int = 1,
) -> tuple[str, str, int]:
    """Ask and be answered; who the server saw, what came back and how many bytes."""
    namespace, address = server
    listener = socket_in(namespace, family, KINDS[kind])
    client = socket_in(cluster.world, family, KINDS[kind])
    with contextlib.closing(listener), contextlib.closing(client):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        namespace.call(listener.bind, (address, TARGET_PORT))
        cluster.world.call(client.bind, (world(family), 0))
        if kind == "udp":
            client.connect(asked)
            for _ in range(rounds):
                client.send(b"question")
                data, peer = listener.recvfrom(100)
                listener.sendto(b"answer to " + data, peer)
                back = client.recv(100).decode()
            return peer[0], back, 8
        listener.listen()
        client.connect(asked)
        accepted, peer = listener.accept()
        with accepted:
            accepted.settimeout(10)
            client.sendall(b"question")
            data = accepted.recv(100)
            accepted.sendall(b"answer to " + data)
            back = client.recv(100).decode()
            many = bytes(1 << 20)
            accepted.settimeout(10)
            sender = _Sending(client, many)
            got = 0
            while got < len(many):
                got += len(accepted.recv(1 << 16))
            sender.join()
        return peer[0], back, got


class _Sending:
    """Sends beside the receiver, which has to read meanwhile."""

    def __init__(self, client: socket.socket, data: bytes) -> None:
        import threading

        self._thread = threading.Thread(target=client.sendall, args=(data,))
        self._thread.start()

    def join(self) -> None:
        self._thread.join()


@pytest.fixture(scope="module")
def routed(cluster: Cluster) -> Cluster:
    """The world sends the external addresses to the first node."""

    def routes(opened: Any) -> None:
        opened.route("replace", dst=f"{VIP[4]}/32", gateway="172.30.0.11")
        opened.route("replace", dst=f"{VIP[6]}/128", gateway="fd00:30::11", family=10)

    netlink(cluster.world, routes)
    return cluster


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_the_world_is_answered_by_the_address_it_asked(
    routed: Cluster, way: str, kind: str, family: int
) -> None:
    number, config = WAYS[way]
    with served(routed, number, family, config) as frontends:
        for asked in frontends:
            server = backend_at(routed, number, family)
            seen, back, size = exchange(routed, server, asked, kind, family)
            assert back == "answer to question"
            assert size in (8, 1 << 20)
            preserved = not way.startswith("remote") or way.endswith("direct")
            assert (seen == world(family)) == preserved


def _like_a_driver(cluster: Cluster) -> None:
    """Make veths do what network cards do: take frames from XDP, and send whole checksums.

    A veth takes frames once it has an XDP program itself; any will do.
    """
    passing = bytes.fromhex("b7000000020000009500000000000000")  # r0 = XDP_PASS; exit
    program = syscalls.prog_load_raw(syscalls.PROG_TYPES["XDP"], "passes", passing)

    def attach(opened: Any) -> None:
        for host in (11, 12, 99):
            (index,) = opened.link_lookup(ifname=f"n{host}")
            nl.set_xdp(opened, index, program, nl.XDP_FLAGS["native"])

    netlink(cluster.fabric, attach)
    os.close(program)
    pods = [pod.namespace for pod in cluster.pods.values()]
    for namespace in (*cluster.nodes, cluster.world, *pods):
        namespace.call(_sum_in_software)


def _sum_in_software() -> None:
    command = ["ethtool", "-K", "eth0", "tx", "off"]
    subprocess.run(command, check=True, capture_output=True)


def _in_driver(cluster: Cluster) -> int:
    """Packets that the first node has sent on in XDP."""
    rows = cluster.planes[0].metrics.dump()
    return sum(row.packets for row in rows if (row.file, row.reason) == (abi.FILE_XDP, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_accelerated_connections_turn_round_in_the_driver(
    routed: Cluster, kind: str, family: int
) -> None:
    _like_a_driver(routed)
    with served(routed, 20, family, {"acceleration": "native"}) as frontends:
        for asked in frontends:
            before = _in_driver(routed)
            server = backend_at(routed, 20, family)
            seen, back, _ = exchange(routed, server, asked, kind, family, rounds=3)
            assert back == "answer to question"
            assert seen != world(family)
            # what opens, or is the first of its kind, is for tc
            assert _in_driver(routed) > before + (100 if kind == "tcp" else 0)
