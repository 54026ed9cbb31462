"""DNS over TCP: each client connection has one connection to the server that it meant.

Messages are framed by their length. Every query of a connection is judged by itself, also when the
client does not wait for answers; answers go back in the order in which servers give them. When
either side closes, the other is closed too.

Used from one event loop, one task for each direction of a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from cilium_core.proxying import transparent
from cilium_core.telemetry import get_logger

from dns_proxy import records
from dns_proxy.answers import same_question
from dns_proxy.exchanges import TIMEOUT_S
from dns_proxy.messages import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from dns_proxy.exchanges import Exchange, Service
    from dns_proxy.gates import Gate

log = get_logger()

IDLE_S: Final = 10.0
"""How long a connection without a query in flight stays open."""

MAX_CONNECTIONS: Final = 8192
MAX_PER_CLIENT: Final = 256
MAX_PENDING: Final = 1024
"""Queries in flight on one connection; a client that sends more waits."""


class Connection:
    """A client's connection and the one to its server."""

    def __init__(
        self,
        service: Service,
        gate: Callable[[], Gate],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._service = service
        self._gate = gate
        self._reader, self._writer = reader, writer
        peer = writer.get_extra_info("peername")
        meant = writer.get_extra_info("sockname")
        self.client: tuple[str, int] = (peer[0], peer[1])
        self.client_host = self.client[0]
        self.server: tuple[str, int] = (meant[0], meant[1])
        self.record = records.connection(
            transparent.packed(self.client_host),
            transparent.packed(self.server[0]),
            self.server[1],
            socket.IPPROTO_TCP,
        )
        self.pending: dict[bytes, Exchange] = {}
        self.unanswered = 0
        """Queries in flight, sent to the server or not yet."""
        self._outbox: asyncio.Queue[tuple[Exchange, bytes]] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()
        self._owed: set[Exchange] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.used_s = time.monotonic()

    async def serve(self) -> None:
        """Carry queries and answers until one side has had enough."""
        if self.server[0] in transparent.LOOPBACKS:
            # Nobody was redirected: a process of the node means the proxy, which would ask itself.
            self._writer.close()
            return
        tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._exchange())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    log.debug("connection ended", client=self.client, error=repr(outcome))
            self._service.abandon(self.unanswered)
            self.unanswered = 0
            self.pending.clear()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def reply(self, exchange: Exchange, data: bytes) -> bool:
        """Send a message without its id to the client."""
        self._settle(exchange)
        if self._writer.is_closing():
            return False
        self._writer.write(_framed(exchange.head[:2] + data))
        return True

    async def _read(self) -> None:
        while True:
            try:
                data = await _message(self._reader)
            except asyncio.IncompleteReadError:
                # The client has said all it had to say, and may yet listen.
                await self._idle.wait()
                raise
            self.used_s = time.monotonic()
            self._service.admit(self._gate(), self, self.client, data, self._forward)
            await self._writer.drain()
            if self.unanswered >= MAX_PENDING:
                self._room.clear()
                await self._room.wait()

    def _forward(self, exchange: Exchange, data: bytes) -> None:
        self.unanswered += 1
        self._owed.add(exchange)
        self._idle.clear()
        self._outbox.put_nowait((exchange, data))

    async def _exchange(self) -> None:
        """Reach the server when there is something to ask, then ask and answer."""
        first = await self._outbox.get()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await self._dial(first[0].gate.redirect.ingress)
        except (OSError, TimeoutError) as error:
            log.debug("server not reached", server=self.server, error=str(error))
            self._fail([first[0], *self._drop_outbox()], "unreachable")
            return
        asking = asyncio.create_task(self._ask(first, writer))
        try:
            await self._answer(reader)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _dial(self, ingress: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        own = ingress or transparent.is_local(self.server[0])
        sock = transparent.upstream(
            socket.SOCK_STREAM,
            None if own else (self.client_host, 0),
            family=transparent.family_of(self.server[0]),
            mark=transparent.mark_of(ingress=ingress),
        )
        try:
            await asyncio.get_running_loop().sock_connect(sock, self.server)
            return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise

    async def _ask(self, item: tuple[Exchange, bytes], writer: asyncio.StreamWriter) -> None:
        while True:
            exchange, data = item
            ident = os.urandom(2)
            while ident in self.pending:
                ident = os.urandom(2)
            self.pending[ident] = exchange
            writer.write(_framed(ident + data[2:]))
            await writer.drain()
            item = await self._outbox.get()

    async def _answer(self, reader: asyncio.StreamReader) -> None:
        transfers: dict[bytes, Exchange] = {}
        while True:
            data = await _message(reader)
            self.used_s = time.monotonic()
            ident = data[:2]
            exchange = self.pending.get(ident)
            if exchange is None:
                if ident in transfers:
                    self.reply(transfers[ident], data[2:])
                    await self._writer.drain()
                else:
                    self._service.disbelieved["id"] += 1
                continue
            if not same_question(data, exchange.query.question):
                self._service.disbelieved["question"] += 1
                continue
            del self.pending[ident]
            if exchange.query.transfer:
                transfers[ident] = exchange
            self._ended()
            self._service.answered(exchange, data)
            await self._writer.drain()

    def sweep(self, now: float) -> None:
        """Give up what is late, and a connection that is idle."""
        for ident in [i for i, e in self.pending.items() if e.started_s < now - TIMEOUT_S]:
            self._ended()
            exchange = self.pending.pop(ident)
            self._service.time_out(exchange)
            self._settle(exchange)
        if not self._owed and now - self.used_s > IDLE_S:
            self._writer.close()

    def _settle(self, exchange: Exchange) -> None:
        """The client is owed nothing more for a query."""
        self._owed.discard(exchange)
        if not self._owed:
            self._idle.set()

    def _ended(self) -> None:
        self.unanswered -= 1
        self._room.set()

    def _drop_outbox(self) -> list[Exchange]:
        dropped = []
        while not self._outbox.empty():
            dropped.append(self._outbox.get_nowait()[0])
        return dropped

    def _fail(self, exchanges: list[Exchange], reason: str) -> None:
        for exchange in exchanges:
            self._ended()
            self._service.finish()
            self._service.fail(exchange, reason)


class Streams:
    """All of DNS over TCP."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._connections: dict[Connection, asyncio.Task[None] | None] = {}
        self._clients: Counter[str] = Counter()
        self.turned_away = 0
        """Connections above the limits."""

    async def listen(self, host: str, port: int, gate: Callable[[], Gate]) -> asyncio.Server:
        """Serve a port; `gate` gives the rules in force. Raises `OSError`."""
        mark = transparent.mark_of(ingress=gate().redirect.ingress)
        sock = transparent.listener(host, port, socket.SOCK_STREAM, mark=mark)

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(Connection(self._service, gate, reader, writer), writer)

        return await asyncio.start_server(accepted, sock=sock)

    async def _serve(self, connection: Connection, writer: asyncio.StreamWriter) -> None:
        host = connection.client_host
        if len(self._connections) >= MAX_CONNECTIONS or self._clients[host] >= MAX_PER_CLIENT:
            self.turned_away += 1
            writer.transport.abort()
            return
        self._connections[connection] = asyncio.current_task()
        self._clients[host] += 1
        try:
            await connection.serve()
        finally:
            del self._connections[connection]
            self._clients[host] -= 1
            if not self._clients[host]:
                del self._clients[host]

    @property
    def open(self) -> int:
        """Connections of clients."""
        return len(self._connections)

    def sweep(self) -> None:
        """Give up what is late. Call it about twice a second."""
        now = time.monotonic()
        for connection in self._connections:
            connection.sweep(now)

    async def close(self) -> None:
        """End all connections."""
        tasks = [task for task in self._connections.values() if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One message. Raises `asyncio.IncompleteReadError` at the end, `EOFError` on an empty one."""
    size = int.from_bytes(await reader.readexactly(2), "big")
    if size < HEADER_BYTES:
        raise EOFError(f"a message of {size} bytes")
    return await reader.readexactly(size)
