"""Address prefixes and whose they are: cilium_ipcache_v2, longest prefix wins."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from cilium_core import abi

from cilium_agent.datapath.models import Address, IpcacheEntry, Network

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_agent.datapath.maps import Maps

_KEY = abi.view("ipcache_key", "prefixlen", "cluster_id", "family", "ip")
_INFO = abi.view("ipcache_info", "identity", "tunnel_ipv4", "flags")


def key_of(prefix: Network, cluster_id: int = 0) -> bytes:
    """Key of a prefix."""
    family = abi.FAMILY_IPV4 if prefix.version == 4 else abi.FAMILY_IPV6
    bits = abi.IPCACHE_STATIC_BITS + prefix.prefixlen
    return _KEY.pack(bits, cluster_id, family, prefix.network_address.packed)


def encode(entry: IpcacheEntry) -> bytes:
    """Value of an entry."""
    flags = tunnel = 0
    if entry.tunnel_ipv4 is not None:
        tunnel = int.from_bytes(entry.tunnel_ipv4.packed, "little")
        flags |= abi.IPCACHE_HAS_TUNNEL
    if entry.skip_tunnel:
        flags |= abi.IPCACHE_SKIP_TUNNEL
    return _INFO.pack(entry.identity, tunnel, flags)


def decode(key: bytes, value: bytes) -> IpcacheEntry:
    """Entry of a key and a value."""
    bits, _, family, ip = _KEY.unpack(key)
    identity, tunnel, flags = _INFO.unpack(value)
    length = bits - abi.IPCACHE_STATIC_BITS
    prefix: Network = (
        ipaddress.IPv4Network((ip[:4], length))
        if family == abi.FAMILY_IPV4
        else ipaddress.IPv6Network((ip, length))
    )
    has_tunnel = bool(flags & abi.IPCACHE_HAS_TUNNEL)
    return IpcacheEntry(
        prefix,
        identity,
        ipaddress.IPv4Address(tunnel.to_bytes(4, "little")) if has_tunnel else None,
        bool(flags & abi.IPCACHE_SKIP_TUNNEL),
    )


class Ipcache:
    """Rows of cilium_ipcache_v2."""

    def __init__(self, maps: Maps) -> None:
        self._map = maps["IPCACHE"]

    def upsert(
        self,
        prefix: Network,
        identity: int,
        tunnel_ipv4: ipaddress.IPv4Address | None = None,
        *,
        skip_tunnel: bool = False,
    ) -> None:
        """Say whose a prefix is and behind which node, None for behind none."""
        self.upsert_many([IpcacheEntry(prefix, identity, tunnel_ipv4, skip_tunnel)])

    def upsert_many(self, entries: Iterable[IpcacheEntry]) -> None:
        """Write many entries with few system calls. Raises BpfError when the map is full."""
        self._map.set_many({key_of(entry.prefix): encode(entry) for entry in entries})

    def delete(self, prefix: Network) -> bool:
        """Forget a prefix; tells whether it was known."""
        return self._map.delete(key_of(prefix))

    def delete_many(self, prefixes: Iterable[Network]) -> int:
        """Forget many prefixes with few system calls; tells how many were known."""
        return self._map.delete_many(key_of(prefix) for prefix in prefixes)

    def lookup(self, address: Address) -> IpcacheEntry | None:
        """Return what the longest match finds for an address, told of the address alone."""
        key = key_of(ipaddress.ip_network(address))
        value = self._map.get(key)
        return None if value is None else decode(key, value)

    def dump(self) -> list[IpcacheEntry]:
        """Every entry, ordered by prefix."""
        found = [decode(key, value) for key, value in self._map.items()]
        return sorted(
            found, key=lambda entry: (entry.prefix.version, entry.prefix.network_address.packed)
        )
