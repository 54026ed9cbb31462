"""Services at sockets, with real ones: who connects to a service talks to a backend of it."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent.datapath import pinning, sockets
from cilium_core import abi

from tests.bpf.harness import Namespace
from tests.bpf.services_at_sockets import (
    TCP,
    Group,
    Services,
    cookie_of,
    give_addresses,
    listener,
    unique,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bpf.harness import Plane

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
SERVICE = {4: "10.96.0.10", 6: "fd00:96::10"}
BACKENDS = {4: ("10.244.0.1", "10.244.0.2"), 6: ("fd00:244::1", "fd00:244::2")}
NODE = {4: "172.30.0.11", 6: "fd00:30::11"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
ANY = {4: "0.0.0.0", 6: "::"}
MAPPED = "::ffff:"


class Bench:
    """A pod, a group of processes, and services for them."""

    def __init__(self, plane: Plane, group: Group, root: Path, pod: Namespace) -> None:
        self.plane, self.group, self.root, self.pod = plane, group, root, pod
        self.services = Services(plane)
        self._open = contextlib.ExitStack()
        plane.configuration.patch(
            flags=abi.CONFIG_LB_REJECT | abi.CONFIG_DROPS | abi.CONFIG_HUBBLE,
            node_port_min=30000,
            node_port_max=32767,
            netns_cookie=0,
        )
        sockets.attach(root, group.path, plane.generation.programs)

    def close(self) -> None:
        self._open.close()
        sockets.detach(self.root)

    def flags(self, *added: int, node: bool = False) -> None:
        """Set flags of the configuration; `node` makes the pod's namespace the node's own."""
        self.plane.configuration.patch(
            flags=abi.CONFIG_DROPS | abi.CONFIG_HUBBLE | sum(added),
            netns_cookie=cookie_of(self.pod) if node else 0,
        )

    def as_node(self) -> None:
        self.plane.configuration.patch(netns_cookie=cookie_of(self.pod))

    def server(self, at: tuple[str, int], kind: int = STREAM) -> socket.socket:
        made: socket.socket = self._open.enter_context(listener(self.pod, at, kind))
        return made

    def servers(self, version: int, kind: int = STREAM, port: int = 8080) -> list[socket.socket]:
        """A server on each of the backends' addresses."""
        return [self.server((address, port), kind) for address in BACKENDS[version]]

    def client(self, version: int, kind: int = STREAM, proto: int = 0) -> socket.socket:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made: socket.socket = self._open.enter_context(
            self.group.socket(self.pod, family, kind, proto)
        )
        return made

    def cluster_ip(self, version: int, proto: int = TCP, **more: Any) -> tuple[str, int]:
        at = (SERVICE[version], 80)
        self.services.add(at, [(b, 8080) for b in BACKENDS[version]], proto, **more)
        return at


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    made = Group(unique("cilium-sockets"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def pod() -> Iterator[Namespace]:
    made = Namespace()
    addresses = [*BACKENDS[4], *BACKENDS[6], NODE[4], NODE[6]]
    give_addresses(made, addresses)
    yield made
    made.close()


@pytest.fixture
def bench(plane: Plane, group: Group, pod: Namespace) -> Iterator[Bench]:
    root = Path("/sys/fs/bpf") / f"sockets-{secrets.token_hex(4)}"
    pinning.ensure_bpffs(root)
    made = Bench(plane, group, root, pod)
    yield made
    made.close()
    shutil.rmtree(root)


def entries(bench: Bench) -> int:
    return len(list(bench.plane.maps["LB_SOCKETS"].items()))


# ---- connections ----


def test_a_connection_to_a_service_reaches_a_backend(bench: Bench, family: int) -> None:
    servers = bench.servers(family)
    at = bench.cluster_ip(family)
    for _ in range(20):
        with bench.client(family) as client:
            client.connect(at)
            # the process sees what it asked for
            assert client.getpeername()[:2] == at
    # and the wire what serves
    for server in servers:
        server.accept()[0].close()


def test_bytes_go_both_ways(bench: Bench, family: int) -> None:
    (server, _) = bench.servers(family)
    bench.services.add((SERVICE[family], 80), [(BACKENDS[family][0], 8080)])
    client = bench.client(family)
    client.connect((SERVICE[family], 80))
    peer, _ = server.accept()
    with peer:
        client.sendall(b"question")
        assert peer.recv(100) == b"question"
        peer.sendall(b"answer")
        assert client.recv(100) == b"answer"


def test_other_addresses_stay_what_they_are(bench: Bench, family: int) -> None:
    server = bench.server((BACKENDS[family][0], 9999))
    bench.cluster_ip(family)
    client = bench.client(family)
    client.connect((BACKENDS[family][0], 9999))
    assert client.getpeername()[:2] == (BACKENDS[family][0], 9999)
    server.accept()[0].close()
    assert entries(bench) == 0


def test_a_closed_socket_leaves_nothing_behind(bench: Bench, family: int) -> None:
    bench.servers(family)
    client = bench.client(family)
    client.connect(bench.cluster_ip(family))
    assert entries(bench) == 1
    client.close()
    assert entries(bench) == 0
