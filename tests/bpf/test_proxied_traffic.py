"""Real traffic through a transparent proxy: who sees whom, and what happens when rules change."""

from __future__ import annotations

import contextlib
import secrets
import socket
from typing import TYPE_CHECKING

import pytest
from cilium_core import abi
from cilium_core.policy import PolicyEntry, PolicyKey

from tests.bpf.clusters import socket_in, wait_for
from tests.bpf.proxies import Proxy
from tests.bpf.test_traffic import ask, bulk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bpf.clusters import Cluster
    from tests.bpf.harness import Namespace

TCP, UDP = 6, 17
EGRESS, INGRESS = abi.DIR_EGRESS, abi.DIR_INGRESS
Rules = dict[PolicyKey, PolicyEntry]
SIZE = 1 << 20


def redirect(port: int, direction: int = EGRESS, proto: int = TCP) -> Rules:
    key = PolicyKey(direction, 0, proto, 0, 8)
    return {key: PolicyEntry(precedence=1, deny=False, redirect=port)}


def plain(direction: int = EGRESS, proto: int = TCP) -> Rules:
    return redirect(0, direction, proto)


@contextlib.contextmanager
def egress_proxy(cluster: Cluster, family: int, kind: int = socket.SOCK_STREAM) -> Iterator[Proxy]:
    """Everything that pod 10 sends goes through a proxy."""
    proto = TCP if kind == socket.SOCK_STREAM else UDP
    with (
        Proxy(cluster.nodes[0], family, kind) as proxy,
        cluster.enforced(10, redirect(proxy.port, proto=proto)),
    ):
        yield proxy


@contextlib.contextmanager
def ingress_proxy(cluster: Cluster, family: int) -> Iterator[Proxy]:
    """Everything that pod 11 receives goes through a proxy."""
    with (
        Proxy(cluster.nodes[0], family, ingress=True) as proxy,
        cluster.enforced(11, redirect(proxy.port, INGRESS)),
    ):
        yield proxy


def seen_by(where: str, family: int) -> str:
    """As whom a server sees pod 10."""
    if where in ("world", "other node"):
        return "172.30.0.11" if family == 4 else "fd00:30::11"
    return "10.244.1.10" if family == 4 else "fd00:244:0:1::10"


PLACES = ["local pod", "remote pod", "own node", "router", "other node", "world"]


@pytest.mark.parametrize("where", PLACES)
def test_an_egress_proxy_passes_streams_on_with_the_clients_address(
    cluster: Cluster, family: int, where: str
) -> None:
    client, (server, address) = cluster.pods[10], cluster.place(where, family)
    with egress_proxy(cluster, family) as proxy:
        assert bulk(client.namespace, server, address, family, SIZE) == (
            seen_by(where, family),
            True,
        )
    (seen,) = proxy.seen
    assert (seen.client, seen.server) == (client.address(family), address)


@pytest.mark.parametrize("where", PLACES)
def test_an_egress_proxy_passes_datagrams_on_with_the_clients_address_and_port(
    cluster: Cluster, family: int, where: str
) -> None:
    client, (server, address) = cluster.pods[10], cluster.place(where, family)
    with egress_proxy(cluster, family, socket.SOCK_DGRAM) as proxy:
        assert ask(client.namespace, server, address, family) == (seen_by(where, family), True)
    (seen,) = proxy.seen
    assert (seen.client, seen.server) == (client.address(family), address)


def client_of(cluster: Cluster, where: str, family: int) -> tuple[Namespace, str]:
    """A client of pod 11, and its address."""
    if where == "world":
        return cluster.world, "172.30.0.99" if family == 4 else "fd00:30::99"
    if where == "local pod":
        return cluster.pods[10].namespace, cluster.pods[10].address(family)
    if where == "own node":
        return cluster.place("router", family)
    if where == "other node":
        return cluster.nodes[1], "10.244.2.1" if family == 4 else "fd00:244:0:2::1"
    return cluster.place(where, family)


@pytest.mark.parametrize("where", ["local pod", "remote pod", "own node", "other node", "world"])
def test_an_ingress_proxy_sees_the_client_and_speaks_to_the_pod_as_the_node(
    cluster: Cluster, family: int, where: str
) -> None:
    (client, source), server = client_of(cluster, where, family), cluster.pods[11]
    node = "10.244.1.1" if family == 4 else "fd00:244:0:1::1"
    with ingress_proxy(cluster, family) as proxy:
        seen = bulk(client, server.namespace, server.address(family), family, SIZE)
        assert seen == (node, True)
    (through,) = proxy.seen
    assert (through.client, through.server) == (source, server.address(family))


