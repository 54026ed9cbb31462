"""Services at sockets, with real ones: who connects to a service talks to a backend of it."""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent.datapath import sockets
from cilium_core import abi

from tests.bpf.services_at_sockets import (
    ANY,
    BACKENDS,
    DGRAM,
    LIMIT_S,
    LOOPBACK,
    MAPPED,
    NODE,
    SERVICE,
    SO_COOKIE,
    STREAM,
    TCP,
    UDP,
    cookie_of,
    entries,
    refused,
)

if TYPE_CHECKING:
    from tests.bpf.services_at_sockets import Bench


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


def test_an_ipv6_socket_reaches_ipv4_services(bench: Bench) -> None:
    server = bench.server((BACKENDS[4][0], 8080))
    bench.services.add((SERVICE[4], 80), [(BACKENDS[4][0], 8080)])
    client = bench.client(6)
    client.connect((MAPPED + SERVICE[4], 80))
    assert client.getpeername()[:2] == (MAPPED + SERVICE[4], 80)
    server.accept()[0].close()
    client.close()
    assert entries(bench) == 0


def test_multipath_connections_are_translated_too(bench: Bench, family: int) -> None:
    server = bench.server((BACKENDS[family][0], 8080))
    bench.services.add((SERVICE[family], 80), [(BACKENDS[family][0], 8080)])
    client = bench.client(family, proto=socket.IPPROTO_MPTCP)
    client.connect((SERVICE[family], 80))
    server.accept()[0].close()


def test_internal_clients_get_the_internal_backends(bench: Bench, family: int) -> None:
    servers = bench.servers(family)
    here, there = ((address, 8080) for address in BACKENDS[family])
    two = int(abi.LB_TWO_SCOPES)
    bench.services.add((SERVICE[family], 80), [here], flags=two)
    bench.services.add((SERVICE[family], 80), [there], flags=two, scope=abi.LB_INTERNAL)
    bench.client(family).connect((SERVICE[family], 80))
    servers[1].accept()[0].close()


# ---- refusals ----


def test_a_service_without_backends_is_unreachable(bench: Bench, family: int) -> None:
    bench.services.add((SERVICE[family], 80))
    assert refused(bench.client(family), (SERVICE[family], 80)) == errno.EHOSTUNREACH
    (event,) = bench.plane.ring.read()
    assert (event.type, event.drop) == (abi.EVENT_DROP, "Service backend not found")
    assert (event.destination, event.destination_port) == (SERVICE[family], 80)
    assert bench.plane.counter(158) == 1


def test_an_unknown_port_of_a_service_is_unreachable(bench: Bench, family: int) -> None:
    bench.cluster_ip(family)
    bench.services.add((SERVICE[family], 0), flags=abi.LB_WILDCARD)
    for kind in (STREAM, DGRAM):
        client = bench.client(family, kind)
        assert refused(client, (SERVICE[family], 81)) == errno.EHOSTUNREACH


def test_a_backend_that_is_gone_is_nobody(bench: Bench, family: int) -> None:
    at = (SERVICE[family], 80)
    bench.services.add(at, [(BACKENDS[family][0], 8080)])
    bench.services.backend((BACKENDS[family][0], 8080), TCP, state=abi.LB_BACKEND_NONE)
    assert refused(bench.client(family), at) == errno.EHOSTUNREACH


@pytest.mark.parametrize("node", [False, True], ids=["pod", "node"])
def test_where_silence_is_wanted_pods_are_left_to_their_packets(bench: Bench, node: bool) -> None:
    bench.flags(node=node)
    bench.services.add((SERVICE[4], 80), proto=UDP)
    expected = errno.EHOSTUNREACH if node else errno.ENETUNREACH  # which the pod has no route to
    assert refused(bench.client(4, DGRAM), (SERVICE[4], 80)) == expected


# ---- datagrams ----


