"""Real traffic: two nodes, their pods and a world beyond, in namespaces of this test's own."""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent.datapath import netlink as nl
from cilium_core import abi
from cilium_core.policy import PolicyEntry, PolicyKey

from tests.bpf.clusters import LIMIT_S, WORLD4, WORLD6, netlink, socket_in, wait_for

if TYPE_CHECKING:
    from tests.bpf.clusters import Cluster
    from tests.bpf.harness import Namespace


def bulk(
    client: Namespace, server: Namespace, address: str, family: int, size: int = 4 << 20
) -> tuple[str, bool]:
    """Send bytes over TCP; who the server has seen, and whether all arrived as sent."""
    data = secrets.token_bytes(1 << 16) * (size >> 16)
    with (
        socket_in(server, family, socket.SOCK_STREAM) as listening,
        socket_in(client, family, socket.SOCK_STREAM) as sending,
    ):
        listening.bind((address, 0))
        listening.listen()
        sending.connect((address, listening.getsockname()[1]))
        accepted, peer = listening.accept()
        with accepted:
            accepted.settimeout(LIMIT_S)
            pump = threading.Thread(target=_send_all, args=(sending, data))
            pump.start()
            received = bytearray()
            while chunk := accepted.recv(1 << 20):
                received += chunk
            pump.join()
        return peer[0], bytes(received) == data


def _send_all(sending: socket.socket, data: bytes) -> None:
    sending.sendall(data)
    sending.shutdown(socket.SHUT_WR)


def ask(
    client: Namespace, server: Namespace, address: str, family: int, size: int = 100
) -> tuple[str, bool]:
    """One datagram there and back; who the server has seen, and whether it came back as sent."""
    data = secrets.token_bytes(size)
    with (
        socket_in(server, family, socket.SOCK_DGRAM) as answering,
        socket_in(client, family, socket.SOCK_DGRAM) as asking,
    ):
        answering.bind((address, 0))
        asking.connect(answering.getsockname()[:2])
        asking.send(data)
        received, peer = answering.recvfrom(65535)
        answering.sendto(received, peer)
        return peer[0], asking.recv(65535) == data


@pytest.mark.parametrize("there", [11, 20], ids=["same-node", "other-node"])
def test_pods_talk_over_tcp_at_full_segment_size(cluster: Cluster, family: int, there: int) -> None:
    client, server = cluster.pods[10], cluster.pods[there]
    seen = bulk(client.namespace, server.namespace, server.address(family), family)
    assert seen == (client.address(family), True)


@pytest.mark.parametrize("size", [100, 6000], ids=["whole", "fragmented"])
@pytest.mark.parametrize("there", [11, 20], ids=["same-node", "other-node"])
def test_pods_talk_over_udp(cluster: Cluster, family: int, there: int, size: int) -> None:
    client, server = cluster.pods[10], cluster.pods[there]
    seen = ask(client.namespace, server.namespace, server.address(family), family, size)
    assert seen == (client.address(family), True)


@pytest.mark.parametrize("there", [10, 20], ids=["own-pod", "remote-pod"])
def test_the_node_reaches_pods_by_its_router_address(
    cluster: Cluster, family: int, there: int
) -> None:
    pod = cluster.pods[there]
    seen = bulk(cluster.nodes[0], pod.namespace, pod.address(family), family)
    assert seen == ("10.244.1.1" if family == 4 else "fd00:244:0:1::1", True)


def test_pods_reach_their_node(cluster: Cluster, family: int) -> None:
    pod = cluster.pods[10]
    node = "172.30.0.11" if family == 4 else "fd00:30::11"
    assert bulk(pod.namespace, cluster.nodes[0], node, family) == (pod.address(family), True)


def test_pods_reach_other_nodes_with_their_nodes_address(cluster: Cluster, family: int) -> None:
    node = "172.30.0.12" if family == 4 else "fd00:30::12"
    seen = bulk(cluster.pods[10].namespace, cluster.nodes[1], node, family)
    assert seen == ("172.30.0.11" if family == 4 else "fd00:30::11", True)


@pytest.mark.parametrize("size", [100, 6000], ids=["whole", "fragmented"])
def test_pods_reach_the_world_with_their_nodes_address(
    cluster: Cluster, family: int, size: int
) -> None:
    pod, target = cluster.pods[10], WORLD4 if family == 4 else WORLD6
    node = "172.30.0.11" if family == 4 else "fd00:30::11"
    assert bulk(pod.namespace, cluster.world, target, family) == (node, True)
    assert ask(pod.namespace, cluster.world, target, family, size) == (node, True)


