"""What the kernel itself drops, on two nodes with pods: told with its reason, and only once."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

import pytest
from cilium_agent.datapath import Packet, kernel_drops
from cilium_core import abi, drops
from cilium_core.policy import PolicyEntry, PolicyKey
from hubble_server.flows.decoding import left_out
from hubble_server.ring.reading import EventReader
from hubble_server.ring.records import pick

from tests.bpf.clusters import KERNEL_DROPS_PER_SECOND, socket_in, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hubble_server.ring.records import Events

    from tests.bpf.clusters import Cluster

CLOSED_PORT = 9


@pytest.fixture
def cluster(watched_cluster: Cluster) -> Cluster:
    """The cluster that both modules about what happens on it share."""
    return watched_cluster


@pytest.fixture
def reader(cluster: Cluster) -> Iterator[EventReader]:
    """A reader of the events of node 1 from now on."""
    made = EventReader(cluster.pins())
    while len(made.read().events):
        pass
    yield made
    made.close()


def counted(cluster: Cluster, name: str, node: int = 1) -> int:
    """How many packets a node has counted as dropped by the kernel for this reason."""
    return sum(
        row.packets
        for row in cluster.planes[node - 1].metrics.dump()
        if row.file == abi.FILE_KERNEL and drops.kernel_drop(row.line).name == name
    )


def told(events: Events) -> Events:
    """Those of the events that tell of the kernel's drops."""
    return pick(events, (events["type"] == abi.EVENT_DROP) & (events["file"] == abi.FILE_KERNEL))


def send(cluster: Cluster, family: int, count: int = 1, to: str = "local pod") -> None:
    """Have pod 10 send datagrams to where nobody listens."""
    _, address = cluster.place(to, family)
    with socket_in(cluster.pods[10].namespace, family, socket.SOCK_DGRAM) as sending:
        for _ in range(count):
            sending.sendto(b"x" * 100, (address, CLOSED_PORT))


def test_a_datagram_nobody_listens_for_is_told_with_the_kernels_reason(
    cluster: Cluster, reader: EventReader, family: int
) -> None:
    before = counted(cluster, "NO_SOCKET")

    send(cluster, family)

    wait_for(lambda: counted(cluster, "NO_SOCKET") > before)
    (event,) = told(reader.read().events)
    size = 4 if family == 4 else 16
    assert drops.kernel_drop(int(event["line"])).name == "NO_SOCKET"
    assert (event["endpoint"], event["proto"]) == (11, socket.IPPROTO_UDP)
    assert socket.ntohs(int(event["dport"])) == CLOSED_PORT
    ends = [str(ipaddress.ip_address(bytes(event[name])[:size])) for name in ("saddr", "daddr")]
    assert [cluster.pods[number].address(family) for number in (10, 11)] == ends
    assert event["flags"] & abi.EVENT_INGRESS


def test_the_end_of_a_connection_is_no_drop(
    cluster: Cluster, reader: EventReader, family: int
) -> None:
    before = counted(cluster, "NO_SOCKET")
    server, client = (
        socket_in(cluster.pods[number].namespace, family, socket.SOCK_STREAM) for number in (11, 10)
    )
    with server, client:
        server.bind((cluster.pods[11].address(family), 0))
        server.listen()
        client.connect(server.getsockname()[:2])
        server.accept()[0].close()
        # its end lies in the client's queue, and is there when the socket is closed
        assert client.recv(1, socket.MSG_PEEK) == b""

    send(cluster, family)

    wait_for(lambda: counted(cluster, "NO_SOCKET") > before)
    assert len(told(reader.read().events)) == 1


def test_what_our_programs_drop_is_not_told_as_the_kernels(
    cluster: Cluster, reader: EventReader
) -> None:
    before = cluster.counted(drops.DropReason["POLICY_DENIED"])
    nobody = PolicyKey(abi.DIR_INGRESS, identity=1, proto=0, port=0, prefixlen=0)
    with cluster.enforced(11, {nobody: PolicyEntry(precedence=1, deny=False)}):
        send(cluster, 4)
        wait_for(lambda: cluster.counted(drops.DropReason["POLICY_DENIED"]) > before)

    assert len(told(reader.read().events)) == 0


def test_the_packet_of_a_dry_run_is_not_told_as_dropped(
    cluster: Cluster, reader: EventReader
) -> None:
    sender, receiver = cluster.pods[10].info, cluster.pods[11].info
    assert sender.ipv4 is not None
    assert receiver.ipv4 is not None
    packet = Packet(sender.ipv4, receiver.ipv4, socket.IPPROTO_UDP, 53)
    ask = cluster.planes[0].trials.from_pod
    before = counted(cluster, "NO_SOCKET")

    trial = cluster.nodes[0].call(ask, packet, sender.ifindex, sender.mac, sender.node_mac)
    send(cluster, 4)

    wait_for(lambda: counted(cluster, "NO_SOCKET") > before)
    assert trial.reason == 0
    (event,) = told(reader.read().events)
    assert socket.ntohs(int(event["dport"])) == CLOSED_PORT


def test_drops_beyond_the_pace_are_counted_and_not_told(
    cluster: Cluster, reader: EventReader
) -> None:
    before, offered = counted(cluster, "NO_SOCKET"), 4 * KERNEL_DROPS_PER_SECOND

    send(cluster, 4, offered)
    wait_for(lambda: counted(cluster, "NO_SOCKET") >= before + offered)
    first = told(reader.read().events)

    assert 0 < len(first) < offered
    # the next ones that are told say how many went before them
    rest = [first]

    def all_accounted() -> bool:
        send(cluster, 4)
        rest.append(told(reader.read().events))
        seen = sum(map(len, rest)) + sum(map(left_out, rest))
        return seen >= counted(cluster, "NO_SOCKET") - before

    wait_for(all_accounted)


def test_a_kernel_with_other_numbers_is_understood_by_its_names() -> None:
    codes = kernel_drops.codes(
        {
            "SKB_NOT_DROPPED_YET": 0,
            "SKB_DROP_REASON_NO_SOCKET": 7,
            "SKB_DROP_REASON_TC_INGRESS": 8,
            "SKB_DROP_REASON_OF_TOMORROW": 9,
        }
    )

    assert drops.kernel_drop(codes[7]).name == "NO_SOCKET"
    assert drops.kernel_drop(codes[9]).name == "OTHER"
    assert [codes[0], codes[8]] == [0, 0]
