"""The kernel's routes to pods: every pod CIDR leads to cilium_host, where the programs take over.

Ours are told by their protocol number, so that a restarted agent finds them all and removes those
of nodes that left meanwhile.
"""

from __future__ import annotations

import errno
import ipaddress
from typing import TYPE_CHECKING, Any

from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath.netlink import NetlinkError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_agent.datapath.devices import Devices
    from cilium_agent.datapath.models import Network, NodeConfig, RemoteNode

PROTOCOL = 109
"""Marks our routes (`ip route show proto 109`)."""
_SCOPE_LINK = 253
_MAIN_TABLE = 254
FAMILIES = {4: 2, 6: 10}
"""The kernel's numbers of the IP versions."""


class Routes:
    """Routes to the pods of this node and of the others."""

    def __init__(self, config: NodeConfig, devices: Devices) -> None:
        self._config = config
        self._oif = devices.host
        self._nodes: dict[str, tuple[Network, ...]] = {}

    def ensure_local(self) -> None:
        """Route this node's own pod CIDRs."""
        with nl.session("routes to local pods") as netlink:
            for prefix in self._config.pod_cidrs:
                self._set(netlink, prefix, None)

    def set_node(self, node: RemoteNode) -> None:
        """Route the pods of a node, and no longer those it had before."""
        before = self._nodes.get(node.name, ())
        with nl.session(f"routes to node {node.name}") as netlink:
            for prefix in node.pod_cidrs:
                self._set(netlink, prefix, self._config.route_mtu)
            self._nodes[node.name] = node.pod_cidrs
            for prefix in set(before) - self._wanted():
                self._delete(netlink, prefix)

    def delete_node(self, name: str) -> None:
        """Remove the routes to a node that left."""
        before = self._nodes.pop(name, ())
        with nl.session(f"routes to node {name}") as netlink:
            for prefix in set(before) - self._wanted():
                self._delete(netlink, prefix)

    def sync(self, nodes: Iterable[RemoteNode]) -> None:
        """Make these the only other nodes, removing routes that an earlier agent left."""
        self._nodes = {node.name: node.pod_cidrs for node in nodes}
        with nl.session("routes to all nodes") as netlink:
            for prefixes in self._nodes.values():
                for prefix in prefixes:
                    self._set(netlink, prefix, self._config.route_mtu)
            for prefix in set(self._held(netlink)) - self._wanted():
                self._delete(netlink, prefix)

    def dump(self) -> dict[Network, int]:
        """Our routes in the kernel and their MTU, 0 for the device's."""
        with nl.session("routes") as netlink:
            return self._held(netlink)

    def _wanted(self) -> set[Network]:
        remote = (prefix for prefixes in self._nodes.values() for prefix in prefixes)
        return {*self._config.pod_cidrs, *remote}

    def _set(self, netlink: Any, prefix: Network, mtu: int | None) -> None:
        config = self._config
        source = config.router_ipv4 if prefix.version == 4 else config.router_ipv6
        if source is None:
            return
        more: dict[str, Any] = {"metrics": {"mtu": mtu}} if mtu is not None else {}
        if prefix.version == 4:
            more["scope"] = _SCOPE_LINK
        netlink.route(
            "replace",
            family=FAMILIES[prefix.version],
            dst=str(prefix),
            oif=self._oif,
            prefsrc=str(source),
            proto=PROTOCOL,
            **more,
        )

    def _delete(self, netlink: Any, prefix: Network) -> None:
        more = {"scope": _SCOPE_LINK} if prefix.version == 4 else {}
        try:
            netlink.route(
                "del",
                family=FAMILIES[prefix.version],
                dst=str(prefix),
                oif=self._oif,
                proto=PROTOCOL,
                **more,
            )
        except NetlinkError as error:
            if error.code != errno.ESRCH:
                raise

    def _held(self, netlink: Any) -> dict[Network, int]:
        found: dict[Network, int] = {}
        for family in FAMILIES.values():
            for entry in netlink.get_routes(family=family, proto=PROTOCOL, table=_MAIN_TABLE):
                if entry.get_attr("RTA_OIF") != self._oif or entry["proto"] != PROTOCOL:
                    continue
                prefix = ipaddress.ip_network((entry.get_attr("RTA_DST"), entry["dst_len"]))
                metrics = entry.get_attr("RTA_METRICS")
                found[prefix] = int(metrics.get_attr("RTAX_MTU") or 0) if metrics else 0
        return found
