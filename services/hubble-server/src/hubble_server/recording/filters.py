"""From the filters of a request to those that the programs read. Pure."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Final

from cilium_core import abi
from recorder import recorder_pb2

from hubble_server.errors import RecordingError

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_FILTERS: Final = int(abi.constants["CAPTURE_FILTERS"])
"""Rows that the programs look at, of all recordings together."""

_ANY = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
_FAMILIES = {4: abi.constants["FAMILY_IPV4"], 6: abi.constants["FAMILY_IPV6"]}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def rows_of(filters: Iterable[recorder_pb2.Filter], recording: int) -> list[bytes]:
    """Each a struct capture_filter; a filter without addresses is one for each IP version.

    `recording` is the bit by which packets are told to whom they belong. Raises RecordingError
    naming the filter, its field and the value.
    """
    rows = [row for at, each in enumerate(filters) for row in _rows(at, each, recording)]
    if not rows:
        raise RecordingError(
            "no filter says which packets; use 0.0.0.0/0 as the source of one for all of IPv4"
        )
    return rows


def _rows(at: int, wanted: recorder_pb2.Filter, recording: int) -> list[bytes]:
    source = _network(at, "source_cidr", wanted.source_cidr)
    destination = _network(at, "destination_cidr", wanted.destination_cidr)
    if source and destination and source.version != destination.version:
        raise RecordingError(
            f"include[{at}]: source_cidr {source} and destination_cidr {destination} are of "
            "different IP versions, so no packet has both"
        )
    for name, port in (
        ("source_port", wanted.source_port),
        ("destination_port", wanted.destination_port),
    ):
        if port > 0xFFFF:
            raise RecordingError(f"include[{at}].{name}: {port} is no port; 65535 is the highest")
        if port and wanted.protocol == recorder_pb2.PROTOCOL_ANY:
            raise RecordingError(
                f"include[{at}].{name}: {port} needs a protocol that has ports: TCP, UDP or SCTP"
            )
    if wanted.protocol not in recorder_pb2.Protocol.values():
        raise RecordingError(f"include[{at}].protocol: {wanted.protocol} is none of the API")
    known = source or destination
    versions = (known.version,) if known else (4, 6)
    return [
        _row(source or _ANY[version], destination or _ANY[version], wanted, recording)
        for version in versions
    ]


def _network(at: int, field: str, text: str) -> Network | None:
    if not text:
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise RecordingError(f"include[{at}].{field}: {error}") from error


def _row(
    source: Network, destination: Network, wanted: recorder_pb2.Filter, recording: int
) -> bytes:
    row = abi.new(
        "capture_filter",
        sport=socket.htons(wanted.source_port),
        dport=socket.htons(wanted.destination_port),
        proto=wanted.protocol,
        family=_FAMILIES[source.version],
        recording=recording,
    )
    for field, network in (("s", source), ("d", destination)):
        for suffix, part in (("addr", network.network_address), ("mask", network.netmask)):
            target = getattr(row, field + suffix)
            abi.ffi.memmove(target, part.packed, len(part.packed))
    return abi.as_bytes(row)
