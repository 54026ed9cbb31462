# SPDX-License-Identifier: Apache-2.0
"""The lab's cables: a bridge that joins the nodes, and an outside world behind it.

The fabric namespace holds the bridge and the cluster's central services. The world namespace is
the nodes' default gateway and owns the outside addresses that CIDR policies talk about. Every
device is made inside the lab's namespaces, so nothing of the machine itself changes.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from cilium_cli.lab import namespaces
from cilium_cli.lab.layouts import (
    FABRIC_IPV4,
    FABRIC_IPV6,
    OUTSIDE_HOSTS,
    OUTSIDE_IPV4,
    OUTSIDE_IPV6,
    WORLD_IPV4,
    WORLD_IPV6,
)

if TYPE_CHECKING:
    from cilium_cli.lab.layouts import Layout, NodeLayout

_NO_DAD = {
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/accept_ra": "0",
}
_FORWARDING = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/forwarding": "1",
}


def outside_addresses() -> list[str]:
    """Addresses of the outside world that answer, IPv4 first."""
    return [
        str(ipaddress.ip_network(cidr)[host])
        for cidr in (OUTSIDE_IPV4, OUTSIDE_IPV6)
        for host in OUTSIDE_HOSTS
    ]


def create_fabric(lab: Layout) -> None:
    """Make the fabric and the world, and join them."""
    namespaces.create(lab.fabric_netns)
    namespaces.create(lab.world_netns)
    namespaces.write_sysctls(_NO_DAD, lab.fabric_netns)
    namespaces.write_sysctls(_NO_DAD | _FORWARDING, lab.world_netns)
    namespaces.ip_batch(
        [
            "link set lo up",
            "link add fabric type bridge mcast_snooping 0",
            "link set fabric up",
            f"address add {FABRIC_IPV4}/24 dev fabric",
            f"address add {FABRIC_IPV6}/64 dev fabric nodad",
            f"link add world type veth peer name eth0 netns {lab.world_netns}",
            "link set world master fabric up",
            f"route add default via {WORLD_IPV4}",
            f"route add default via {WORLD_IPV6}",
        ],
        lab.fabric_netns,
    )
    namespaces.ip_batch(
        [
            "link set lo up",
            "link set eth0 up",
            f"address add {WORLD_IPV4}/24 dev eth0",
            f"address add {WORLD_IPV6}/64 dev eth0 nodad",
            *(f"address add {address} dev lo" for address in outside_addresses()),
        ],
        lab.world_netns,
    )


def create_node(lab: Layout, node: NodeLayout) -> None:
    """Make the node's namespace and plug it into the fabric."""
    namespaces.create(node.netns)
    namespaces.write_sysctls(_NO_DAD | _FORWARDING, node.netns)
    namespaces.ip_batch(
        [
            f"link add {node.name} type veth peer name eth0 netns {node.netns}",
            f"link set {node.name} master fabric up",
        ],
        lab.fabric_netns,
    )
    namespaces.ip_batch(
        [
            "link set lo up",
            "link set eth0 up",
            f"address add {node.ipv4}/24 dev eth0",
            f"address add {node.ipv6}/64 dev eth0 nodad",
            f"route add default via {WORLD_IPV4}",
            f"route add default via {WORLD_IPV6}",
        ],
        node.netns,
    )