def test_a_connection_goes_through_the_proxies_of_both_ends(cluster: Cluster, family: int) -> None:
    client, server = cluster.pods[10], cluster.pods[11]
    with egress_proxy(cluster, family) as first, ingress_proxy(cluster, family) as second:
        assert bulk(client.namespace, server.namespace, server.address(family), family, SIZE)[1]
    assert [seen.client for seen in first.seen] == [client.address(family)]
    assert [seen.client for seen in second.seen] == [client.address(family)]


def test_a_connection_goes_through_the_proxies_of_two_nodes(cluster: Cluster, family: int) -> None:
    client, server = cluster.pods[10], cluster.pods[20]
    with (
        egress_proxy(cluster, family) as first,
        Proxy(cluster.nodes[1], family, ingress=True) as second,
        cluster.enforced(20, redirect(second.port, INGRESS)),
    ):
        assert bulk(client.namespace, server.namespace, server.address(family), family, SIZE)[1]
    assert [seen.client for seen in first.seen] == [client.address(family)]
    assert [seen.client for seen in second.seen] == [client.address(family)]


def ask_in_vain(here: socket.socket, target: tuple[str, int]) -> None:
    here.connect(target)
    here.send(b"question")
    here.recv(1)


@pytest.mark.parametrize("where", ["local pod", "remote pod", "world"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_without_its_proxy_nothing_passes(
    cluster: Cluster, family: int, where: str, kind: int
) -> None:
    client, (server, address) = cluster.pods[10], cluster.place(where, family)
    proto = TCP if kind == socket.SOCK_STREAM else UDP
    with (
        cluster.enforced(10, redirect(9, proto=proto)),
        socket_in(server, family, kind) as there,
        socket_in(client.namespace, family, kind) as here,
    ):
        there.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            there.listen()
        before = cluster.counted(178)
        here.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ask_in_vain(here, there.getsockname()[:2])
        assert cluster.counted(178) > before
        there.settimeout(0)
        with pytest.raises(BlockingIOError):
            there.accept() if kind == socket.SOCK_STREAM else there.recv(1)


@contextlib.contextmanager
def conversation(cluster: Cluster, family: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection of pod 10 to pod 11 that has been used in both directions."""
    client, server = cluster.pods[10], cluster.pods[11]
    with (
        socket_in(server.namespace, family, socket.SOCK_STREAM) as listening,
        socket_in(client.namespace, family, socket.SOCK_STREAM) as here,
    ):
        listening.bind((server.address(family), 0))
        listening.listen()
        here.connect(listening.getsockname()[:2])
        there, _ = listening.accept()
        with there:
            exchange(here, there)
            yield here, there


def exchange(here: socket.socket, there: socket.socket) -> None:
    for source, target in ((here, there), (there, here)):
        data = secrets.token_bytes(1000)
        source.sendall(data)
        target.settimeout(10)
        received = b""
        while len(received) < len(data):
            received += target.recv(1000)
        assert received == data


def assert_cut(here: socket.socket, there: socket.socket) -> None:
    """The client learns that its connection has ended, and nothing more gets to the server."""
    here.sendall(b"secret")
    with pytest.raises(ConnectionResetError):
        here.recv(1)
    there.setblocking(False)
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        assert there.recv(100) == b""


def test_a_connection_that_was_plain_ends_when_it_has_to_go_through_a_proxy(
    cluster: Cluster, family: int
) -> None:
    with Proxy(cluster.nodes[0], family) as proxy, cluster.enforced(10, plain()):
        with conversation(cluster, family) as (here, there):
            cluster.enforce(10, redirect(proxy.port))
            assert_cut(here, there)
        with conversation(cluster, family):
            assert len(proxy.seen) == 1


def test_a_connection_ends_when_it_has_to_go_through_another_proxy(
    cluster: Cluster, family: int
) -> None:
    with egress_proxy(cluster, family), Proxy(cluster.nodes[0], family) as other:
        with conversation(cluster, family) as (here, there):
            cluster.enforce(10, redirect(other.port))
            assert_cut(here, there)
        with conversation(cluster, family):
            assert len(other.seen) == 1


def test_a_connection_through_a_proxy_ends_when_it_may_be_plain(
    cluster: Cluster, family: int
) -> None:
    with egress_proxy(cluster, family) as proxy:
        with conversation(cluster, family) as (here, there):
            cluster.enforce(10, plain())
            assert_cut(here, there)
        with conversation(cluster, family):
            assert len(proxy.seen) == 1


def test_a_connection_that_had_no_ingress_proxy_ends_when_it_needs_one(
    cluster: Cluster, family: int
) -> None:
    with (
        Proxy(cluster.nodes[0], family, ingress=True) as proxy,
        cluster.enforced(11, plain(INGRESS)),
        conversation(cluster, family) as (here, there),
    ):
        cluster.enforce(11, redirect(proxy.port, INGRESS))
        assert_cut(here, there)


def test_a_server_gets_nothing_past_the_proxy_that_came_between(
    cluster: Cluster, family: int
) -> None:
    # given a plain connection whose client has to use a proxy from now on
    with (
        Proxy(cluster.nodes[0], family) as proxy,
        cluster.enforced(10, plain()),
        conversation(cluster, family) as (here, there),
    ):
        cluster.enforce(10, redirect(proxy.port))
        before = cluster.counted(133)
        # when the server speaks first, then the client does not hear it
        there.sendall(b"push")
        wait_for(lambda: cluster.counted(133) > before)
        here.settimeout(0)
        with pytest.raises(BlockingIOError):
            here.recv(1)


def test_connections_through_proxies_outlive_changes_that_do_not_concern_them(
    cluster: Cluster, family: int
) -> None:
    other = {PolicyKey(EGRESS, 4711, UDP, 53, 24): PolicyEntry(precedence=1, deny=False)}
    more = {PolicyKey(INGRESS, 4711, UDP, 53, 24): PolicyEntry(precedence=1, deny=False)}
    with (
        egress_proxy(cluster, family) as first,
        ingress_proxy(cluster, family) as second,
        conversation(cluster, family) as (here, there),
    ):
        cluster.enforce(10, redirect(first.port) | other)
        cluster.enforce(11, redirect(second.port, INGRESS) | more)
        exchange(here, there)
        exchange(here, there)


def test_what_an_egress_proxy_sends_meets_the_ingress_policy_of_the_server(
    cluster: Cluster, family: int
) -> None:
    nobody = {PolicyKey(INGRESS, 4711, 0, 0, 0): PolicyEntry(precedence=1, deny=False)}
    client, server = cluster.pods[10], cluster.pods[11]
    with (
        egress_proxy(cluster, family) as proxy,
        cluster.enforced(11, nobody),
        socket_in(server.namespace, family, socket.SOCK_STREAM) as listening,
        socket_in(client.namespace, family, socket.SOCK_STREAM) as here,
    ):
        listening.bind((server.address(family), 0))
        listening.listen()
        before = cluster.counted(133)
        here.connect(listening.getsockname()[:2])
        wait_for(lambda: cluster.counted(133) > before)
        wait_for(lambda: len(proxy.seen) == 1)
        # when the rules let the client in, then so goes the proxy on its behalf
        client_only = {PolicyKey(INGRESS, 1010, 0, 0, 0): PolicyEntry(precedence=1, deny=False)}
        cluster.enforce(11, client_only)
        there, peer = listening.accept()
        with there:
            assert peer[0] == client.address(family)


def test_a_client_may_use_its_port_again_after_the_proxy_has_closed(
    cluster: Cluster, family: int
) -> None:
    client, server = cluster.pods[10], cluster.pods[11]
    with (
        egress_proxy(cluster, family) as proxy,
        socket_in(server.namespace, family, socket.SOCK_STREAM) as listening,
    ):
        listening.bind((server.address(family), 0))
        listening.listen()
        port = 0
        for count in (1, 2):
            with socket_in(client.namespace, family, socket.SOCK_STREAM) as here:
                here.bind((client.address(family), port))
                here.connect(listening.getsockname()[:2])
                port = here.getsockname()[1]
                there, _ = listening.accept()
                there.close()
                assert here.recv(1) == b""
            assert len(proxy.seen) == count


def test_a_client_whose_proxy_dies_learns_it_and_finds_the_next_one(
    cluster: Cluster, family: int
) -> None:
    with egress_proxy(cluster, family) as proxy:
        with conversation(cluster, family) as (here, _):
            proxy.__exit__()
            with contextlib.suppress(ConnectionResetError):
                assert here.recv(1) == b""
        with (
            Proxy(cluster.nodes[0], family, port=proxy.port) as successor,
            conversation(cluster, family),
        ):
            assert len(successor.seen) == 1


def test_a_proxy_learns_that_its_datagram_was_refused(cluster: Cluster, family: int) -> None:
    client = cluster.pods[10].namespace
    for where in ("local pod", "remote pod", "world"):
        _, address = cluster.place(where, family)
        with (
            egress_proxy(cluster, family, socket.SOCK_DGRAM) as proxy,
            socket_in(client, family, socket.SOCK_DGRAM) as asking,
        ):
            asking.sendto(b"anybody?", (address, 9))
            wait_for(lambda: proxy.refused == 1)