@pytest.mark.parametrize(
    ("family", "at_socket", "prefix"),
    [(4, 4, ""), (6, 6, ""), (4, 6, MAPPED)],
    ids=["ipv4", "ipv6", "mapped"],
)
def test_datagrams_reach_a_backend_and_come_back(
    bench: Bench, family: int, at_socket: int, prefix: str
) -> None:
    servers = bench.servers(family, DGRAM)
    service, port = bench.cluster_ip(family, UDP)
    at = (prefix + service, port)
    client = bench.client(at_socket, DGRAM)
    chosen = set()
    for _ in range(8):
        client.sendto(b"question", at)
        server, (question, peer) = _first(servers)
        chosen.add(server.getsockname()[0])
        server.sendto(question[::-1], peer)
        answer, source = client.recvfrom(100)
        assert (answer, source[:2]) == (b"noitseuq", at)
    # a socket's datagrams stay together
    assert len(chosen) == 1


def _first(servers: list[socket.socket]) -> tuple[socket.socket, Any]:
    """The server that got a datagram, and the datagram."""
    ready, *_ = select.select(servers, (), (), LIMIT_S)
    return ready[0], ready[0].recvfrom(100)


def test_sockets_spread_over_the_backends(bench: Bench, family: int) -> None:
    servers = bench.servers(family, DGRAM)
    at = bench.cluster_ip(family, UDP)
    for _ in range(20):
        bench.client(family, DGRAM).sendto(b"x", at)
    for server in servers:
        assert server.recv(1) == b"x"


def test_a_connected_datagram_socket_sees_the_service(bench: Bench, family: int) -> None:
    (server, _) = bench.servers(family, DGRAM)
    at = (SERVICE[family], 80)
    bench.services.add(at, [(BACKENDS[family][0], 8080)], UDP)
    client = bench.client(family, DGRAM)
    client.connect(at)
    client.send(b"question")
    _, peer = server.recvfrom(100)
    server.sendto(b"answer", peer)
    assert client.getpeername()[:2] == at
    answer, source = client.recvfrom(100)
    assert (answer, source[:2]) == (b"answer", at)
    # connected to the backend itself, it sees that
    client.connect((BACKENDS[family][0], 8080))
    assert client.getpeername()[:2] == (BACKENDS[family][0], 8080)


def test_the_next_datagram_follows_a_change(bench: Bench, family: int) -> None:
    servers = bench.servers(family, DGRAM)
    at = (SERVICE[family], 80)
    client = bench.client(family, DGRAM)
    for server in servers:
        bench.services.add(at, [server.getsockname()[:2]], UDP)
        client.sendto(b"x", at)
        assert server.recv(1) == b"x"


def test_another_protocols_service_is_none(bench: Bench, family: int) -> None:
    at = (NODE[family], 80)
    bench.services.add(at, [(BACKENDS[family][0], 8080)], UDP)
    server = bench.server(at)
    bench.client(family).connect(at)
    server.accept()[0].close()


# ---- NodePorts and host ports ----


def node_addresses(bench: Bench, version: int, identity: int) -> None:
    bench.plane.ipcache.upsert(ipaddress.ip_network(NODE[version]), identity)


@pytest.mark.parametrize("identity", [abi.ID_HOST, abi.ID_REMOTE_NODE])
def test_any_nodes_address_serves_node_ports(bench: Bench, family: int, identity: int) -> None:
    (server, _) = bench.servers(family)
    backend = (BACKENDS[family][0], 8080)
    bench.services.add((ANY[family], 30080), [backend], flags=abi.LB_NODE_PORT)
    at = (NODE[family], 30080)
    assert refused(bench.client(family), at) == errno.ECONNREFUSED
    node_addresses(bench, family, identity)
    client = bench.client(family)
    client.connect(at)
    assert client.getpeername()[:2] == at
    server.accept()[0].close()


@pytest.mark.parametrize("address", [LOOPBACK, ANY], ids=["loopback", "unspecified"])
def test_the_loopback_address_serves_node_ports_to_the_node_alone(
    bench: Bench, family: int, address: dict[int, str]
) -> None:
    (server, _) = bench.servers(family)
    backend = (BACKENDS[family][0], 8080)
    bench.services.add((ANY[family], 30080), [backend], flags=abi.LB_NODE_PORT)
    at = (address[family], 30080)
    assert refused(bench.client(family), at) == errno.ECONNREFUSED
    bench.as_node()
    assert refused(bench.client(family), at) is None
    server.accept()[0].close()


