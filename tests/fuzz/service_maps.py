"""What the maps of services say, read with nothing of the code that writes them.

`read` gives frontends with the addresses of their backends in place of ids; `stray` lists whatever
nothing refers to. Both are compared with what a set of frontends should come to (`expected`).
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cilium_agent.datapath import syscalls
from cilium_core import abi
from cilium_core.services import Algorithm, BackendState, Forwarding, FrontendKind, Scope

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_agent.datapath.maps import Map, Maps
    from cilium_core.services import Backend, Frontend

SIZES = {
    "cilium_lb4_services_v2": 256,
    "cilium_lb6_services_v2": 256,
    "cilium_lb_slots": 512,
    "cilium_lb_backends": 64,
    "cilium_lb_reverse_nat": 128,
    "cilium_lb_maglev": 251,
    "cilium_lb_affinity": 64,
    "cilium_lb_affinity_match": 512,
    "cilium_lb4_source_range": 256,
    "cilium_lb6_source_range": 256,
    "cilium_ct4_global": 64,
    "cilium_ct6_global": 64,
    "cilium_ct_any4_global": 64,
    "cilium_ct_any6_global": 64,
    "cilium_snat_v4_external": 64,
    "cilium_snat_v6_external": 64,
}
"""Small enough for ids to be used again soon."""

_FLAGS = {
    FrontendKind.CLUSTER_IP: 0,
    FrontendKind.NODE_PORT: abi.LB_NODE_PORT,
    FrontendKind.LOAD_BALANCER: abi.LB_LOAD_BALANCER,
    FrontendKind.EXTERNAL_IPS: abi.LB_EXTERNAL_IP,
    FrontendKind.HOST_PORT: abi.LB_HOST_PORT,
    FrontendKind.LOCAL_REDIRECT: abi.LB_LOCAL_REDIRECT,
}

Place = tuple[str, int, int, int]
"""Address, port, protocol, scope."""
Address = tuple[str, int, int]


@dataclass(frozen=True)
class Row:
    """A frontend, told without ids."""

    flags: int
    affinity_timeout: int
    serving: tuple[Address, ...]
    members: frozenset[Address] = frozenset()
    ranges: frozenset[str] = frozenset()
    table: frozenset[Address] = frozenset()


@dataclass
class Contents:
    """All that is in the maps."""

    rows: dict[Place, Row] = field(default_factory=dict)
    backends: dict[Address, tuple[int, bool]] = field(default_factory=dict)
    """State and whether it is of this node."""
    stray: list[str] = field(default_factory=list)


def expected(frontends: Iterable[Frontend]) -> Contents:
    """What the maps should say."""
    wanted = Contents()
    states: dict[Address, set[int]] = {}
    for one in frontends:
        proto = int(one.at.protocol) if one.at.port else 0
        place = (str(one.at.address), one.at.port, proto, int(one.scope is Scope.INTERNAL))
        serving = tuple(_told(backend) for backend in one.eligible)
        version = one.at.address.version
        ranges = one.source_ranges or ()
        table = (
            one.algorithm is Algorithm.MAGLEV
            and one.routable
            and one.scope is Scope.EXTERNAL
            and not one.at.address.is_unspecified
        )
        wanted.rows[place] = Row(
            flags=_flags(one) | (abi.LB_MAGLEV if table and serving else 0),
            affinity_timeout=one.affinity_timeout,
            serving=serving,
            members=frozenset(serving) if one.affinity_timeout else frozenset(),
            ranges=frozenset(str(each) for each in ranges if each.version == version),
            table=frozenset(serving) if table else frozenset(),
        )
        for backend in one.backends:
            states.setdefault(_told(backend), set()).add(_state(backend))
            wanted.backends[_told(backend)] = (0, backend.local)
    for told, found in states.items():
        wanted.backends[told] = (min(found), wanted.backends[told][1])
    return wanted


def _told(backend: Backend) -> Address:
    return (str(backend.at.address), backend.at.port, int(backend.at.protocol))


def _state(backend: Backend) -> int:
    order = (
        BackendState.ACTIVE,
        BackendState.TERMINATING,
        BackendState.QUARANTINED,
        BackendState.MAINTENANCE,
    )
    return order.index(backend.state) + 1


def _flags(one: Frontend) -> int:
    flags = _FLAGS[one.kind]
    for bit, on in {
        abi.LB_EXTERNAL_LOCAL: one.external_local,
        abi.LB_INTERNAL_LOCAL: one.internal_local,
        abi.LB_AFFINITY: one.affinity_timeout,
        abi.LB_ROUTABLE: one.routable,
        abi.LB_SOURCE_RANGE: one.source_ranges is not None,
        abi.LB_SOURCE_RANGE_DENY: one.source_ranges_deny,
        abi.LB_TWO_SCOPES: one.two_scopes,
        abi.LB_DSR: one.forwarding is Forwarding.DSR,
        abi.LB_SNAT: one.forwarding is Forwarding.SNAT,
        abi.LB_WILDCARD: not one.at.port,
        abi.LB_SKIP_OWN: one.skip_own,
    }.items():
        flags |= bit if on else 0
    return flags


def _array(held: Map, struct: str) -> list[Any]:
    size = held.value_size
    blob = b"".join(values for _, values, _ in held.batches())
    return [abi.unpack(struct, blob[at : at + size]) for at in range(0, len(blob), size)]


def _ip(packed: bytes, version: int) -> str:
    return str(ipaddress.ip_address(packed[:4] if version == 4 else packed))


def _port(value: int) -> int:
    return int.from_bytes(value.to_bytes(2, "little"), "big")


def _bytes(field_: Any) -> bytes:
    return bytes(abi.ffi.buffer(field_))


def backends_by_id(maps: Maps) -> dict[int, tuple[Address, int, bool]]:
    """Address, state and whether it is local, of each backend."""
    found = {}
    for number, row in enumerate(_array(maps["LB_BACKENDS"], "lb_backend")):
        if row.state:
            version = 4 if row.family == abi.FAMILY_IPV4 else 6
            told = (_ip(_bytes(row.addr), version), _port(row.port), row.proto)
            found[number] = (told, row.state, bool(row.flags & abi.LB_BACKEND_LOCAL))
    return found


def names_by_id(maps: Maps) -> dict[int, Address]:
    """The frontends that ids stand for."""
    found = {}
    for number, row in enumerate(_array(maps["LB_REVERSE_NAT"], "lb_frontend")):
        if row.port:
            version = 4 if row.family == abi.FAMILY_IPV4 else 6
            found[number] = (_ip(_bytes(row.addr), version), _port(row.port), row.proto)
    return found


def read(maps: Maps) -> Contents:
    """Everything, and what nothing refers to."""
    contents = Contents()
    backends, names = backends_by_id(maps), names_by_id(maps)
    for told, state, local in backends.values():
        if told in contents.backends:
            contents.stray.append(f"backend {told} twice")
        contents.backends[told] = (state, local)
    slots = _slots(maps["LB_SLOTS"])
    members, ranges, tables = _members(maps), _ranges(maps), _tables(maps["LB_MAGLEV"])
    used: set[int] = set()
    for version in (4, 6):
        for key, value in maps[f"LB{version}_SERVICES"].items():
            where = abi.unpack(f"lb_key{version}", key)
            packed = where.addr.to_bytes(4, "little") if version == 4 else _bytes(where.addr)
            row = abi.unpack("lb_service", value)
            place = (_ip(packed, version), _port(where.port), where.proto, where.scope)
            ids = slots[row.first : row.first + row.count]
            serving = tuple(
                backends[number][0] if number in backends else ("gone", 0, 0) for number in ids
            )
            number = row.rev_nat
            if number:
                if names.get(number) != place[:3] or number in used:
                    contents.stray.append(f"{place} has the id {number} of {names.get(number)}")
                used.add(number)
            table = tables.pop(number, ())
            contents.rows[place] = Row(
                flags=row.flags,
                affinity_timeout=row.affinity_timeout,
                serving=serving,
                members=frozenset(backends[each][0] for each in members.pop(number, ())),
                ranges=frozenset(ranges.pop(number, ())),
                table=frozenset(backends[each][0] for each in table),
            )
    contents.stray += [f"id {number} stands for {names[number]}" for number in names.keys() - used]
    contents.stray += [f"members of {number}" for number in members]
    contents.stray += [f"sources of {number}" for number in ranges]
    contents.stray += [f"table of {number}" for number in tables]
    return contents


def _slots(held: Map) -> list[int]:
    blob = b"".join(values for _, values, _ in held.batches())
    return [int.from_bytes(blob[at : at + 4], "little") for at in range(0, len(blob), 4)]


def _keys(held: Map) -> list[bytes]:
    return [key for key, _ in held.items()]


def _members(maps: Maps) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for key in _keys(maps["LB_MEMBERS"]):
        row = abi.unpack("lb_member", key)
        found.setdefault(row.rev_nat, []).append(row.backend)
    return found


def _ranges(maps: Maps) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for version in (4, 6):
        for key in _keys(maps[f"LB{version}_RANGES"]):
            row = abi.unpack(f"lb_range_key{version}", key)
            packed = row.addr.to_bytes(4, "little") if version == 4 else _bytes(row.addr)
            text = f"{_ip(packed, version)}/{row.prefixlen - 32}"
            found.setdefault(row.rev_nat, []).append(text)
    return found


def _tables(held: Map) -> dict[int, set[int]]:
    found = {}
    for key, value in held.items():
        fd = syscalls.map_by_id(int.from_bytes(value, "little"))
        try:
            blob = b"".join(values for _, values, _ in syscalls.lookup_batch(fd, 4, 4))
        finally:
            os.close(fd)
        ids = {int.from_bytes(blob[at : at + 4], "little") for at in range(0, len(blob), 4)}
        found[int.from_bytes(key, "little")] = ids
    return found
