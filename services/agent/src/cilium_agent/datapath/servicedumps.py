"""Services as the kernel has them now: rows of the maps, for people to look at. Reads only.

What programs write may change while it is read; each row is whole. Calls block for the time of
their system calls, the longest for some ten milliseconds with tens of thousands of frontends.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from cilium_core import abi

from cilium_agent.datapath import syscalls
from cilium_agent.datapath.servicerows import AFFINITY, AFFINITY_KEY, BACKEND, REVERSE, SERVICE
from cilium_agent.datapath.tracking import connection_key, decode_connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from cilium_agent.datapath.maps import Map, Maps
    from cilium_agent.datapath.models import Address, Connection, Network

_KEYS = {
    4: abi.view("lb_key4", "addr", "port", "proto", "scope"),
    6: abi.view("lb_key6", "addr", "port", "proto", "scope"),
}
_RANGES = {
    4: abi.view("lb_range_key4", "prefixlen", "rev_nat", "addr"),
    6: abi.view("lb_range_key6", "prefixlen", "rev_nat", "addr"),
}
_TCP = 6
_COOKIE_BYTES = 8


class ServiceAddress(NamedTuple):
    """An address with port and IP protocol number; both are 0 for the address as a whole."""

    address: Address
    port: int
    protocol: int


class BackendRow(NamedTuple):
    """Who serves; `state` is one of abi's enum lb_backend_state."""

    id: int
    at: ServiceAddress
    state: int
    local: bool


class FrontendRow(NamedTuple):
    """A frontend, and the ids of the backends in its slots.

    `scope` is one of abi's enum lb_scope, `flags` of enum lb_flag, the timeout is in seconds.
    """

    at: ServiceAddress
    scope: int
    rev_nat: int
    flags: int
    affinity_timeout_s: int
    first: int
    slots: tuple[int, ...]


class AffinityRow(NamedTuple):
    """Who served a client; `client` is an address, or the cookie of a namespace."""

    client: Address | int
    rev_nat: int
    backend: int
    last_used_s: int
    """On the monotonic clock."""