def test_host_ports_are_those_of_this_node(bench: Bench, family: int) -> None:
    (server, _) = bench.servers(family)
    backend = (BACKENDS[family][0], 8080)
    bench.services.add((ANY[family], 8000), [backend], flags=abi.LB_HOST_PORT)
    node_addresses(bench, family, abi.ID_REMOTE_NODE)
    assert refused(bench.client(family), (NODE[family], 8000)) == errno.ECONNREFUSED
    node_addresses(bench, family, abi.ID_HOST)
    assert refused(bench.client(family), (NODE[family], 8000)) is None
    server.accept()[0].close()


@pytest.mark.parametrize("flag", [abi.LB_EXTERNAL_IP, abi.LB_HOST_PORT])
def test_nobody_takes_over_an_address_that_is_no_nodes(
    bench: Bench, family: int, flag: int
) -> None:
    own = bench.server((NODE[family], 443))
    bench.services.add((NODE[family], 443), [(BACKENDS[family][0], 8080)], flags=flag)
    bench.client(family).connect((NODE[family], 443))
    own.accept()[0].close()
    # but where it is one, it is served
    (server, _) = bench.servers(family)
    node_addresses(bench, family, abi.ID_HOST)
    bench.client(family).connect((NODE[family], 443))
    server.accept()[0].close()


# ---- who asks ----


def test_backends_of_a_local_redirect_reach_past_it(bench: Bench, family: int) -> None:
    # given a redirect of an address that is there too
    own = bench.server((NODE[family], 53))
    (redirected, _) = bench.servers(family)
    flags = abi.LB_LOCAL_REDIRECT | abi.LB_SKIP_OWN
    bench.services.add((NODE[family], 53), [(BACKENDS[family][0], 8080)], flags=flags)
    bench.client(family).connect((NODE[family], 53))
    redirected.accept()[0].close()
    # when the pod is one of those that serve it
    namespaces = sockets.Namespaces(bench.plane.maps)
    pod = sockets.PodNamespace(endpoint=7, identity=1000, no_redirect=True)
    namespaces.upsert(cookie_of(bench.pod), pod)
    bench.client(family).connect((NODE[family], 53))
    own.accept()[0].close()


def test_only_the_node_is_served_where_pods_are_not(bench: Bench, family: int) -> None:
    own = bench.server((NODE[family], 80))
    (server, _) = bench.servers(family)
    bench.services.add((NODE[family], 80), [(BACKENDS[family][0], 8080)])
    bench.flags(abi.CONFIG_LB_SOCKET_HOST)
    bench.client(family).connect((NODE[family], 80))
    own.accept()[0].close()
    bench.flags(abi.CONFIG_LB_SOCKET_HOST, node=True)
    bench.client(family).connect((NODE[family], 80))
    server.accept()[0].close()


def test_a_pod_with_affinity_stays_with_its_backend(bench: Bench, family: int) -> None:
    servers = bench.servers(family)
    at = bench.cluster_ip(family, affinity_s=100)
    for _ in range(12):
        bench.client(family).connect(at)
    ready, *_ = select.select(servers, (), (), LIMIT_S)
    (server,) = ready
    ((key, _),) = bench.plane.maps["LB_AFFINITY"].items()
    assert int.from_bytes(key[:8], "little") == cookie_of(bench.pod)
    # until that is gone
    other = next(each for each in servers if each is not server)
    bench.plane.maps["LB_MEMBERS"].delete_many(
        [key for key, _ in bench.plane.maps["LB_MEMBERS"].items()]
    )
    bench.services.add(at, [other.getsockname()[:2]], affinity_s=100)
    bench.client(family).connect(at)
    other.accept()[0].close()


# ---- ports of services are not to be had ----


