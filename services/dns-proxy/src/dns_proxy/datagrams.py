"""DNS over UDP: a listening socket per port and family, and sockets towards servers.

Queries of one client to one server share a socket with random transaction ids of its own. A socket
is used for a short while only, so that its port is as hard to guess as the id; it is closed when
the last query has its answer or none came in time.

Used from one event loop; every function runs from readiness to exhaustion, within limits, so that
no port can keep the others waiting.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final

from cilium_core.proxying import transparent
from cilium_core.telemetry import get_logger

from dns_proxy import records
from dns_proxy.answers import same_question
from dns_proxy.exchanges import TIMEOUT_S
from dns_proxy.replies import PROTOCOL_UDP, Replies, Sender

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from dns_proxy.exchanges import Exchange, Service
    from dns_proxy.gates import Gate

log = get_logger()

MAX_QUERY_BYTES: Final = 4096
BURST: Final = 64
"""Datagrams read before others get their turn."""

MAX_USES: Final = 256
MAX_AGE_S: Final = 2.0
"""How often and for how long a socket towards a server sends new queries."""

MAX_LINKS: Final = 8192
IDLE_S: Final = 30.0
RECEIVE_BUFFER_BYTES: Final = 4 << 20

_SO_RCVBUFFORCE: Final = 33


class _Entropy:
    """Random transaction ids, fetched from the kernel many at a time."""

    def __init__(self) -> None:
        self._pool = b""
        self._position = 0

    def ident(self) -> bytes:
        """Two random bytes."""
        position = self._position
        if position >= len(self._pool):
            self._pool, position = os.urandom(4096), 0
        self._position = position + 2
        return self._pool[position : position + 2]


_ENTROPY: Final = _Entropy()


class Upstream:
    """A socket from one client to one server."""

    __slots__ = ("_buffer", "_loop", "_service", "born_s", "pending", "sock", "uses")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        service: Service,
        sock: socket.socket,
        buffer: memoryview,
    ) -> None:
        self._loop = loop
        self._service = service
        self._buffer = buffer
        self.sock = sock
        self.pending: dict[bytes, Exchange] = {}
        """By transaction id, the oldest first."""
        self.uses = 0
        self.born_s = time.monotonic()
        loop.add_reader(sock.fileno(), self._readable)

    def ask(self, exchange: Exchange, data: bytes) -> None:
        """Send a query on."""
        pending = self.pending
        ident = _ENTROPY.ident()
        while ident in pending:
            ident = _ENTROPY.ident()
        pending[ident] = exchange
        self.uses += 1
        message = ident + data[2:]
        try:
            self.sock.send(message)
        except OSError:
            # It may be the error of an earlier query, which is reported once.
            try:
                self.sock.send(message)
            except OSError as error:
                del pending[ident]
                self._service.finish()
                log.debug("query not sent", error=str(error))
                self._service.fail(exchange, "not sent")

    def _readable(self) -> None:
        buffer, pending, service = self._buffer, self.pending, self._service
        receive = self.sock.recv_into
        for _ in range(BURST):
            try:
                size = receive(buffer)
            except BlockingIOError:
                return
            except OSError:
                self._unreachable()
                return
            data = bytes(buffer[:size])
            exchange = pending.get(data[:2])
            if exchange is None:
                service.disbelieved["id"] += 1
            elif not same_question(data, exchange.query.question):
                service.disbelieved["question"] += 1
            else:
                del pending[data[:2]]
                service.answered(exchange, data)

    def _unreachable(self) -> None:
        """The server's host says that nobody listens."""
        exchanges = list(self.pending.values())
        self.pending.clear()
        for exchange in exchanges:
            self._service.finish()
            self._service.fail(exchange, "unreachable")

    def expire(self, before_s: float) -> None:
        """Give up queries that were sent before a time."""
        late = []
        for ident, exchange in self.pending.items():
            if exchange.started_s > before_s:
                break
            late.append(ident)
        for ident in late:
            self._service.time_out(self.pending.pop(ident))

    def close(self) -> None:
        """Give the socket back."""
        self._loop.remove_reader(self.sock.fileno())
        self.sock.close()


