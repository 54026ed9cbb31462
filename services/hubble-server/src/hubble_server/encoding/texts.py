"""Texts in flows: addresses, summaries, names of source files."""

from __future__ import annotations

import socket
from typing import Final

from cilium_core import abi
from flow import flow_pb2

TCP: Final = 6
UDP: Final = 17
ICMPV4: Final = 1
ICMPV6: Final = 58
SCTP: Final = 132

TCP_FLAG_BITS: Final = {
    "FIN": 1,
    "SYN": 2,
    "RST": 4,
    "PSH": 8,
    "ACK": 16,
    "URG": 32,
    "ECE": 64,
    "CWR": 128,
}
"""Bits of the header byte; the ninth flag, NS, is not in it."""

SCTP_CHUNKS: Final = {
    1: flow_pb2.INIT,
    2: flow_pb2.INIT_ACK,
    6: flow_pb2.ABORT,
    7: flow_pb2.SHUTDOWN,
    8: flow_pb2.SHUTDOWN_ACK,
    14: flow_pb2.SHUTDOWN_COMPLETE,
}
"""Types of chunks that flows tell, by their numbers in packets (RFC 9260, section 3.2)."""

_SUMMARY_FLAGS = ("SYN", "ACK", "RST", "FIN", "PSH", "URG", "ECE", "CWR")

# Names as in gopacket, which Hubble prints.
_ICMPV4_TYPES = {
    0: "EchoReply",
    3: "DestinationUnreachable",
    4: "SourceQuench",
    5: "Redirect",
    8: "EchoRequest",
    9: "RouterAdvertisement",
    10: "RouterSolicitation",
    11: "TimeExceeded",
    12: "ParameterProblem",
    13: "TimestampRequest",
    14: "TimestampReply",
    15: "InfoRequest",
    16: "InfoReply",
    17: "AddressMaskRequest",
    18: "AddressMaskReply",
}
_ICMPV4_CODES = {
    3: (
        "Net", "Host", "Protocol", "Port", "FragmentationNeeded", "SourceRoutingFailed",
        "NetUnknown", "HostUnknown", "SourceIsolated", "NetAdminProhibited",
        "HostAdminProhibited", "NetTOS", "HostTOS", "CommAdminProhibited", "HostPrecedence",
        "PrecedenceCutoff",
    ),
    5: ("Net", "Host", "TOS+Net", "TOS+Host"),
    11: ("TTLExceeded", "FragmentReassemblyTimeExceeded"),
    12: ("PointerIndicatesError", "MissingOption", "BadLength"),
}  # fmt: skip
_ICMPV6_TYPES = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    4: "ParameterProblem",
    128: "EchoRequest",
    129: "EchoReply",
    133: "RouterSolicitation",
    134: "RouterAdvertisement",
    135: "NeighborSolicitation",
    136: "NeighborAdvertisement",
    137: "Redirect",
}
_ICMPV6_CODES = {
    1: (
        "NoRouteToDst", "AdminProhibited", "BeyondScopeOfSrc", "AddressUnreachable",
        "PortUnreachable", "SrcAddressFailedPolicy", "RejectRouteToDst",
    ),
    3: ("HopLimitExceeded", "FragmentReassemblyTimeExceeded"),
    4: ("ErroneousHeaderField", "UnrecognizedNextHeader", "UnrecognizedIPv6Option"),
}  # fmt: skip

_POINTS = {"LXC": "endpoint", "DEVICE": "network"}

TRACE_POINTS: Final = {
    int(number): "-".join(
        _POINTS.get(part, part.lower()) for part in name.removeprefix("TRACE_").split("_")
    )
    for name, number in abi.enum("trace_point").__members__.items()
}
"""Where a traced packet was seen, by the subtype of its event."""

_FIRST_HEADER = 101
"""Numbers from here on are headers, as in Hubble; below are the programs' own files."""


def _file_of(name: str, number: int) -> str:
    stem = name.removeprefix("FILE_").lower()
    return f"{stem}.h" if number >= _FIRST_HEADER else f"bpf_{stem}.c"


_FILES = {
    int(number): _file_of(name, number)
    for name, number in abi.enum("source_file").__members__.items()
}


def address_text(packed: bytes, is_ipv6: bool) -> str:
    """Text of an address given as 16 bytes, IPv4 in the first four."""
    if not is_ipv6:
        return f"{packed[0]}.{packed[1]}.{packed[2]}.{packed[3]}"
    if packed[:12] == bytes(12) and packed[12:14] != b"\0\0":
        # inet_ntop would end these in dotted form, which clients do not expect.
        return f"::{int.from_bytes(packed[12:14], 'big'):x}:{int.from_bytes(packed[14:], 'big'):x}"
    return socket.inet_ntop(socket.AF_INET6, packed)


def mac_text(packed: bytes) -> str:
    """Text of a MAC address."""
    return packed.hex(":")


def file_name(number: int) -> str:
    """Name of the eBPF source file behind a drop."""
    return _FILES.get(number, f"unknown({number})")


def summary(
    *, has_ip: bool, has_l4: bool, is_ipv6: bool, protocol: int, first: int, second: int, flags: int
) -> str:
    """One line about a packet. `first` and `second` are ports, or ICMP type and code."""
    if not has_ip:
        return "Ethernet"
    if has_l4:
        if protocol == TCP:
            names = [name for name in _SUMMARY_FLAGS if flags & TCP_FLAG_BITS[name]]
            return "TCP Flags: " + ", ".join(names)
        if protocol == UDP:
            return "UDP"
        if protocol == SCTP:
            return "SCTP"
        if protocol == ICMPV4:
            return "ICMPv4 " + _icmp(_ICMPV4_TYPES, _ICMPV4_CODES, first, second)
        if protocol == ICMPV6:
            return "ICMPv6 " + _icmp(_ICMPV6_TYPES, _ICMPV6_CODES, first, second)
    return "IPv6" if is_ipv6 else "IPv4"


def socket_summary(protocol: int) -> str:
    """One line about a translation at a socket."""
    return {TCP: "TCP", UDP: "UDP"}.get(protocol, "Unknown")


def _icmp(types: dict[int, str], codes: dict[int, tuple[str, ...]], kind: int, code: int) -> str:
    name = types.get(kind)
    if name is None:
        return f"{kind}({code})"
    known = codes.get(kind)
    if known is None:
        return name if code == 0 else f"{name}(Code: {code})"
    return f"{name}({known[code]})" if code < len(known) else f"{name}(Code: {code})"
