"""Ethernet frames by hand: scapy takes longer to build one than the kernel to judge a hundred."""

from __future__ import annotations

import struct

TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
SYN, ACK = 0x02, 0x10


def frame(
    source: bytes,
    target: bytes,
    protocol: int,
    sport: int,
    dport: int,
    *,
    tcp_flags: int = SYN,
    macs: bytes = bytes.fromhex("020000000101020000000001"),
) -> bytes:
    """A frame between two packed addresses of one family.

    For ICMP, `dport` is the type of the message and `sport` its identifier.
    """
    body = _BODIES[protocol](sport, dport, tcp_flags)
    if len(source) == 4:
        head = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0, source, target
        )
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        kind = b"\x08\x00"
    else:
        head = struct.pack("!IHBB16s16s", 6 << 28, len(body), protocol, 64, source, target)
        kind = b"\x86\xdd"
    return macs + kind + head + body


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def _tcp(sport: int, dport: int, flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", sport, dport, 1, 1, 5 << 4, flags, 8192, 0, 0)


def _udp(sport: int, dport: int, _: int) -> bytes:
    return struct.pack("!HHHH8s", sport, dport, 16, 0, b"question")


def _sctp(sport: int, dport: int, _: int) -> bytes:
    return struct.pack("!HHII", sport, dport, 0, 0) + b"\x01\0\0\x14" + bytes(16)


def _icmp(identifier: int, kind: int, _: int) -> bytes:
    return struct.pack("!BBHHH8s", kind, 0, 0, identifier, 1, b"question")


_BODIES = {TCP: _tcp, UDP: _udp, SCTP: _sctp, ICMP: _icmp, ICMP6: _icmp}
