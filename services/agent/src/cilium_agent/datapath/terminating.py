"""Ends sockets that are connected to a backend which is gone, as the kernel's sock_diag allows.

A connected UDP socket would go on sending to nobody for ever: it asked for the service once. Its
process is told by ECONNABORTED and asks anew. Sockets that send each datagram to the service need
nothing, their next one goes to another backend; those that asked for the backend itself, and not
for the service, are left alone.

Whose sockets it is about is in cilium_lb_reverse_sk; only when there are any are namespaces looked
into, each in a thread of its own.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import structlog
from cilium_core import abi

from cilium_agent.datapath import netns, syscalls
from cilium_agent.datapath.errors import BpfError, NamespaceError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from cilium_core.services import L4Address

    from cilium_agent.datapath.maps import Maps

_log = structlog.get_logger(__name__)

# linux/netlink.h, linux/sock_diag.h
_SOCK_DIAG = 4
_BY_FAMILY, _DESTROY = 20, 21
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_INET_REQUEST = struct.Struct("=BBBBI")
"""family, protocol, extensions, pad, states; a socket's id follows."""
_ID = struct.Struct("=2s2s16s16sI8s")
"""Ports, addresses, device, cookie."""
_ID_AT = 4
"""Where the id is in an answer."""
_ALL_STATES = 0xFFFFFFFF
_BUFFER = 1 << 18
_MAPPED = bytes(10) + b"\xff\xff"
_PROTOCOLS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)


@dataclass(frozen=True, slots=True)
class _Peer:
    """Whom a socket is connected to."""

    protocol: int
    address: bytes
    """16 bytes; IPv4 in the first four."""
    port: bytes
    """In network order."""


class Terminator:
    """Finds and ends the sockets of backends."""

    def __init__(self, maps: Maps) -> None:
        self._sockets = maps["LB_SOCKETS"]

    def terminate(self, backends: Iterable[L4Address], namespaces: Iterable[Path | None]) -> int:
        """End the sockets that got one of the backends from a service; returns how many.

        `namespaces` are those to look into, None for the caller's own; one that is gone meanwhile
        has no sockets. Backends of other protocols than TCP and UDP have none either.
        """
        peers = {_peer(each) for each in backends if each.protocol in _PROTOCOLS}
        if not peers:
            return 0
        syscalls.wait_for_running_programs()  # which may have chosen one of them just before
        cookies = self._cookies({(peer.address, peer.port) for peer in peers})
        if not cookies:
            return 0
        ended = 0
        for path in namespaces:
            try:
                if path is None:
                    ended += _end(peers, cookies)
                else:
                    ended += netns.run_inside(path, lambda: _end(peers, cookies))
            except NamespaceError as error:
                _log.debug("namespace is gone", error=str(error))
        return ended

    def _cookies(self, addresses: Collection[tuple[bytes, bytes]]) -> set[bytes]:
        """Cookies of the sockets that were given one of the addresses."""
        wanted = np.array([address + port for address, port in addresses], dtype="V18")
        width, start = abi.sizeof("lb_socket_key"), abi.fields("lb_socket_key")["addr"][0]
        found: set[bytes] = set()
        for keys, _, count in self._sockets.batches():
            rows = np.frombuffer(keys, dtype=np.uint8).reshape(count, width)
            at = np.ascontiguousarray(rows[:, start : start + wanted.itemsize]).view("V18").ravel()
            for row in rows[np.isin(at, wanted)]:
                found.add(row[:8].tobytes())
        return found


def _peer(backend: L4Address) -> _Peer:
    return _Peer(
        int(backend.protocol),
        backend.address.packed.ljust(16, b"\0"),
        backend.port.to_bytes(2, "big"),
    )


def _end(peers: Collection[_Peer], cookies: Collection[bytes]) -> int:
    """End those sockets of the calling thread's namespace."""
    ended = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as netlink:
        for protocol in {peer.protocol for peer in peers}:
            for family in (socket.AF_INET, socket.AF_INET6):
                for identity in list(_dump(netlink, family, protocol)):
                    peer, cookie = _of(identity, family, protocol)
                    if cookie in cookies and peer in peers:
                        ended += _destroy(netlink, family, protocol, identity)
    return ended


def _of(identity: bytes, family: int, protocol: int) -> tuple[_Peer, bytes]:
    _, port, _, address, _, cookie = _ID.unpack(identity)
    if family == socket.AF_INET:
        address = address[:4].ljust(16, b"\0")
    elif address.startswith(_MAPPED):
        address = address[12:].ljust(16, b"\0")
    return _Peer(protocol, address, port), cookie


def _request(kind: int, flags: int, family: int, protocol: int, identity: bytes) -> bytes:
    body = _INET_REQUEST.pack(family, protocol, 0, 0, _ALL_STATES) + identity
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


def _dump(netlink: socket.socket, family: int, protocol: int) -> Iterator[bytes]:
    """Ids of all sockets of a family and protocol."""
    nobody = bytes(_ID.size)
    netlink.send(_request(_BY_FAMILY, _REQUEST | _DUMP, family, protocol, nobody))
    while True:
        for kind, body in _messages(netlink.recv(_BUFFER)):
            if kind == _DONE:
                return
            if kind == _ERROR:
                raise BpfError("list of sockets", -struct.unpack_from("=i", body)[0])
            yield body[_ID_AT : _ID_AT + _ID.size]


def _destroy(netlink: socket.socket, family: int, protocol: int, identity: bytes) -> bool:
    """End one socket; tells whether it was there still."""
    netlink.send(_request(_DESTROY, _REQUEST | _ACK, family, protocol, identity))
    for kind, body in _messages(netlink.recv(_BUFFER)):
        if kind == _ERROR:
            number = -struct.unpack_from("=i", body)[0]
            if number:
                _log.info("socket was not ended", peer=_text(identity), error=os.strerror(number))
            return not number
    return False


def _text(identity: bytes) -> str:
    _, port, _, address, *_ = _ID.unpack(identity)
    return f"{ipaddress.ip_address(address)} port {int.from_bytes(port, 'big')}"


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + length]
        at += -(-length // 4) * 4
