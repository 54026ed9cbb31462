"""A node for tests: a network namespace with a data plane, and pods in namespaces of their own."""

from __future__ import annotations

import ctypes
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilium_agent import datapath
from cilium_agent.datapath import netlink as nl
from pyroute2 import IPRoute

from tests.bpf.harness import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable

V4, V6 = ipaddress.IPv4Address, ipaddress.IPv6Address
CONFIG = datapath.NodeConfig(
    node_ipv4=V4("172.30.0.11"),
    node_ipv6=V6("fd00:30::11"),
    router_ipv4=V4("10.244.0.1"),
    router_ipv6=V6("fd00:244::1"),
    pod_cidrs=(ipaddress.ip_network("10.244.0.0/24"), ipaddress.ip_network("fd00:244::/64")),
    devices=("eth0",),
)


@dataclass
class Node:
    """A node: its namespace, and the data plane to be started there."""

    namespace: Namespace
    plane: datapath.Datapath
    root: Path

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Run inside the node's namespace."""
        return self.namespace.call(function, *arguments, **named)

    def start(self, config: datapath.NodeConfig = CONFIG) -> None:
        self.call(self.plane.start_sync, config)

    def netlink(self, function: Callable[[Any], Any]) -> Any:
        """Run with a netlink socket inside."""

        def inside() -> Any:
            with IPRoute() as netlink:
                return function(netlink)

        return self.call(inside)

    def add_device(self, name: str = "eth0") -> None:
        """Give the node a device whose other end leads nowhere."""

        def make(netlink: Any) -> None:
            netlink.link("add", ifname=name, kind="veth", peer={"ifname": "wire"})
            netlink.link("set", index=nl.index_of(netlink, name), state="up")

        self.netlink(make)

    def add_pod(self, pod: Namespace, number: int) -> datapath.EndpointInfo:
        """Make an endpoint with the interface eth<number> in a pod's namespace."""
        ipv4, ipv6 = V4(f"10.244.0.{number}"), V6(f"fd00:244::{number}")
        made = self.call(
            datapath.netns.create,
            path_of(pod),
            f"eth{number}",
            "container",
            ipv4=ipv4,
            ipv6=ipv6,
            router_ipv4=CONFIG.router_ipv4,
            router_ipv6=CONFIG.router_ipv6,
        )
        info = datapath.EndpointInfo(
            id=number,
            identity=1000,
            ifindex=made.ifindex,
            mac=made.mac,
            node_mac=made.node_mac,
            ipv4=ipv4,
            ipv6=ipv6,
        )
        self.call(self.plane.endpoints.upsert, info)
        self.call(self.plane.attach_endpoint, made.ifindex)
        return info


def path_of(namespace: Namespace) -> Path:
    """Path of a namespace, valid while its thread lives."""
    thread = namespace.call(ctypes.CDLL(None).gettid)
    return Path(f"/proc/{os.getpid()}/task/{thread}/ns/net")