@pytest.mark.parametrize("kind", [STREAM, DGRAM], ids=["tcp", "udp"])
def test_the_node_cannot_bind_a_node_port(bench: Bench, family: int, kind: int) -> None:
    proto = TCP if kind == STREAM else UDP
    bench.services.add((ANY[family], 30080), proto=proto, flags=abi.LB_NODE_PORT)
    bench.services.add((NODE[family], 30080), proto=proto, flags=abi.LB_NODE_PORT)
    bench.client(family, kind).bind((ANY[family], 30080))  # a pod may
    bench.as_node()
    for address in (ANY, NODE, LOOPBACK):
        with pytest.raises(OSError, match="Address already in use"):
            bench.client(family, kind).bind((address[family], 30080))
    bench.client(family, kind).bind((ANY[family], 30081))


def test_a_socket_of_both_families_cannot_bind_an_ipv4_node_port(bench: Bench) -> None:
    bench.services.add((ANY[4], 30080), flags=abi.LB_NODE_PORT)
    bench.as_node()
    for address in (ANY[6], MAPPED + ANY[4]):
        with pytest.raises(OSError, match="Address already in use"):
            bench.client(6).bind((address, 30080))


def test_cluster_addresses_leave_ports_free(bench: Bench, family: int) -> None:
    bench.services.add((NODE[family], 8080))
    bench.as_node()
    bench.client(family).bind((NODE[family], 8080))


# ---- events ----


def own_group() -> bytes:
    """Number of the cgroup of this process, which uses the sockets, as events hold it."""
    listed = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    (path,) = (line.removeprefix("0::/") for line in listed if line.startswith("0::"))
    return (sockets.cgroup_mount() / path).stat().st_ino.to_bytes(8, "little")


def test_translations_are_traced_both_ways(bench: Bench, family: int) -> None:
    bench.servers(family)
    at, backend = (SERVICE[family], 80), (BACKENDS[family][0], 8080)
    bench.services.add(at, [backend])
    bench.flags(abi.CONFIG_LB_SOCKET_TRACE)
    bench.plane.configuration.patch(aggregation=abi.AGGREGATE_NONE)
    namespaces = sockets.Namespaces(bench.plane.maps)
    namespaces.upsert(cookie_of(bench.pod), sockets.PodNamespace(endpoint=7, identity=1000))
    client = bench.client(family)
    client.connect(at)
    client.getpeername()
    events = bench.plane.ring.read()
    assert [(e.subtype, e.destination, e.destination_port) for e in events] == [
        (abi.XLATE_PRE_FORWARD, *at),
        (abi.XLATE_POST_FORWARD, *backend),
        (abi.XLATE_PRE_REVERSE, *backend),
        (abi.XLATE_POST_REVERSE, *at),
    ]
    for event in events:
        assert (event.type, event.proto) == (abi.EVENT_TRACE_SOCK, TCP)
        assert (event.endpoint, event.src_identity) == (7, 1000)
        cookie = client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
        assert event.orig_saddr == cookie + own_group()


@pytest.mark.parametrize(
    ("aggregation", "points"),
    [
        (abi.AGGREGATE_LOW, [1, 2, 1, 2]),
        (abi.AGGREGATE_MEDIUM, [1, 2]),
        (abi.AGGREGATE_MAX, [1, 2]),
    ],
)
def test_aggregation_leaves_out_answers_and_datagrams(
    bench: Bench, aggregation: int, points: list[int]
) -> None:
    bench.servers(4, DGRAM)
    at = bench.cluster_ip(4, UDP)
    bench.flags(abi.CONFIG_LB_SOCKET_TRACE)
    bench.plane.configuration.patch(aggregation=aggregation)
    bench.client(4, DGRAM).sendto(b"x", at)
    client = bench.client(4, DGRAM)
    client.connect(at)
    client.getpeername()
    assert [event.subtype for event in bench.plane.ring.read()] == points


def test_nothing_is_traced_unless_asked_for(bench: Bench) -> None:
    bench.servers(4)
    bench.client(4).connect(bench.cluster_ip(4))
    assert bench.plane.ring.read() == []
