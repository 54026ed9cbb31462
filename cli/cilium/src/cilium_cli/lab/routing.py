# SPDX-License-Identifier: Apache-2.0
"""Routes of the lab's world to the cluster: what BGP or an L2 announcement brings about elsewhere.

The world knows the nodes' addresses by itself. Addresses of load balancers and external addresses
of services belong to no device; a route sends them to some nodes, by flow when there are several.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from cilium_cli.errors import CommandError, InputError, NotFoundError
from cilium_cli.lab import namespaces
from cilium_cli.lab.layouts import node_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cilium_cli.lab.layouts import Layout

_PROTOCOL = "186"  # BGP's, in rt_protos
_BY_FLOW = {"ipv4/fib_multipath_hash_policy": "1", "ipv6/fib_multipath_hash_policy": "1"}


class Route(NamedTuple):
    """A network and the nodes that it is sent to."""

    network: str
    nodes: list[str]


def add(lab: Layout, text: str, nodes: Sequence[str]) -> None:
    """Send a network or address to the nodes, and to no others. Raises InputError."""
    network = _network(text)
    layouts = [lab.node(node_number(name)) for name in nodes]
    for layout in layouts:
        if not layout.folder.exists():
            raise NotFoundError(f"lab {lab.name} has no node {layout.name!r}")
    hops = [layout.ipv4 if network.version == 4 else layout.ipv6 for layout in layouts]
    namespaces.write_sysctls(_BY_FLOW, lab.world_netns)
    namespaces.ip_batch(
        [
            f"route replace {network} proto {_PROTOCOL} "
            + " ".join(f"nexthop via {hop} dev eth0" for hop in hops)
        ],
        lab.world_netns,
    )


def remove(lab: Layout, text: str) -> None:
    """Send a network nowhere. Raises NotFoundError when it has no route."""
    network = _network(text)
    if str(network) not in {route.network for route in routes(lab)}:
        raise NotFoundError(f"the world of lab {lab.name} has no route to {network}")
    namespaces.ip_batch([f"route del {network} proto {_PROTOCOL}"], lab.world_netns)


def routes(lab: Layout) -> list[Route]:
    """Routes that were added, IPv4 first."""
    nodes: dict[str, str] = {}
    for folder in lab.folder.glob("node*"):
        layout = lab.node(node_number(folder.name))
        nodes |= {layout.ipv4: layout.name, layout.ipv6: layout.name}
    found = []
    for family in ("-4", "-6"):
        command = ["ip", "-j", "-N", family, "route", "show", "proto", _PROTOCOL]
        with namespaces.entered(lab.world_netns):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandError(f"cannot read routes: {done.stderr.strip()}")
        for one in json.loads(done.stdout or "[]"):
            hops = one.get("nexthops") or [one]
            network = str(ipaddress.ip_network(one["dst"]))
            found.append(Route(network, [nodes.get(hop["gateway"], "") for hop in hops]))
    return found


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InputError(f"route: {error}", "such as 198.51.100.0/24") from error
