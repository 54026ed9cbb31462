"""Connection tracking and masquerade maps: reading, and collecting what has expired.

The programs write these maps and evict on their own when one is full (LRU); the collector only
keeps them small. It runs beside live traffic: an entry is removed some seconds after it expired,
when no packet can have found it alive since it was read.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from typing import TYPE_CHECKING

from cilium_core import abi

from cilium_agent.datapath.models import Address, Connection, GcResult, NatEntry

if TYPE_CHECKING:
    import struct
    from collections.abc import Collection, Iterator

    from cilium_agent.datapath.maps import Map, Maps

_CT_FIELDS = ("addr_low", "addr_high", "port_low", "port_high", "proto", "kind", "zone")
_NAT_FIELDS = ("saddr", "daddr", "sport", "dport", "proto", "direction")
_CT_KEYS = {4: abi.view("ct_key4", *_CT_FIELDS), 6: abi.view("ct_key6", *_CT_FIELDS)}
_NAT_KEYS = {4: abi.view("nat_key4", *_NAT_FIELDS), 6: abi.view("nat_key6", *_NAT_FIELDS)}
_NAT_VALUES = {
    4: abi.view("nat_entry4", "created_ns", "addr", "port", "rev_nat"),
    6: abi.view("nat_entry6", "created_ns", "addr", "port", "rev_nat"),
}
_CT_ENTRY = abi.view(
    "ct_entry",
    "tx_packets",
    "tx_bytes",
    "rx_packets",
    "rx_bytes",
    "lifetime",
    "flags",
    "out_rev",
    "in_rev",
    "src_identity",
    "dst_identity",
    "tx_flags",
    "rx_flags",
    "rev_nat",
    "proxy_port",
    "cookie",
    "backend",
)
_LIFETIME = abi.view("ct_entry", "lifetime")
_FRONTEND = abi.view("lb_frontend", "addr", "port")
_CREATED = {4: abi.view("nat_entry4", "created_ns"), 6: abi.view("nat_entry6", "created_ns")}

_CT_MAPS = (("CT_TCP4", 4), ("CT_ANY4", 4), ("CT_TCP6", 6), ("CT_ANY6", 6))
_NAT_MAPS = (("SNAT4", 4), ("SNAT6", 6))
_GRACE_S = 2
"""An expired entry is left alone for this long."""
_NAT_GRACE_S = 10
"""A young mapping is left alone: its connection may not be tracked yet."""
_TCP, _ICMP, _ICMP6 = 6, 1, 58


def _raw(address: Address) -> int | bytes:
    """Return an address as the keys have it: IPv4 is a number in memory order, IPv6 is bytes."""
    return int.from_bytes(address.packed, "little") if address.version == 4 else address.packed


def _address(version: int, raw: int | bytes) -> Address:
    if version == 4 and isinstance(raw, int):
        return ipaddress.IPv4Address(raw.to_bytes(4, "little"))
    return ipaddress.IPv6Address(raw)


def connection_key(
    proto: int,
    source: Address,
    source_port: int,
    destination: Address,
    destination_port: int,
    zone: int = abi.CT_ZONE_PODS,
    kind: int = abi.CT_FLOW,
) -> bytes:
    """Key under which the programs keep a connection, whichever end is named first."""
    ends = sorted([(source.packed, source_port), (destination.packed, destination_port)])
    (low, low_port), (high, high_port) = ends
    version = source.version
    if version == 4:
        low_raw: int | bytes = int.from_bytes(low, "little")
        high_raw: int | bytes = int.from_bytes(high, "little")
    else:
        low_raw, high_raw = low, high
    ports = socket.htons(low_port), socket.htons(high_port)
    return _CT_KEYS[version].pack(low_raw, high_raw, *ports, proto, kind, zone)


def decode_connection(version: int, key: bytes, value: bytes) -> Connection:
    """Connection of a row, told from the end that spoke first."""
    low, high, low_port, high_port, proto, kind, zone = _CT_KEYS[version].unpack(key)
    fields = _CT_ENTRY.unpack(value)
    tx_packets, tx_bytes, rx_packets, rx_bytes, lifetime, flags, out_rev, in_rev = fields[:8]
    src_identity, dst_identity, tx_flags, rx_flags, rev_nat, proxy_port, cookie = fields[8:15]
    ends = [
        (_address(version, low), socket.ntohs(low_port)),
        (_address(version, high), socket.ntohs(high_port)),
    ]
    if flags & abi.CT_INITIATOR_HIGH:
        ends.reverse()
    (source, source_port), (destination, destination_port) = ends
    return Connection(
        proto=proto,
        source=source,
        source_port=source_port,
        destination=destination,
        destination_port=destination_port,
        kind=kind,
        zone=zone,
        flags=flags,
        expires_s=lifetime,
        source_identity=src_identity,
        destination_identity=dst_identity,
        tx_packets=tx_packets,
        tx_bytes=tx_bytes,
        rx_packets=rx_packets,
        rx_bytes=rx_bytes,
        tx_tcp_flags=tx_flags,
        rx_tcp_flags=rx_flags,
        out_rev=out_rev,
        in_rev=in_rev,
        cookie=cookie,
        proxy_port=socket.ntohs(proxy_port),
        rev_nat=rev_nat,
        backend=fields[15] if kind == abi.CT_SERVICE else 0,
    )


def decode_nat(version: int, key: bytes, value: bytes) -> NatEntry:
    """Return one half of a masqueraded connection."""
    saddr, daddr, sport, dport, proto, direction = _NAT_KEYS[version].unpack(key)
    created, addr, port, rev_nat = _NAT_VALUES[version].unpack(value)
    return NatEntry(
        proto=proto,
        direction=direction,
        source=_address(version, saddr),
        source_port=socket.ntohs(sport),
        destination=_address(version, daddr),
        destination_port=socket.ntohs(dport),
        to_address=_address(version, addr),
        to_port=socket.ntohs(port),
        created_ns=created,
        rev_nat=rev_nat,
    )


class Tracking:
    """The four maps of tracked connections."""

    def __init__(self, maps: Maps) -> None:
        self._maps: list[tuple[Map, int]] = [(maps[name], version) for name, version in _CT_MAPS]
        self._nat = Nat(maps)

    def dump(self) -> Iterator[Connection]:
        """Every tracked connection, expired ones that nobody collected yet included."""
        for held, version in self._maps:
            for key, value in held.items():
                yield decode_connection(version, key, value)

    def gc(self, now_s: int | None = None) -> GcResult:
        """Remove what has expired, and masquerade mappings whose connection is gone.

        `now_s` is the monotonic clock in seconds, by default its present value.
        """
        now = int(time.monotonic()) if now_s is None else now_s
        scanned = deleted = 0
        fill = 0.0
        for held, _ in self._maps:
            seen = removed = 0
            for keys, values, count in held.batches():
                seen += count
                removed += held.delete_many(_expired(held.key_size, keys, values, now - _GRACE_S))
            scanned += seen
            deleted += removed
            fill = max(fill, (seen - removed) / held.spec.max_entries)
        return GcResult(scanned, deleted, self._nat.gc(self, now), fill)

    def delete_for(self, addresses: Collection[Address]) -> int:
        """Forget every connection of some addresses, e.g. of a pod that is gone."""
        removed = 0
        for held, version in self._maps:
            wanted = {_raw(address) for address in addresses if address.version == version}
            if not wanted:
                continue
            view = _CT_KEYS[version]
            for keys, _, _ in held.batches():
                removed += held.delete_many(
                    keys[at * view.size : (at + 1) * view.size]
                    for at, key in enumerate(view.iter_unpack(keys))
                    if key[0] in wanted or key[1] in wanted
                )
        return removed

    def tracks(self, version: int, proto: int, key: bytes) -> bool:
        """Tell whether there is an entry under a key of `connection_key`."""
        first = 0 if version == 4 else 2
        held, _ = self._maps[first if proto == _TCP else first + 1]
        return held.get(key) is not None


def _expired(size: int, keys: bytes, values: bytes, before_s: int) -> list[bytes]:
    return [
        keys[at * size : (at + 1) * size]
        for at, (lifetime,) in enumerate(_LIFETIME.iter_unpack(values))
        if lifetime < before_s
    ]


class Nat:
    """The maps of masqueraded connections."""

    def __init__(self, maps: Maps) -> None:
        self._maps: list[tuple[Map, int]] = [(maps[name], version) for name, version in _NAT_MAPS]
        self._frontends = maps["LB_REVERSE_NAT"]

    def dump(self) -> Iterator[NatEntry]:
        """Every mapping, two entries for each masqueraded connection."""
        for held, version in self._maps:
            for key, value in held.items():
                yield decode_nat(version, key, value)

    def gc(self, tracking: Tracking, now_s: int) -> int:
        """Remove the mappings whose connection is not tracked any more; returns entries removed."""
        removed = 0
        for held, version in self._maps:
            before_ns = (now_s - _NAT_GRACE_S) * 1_000_000_000
            view: struct.Struct = _NAT_KEYS[version]
            for keys, values, count in held.batches():
                gone: list[bytes] = []
                for at in range(count):
                    row = keys[at * view.size : (at + 1) * view.size]
                    value = values[at * held.value_size : (at + 1) * held.value_size]
                    if _CREATED[version].unpack(value)[0] > before_ns:
                        continue
                    entry = decode_nat(version, row, value)
                    wanted = _tracked_as(entry, self._frontend_of(entry))
                    if not any(tracking.tracks(version, entry.proto, key) for key in wanted):
                        gone.append(row)
                removed += held.delete_many(gone)
        return removed

    def _frontend_of(self, entry: NatEntry) -> tuple[Address, int] | None:
        """Address and port of the frontend that an inward half names."""
        if entry.direction == abi.NAT_OUT or not entry.rev_nat:
            return None
        value = self._frontends.get(entry.rev_nat.to_bytes(4, "little"))
        raw, port = _FRONTEND.unpack(value or bytes(abi.sizeof("lb_frontend")))
        if not port:
            return None
        length = 4 if entry.source.version == 4 else 16
        return ipaddress.ip_address(raw[:length]), socket.ntohs(port)


def _tracked_as(entry: NatEntry, frontend: tuple[Address, int] | None) -> Iterator[bytes]:
    """Keys of the connections that either half of a mapping may belong to.

    They are those of a pod or a proxy, or of a client with the frontend that it asks from outside:
    `frontend` is the one that an inward half names.
    """
    outward = entry.direction == abi.NAT_OUT
    here, there = (entry.source, entry.source_port), (entry.destination, entry.destination_port)
    turned = (entry.to_address, entry.to_port)
    local, remote = (here, there) if outward else (turned, here)
    proto = entry.proto
    if entry.rev_nat and outward:
        yield connection_key(proto, *here, *there, kind=abi.CT_SERVICE)
        # of a backend that answers with the frontend's address
        yield connection_key(proto, *there, *turned, kind=abi.CT_SERVICE)
    elif frontend is not None:
        yield connection_key(proto, *turned, *frontend, kind=abi.CT_SERVICE)
    if proto in (_ICMP, _ICMP6):
        remote = (remote[0], 0)
    for zone in (abi.CT_ZONE_PODS, abi.CT_ZONE_PROXIES):
        yield connection_key(proto, *local, *remote, zone)
