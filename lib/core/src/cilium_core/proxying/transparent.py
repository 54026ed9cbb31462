"""Sockets that speak under the addresses of others.

A listener stands on a loopback address and is handed packets to any address and port: the data
plane assigns them to it. Towards the server a proxy of outgoing traffic speaks from the client's
own address, towards the client from the server's; both need `IP_TRANSPARENT`, and so
CAP_NET_ADMIN. All that a proxy sends, to servers and to clients, carries the mark of its direction
(`mark_of`), by which the data plane knows that it was judged already. Constants are those of the
kernel's in.h, in6.h and socket.h, which Python lacks.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

IP_TRANSPARENT: Final = 19
IP_ORIGDSTADDR: Final = 20
IPV6_ORIGDSTADDR: Final = 74
IPV6_TRANSPARENT: Final = 75

MARK_INGRESS: Final = 0x0A00
MARK_EGRESS: Final = 0x0B00
"""Marks of packets that a proxy of incoming or outgoing traffic sends."""

LOOPBACKS: Final = ("127.0.0.1", "::1")
"""Where a redirect's port is listened on."""

ORIGINAL_DESTINATION_BYTES: Final = socket.CMSG_SPACE(28)
"""Room for the original destination in the ancillary data of a received datagram."""

_PORT = struct.Struct("!H")


def family_of(host: str) -> socket.AddressFamily:
    """The family of an address in text form."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def usable(host: str) -> bool:
    """Whether the node speaks the family of a loopback address."""
    try:
        with contextlib.closing(socket.socket(family_of(host), socket.SOCK_DGRAM)) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def mark_of(*, ingress: bool) -> int:
    """The mark of a proxy's sockets; the kernel gives accepted ones that of their listener."""
    return MARK_INGRESS if ingress else MARK_EGRESS


def listener(
    host: str, port: int, kind: socket.SocketKind, *, mark: int, backlog: int = 1024
) -> socket.socket:
    """A socket that takes connections or datagrams to foreign addresses; not blocking.

    A datagram socket reports the original destination of each, see `original_destination`; that of
    a connection is the accepted socket's own name. Raises `OSError`.
    """
    sock = _transparent(family_of(host), kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind is socket.SOCK_STREAM)
        if kind is socket.SOCK_DGRAM:
            if sock.family is socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_ORIGDSTADDR, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_ORIGDSTADDR, 1)
        sock.bind((host, port))
        if kind is socket.SOCK_STREAM:
            sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def upstream(
    kind: socket.SocketKind, source: tuple[str, int] | None, *, family: int, mark: int
) -> socket.socket:
    """A socket towards servers, not connected and not blocking.

    `source` is the foreign address and port to speak from; port 0 lets the kernel choose one at
    random. None speaks from the node's own address. Raises `OSError`.
    """
    sock = _socket(family, kind) if source is None else _transparent(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if source is not None:
            sock.bind(source)
    except OSError:
        sock.close()
        raise
    return sock


def impersonator(host: str, port: int, *, mark: int) -> socket.socket:
    """A datagram socket that answers clients from a server's address and port. Raises `OSError`.

    While it is open nobody else can listen there, and it would take the server's own datagrams if
    the server is on this node: close it soon.
    """
    sock = _transparent(family_of(host), socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def original_destination(ancillary: Iterable[tuple[int, int, bytes]]) -> tuple[str, int] | None:
    """Whom a received datagram was meant for; None when the kernel does not say."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_ORIGDSTADDR and len(data) >= 8:
            return socket.inet_ntop(socket.AF_INET, data[4:8]), _PORT.unpack_from(data, 2)[0]
        if level == socket.IPPROTO_IPV6 and kind == IPV6_ORIGDSTADDR and len(data) >= 24:
            return socket.inet_ntop(socket.AF_INET6, data[8:24]), _PORT.unpack_from(data, 2)[0]
    return None


@lru_cache(maxsize=8192)
def is_local(host: str) -> bool:
    """Whether the node itself has an address. Packets to such a one never meet the data plane."""
    with contextlib.closing(socket.socket(family_of(host), socket.SOCK_DGRAM)) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def packed(host: str) -> bytes:
    """An address as 4 or 16 bytes; IPv4 written as IPv6 becomes IPv4. Raises `ValueError`."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).packed


def _socket(family: int, kind: socket.SocketKind) -> socket.socket:
    """A socket that says its protocol, without which asyncio does not turn Nagle's delay off."""
    protocol = socket.IPPROTO_TCP if kind is socket.SOCK_STREAM else socket.IPPROTO_UDP
    return socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)


def _transparent(family: int, kind: socket.SocketKind) -> socket.socket:
    sock = _socket(family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    except OSError:
        with contextlib.suppress(OSError):
            sock.close()
        raise
    return sock
