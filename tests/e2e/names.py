"""A small authoritative name server, and a client's half of the protocol (standard library only).

Zones are one object, names in lower case without the final dot:

    {"api.example.com": {"A": ["192.0.2.1"], "AAAA": [], "ttl": 60},
     "www.example.com": {"CNAME": "api.example.com"}}

A name with a CNAME is answered with the chain; a name that is not there, with NXDOMAIN.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import struct
from typing import Any, cast

TYPES = {"A": 1, "CNAME": 5, "AAAA": 28}
CODES = {0: "NOERROR", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED"}
_IN = 1
_RESPONSE, _AUTHORITATIVE = 0x8000, 0x0400
_DEFAULT_TTL_S = 60

Zones = dict[str, dict[str, Any]]


def encode(name: str) -> bytes:
    """A name on the wire."""
    labels = [label for label in name.rstrip(".").split(".") if label]
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


def decode(message: bytes, at: int) -> tuple[str, int]:
    """The name that begins at an offset, without the final dot, and where it ends."""
    labels: list[str] = []
    end = None
    while size := message[at]:
        if size >= 0xC0:
            end = end or at + 2
            at = (size & 0x3F) << 8 | message[at + 1]
            continue
        labels.append(message[at + 1 : at + 1 + size].decode())
        at += 1 + size
    return ".".join(labels), end or at + 1


def query(name: str, kind: str = "A") -> bytes:
    """A question with an id of its own."""
    head = os.urandom(2) + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0)
    return head + encode(name) + struct.pack("!HH", TYPES[kind], _IN)


def told(question: bytes, answer: bytes) -> str:
    """What an answer says: its code's name and every address in it; "garbled" for nonsense."""
    if answer[:2] != question[:2] or len(answer) < 12:
        return "garbled"
    flags, questions, answers = struct.unpack_from("!HHH", answer, 2)
    at = 12
    for _ in range(questions):
        at = decode(answer, at)[1] + 4
    words = [CODES.get(flags & 15, f"code {flags & 15}")]
    for _ in range(answers):
        at = decode(answer, at)[1]
        kind, _, _, size = struct.unpack_from("!HHIH", answer, at)
        if kind in (TYPES["A"], TYPES["AAAA"]):
            words.append(str(ipaddress.ip_address(answer[at + 10 : at + 10 + size])))
        at += 10 + size
    return " ".join(words)


def answer(zones: Zones, message: bytes) -> bytes:
    """The zones' answer to a question."""
    name, end = decode(message, 12)
    (kind,) = struct.unpack_from("!H", message, end)
    question = message[12 : end + 4]
    records: list[bytes] = []
    current, known = name.lower(), name.lower() in zones
    while (zone := zones.get(current)) is not None:
        ttl = zone.get("ttl", _DEFAULT_TTL_S)
        if alias := zone.get("CNAME"):
            records.append(_record(current, TYPES["CNAME"], ttl, encode(alias)))
            current = alias.lower()
            continue
        wanted = next((word for word, number in TYPES.items() if number == kind), "")
        records += [
            _record(current, kind, ttl, ipaddress.ip_address(address).packed)
            for address in zone.get(wanted, ())
        ]
        break
    flags = _RESPONSE | _AUTHORITATIVE | (0 if known else 3)
    head = message[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0)
    return head + question + b"".join(records)


def _record(name: str, kind: int, ttl: int, data: bytes) -> bytes:
    return encode(name) + struct.pack("!HHIH", kind, _IN, ttl, len(data)) + data


async def serve(zones: Zones, port: int = 53) -> None:
    """Answer on UDP and TCP, on both families, until the loop ends."""
    loop = asyncio.get_running_loop()

    class Datagrams(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.DatagramTransport", transport)

        def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
            with contextlib.suppress(IndexError, struct.error):
                self.transport.sendto(answer(zones, data), addr)

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, IndexError, struct.error):
            while True:
                (size,) = struct.unpack("!H", await reader.readexactly(2))
                said = answer(zones, await reader.readexactly(size))
                writer.write(struct.pack("!H", len(said)) + said)
        writer.close()

    for host, family in (("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)):
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        datagrams.bind((host, port))
        await loop.create_datagram_endpoint(Datagrams, sock=datagrams)
        await asyncio.start_server(stream, host, port)
