"""Real traffic: two nodes, their pods and a world beyond, in namespaces of this test's own."""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
import socket
import struct
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent import datapath
from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath import pinning
from cilium_core import abi
from cilium_core.policy import PolicyEntry, PolicyKey
from pyroute2 import IPRoute

from tests.bpf.conftest import CACHE, why_not
from tests.bpf.harness import Namespace
from tests.bpf.nodes import V4, V6, path_of
from tests.needing import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT_S = 10.0
_SIZES = dict.fromkeys(("cilium_ipcache_v2", "cilium_policy", "cilium_lxc"), 4096)
WORLD4, WORLD6 = "198.51.100.7", "2001:db8::7"


def netlink(namespace: Namespace, function: Callable[[Any], Any]) -> Any:
    def inside() -> Any:
        with IPRoute() as opened:
            return function(opened)

    return namespace.call(inside)


@dataclass
class Pod:
    """A pod: its namespace and what the data plane knows of it."""

    namespace: Namespace
    info: datapath.EndpointInfo

    def address(self, family: int) -> str:
        return str(self.info.ipv4 if family == 4 else self.info.ipv6)


class Cluster:
    """A bridge with two nodes and a world on it; pods 10 and 11 on node 1, 20 on node 2."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.fabric, self.world = Namespace(), Namespace()
        self.nodes = [Namespace(), Namespace()]
        self.planes: list[datapath.Datapath] = []
        self.pods: dict[int, Pod] = {}
        netlink(self.fabric, self._bridge)
        for namespace, host in ((self.nodes[0], 11), (self.nodes[1], 12), (self.world, 99)):
            self._plug(namespace, host)
        netlink(self.world, self._outside)
        for number, namespace in enumerate(self.nodes, 1):
            self._start(namespace, number)
        for number, node in ((10, 1), (11, 1), (20, 2)):
            self.pods[number] = self._add_pod(number, node)
        for number, pod in self.pods.items():
            for node, plane in enumerate(self.planes, 1):
                away = None if node == _node_of(number) else V4(f"172.30.0.{13 - node}")
                for text in (pod.address(4), pod.address(6)):
                    plane.ipcache.upsert(ipaddress.ip_network(text), pod.info.identity, away)

    @staticmethod
    def _bridge(opened: Any) -> None:
        opened.link("add", ifname="br0", kind="bridge")
        opened.link("set", index=nl.index_of(opened, "br0"), state="up")

    def _plug(self, namespace: Namespace, host: int) -> None:
        def cable(opened: Any) -> None:
            with Path.open(path_of(namespace)) as other:
                peer = {"ifname": "eth0", "net_ns_fd": other.fileno()}
                opened.link("add", ifname=f"n{host}", kind="veth", peer=peer)
            index = nl.index_of(opened, f"n{host}")
            opened.link("set", index=index, master=nl.index_of(opened, "br0"), state="up")

        def address(opened: Any) -> None:
            opened.link("set", index=1, state="up")
            index = nl.index_of(opened, "eth0")
            opened.addr("add", index=index, address=f"172.30.0.{host}", prefixlen=24)
            opened.addr("add", index=index, address=f"fd00:30::{host}", prefixlen=64, flags=2)
            opened.link("set", index=index, state="up")

        netlink(self.fabric, cable)
        netlink(namespace, address)

    @staticmethod
    def _outside(opened: Any) -> None:
        opened.addr("add", index=1, address=WORLD4, prefixlen=32)
        opened.addr("add", index=1, address=WORLD6, prefixlen=128, flags=2)

    def _start(self, namespace: Namespace, number: int) -> None:
        def routes(opened: Any) -> None:
            opened.route("add", dst="198.51.100.0/24", gateway="172.30.0.99")
            opened.route("add", dst="2001:db8::/64", gateway="fd00:30::99", family=10)

        netlink(namespace, routes)
        paths = datapath.DatapathPaths(self._root / f"node{number}", CACHE)
        plane = datapath.Datapath(paths, _SIZES)
        config = datapath.NodeConfig(
            node_ipv4=V4(f"172.30.0.{10 + number}"),
            node_ipv6=V6(f"fd00:30::{10 + number}"),
            router_ipv4=V4(f"10.244.{number}.1"),
            router_ipv6=V6(f"fd00:244:0:{number}::1"),
            pod_cidrs=_pod_cidrs(number),
            devices=("eth0",),
        )
        namespace.call(plane.start_sync, config)
        other = 3 - number
        for ipv4, ipv6 in (
            (config.node_ipv4, config.node_ipv6),
            (config.router_ipv4, config.router_ipv6),
        ):
            host = datapath.EndpointInfo(
                id=0, identity=abi.ID_HOST, flags=abi.ENDPOINT_HOST, ipv4=ipv4, ipv6=ipv6
            )
            plane.endpoints.upsert(host)
        node = datapath.RemoteNode(f"node{other}", _pod_cidrs(other))
        namespace.call(plane.routes.set_node, node)
        away = V4(f"172.30.0.{10 + other}")
        for text in (f"172.30.0.{10 + other}", f"fd00:30::{10 + other}"):
            plane.ipcache.upsert(ipaddress.ip_network(text), abi.ID_REMOTE_NODE)
        for text in (f"10.244.{other}.1", f"fd00:244:0:{other}::1"):
            plane.ipcache.upsert(ipaddress.ip_network(text), abi.ID_REMOTE_NODE, away)
        self.planes.append(plane)

    def _add_pod(self, number: int, node: int) -> Pod:
        pod, namespace, plane = Namespace(), self.nodes[node - 1], self.planes[node - 1]
        ipv4, ipv6 = V4(f"10.244.{node}.{number}"), V6(f"fd00:244:0:{node}::{number}")
        made = namespace.call(
            datapath.netns.create,
            path_of(pod),
            "eth0",
            f"container{number}",
            ipv4=ipv4,
            ipv6=ipv6,
            router_ipv4=plane.config.router_ipv4,
            router_ipv6=plane.config.router_ipv6,
        )
        info = datapath.EndpointInfo(
            id=number,
            identity=1000 + number,
            ifindex=made.ifindex,
            mac=made.mac,
            node_mac=made.node_mac,
            ipv4=ipv4,
            ipv6=ipv6,
        )
        plane.endpoints.upsert(info)
        namespace.call(plane.attach_endpoint, made.ifindex)
        return Pod(pod, info)

    def counted(self, reason: int, node: int = 1) -> int:
        rows = self.planes[node - 1].metrics.dump()
        return sum(row.packets for row in rows if row.reason == reason)

    def close(self) -> None:
        for namespace, plane in zip(self.nodes, self.planes, strict=False):
            namespace.call(plane.teardown)
        for pod in self.pods.values():
            pod.namespace.close()
        for namespace in (*self.nodes, self.world, self.fabric):
            namespace.close()


def _node_of(number: int) -> int:
    return 1 if number < 20 else 2


def _pod_cidrs(
    number: int,
) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    texts = (f"10.244.{number}.0/24", f"fd00:244:0:{number}::/64")
    return tuple(ipaddress.ip_network(text) for text in texts)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    need(why_not())
    root = Path("/sys/fs/bpf") / f"test-{os.getpid()}-{secrets.token_hex(4)}"
    pinning.ensure_bpffs(root)
    made = Cluster(root)
    yield made
    made.close()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def _socket(namespace: Namespace, family: int, kind: int) -> socket.socket:
    made: socket.socket = namespace.call(
        socket.socket, socket.AF_INET if family == 4 else socket.AF_INET6, kind
    )
    made.settimeout(LIMIT_S)
    return made


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "did not come about"
        threading.Event().wait(0.01)


def bulk(
    client: Namespace, server: Namespace, address: str, family: int, size: int = 4 << 20
) -> tuple[str, bool]:
    """Send bytes over TCP; who the server has seen, and whether all arrived as sent."""
    data = secrets.token_bytes(1 << 16) * (size >> 16)
    with (
        _socket(server, family, socket.SOCK_STREAM) as listening,
        _socket(client, family, socket.SOCK_STREAM) as sending,
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
        _socket(server, family, socket.SOCK_DGRAM) as answering,
        _socket(client, family, socket.SOCK_DGRAM) as asking,
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
    with _socket(cluster.pods[10].namespace, family, socket.SOCK_DGRAM) as asking:
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
        with _socket(cluster.pods[11].namespace, family, socket.SOCK_DGRAM) as asking:
            asking.sendto(b"let me in", (address, 53))
            _wait_for(lambda: cluster.counted(133, node=2) > before)
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
    with _socket(cluster.world, 4, socket.SOCK_DGRAM) as tunnel:
        tunnel.sendto(outer, ("172.30.0.11", 8472))
        _wait_for(lambda: cluster.counted(171) > before)


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
    _wait_for(lambda: cluster.counted(reason) == before + 1)
