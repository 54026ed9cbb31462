"""Local endpoints in the maps: by address for delivery, by device for what a pod sends.

The rows of an endpoint carry its policy revision. Connections remember the revision they were
allowed under and are judged anew when it has been raised, which is how a policy change reaches
established connections: change the policy first, raise the revision then.
"""

from __future__ import annotations

import dataclasses
import struct
import time
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from cilium_core import abi

from cilium_agent.datapath.errors import DatapathError
from cilium_agent.datapath.models import EndpointInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cilium_agent.datapath.maps import Maps

_INFO = abi.view(
    "endpoint_info",
    "ifindex",
    "identity",
    "policy_rev",
    "id",
    "flags",
    "mac",
    "node_mac",
    "ipv4",
    "ipv6",
)
_REVISION_MASK = 0xFFFFFFFF
_MAC_LENGTH = 6


def address_key(address: IPv4Address | IPv6Address) -> bytes:
    """Key of an address in cilium_lxc."""
    family = abi.FAMILY_IPV4 if address.version == 4 else abi.FAMILY_IPV6
    return abi.pack("endpoint_key", ip=address.packed, family=family)


def encode(info: EndpointInfo) -> bytes:
    """Row of an endpoint. Raises DatapathError for a value that does not fit."""
    try:
        return _INFO.pack(
            info.ifindex,
            info.identity,
            info.policy_rev,
            info.id,
            info.flags,
            _mac(info.mac),
            _mac(info.node_mac),
            int.from_bytes(info.ipv4.packed, "little") if info.ipv4 else 0,
            info.ipv6.packed if info.ipv6 else bytes(16),
        )
    except (struct.error, ValueError) as error:
        raise DatapathError(f"endpoint {info.id}: {error} in {info}") from error


def _mac(text: str) -> bytes:
    packed = bytes.fromhex(text.replace(":", ""))
    if len(packed) != _MAC_LENGTH:
        raise ValueError(f"{text!r} is no MAC address")
    return packed


def decode(row: bytes) -> EndpointInfo:
    """Endpoint of a row."""
    ifindex, identity, revision, number, flags, mac, node_mac, ipv4, ipv6 = _INFO.unpack(row)
    return EndpointInfo(
        id=number,
        identity=identity,
        ifindex=ifindex,
        ipv4=IPv4Address(ipv4.to_bytes(4, "little")) if ipv4 else None,
        ipv6=IPv6Address(ipv6) if any(ipv6) else None,
        mac=mac.hex(":"),
        node_mac=node_mac.hex(":"),
        flags=flags,
        policy_rev=revision,
    )