class ServiceDumps:
    """Reads the maps of services."""

    def __init__(self, maps: Maps) -> None:
        self._services = {4: maps["LB4_SERVICES"], 6: maps["LB6_SERVICES"]}
        self._slots = maps["LB_SLOTS"]
        self._backends = maps["LB_BACKENDS"]
        self._reverse = maps["LB_REVERSE_NAT"]
        self._maglev = maps["LB_MAGLEV"]
        self._affinity = maps["LB_AFFINITY"]
        self._members = maps["LB_MEMBERS"]
        self._ranges = {4: maps["LB4_RANGES"], 6: maps["LB6_RANGES"]}
        self._tracked = {
            (version, tcp): maps[f"CT_{'TCP' if tcp else 'ANY'}{version}"]
            for version in (4, 6)
            for tcp in (True, False)
        }

    # ---- frontends and backends ----

    def frontends(self) -> Iterator[FrontendRow]:
        """Every frontend, in no order."""
        slots = _numbers(self._slots)
        for version, held in self._services.items():
            for key, value in held.items():
                first, count, *_ = SERVICE.unpack(value)
                yield _frontend(version, key, value, tuple(slots[first : first + count].tolist()))

    def frontend(self, at: ServiceAddress, scope: int) -> FrontendRow | None:
        """One frontend; None when there is none just so."""
        version = at.address.version
        packed = at.address.packed
        raw = int.from_bytes(packed, "little") if version == 4 else packed
        key = _KEYS[version].pack(raw, socket.htons(at.port), at.protocol, scope)
        value = self._services[version].get(key)
        if value is None:
            return None
        first, count, *_ = SERVICE.unpack(value)
        ids = tuple(self._slot(index) for index in range(first, first + count))
        return _frontend(version, key, value, ids)

    def backends(self) -> Iterator[BackendRow]:
        """Every backend, by id."""
        number = 0
        for _, values, _ in self._backends.batches():
            for row in BACKEND.iter_unpack(values):
                if row[3] != abi.LB_BACKEND_NONE:
                    yield _backend(number, row)
                number += 1

    def backend(self, number: int) -> BackendRow | None:
        """One backend; None when there is none with this id."""
        value = self._backends.get(number.to_bytes(4, "little"))
        if not number or value is None:
            return None
        row = BACKEND.unpack(value)
        return _backend(number, row) if row[3] != abi.LB_BACKEND_NONE else None

    def reverse(self) -> Iterator[tuple[int, ServiceAddress]]:
        """Every id of a frontend, and the address that answers get."""
        number = 0
        for _, values, _ in self._reverse.batches():
            for addr, port, proto, family in REVERSE.iter_unpack(values):
                if family:
                    yield number, ServiceAddress(_address(addr, family), socket.ntohs(port), proto)
                number += 1

    # ---- what a choice depends on ----

    def ranges(self) -> Iterator[tuple[int, Network]]:
        """Every source range, by the id of its frontend."""
        for version, held in self._ranges.items():
            for key in (row[0] for row in held.items()):
                length, rev_nat, raw = _RANGES[version].unpack(key)
                packed = raw.to_bytes(4, "little") if version == 4 else raw
                prefix = (ipaddress.ip_address(packed), length - abi.LB_RANGE_STATIC_BITS)
                yield rev_nat, ipaddress.ip_network(prefix)

    def affinity(self) -> Iterator[AffinityRow]:
        """Every client that is remembered for session affinity, the forgotten ones included."""
        for key, value in self._affinity.items():
            yield _affinity(key, value)

    def affine(self, client: Address | int, rev_nat: int, family: int) -> AffinityRow | None:
        """What is remembered of a client, an address or the cookie of its namespace."""
        if isinstance(client, int):
            packed, netns = client.to_bytes(_COOKIE_BYTES, "little"), 1
        else:
            packed, netns = client.packed, 0
        key = AFFINITY_KEY.pack(packed.ljust(16, b"\0"), rev_nat, netns, family)
        value = self._affinity.get(key)
        return None if value is None else _affinity(key, value)

    def serves(self, backend: int, rev_nat: int) -> bool:
        """Whether a backend still counts for the session affinity of a frontend."""
        return (
            self._members.get(abi.pack("lb_member", backend=backend, rev_nat=rev_nat)) is not None
        )

    def maglev_ids(self) -> list[int]:
        """The ids of the frontends that have tables."""
        return sorted(int.from_bytes(key, "little") for key, _ in self._maglev.items())

    def maglev(self, rev_nat: int) -> NDArray[np.uint32] | None:
        """Ids of backends by entry of a frontend's table; None without one."""
        value = self._maglev.get(rev_nat.to_bytes(4, "little"))
        if value is None:
            return None
        fd = syscalls.map_by_id(int.from_bytes(value, "little"))
        try:
            parts = [
                np.frombuffer(values, dtype=np.uint32, count=count)
                for _, values, count in syscalls.lookup_batch(fd, 4, 4)
            ]
        finally:
            os.close(fd)
        return np.concatenate(parts)

    def connection(
        self, client: Address, client_port: int, frontend: ServiceAddress
    ) -> Connection | None:
        """What remembers which backend a connection of a client has; None without one."""
        version = frontend.address.version
        key = connection_key(
            frontend.protocol,
            client,
            client_port,
            frontend.address,
            frontend.port,
            kind=abi.CT_SERVICE,
        )
        value = self._tracked[version, frontend.protocol == _TCP].get(key)
        return None if value is None else decode_connection(version, key, value)

    def _slot(self, index: int) -> int:
        value = self._slots.get(index.to_bytes(4, "little"))
        return 0 if value is None else int.from_bytes(value, "little")


def _numbers(held: Map) -> NDArray[np.uint32]:
    parts = [
        np.frombuffer(values, dtype=np.uint32, count=count) for _, values, count in held.batches()
    ]
    return np.concatenate(parts)


def _frontend(version: int, key: bytes, value: bytes, slots: tuple[int, ...]) -> FrontendRow:
    raw, port, proto, scope = _KEYS[version].unpack(key)
    first, _, rev_nat, flags, timeout = SERVICE.unpack(value)
    packed = raw.to_bytes(4, "little") if version == 4 else raw
    at = ServiceAddress(ipaddress.ip_address(packed), socket.ntohs(port), proto)
    return FrontendRow(at, scope, rev_nat, flags, timeout, first, slots)


def _backend(number: int, row: tuple[bytes, int, int, int, int, int]) -> BackendRow:
    addr, port, proto, state, family, flags = row
    at = ServiceAddress(_address(addr, family), socket.ntohs(port), proto)
    return BackendRow(number, at, state, bool(flags & abi.LB_BACKEND_LOCAL))


def _affinity(key: bytes, value: bytes) -> AffinityRow:
    client, rev_nat, netns, family = AFFINITY_KEY.unpack(key)
    last_used, backend = AFFINITY.unpack(value)
    who = int.from_bytes(client[:_COOKIE_BYTES], "little") if netns else _address(client, family)
    return AffinityRow(who, rev_nat, backend, last_used)


def _address(packed: bytes, family: int) -> Address:
    return ipaddress.ip_address(packed[:4] if family == abi.FAMILY_IPV4 else packed)
