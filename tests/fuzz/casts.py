"""Who plays: pods of this node and of others, nodes, and addresses outside, in engine and kernel.

A `Cast` is a `World` whose maps are the kernel's too: whatever the engine says goes through the
agent's own map writers, changes as changes and new policies as a whole.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cilium_agent.datapath.models import EndpointInfo, NodeConfig, PolicyChange
from cilium_core import abi

from tests.unit.policy.random_policies import cast
from tests.unit.policy.worlds import World

if TYPE_CHECKING:
    from cilium_core.policy import PolicyOptions

    from tests.bpf.harness import Plane

OTHER_NODE: Final = ipaddress.IPv4Address("172.30.0.12")
NODE: Final = ("172.30.0.11", "fd00:30::11")
ROUTER: Final = ("10.244.0.254", "fd00:244::fe")
LOCAL: Final = {"x/a": 1, "x/b": 2, "y/a": 3, "health": 4}
"""Pods of this node, with their endpoints' ids."""
HOST_ID: Final = 65535
"""The node's own endpoint, where it has one."""

_ADDRESSES: Final = {
    "x/a": ("10.244.0.1", "fd00:244::1"),
    "x/b": ("10.244.0.2", "fd00:244::2"),
    "y/a": ("10.244.0.3", "fd00:244::3"),
    "health": ("10.244.0.4", "fd00:244::4"),
    "y/b": ("10.244.1.5", "fd00:244:0:1::5"),
    "elsewhere": ("10.244.1.6", "fd00:244:0:1::6"),
    "host": NODE,
    "node": (str(OTHER_NODE), "fd00:30::12"),
    "node-b": ("172.30.0.13", "fd00:30::13"),
}
NODES: Final = ("node", "node-b")
TUNNEL_IFINDEX: Final = 4242
FIRST_PORT: Final = 10_000
"""Of proxies, one for each redirect."""


def packed(name: str, family: int) -> bytes | None:
    """A party's address in a family, None when it has none there."""
    if name in _ADDRESSES:
        return ipaddress.ip_address(_ADDRESSES[name][family == 6]).packed
    address = ipaddress.ip_address(name)
    return address.packed if address.version == family else None


@dataclass(frozen=True)
class _Row:
    identity: int
    node: ipaddress.IPv4Address | None


class Cast(World):
    """The world in the kernel."""

    def __init__(self, plane: Plane, options: PolicyOptions | None = None) -> None:
        plane.reset()
        self.plane = plane
        self._table: dict[Any, _Row] = {}
        self._ports: dict[int, int] = {}
        firewall = options is not None and options.host_firewall
        self.endpoints = LOCAL | ({"host": HOST_ID} if firewall else {})
        plane.configure(
            NodeConfig(
                node_ipv4=ipaddress.IPv4Address(NODE[0]),
                node_ipv6=ipaddress.IPv6Address(NODE[1]),
                router_ipv4=ipaddress.IPv4Address(ROUTER[0]),
                router_ipv6=ipaddress.IPv6Address(ROUTER[1]),
                proxy=True,
                host_firewall=firewall,
            ),
            tunnel_ifindex=TUNNEL_IFINDEX,
            host_ifindex=plane.device("hostside"),
        )
        for ipv4, ipv6 in (NODE, ROUTER):
            plane.endpoints.upsert(
                EndpointInfo(
                    id=0,
                    identity=abi.ID_HOST,
                    flags=abi.ENDPOINT_HOST,
                    ipv4=ipaddress.IPv4Address(ipv4),
                    ipv6=ipaddress.IPv6Address(ipv6),
                )
            )
        super().__init__(cast(), options)

    def port_of(self, redirect: int) -> int:
        """Port of the proxy of a redirect, 0 for none."""
        if not redirect:
            return 0
        return self._ports.setdefault(redirect, FIRST_PORT + len(self._ports))

    def flush(self) -> int:
        """Carry the engine's updates out in the kernel as the agent does: maps, then rows."""
        updates = self.engine.flush()
        changes: dict[int, PolicyChange] = {}
        for update in updates:
            name = str(update.endpoint)
            held = {} if update.full else dict(self.maps[name])
            held.update(update.delta.add)
            for key in update.delta.remove:
                del held[key]
            self.maps[name] = held
            self.enforced[name] = update.ingress_enforced, update.egress_enforced
            if name in self.endpoints:
                added = {
                    key: entry._replace(redirect=self.port_of(entry.redirect))
                    for key, entry in update.delta.add.items()
                }
                changes[self.endpoints[name]] = PolicyChange(
                    added, update.delta.remove, update.full
                )
        assert not self.plane.policy.apply(changes)
        self._write_rows()
        self._write_addresses()
        return len(updates)

    def _write_rows(self) -> None:
        for name, number in self.endpoints.items():
            if name not in self.parties or name not in self.enforced:
                continue
            ingress, egress = self.enforced[name]
            ipv4, ipv6 = _ADDRESSES[name]
            flags = abi.ENDPOINT_ENFORCE_INGRESS if ingress else 0
            flags |= abi.ENDPOINT_ENFORCE_EGRESS if egress else 0
            if name == "host":
                self.plane.endpoints.upsert_node(number, self.plane.device("hostside"), flags)
                continue
            self.plane.endpoints.upsert(
                EndpointInfo(
                    id=number,
                    identity=self.identity(self.parties[name]),
                    ifindex=self.plane.device(f"lxc{number}"),
                    ipv4=ipaddress.IPv4Address(ipv4),
                    ipv6=ipaddress.IPv6Address(ipv6),
                    mac=f"02:00:00:00:00:{number:02x}",
                    node_mac=f"02:00:00:00:01:{number:02x}",
                    flags=flags,
                )
            )

    def _write_addresses(self) -> None:
        wanted: dict[Any, _Row] = {
            ipaddress.ip_network("0.0.0.0/0"): _Row(abi.ID_WORLD_IPV4, None),
            ipaddress.ip_network("::/0"): _Row(abi.ID_WORLD_IPV6, None),
        }
        for prefix, identity in self.prefixes.items().items():
            wanted[prefix] = _Row(identity.id, None)
        for name, party in self.parties.items():
            if party.address is None and name in _ADDRESSES and name != "host":
                node = None if name in (*LOCAL, *NODES) else OTHER_NODE
                for address in _ADDRESSES[name]:
                    row = _Row(self.identity(party), node)
                    wanted[ipaddress.ip_network(address)] = row
        for prefix in self._table.keys() - wanted.keys():
            self.plane.ipcache.delete(prefix)
        for prefix, row in wanted.items():
            if self._table.get(prefix) != row:
                self.plane.ipcache.upsert(prefix, row.identity, row.node)
        self._table = wanted