@pytest.mark.parametrize("where", ["local", "remote", "world"])
def test_a_refused_datagram_is_told_to_the_pod(cluster: Cluster, family: int, where: str) -> None:
    target = {
        "local": cluster.pods[11].address(family),
        "remote": cluster.pods[20].address(family),
        "world": WORLD4 if family == 4 else WORLD6,
    }[where]
    with socket_in(cluster.pods[10].namespace, family, socket.SOCK_DGRAM) as asking:
        asking.connect((target, 9))
        asking.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            asking.recv(100)


def test_the_gateway_answers_on_the_wire(cluster: Cluster, family: int) -> None:
    # given a pod that has forgotten its gateway
    pod = cluster.pods[10]
    gateway = "10.244.1.1" if family == 4 else "fd00:244:0:1::1"
    number = 2 if family == 4 else 10

    def neighbours(opened: Any) -> dict[str, str]:
        index = nl.index_of(opened, "eth0")
        return {
            entry.get_attr("NDA_DST"): entry.get_attr("NDA_LLADDR")
            for entry in opened.get_neighbours(ifindex=index, family=number)
        }

    def forget(opened: Any) -> None:
        opened.neigh("del", ifindex=nl.index_of(opened, "eth0"), dst=gateway, family=number)

    netlink(pod.namespace, forget)
    assert gateway not in netlink(pod.namespace, neighbours)
    # when it talks
    other = cluster.pods[11]
    assert ask(pod.namespace, other.namespace, other.address(family), family)[1]
    # then it has learned the host side's address
    assert netlink(pod.namespace, neighbours)[gateway] == pod.info.node_mac


def test_the_identity_in_the_tunnel_decides_on_the_other_node(
    cluster: Cluster, family: int
) -> None:
    plane, pod = cluster.planes[1], cluster.pods[20]
    address = pod.address(family)
    allow = PolicyEntry(precedence=1, deny=False)
    only_ten = {PolicyKey(abi.DIR_INGRESS, 1010, 0, 0, 0): allow}
    enforced = replace(pod.info, flags=abi.ENDPOINT_ENFORCE_INGRESS)
    plane.policy.replace(pod.info.id, only_ten)
    plane.endpoints.upsert(enforced)
    try:
        assert ask(cluster.pods[10].namespace, pod.namespace, address, family)[1]
        before = cluster.counted(133, node=2)
        with socket_in(cluster.pods[11].namespace, family, socket.SOCK_DGRAM) as asking:
            asking.sendto(b"let me in", (address, 53))
            wait_for(lambda: cluster.counted(133, node=2) > before)
    finally:
        plane.endpoints.upsert(replace(enforced, flags=0))
        plane.policy.delete(pod.info.id)


@pytest.mark.parametrize("identity", [abi.ID_UNKNOWN, abi.ID_HOST])
def test_nobody_is_the_host_in_the_tunnel(cluster: Cluster, family: int, identity: int) -> None:
    # given a packet for a pod from somebody who claims to be the node, in a tunnel of the world
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    layer = IP if family == 4 else IPv6
    source = "10.244.2.1" if family == 4 else "fd00:244:0:2::1"
    inner = Ether() / layer(src=source, dst=cluster.pods[10].address(family)) / UDP()
    outer = struct.pack("!II", 0x08000000, identity << 8) + bytes(inner)
    before = cluster.counted(171)
    # when it arrives, then it is dropped for its identity
    with socket_in(cluster.world, 4, socket.SOCK_DGRAM) as tunnel:
        tunnel.sendto(outer, ("172.30.0.11", 8472))
        wait_for(lambda: cluster.counted(171) > before)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\x08\x00" + b"\x45" + bytes(10), 134),
        (b"\x08\x00" + b"\x41" + bytes(40), 134),
        (b"\x86\xdd" + b"\x60" + bytes(20), 134),
        (b"\x88\xb5" + bytes(40), 139),
        (b"\x00\x20" + bytes(40), 166),
    ],
    ids=["cut-ipv4", "bad-ihl", "cut-ipv6", "unknown-l3", "no-ethertype"],
)
def test_malformed_frames_of_a_pod_are_counted_drops(
    cluster: Cluster, frame: bytes, reason: int
) -> None:
    pod = cluster.pods[10]
    before = cluster.counted(reason)
    macs = bytes.fromhex((pod.info.node_mac + pod.info.mac).replace(":", ""))

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            raw.send(macs + frame)

    pod.namespace.call(send)
    wait_for(lambda: cluster.counted(reason) == before + 1)
