"""Services as bytes of the maps; pure. Layouts come from `bpf/lib/abi.h`."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from cilium_core import abi
from cilium_core.policy.ports import Protocol
from cilium_core.services.models import (
    BackendState,
    Forwarding,
    FrontendKind,
    L4Address,
    Scope,
)

if TYPE_CHECKING:
    from cilium_core.services.models import Frontend, Network

KEY4 = abi.view("lb_key4", "addr", "port", "proto", "scope")
KEY6 = abi.view("lb_key6", "addr", "port", "proto", "scope")
SERVICE = abi.view("lb_service", "first", "count", "rev_nat", "flags", "affinity_timeout")
REVERSE = abi.view("lb_frontend", "addr", "port", "proto", "family")
BACKEND = abi.view("lb_backend", "addr", "port", "proto", "state", "family", "flags")
MEMBER = abi.view("lb_member", "backend", "rev_nat")
AFFINITY_KEY = abi.view("lb_affinity_key", "client", "rev_nat", "netns", "family")
AFFINITY = abi.view("lb_affinity", "last_used", "backend")
_RANGE4 = abi.view("lb_range_key4", "prefixlen", "rev_nat", "addr")
_RANGE6 = abi.view("lb_range_key6", "prefixlen", "rev_nat", "addr")

_SCOPES = {Scope.EXTERNAL: int(abi.LB_EXTERNAL), Scope.INTERNAL: int(abi.LB_INTERNAL)}
_KINDS = {
    FrontendKind.CLUSTER_IP: 0,
    FrontendKind.NODE_PORT: abi.LB_NODE_PORT,
    FrontendKind.LOAD_BALANCER: abi.LB_LOAD_BALANCER,
    FrontendKind.EXTERNAL_IPS: abi.LB_EXTERNAL_IP,
    FrontendKind.HOST_PORT: abi.LB_HOST_PORT,
    FrontendKind.LOCAL_REDIRECT: abi.LB_LOCAL_REDIRECT,
}
_FORWARDING = {Forwarding.DEFAULT: 0, Forwarding.SNAT: abi.LB_SNAT, Forwarding.DSR: abi.LB_DSR}
STATES = {
    BackendState.ACTIVE: int(abi.LB_BACKEND_ACTIVE),
    BackendState.TERMINATING: int(abi.LB_BACKEND_TERMINATING),
    BackendState.QUARANTINED: int(abi.LB_BACKEND_QUARANTINED),
    BackendState.MAINTENANCE: int(abi.LB_BACKEND_MAINTENANCE),
}
_FAMILIES = {4: int(abi.FAMILY_IPV4), 6: int(abi.FAMILY_IPV6)}


def frontend_key(at: L4Address, scope: Scope) -> bytes:
    """Key of a frontend; its length tells the family."""
    address = at.address
    proto = int(at.protocol) if at.port else 0
    if address.version == 4:
        number = int.from_bytes(address.packed, "little")
        return KEY4.pack(number, socket.htons(at.port), proto, _SCOPES[scope])
    return KEY6.pack(address.packed, socket.htons(at.port), proto, _SCOPES[scope])


def flags_of(frontend: Frontend) -> int:
    """Flags of a frontend, but for LB_MAGLEV, which says that there is a table."""
    return (
        _KINDS[frontend.kind]
        | _FORWARDING[frontend.forwarding]
        | (frontend.affinity_timeout > 0 and abi.LB_AFFINITY)
        | (frontend.source_ranges is not None and abi.LB_SOURCE_RANGE)
        | (frontend.source_ranges_deny and abi.LB_SOURCE_RANGE_DENY)
        | (frontend.two_scopes and abi.LB_TWO_SCOPES)
        | (frontend.external_local and abi.LB_EXTERNAL_LOCAL)
        | (frontend.internal_local and abi.LB_INTERNAL_LOCAL)
        | (frontend.routable and abi.LB_ROUTABLE)
        | (frontend.skip_own and abi.LB_SKIP_OWN)
        | (not frontend.at.port and abi.LB_WILDCARD)
    )


def l4_key(at: L4Address) -> bytes:
    """An address with port and protocol in 20 bytes, alike for alike ones."""
    packed = at.address.packed
    family = _FAMILIES[at.address.version]
    return packed.ljust(16, b"\0") + at.port.to_bytes(2, "big") + bytes((at.protocol, family))


def read_l4_key(key: bytes) -> L4Address:
    """What an `l4_key` stands for."""
    packed = key[:4] if key[19] == abi.FAMILY_IPV4 else key[:16]
    return L4Address(
        ipaddress.ip_address(packed), int.from_bytes(key[16:18], "big"), Protocol(key[18])
    )


def backend_row(key: bytes, state: int, *, local: bool) -> bytes:
    """Row of a backend by its `l4_key`."""
    port = int.from_bytes(key[16:18], "little")
    flags = abi.LB_BACKEND_LOCAL if local else 0
    return BACKEND.pack(key[:16], port, key[18], state, key[19], flags)


def backend_key(row: bytes) -> bytes:
    """Return the `l4_key` of a backend's row."""
    return row[:19] + row[20:21]


def reverse_row(at: L4Address) -> bytes:
    """Row of a frontend by its id."""
    address = at.address
    return REVERSE.pack(
        address.packed, socket.htons(at.port), at.protocol, _FAMILIES[address.version]
    )


def range_key(rev_nat: int, network: Network) -> bytes:
    """Key of a source range; its length tells the family."""
    length = abi.LB_RANGE_STATIC_BITS + network.prefixlen
    packed = network.network_address.packed
    if network.version == 4:
        return _RANGE4.pack(length, rev_nat, int.from_bytes(packed, "little"))
    return _RANGE6.pack(length, rev_nat, packed)
