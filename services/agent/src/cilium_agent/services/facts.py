"""What this node is to services: its addresses, its labels, and the addresses of other nodes."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from cilium_core.labels import SOURCE_K8S, Label, LabelSet
from cilium_core.services import NodeFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cilium_agent.nodes import Nodes
    from cilium_agent.settings import AgentSettings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_ZONE = "topology.kubernetes.io/zone"
_FIB_TRIE = Path("/proc/net/fib_trie")
_IF_INET6 = Path("/proc/net/if_inet6")
_GLOBAL = 0x00


def own_addresses() -> frozenset[Address]:
    """Every address of this network namespace, but for those of the loopback and of links."""
    return frozenset((*_ipv4_addresses(), *_ipv6_addresses()))


def _ipv4_addresses() -> Iterator[Address]:
    """Addresses that the kernel delivers to itself, as its routing table lists them."""
    last = ""
    for line in _lines(_FIB_TRIE):
        words = line.split()
        if words and words[0] in ("|--", "+--"):
            last = words[1]
        elif words == ["/32", "host", "LOCAL"]:
            address = ipaddress.IPv4Address(last)
            if not address.is_loopback and not address.is_link_local:
                yield address


def _ipv6_addresses() -> Iterator[Address]:
    for line in _lines(_IF_INET6):
        text, _index, _bits, scope, _flags, _name = line.split()
        if int(scope, 16) == _GLOBAL:
            yield ipaddress.IPv6Address(bytes.fromhex(text))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []  # a kernel without this family


def node_facts(
    settings: AgentSettings, nodes: Nodes, addresses: Iterable[Address]
) -> NodeFacts | None:
    """Describe this node, whose addresses are `addresses`; None before its record is known."""
    own = nodes.own
    if own is None:
        return None
    recorded = {entry.ip for entry in own.addresses}
    every = frozenset(addresses) | recorded
    named = [entry.ip for entry in own.addresses if entry.kind == "InternalIP"]
    if settings.nodeport_addresses:
        serving = sorted(
            (
                one
                for one in every
                if any(one in network for network in settings.nodeport_addresses)
            ),
            key=lambda one: (one.version, one),
        )
    else:
        serving = named
    labels = nodes.labels
    return NodeFacts(
        name=settings.node_name,
        addresses=every,
        node_port_addresses=tuple(serving),
        zone=labels.get(_ZONE, ""),
        labels=LabelSet(Label(SOURCE_K8S, key, value) for key, value in labels.items()),
        remote_addresses=frozenset(
            entry.ip for node in nodes.all() if node is not own for entry in node.addresses
        ),
    )
