"""A small cluster for real traffic: two nodes, their pods and a world beyond, in namespaces."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilium_agent import datapath
from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath import sockets
from cilium_core import abi
from pyroute2 import IPRoute

from tests.bpf.conftest import CACHE
from tests.bpf.harness import Namespace
from tests.bpf.nodes import V4, V6, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cilium_core.policy import PolicyEntry, PolicyKey

LIMIT_S = 10.0
KERNEL_DROPS_PER_SECOND = 400
_SIZES = dict.fromkeys(("cilium_ipcache_v2", "cilium_policy", "cilium_lxc"), 4096)
WORLD4, WORLD6 = "198.51.100.7", "2001:db8::7"


def netlink(namespace: Namespace, function: Callable[[Any], Any]) -> Any:
    """Run with a netlink socket inside a namespace."""

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
        opened.route("add", dst="10.244.1.0/24", gateway="172.30.0.11")
        opened.route("add", dst="fd00:244:0:1::/64", gateway="fd00:30::11", family=10)

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
            kernel_drops_per_second=KERNEL_DROPS_PER_SECOND,
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
        whose = sockets.PodNamespace(number, info.identity)
        plane.namespaces.upsert(pod.call(sockets.own_cookie), whose)
        return Pod(pod, info)

    @contextlib.contextmanager
    def enforced(self, number: int, rules: dict[PolicyKey, PolicyEntry]) -> Iterator[None]:
        """Enforce these rules on a pod meanwhile, in the directions that they speak of."""
        try:
            self.enforce(number, rules)
            yield
        finally:
            self.enforce(number, {})

    def enforce(self, number: int, rules: dict[PolicyKey, PolicyEntry]) -> None:
        """Enforce these rules on a pod from now on."""
        plane, info = self.planes[_node_of(number) - 1], self.pods[number].info
        flags = 0
        for key in rules:
            ingress = key.direction == abi.DIR_INGRESS
            flags |= abi.ENDPOINT_ENFORCE_INGRESS if ingress else abi.ENDPOINT_ENFORCE_EGRESS
        plane.policy.replace(number, rules)
        plane.endpoints.upsert(replace(info, flags=flags))

    def place(self, name: str, family: int) -> tuple[Namespace, str]:
        """Namespace and address of a place that a pod of node 1 may speak with."""
        four = family == 4
        places = {
            "local pod": (self.pods[11].namespace, self.pods[11].address(family)),
            "remote pod": (self.pods[20].namespace, self.pods[20].address(family)),
            "own node": (self.nodes[0], "172.30.0.11" if four else "fd00:30::11"),
            "router": (self.nodes[0], "10.244.1.1" if four else "fd00:244:0:1::1"),
            "other node": (self.nodes[1], "172.30.0.12" if four else "fd00:30::12"),
            "world": (self.world, WORLD4 if four else WORLD6),
        }
        return places[name]

    def counted(self, reason: int, node: int = 1) -> int:
        rows = self.planes[node - 1].metrics.dump()
        return sum(row.packets for row in rows if row.reason == reason)

    def pins(self, node: int = 1) -> Path:
        """Where the maps of a node are pinned."""
        return self._root / f"node{node}"

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


def socket_in(namespace: Namespace, family: int, kind: int) -> socket.socket:
    """A socket of a namespace, usable from everywhere."""
    made: socket.socket = namespace.call(
        socket.socket, socket.AF_INET if family == 4 else socket.AF_INET6, kind
    )
    made.settimeout(LIMIT_S)
    return made


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something holds, and fail when it does not come about."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "did not come about"
        threading.Event().wait(0.01)
