"""How answers get back to clients: from the address and port that the client asked.

A socket is bound to each server's address and port. Where the node itself has that address, such a
socket would take the real server's datagrams away; there, answers are written as raw packets.
"""

from __future__ import annotations

import socket
from struct import Struct
from typing import Final

from cilium_core.proxying import transparent

PROTOCOL_UDP: Final = socket.IPPROTO_UDP

_UDP = Struct("!HHHH")
_IPV4 = Struct("!BBHHHBBH4s4s")
_IPV6 = Struct("!IHBB16s16s")
_PSEUDO = Struct("!IBBH")
_HOPS: Final = 64


class Replies:
    """Answers clients in the name of one server. Raises `OSError` when it cannot be made."""

    def __init__(self, host: str, port: int, *, mark: int) -> None:
        self.host, self.port = host, port
        self.local = transparent.is_local(host)
        """Whether the node itself has the address."""
        self._raw = self.local
        self._socket = (
            raw_socket(host, mark=mark)
            if self.local
            else transparent.impersonator(host, port, mark=mark)
        )

    def send(self, data: bytes, client: tuple[str, int]) -> bool:
        """Send a datagram; False when the kernel refuses it, as it may under load."""
        try:
            if self._raw:
                packet = raw_packet(self.host, self.port, client, data)
                self._socket.sendto(packet, (client[0], 0))
            else:
                self._socket.sendto(data, client)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()


def raw_socket(host: str, *, mark: int) -> socket.socket:
    """A socket that sends whole packets of the address's family."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    sock = socket.socket(transparent.family_of(host), kind, socket.IPPROTO_RAW)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    return sock


def raw_packet(host: str, port: int, client: tuple[str, int], data: bytes) -> bytes:
    """A UDP datagram from a server to a client, from its IP header on."""
    source, target = transparent.packed(host), transparent.packed(client[0])
    size = _UDP.size + len(data)
    pseudo = source + target + _PSEUDO.pack(size, 0, 0, PROTOCOL_UDP)
    head = _UDP.pack(port, client[1], size, 0)
    checksum = internet_checksum(pseudo + head + data) or 0xFFFF
    datagram = _UDP.pack(port, client[1], size, checksum) + data
    if len(source) == 4:
        # The kernel fills in identification and checksum.
        ip = _IPV4.pack(0x45, 0, _IPV4.size + size, 0, 0, _HOPS, PROTOCOL_UDP, 0, source, target)
    else:
        ip = _IPV6.pack(6 << 28, size, PROTOCOL_UDP, _HOPS, source, target)
    return ip + datagram


def internet_checksum(data: bytes) -> int:
    """The ones' complement of the ones' complement sum of 16-bit words (RFC 1071)."""
    padded = data + b"\0" if len(data) % 2 else data
    total: int = sum(Struct(f"!{len(padded) // 2}H").unpack(padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