class Link:
    """A client and a server that it asks."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        service: Service,
        client_host: str,
        server: Replies,
        ingress: bool,
        buffer: memoryview,
    ) -> None:
        self._loop = loop
        self._service = service
        self._buffer = buffer
        self._ingress = ingress
        self.client_host = client_host
        self.server = server
        self.used_s = 0.0
        self.record = records.connection(
            transparent.packed(client_host),
            transparent.packed(server.host),
            server.port,
            PROTOCOL_UDP,
        )
        self._current: Upstream | None = None
        self._retired: list[Upstream] = []

    def reply(self, exchange: Exchange, data: bytes) -> bool:
        """Send a message without its id to the client."""
        return self.server.send(exchange.head[:2] + data, exchange.client)

    def forward(self, exchange: Exchange, data: bytes) -> None:
        """Send a query to the server."""
        upstream = self._current
        self.used_s = now = exchange.started_s
        if upstream is None or upstream.uses >= MAX_USES or now - upstream.born_s > MAX_AGE_S:
            try:
                upstream = self._renew()
            except OSError as error:
                log.warning(
                    "no socket towards a server",
                    client=self.client_host,
                    server=self.server.host,
                    error=str(error),
                )
                self._service.finish()
                self._service.fail(exchange, "no socket")
                return
        upstream.ask(exchange, data)

    def _renew(self) -> Upstream:
        server = self.server
        own = self._ingress or server.local  # an answer of the node to itself must not leave it
        sock = transparent.upstream(
            socket.SOCK_DGRAM,
            None if own else (self.client_host, 0),
            family=transparent.family_of(server.host),
            mark=transparent.mark_of(ingress=self._ingress),
        )
        try:
            sock.connect((server.host, server.port))
        except OSError:
            sock.close()
            raise
        if self._current is not None:
            self._retired.append(self._current)
        self._current = Upstream(self._loop, self._service, sock, self._buffer)
        return self._current

    def sweep(self, now: float) -> bool:
        """Give up what is late and close what is out of use; False when nothing is left."""
        current = self._current
        for upstream in self._all():
            upstream.expire(now - TIMEOUT_S)
        for upstream in [one for one in self._retired if not one.pending]:
            upstream.close()
            self._retired.remove(upstream)
        if current is not None and not current.pending and now - current.born_s > MAX_AGE_S:
            current.close()
            self._current = None
        return bool(self._all()) or now - self.used_s < IDLE_S

    def close(self) -> None:
        """Give all sockets back; what is in flight stays unanswered."""
        for upstream in self._all():
            self._service.abandon(len(upstream.pending))
            upstream.close()
        self._retired.clear()
        self._current = None

    def _all(self) -> list[Upstream]:
        return self._retired + ([self._current] if self._current is not None else [])


class Datagrams:
    """All of DNS over UDP."""

    def __init__(self, loop: asyncio.AbstractEventLoop, service: Service) -> None:
        self._loop = loop
        self._service = service
        self._senders = {ingress: Sender(ingress=ingress) for ingress in (False, True)}
        self._servers: dict[tuple[bytes, bool], Replies] = {}
        self._links: dict[tuple[str, bytes, bool], Link] = {}
        self._buffer = memoryview(bytearray(65536))
        self.lost = 0
        """Queries that could not even be looked at."""

    def listen(self, host: str, port: int, gate: Callable[[], Gate]) -> socket.socket:
        """Serve a port; `gate` gives the rules in force. Raises `OSError`."""
        mark = transparent.mark_of(ingress=gate().redirect.ingress)
        sock = transparent.listener(host, port, socket.SOCK_DGRAM, mark=mark)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        self._loop.add_reader(sock.fileno(), self._readable, sock, gate)
        return sock

    def stop(self, sock: socket.socket) -> None:
        """Stop serving on a socket."""
        self._loop.remove_reader(sock.fileno())
        sock.close()

    def _readable(self, sock: socket.socket, gate: Callable[[], Gate]) -> None:
        admit, rules, links = self._service.admit, gate(), self._links
        ingress = rules.redirect.ingress
        receive, room = sock.recvmsg, transparent.ORIGINAL_DESTINATION_BYTES
        for _ in range(BURST):
            try:
                data, ancillary, flags, sender = receive(MAX_QUERY_BYTES, room)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("nothing received", error=str(error))
                return
            if flags & socket.MSG_TRUNC or not ancillary:
                self.lost += 1
                continue
            link = links.get((sender[0], ancillary[0][2], ingress))
            if link is None:
                link = self._link(sender[0], ancillary, ingress)
                if link is None:
                    self.lost += 1
                    continue
            admit(rules, link, sender, data, link.forward)

    def _link(
        self, client: str, ancillary: list[tuple[int, int, bytes]], ingress: bool
    ) -> Link | None:
        """The link of a client that asks a server for the first time in a while."""
        meant = transparent.original_destination(ancillary)
        if meant is None or len(self._links) >= MAX_LINKS:
            return None
        if meant[0] in transparent.LOOPBACKS:
            # Nobody was redirected: a process of the node means the proxy, which would ask itself.
            return None
        place = ancillary[0][2], ingress
        server = self._servers.get(place)
        if server is None:
            server = self._servers[place] = Replies(*meant, self._senders[ingress])
        link = Link(self._loop, self._service, client, server, ingress, self._buffer)
        link.used_s = time.monotonic()
        self._links[(client, *place)] = link
        return link

    def sweep(self) -> None:
        """Give up what is late, close what is out of use. Call it about twice a second."""
        now = time.monotonic()
        for key in [key for key, link in self._links.items() if not link.sweep(now)]:
            del self._links[key]
        used = {key[1:] for key in self._links}
        for place in [place for place in self._servers if place not in used]:
            del self._servers[place]

    def close(self) -> None:
        """Give all sockets towards servers and clients back."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._servers.clear()
        for sender in self._senders.values():
            sender.close()
