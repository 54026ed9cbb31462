"""Real traffic of pods with services, translated packet by packet; see also test_pod_services."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from cilium_core import abi
from cilium_core.policy import PolicyEntry, PolicyKey
from cilium_core.policy.ports import Protocol
from cilium_core.services.models import (
    Backend,
    Frontend,
    FrontendKind,
    L4Address,
    Scope,
    ServiceName,
)

from tests.bpf.clusters import LIMIT_S, socket_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bpf.clusters import Cluster
    from tests.bpf.harness import Namespace

CLIENT = 10
PORT = 80
NO_BACKEND = 158
SIZE = 4 << 20
ALLOW = PolicyEntry(precedence=1, deny=False, redirect=0, audit=False, cookie=0)
HAIRPIN = {4: "169.254.42.1", 6: "fe80::1"}
PLACES = ["itself", "local pod", "remote pod", "own node", "other node", "world"]


def service(family: int) -> str:
    """Address of the service."""
    return "10.96.0.10" if family == 4 else "fd00:96::10"


def place(cluster: Cluster, name: str, family: int) -> tuple[Namespace, str]:
    """Where a backend is; the client itself may be one."""
    if name == "itself":
        return cluster.pods[CLIENT].namespace, cluster.pods[CLIENT].address(family)
    return cluster.place(name, family)


def seen_source(cluster: Cluster, name: str, family: int) -> str:
    """With which address the client is seen there."""
    if name == "itself":
        return HAIRPIN[family]
    if name in ("other node", "world"):
        return "172.30.0.11" if family == 4 else "fd00:30::11"
    return cluster.pods[CLIENT].address(family)


@contextlib.contextmanager
def served(
    cluster: Cluster, family: int, *backends: tuple[str, int], proto: Protocol = Protocol.TCP
) -> Iterator[str]:
    """Put the service in place on node 1 meanwhile; gives its address."""
    at = L4Address(ipaddress.ip_address(service(family)), PORT, proto)
    known = tuple(
        Backend(L4Address(ipaddress.ip_address(address), port, proto)) for address, port in backends
    )
    name = ServiceName("default", "shop")
    made = Frontend(
        at, Scope.EXTERNAL, FrontendKind.CLUSTER_IP, name, backends=known, eligible=known
    )
    services = cluster.planes[0].services
    assert not services.apply([made]).refused
    try:
        yield service(family)
    finally:
        services.apply([], [(at, Scope.EXTERNAL)])


def exchange(sending: socket.socket, receiving: socket.socket) -> bool:
    """Send bytes one way and get as many back; whether all arrived as sent."""
    data = secrets.token_bytes(1 << 16) * (SIZE >> 16)

    def send_all() -> None:
        sending.sendall(data)
        sending.shutdown(socket.SHUT_WR)

    pump = threading.Thread(target=send_all)
    pump.start()
    received = bytearray()
    while chunk := receiving.recv(1 << 20):
        received += chunk
    pump.join()
    return bytes(received) == data


@pytest.mark.parametrize("where", PLACES)
def test_pods_talk_with_a_service_over_tcp(cluster: Cluster, family: int, where: str) -> None:
    server, address = place(cluster, where, family)
    client = cluster.pods[CLIENT].namespace
    with (
        socket_in(server, family, socket.SOCK_STREAM) as listening,
        socket_in(client, family, socket.SOCK_STREAM) as asking,
    ):
        listening.bind((address, 0))
        listening.listen()
        with served(cluster, family, (address, listening.getsockname()[1])) as vip:
            asking.connect((vip, PORT))
            assert asking.getpeername()[:2] == (vip, PORT)
            accepted, peer = listening.accept()
            with accepted:
                accepted.settimeout(LIMIT_S)
                assert peer[0].partition("%")[0] == seen_source(cluster, where, family)
                assert exchange(asking, accepted)
                assert exchange(accepted, asking)


@pytest.mark.parametrize("size", [100, 6000], ids=["whole", "fragmented"])
@pytest.mark.parametrize("where", PLACES)
def test_pods_talk_with_a_service_over_udp(
    cluster: Cluster, family: int, where: str, size: int
) -> None:
    server, address = place(cluster, where, family)
    client = cluster.pods[CLIENT].namespace
    with (
        socket_in(server, family, socket.SOCK_DGRAM) as answering,
        socket_in(client, family, socket.SOCK_DGRAM) as asking,
    ):
        answering.bind((address, 0))
        port = answering.getsockname()[1]
        with served(cluster, family, (address, port), proto=Protocol.UDP) as vip:
            asking.connect((vip, PORT))
            data = secrets.token_bytes(size)
            asking.send(data)
            received, peer = answering.recvfrom(65535)
            assert (received, peer[0].partition("%")[0]) == (
                data,
                seen_source(cluster, where, family),
            )
            answering.sendto(received[::-1], peer)
            assert asking.recv(65535) == data[::-1]


@pytest.mark.parametrize("where", PLACES)
def test_a_closed_port_of_a_backend_refuses_datagrams(
    cluster: Cluster, family: int, where: str
) -> None:
    _, address = place(cluster, where, family)
    with (
        socket_in(cluster.pods[CLIENT].namespace, family, socket.SOCK_DGRAM) as asking,
        served(cluster, family, (address, 9), proto=Protocol.UDP) as vip,
    ):
        asking.connect((vip, PORT))
        asking.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            asking.recv(100)


def test_a_service_without_backends_refuses_connections(cluster: Cluster, family: int) -> None:
    before = cluster.counted(NO_BACKEND)
    with (
        socket_in(cluster.pods[CLIENT].namespace, family, socket.SOCK_STREAM) as asking,
        served(cluster, family) as vip,
        pytest.raises(ConnectionRefusedError),
    ):
        asking.connect((vip, PORT))
    assert cluster.counted(NO_BACKEND) == before + 1


def test_a_service_without_backends_refuses_datagrams(cluster: Cluster, family: int) -> None:
    with (
        socket_in(cluster.pods[CLIENT].namespace, family, socket.SOCK_DGRAM) as asking,
        served(cluster, family, proto=Protocol.UDP) as vip,
    ):
        asking.connect((vip, PORT))
        asking.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            asking.recv(100)


def test_connections_live_on_when_the_service_gets_other_backends(
    cluster: Cluster, family: int
) -> None:
    server, address = cluster.place("remote pod", family)
    _, other = cluster.place("local pod", family)
    with (
        socket_in(server, family, socket.SOCK_STREAM) as listening,
        socket_in(cluster.pods[CLIENT].namespace, family, socket.SOCK_STREAM) as asking,
    ):
        listening.bind((address, 0))
        listening.listen()
        port = listening.getsockname()[1]
        with served(cluster, family, (address, port)) as vip:
            asking.connect((vip, PORT))
            accepted, _ = listening.accept()
            with accepted, served(cluster, family, (address, port), (other, port)):
                accepted.settimeout(LIMIT_S)
                assert exchange(asking, accepted)
                assert exchange(accepted, asking)


def test_policy_speaks_of_the_backend(cluster: Cluster, family: int) -> None:
    server, address = cluster.place("local pod", family)
    client = cluster.pods[CLIENT].namespace
    with socket_in(server, family, socket.SOCK_STREAM) as listening:
        listening.bind((address, 0))
        listening.listen()
        port = listening.getsockname()[1]
        allowed = {PolicyKey(abi.DIR_EGRESS, 1011, Protocol.TCP, port, 24): ALLOW}
        with (
            served(cluster, family, (address, port)) as vip,
            cluster.enforced(CLIENT, allowed),
            socket_in(client, family, socket.SOCK_STREAM) as asking,
        ):
            asking.connect((vip, PORT))
