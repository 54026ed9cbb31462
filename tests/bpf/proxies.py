"""A transparent proxy for tests: real sockets on a node, which pass on what they get.

It does what every proxy of the node has to: a transparent listener on the loopback address, the
mark of its kind on every socket, the original destination as the server, and for egress the
client's own address towards the server.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cilium_core import abi
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from tests.bpf.harness import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_IP_RECVORIGDSTADDR, _IPV6_RECVORIGDSTADDR = 20, 74
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_LIMIT_S = 10.0


@dataclass(frozen=True)
class Seen:
    """A connection, or the first datagram of one, as the proxy saw it."""

    client: str
    client_port: int
    server: str
    server_port: int


@dataclass
class Proxy:
    """A proxy in a node's namespace; entering starts it, leaving closes all its sockets."""

    node: Namespace
    family: int
    kind: int = socket.SOCK_STREAM
    ingress: bool = False
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    refused: int = 0
    """Datagrams that came to nobody, as the network has told."""
    _open: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _clients: dict[Any, socket.socket] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Proxy:
        listener = self._socket()
        listener.bind((_LOOPBACK[self.family], self.port))
        self.port = listener.getsockname()[1]
        if self.kind == socket.SOCK_STREAM:
            listener.listen()
            self._start(self._accept, listener)
        else:
            if self.family == 4:
                listener.setsockopt(socket.SOL_IP, _IP_RECVORIGDSTADDR, 1)
            else:
                listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR, 1)
            self._start(self._receive, listener)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for each in self._open:
            each.close()

    def _socket(self, kind: int = 0) -> socket.socket:
        def make() -> socket.socket:
            protocol = socket.IPPROTO_RAW if kind else 0
            made = socket.socket(_FAMILIES[self.family], kind or self.kind, protocol)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            mark = abi.MARK_PROXY_INGRESS if self.ingress else abi.MARK_PROXY_EGRESS
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if self.family == 4:
                made.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
            else:
                if not kind:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
            made.settimeout(0.05)
            return made

        made: socket.socket = self.node.call(make)
        self._open.append(made)
        return made

    def _start(self, function: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    # ---- streams ----

    def _accept(self, listener: socket.socket) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                client, peer = listener.accept()
                self._open.append(client)
                server = client.getsockname()
                self.seen.append(Seen(peer[0], peer[1], server[0], server[1]))
                self._start(self._serve, client, peer, server)

    def _serve(self, client: socket.socket, peer: Any, server: Any) -> None:
        upstream = self._socket()
        upstream.settimeout(_LIMIT_S)
        try:
            if not self.ingress:
                upstream.bind((peer[0], 0))
            upstream.connect(server[:2])
        except OSError:
            client.close()
            return
        client.setblocking(False)
        upstream.setblocking(False)
        with selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ, upstream)
            ready.register(upstream, selectors.EVENT_READ, client)
            while ready.get_map() and not self._over.is_set():
                for key, _ in ready.select(0.05):
                    if not _pass_on(key.fileobj, key.data):
                        ready.unregister(key.fileobj)
        if not self._over.is_set():
            client.close()
            upstream.close()

    # ---- datagrams ----

    def _receive(self, listener: socket.socket) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                data, control, _, peer = listener.recvmsg(65535, 256)
                server = _original(control)
                if peer[:2] not in self._clients:
                    self.seen.append(Seen(peer[0], peer[1], server[0], server[1]))
                    self._clients[peer[:2]] = self._upstream(peer, server)
                self._clients[peer[:2]].send(data)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except ConnectionRefusedError:
            self.refused += 1

    def _upstream(self, peer: Any, server: tuple[str, int]) -> socket.socket:
        """With the very address and port of the client, as a DNS server wants to see it."""
        upstream = self._socket()
        if not self.ingress:
            upstream.bind(peer[:2])
        upstream.connect(server)
        self._start(self._answer, upstream, peer, server)
        return upstream

    def _answer(self, upstream: socket.socket, peer: Any, server: tuple[str, int]) -> None:
        """As the server: past sockets, of which the server may have one on this very node."""
        raw = self._socket(socket.SOCK_RAW)
        layer = IP if self.family == 4 else IPv6
        header = layer(src=server[0], dst=peer[0]) / UDP(sport=server[1], dport=peer[1])
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError), self._refusals():
                raw.sendto(bytes(header / Raw(upstream.recv(65535))), (peer[0], 0))


def _pass_on(source: Any, target: socket.socket) -> bool:
    """Copy what is there; False at the end of the stream or of one of the connections."""
    try:
        data = source.recv(1 << 16)
        if not data:
            target.shutdown(socket.SHUT_WR)
            return False
        target.setblocking(True)
        target.settimeout(_LIMIT_S)
        target.sendall(data)
        target.setblocking(False)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return True
        with contextlib.suppress(OSError):
            reset(target)
        return False
    return True


def reset(connected: socket.socket) -> None:
    """Close with RST."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connected.close()


def _original(control: list[tuple[int, int, bytes]]) -> tuple[str, int]:
    """Original destination out of a datagram's control messages."""
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_IP, _IP_RECVORIGDSTADDR):
            port, address = struct.unpack_from("!H4s", data, 2)
            return socket.inet_ntop(socket.AF_INET, address), port
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR):
            port, _, address = struct.unpack_from("!HI16s", data, 2)
            return socket.inet_ntop(socket.AF_INET6, address), port
    raise LookupError("a datagram came without its original destination")
