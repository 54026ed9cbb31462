"""How answers get back to clients: from the address and port that the client asked.

Answers are written as raw packets. A socket bound to the server's address would keep a server of
this very node from starting, or take its datagrams away. Only an answer that does not fit into one
packet goes through such a socket, for as long as it takes to send it, and not if the server is
here: then the client is told to ask again by TCP.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from struct import Struct
from typing import Final

from cilium_core.proxying import transparent

from dns_proxy.messages import HEADER_BYTES

PROTOCOL_UDP: Final = socket.IPPROTO_UDP

_UDP = Struct("!HHHH")
_IPV4 = Struct("!BBHHHBBH4s4s")
_IPV6 = Struct("!IHBB16s16s")
_PSEUDO = Struct("!IBBH")
_HOPS: Final = 64


class Sender:
    """Sends raw packets of both families, with the mark of one direction."""

    def __init__(self, *, ingress: bool) -> None:
        self.mark = transparent.mark_of(ingress=ingress)
        self._sockets: dict[socket.AddressFamily, socket.socket] = {}

    def send(self, packet: bytes, host: str) -> None:
        """Send a packet, from its IP header on, to where it says. Raises `OSError`."""
        family = transparent.family_of(host)
        sock = self._sockets.get(family)
        if sock is None:
            sock = self._sockets[family] = self._open(family)
        sock.sendto(packet, (host, 0))

    def _open(self, family: socket.AddressFamily) -> socket.socket:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        sock = socket.socket(family, kind, socket.IPPROTO_RAW)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.mark)
        return sock

    def close(self) -> None:
        """Give the sockets back."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()


class Replies:
    """Answers clients in the name of one server."""

    def __init__(self, host: str, port: int, sender: Sender) -> None:
        self.host, self.port = host, port
        self.local = transparent.is_local(host)
        """Whether the node itself has the address."""
        self._packed = transparent.packed(host)
        self._sender = sender

    def send(self, data: bytes, client: tuple[str, int]) -> bool:
        """Send a datagram; False when the kernel refuses it, as it may under load."""
        try:
            self._sender.send(self._packet(client, data), client[0])
        except OSError as error:
            return error.errno == errno.EMSGSIZE and self._send_large(data, client)
        return True

    def _send_large(self, data: bytes, client: tuple[str, int]) -> bool:
        """Have the kernel make fragments, or the client ask by TCP."""
        with contextlib.suppress(OSError):
            if not self.local:
                mark = self._sender.mark
                with contextlib.closing(
                    transparent.impersonator(self.host, self.port, mark=mark)
                ) as sock:
                    sock.sendto(data, client)
                return True
        try:
            self._sender.send(self._packet(client, truncated(data)), client[0])
        except OSError:
            return False
        return True

    def _packet(self, client: tuple[str, int], data: bytes) -> bytes:
        target = transparent.packed(client[0])
        return raw_packet(self._packed, self.port, target, client[1], data)


def truncated(data: bytes) -> bytes:
    """A response without its records, which says that they did not fit."""
    end = data.index(0, HEADER_BYTES) + 5 if data[4:6] == b"\x00\x01" else HEADER_BYTES
    head = data[:2] + bytes((data[2] | 0x02,)) + data[3:6] + bytes(6)
    return head + data[HEADER_BYTES:end]


def raw_packet(source: bytes, port: int, target: bytes, target_port: int, data: bytes) -> bytes:
    """A UDP datagram, from its IP header on; addresses are 4 or 16 bytes, both the same."""
    size = _UDP.size + len(data)
    pseudo = source + target + _PSEUDO.pack(size, 0, 0, PROTOCOL_UDP)
    head = _UDP.pack(port, target_port, size, 0)
    checksum = internet_checksum(pseudo + head + data) or 0xFFFF
    datagram = _UDP.pack(port, target_port, size, checksum) + data
    if len(source) == 4:
        # The kernel fills in identification and checksum.
        ip = _IPV4.pack(0x45, 0, _IPV4.size + size, 0, 0, _HOPS, PROTOCOL_UDP, 0, source, target)
    else:
        ip = _IPV6.pack(6 << 28, size, PROTOCOL_UDP, _HOPS, source, target)
    return ip + datagram


def internet_checksum(data: bytes) -> int:
    """The ones' complement of the ones' complement sum of 16-bit words (RFC 1071)."""
    padded = data + b"\0" if len(data) % 2 else data
    # 65536 is 1 modulo 65535, so the sum of the words is the whole number's remainder.
    return 0xFFFF - (int.from_bytes(padded, "big") % 0xFFFF or (0xFFFF if any(padded) else 0))