class Endpoints:
    """Rows of cilium_lxc and cilium_devices."""

    def __init__(self, maps: Maps) -> None:
        self._by_address = maps["LXC"]
        self._by_device = maps["DEVICES"]
        rows = (*self._read(), *self._read_node())
        self._known = {info.id: info for info in rows if info.id}

    def upsert(self, info: EndpointInfo) -> EndpointInfo:
        """Write an endpoint's rows, and remove those of addresses and devices it no longer has.

        The policy revision stays, and is raised when the flags change; a new endpoint gets one
        that no endpoint before it had. Returns what was written. Raises DatapathError for an
        endpoint without an address, or a pod without a device.
        """
        if not (info.ipv4 or info.ipv6):
            raise DatapathError(f"endpoint {info.id}: no address; give ipv4, ipv6 or both")
        if not info.id:
            return self._upsert_host(info)
        if not info.ifindex:
            raise DatapathError(f"endpoint {info.id}: ifindex 0 is no device")
        before = self._known.get(info.id)
        revision = _first_revision() if before is None else before.policy_rev
        if before is not None and before.flags != info.flags:
            revision = _next(revision)
        info = dataclasses.replace(info, policy_rev=revision)
        self._write([info])
        if before is not None:
            for key in set(_address_keys(before)) - set(_address_keys(info)):
                self._by_address.delete(key)
            if before.ifindex != info.ifindex:
                self._by_device.delete(_device_key(before.ifindex))
        return info

    def _upsert_host(self, info: EndpointInfo) -> EndpointInfo:
        """Write an address of the host, which has no device row."""
        self._by_address.set_many(dict.fromkeys(_address_keys(info), encode(info)))
        return info

    def upsert_node(self, endpoint_id: int, ifindex: int, flags: int = 0) -> EndpointInfo:
        """Make the node itself an endpoint: it has a policy and a revision as pods have.

        `ifindex` is that of cilium_host; the node's addresses keep rows of their own, with id 0.
        The policy is enforced in the directions of `flags` while NodeConfig.host_firewall is set.
        """
        before = self._known.get(endpoint_id)
        revision = _first_revision() if before is None else before.policy_rev
        info = EndpointInfo(
            id=endpoint_id,
            identity=abi.ID_HOST,
            ifindex=ifindex,
            flags=flags | abi.ENDPOINT_HOST,
            policy_rev=revision,
        )
        if before is not None and before.flags != info.flags:
            info = dataclasses.replace(info, policy_rev=_next(revision))
        self._write([info])
        return info

    def delete(self, endpoint: int | EndpointInfo) -> bool:
        """Remove an endpoint's rows, by id or as it was written; tells whether there were any."""
        if isinstance(endpoint, int):
            found = self._known.get(endpoint)
            if found is None:
                return False
            endpoint = found
        self._known.pop(endpoint.id, None)
        removed = self._by_address.delete_many(_address_keys(endpoint))
        if endpoint.ifindex and endpoint.id:
            removed += self._by_device.delete(_device_key(endpoint.ifindex))
        return removed > 0

    def get(self, endpoint_id: int) -> EndpointInfo | None:
        """Return an endpoint as it was last written."""
        return self._known.get(endpoint_id)

    def dump(self) -> list[EndpointInfo]:
        """Every endpoint that the kernel has, host addresses too, ordered by id."""
        return sorted(self._read(), key=lambda info: (info.id, str(info.ipv4), str(info.ipv6)))

    def raise_policy_rev(self, endpoint_ids: Iterable[int]) -> None:
        """Make every connection of these endpoints be judged anew; unknown ids are passed over."""
        raised = [
            dataclasses.replace(info, policy_rev=_next(info.policy_rev))
            for info in map(self._known.get, endpoint_ids)
            if info is not None
        ]
        self._write(raised)

    def _write(self, infos: Iterable[EndpointInfo]) -> None:
        by_address: dict[bytes, bytes] = {}
        by_device: dict[bytes, bytes] = {}
        for info in infos:
            row = encode(info)
            if not info.flags & abi.ENDPOINT_HOST:
                by_address.update(dict.fromkeys(_address_keys(info), row))
            by_device[_device_key(info.ifindex)] = row
            self._known[info.id] = info
        self._by_address.set_many(by_address)
        self._by_device.set_many(by_device)

    def _read(self) -> Iterator[EndpointInfo]:
        """Endpoints of the kernel, each once."""
        yield from {decode(row) for _, row in self._by_address.items()}

    def _read_node(self) -> Iterator[EndpointInfo]:
        """The node's own row, if it is an endpoint."""
        for info in (decode(row) for _, row in self._by_device.items()):
            if info.flags & abi.ENDPOINT_HOST:
                yield info


def _address_keys(info: EndpointInfo) -> list[bytes]:
    return [address_key(address) for address in (info.ipv4, info.ipv6) if address is not None]


def _device_key(ifindex: int) -> bytes:
    return ifindex.to_bytes(4, "little")


def _first_revision() -> int:
    """Return a revision that connections of an earlier owner of the address do not carry."""
    return int(time.time()) & _REVISION_MASK or 1


def _next(revision: int) -> int:
    return (revision + 1) & _REVISION_MASK or 1
