"""One client and the broker that it meant to reach.

Requests are read whole, judged, and passed on as they came or answered here. Brokers answer the
requests of a connection in order, and clients rely on it: an answer of ours waits for the responses
to the requests before it.

Where nothing is enforced and the bytes are not Kafka's, both directions are passed on as they are.
Everywhere else such bytes end the connection with a reset. Used from one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import Counter, deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cilium_core.proxying import transparent
from cilium_core.telemetry import get_logger
from flow import flow_pb2

from kafka_proxy.describing import encode, with_refusals
from kafka_proxy.errors import ProtocolError
from kafka_proxy.negotiating import limited
from kafka_proxy.records import ConnectionRecords
from kafka_proxy.refusing import TOPIC_AUTHORIZATION_FAILED, refusal
from kafka_proxy.requests import Header, Request, parse
from kafka_proxy.responses import error_of
from kafka_proxy.schemas import API_VERSIONS, response_struct

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cilium_core.proxying.reporting import Reporter

    from kafka_proxy.budgets import Budget
    from kafka_proxy.gates import Gate

log = get_logger()

MAX_REQUEST: Final = 100 << 20
"""Largest request in bytes, the limit of brokers as well."""

MAX_RESPONSE: Final = 1 << 30
READ_RESPONSE: Final = 64 << 10
"""Largest response that is read for its error; larger ones are passed on piece by piece."""

MAX_CHANGED: Final = 4 << 20
"""Largest response that is changed on its way: one about versions or brokers."""

MAX_PENDING: Final = 1024
"""Requests in flight on one connection; a client that sends more waits."""

CONNECT_S: Final = 10.0
REQUEST_S: Final = 60.0
"""How long a request may take to arrive once it has begun."""

_WORD: Final = 4
_PIECE: Final = 64 << 10
_RESET = struct.pack("ii", 1, 0)


class Dial(Protocol):
    """Reaches the broker; `dial` in life."""

    async def __call__(
        self, client: tuple[str, int], server: tuple[str, int], *, ingress: bool
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Streams from and to the server. Raises `OSError`."""


class Counters:
    """What all connections count."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        """Requests by what became of them."""
        self.garbage: Counter[str] = Counter()
        """Connections ended for bytes that are not the protocol's, by who sent them."""
        self.unreachable = 0
        """Connections whose broker could not be reached."""


@dataclass(slots=True)
class Exchange:
    """A request in flight. Its body is not kept."""

    header: Header
    topics: tuple[str, ...]
    certain: bool
    """Whether it is answered for sure."""

    started_ns: int
    answer: bytes | None = None
    """Our own answer to a request that was refused."""

    refused: Request | None = None
    """That request, if its answer still lacks what the broker says to another in its place."""

    @property
    def ready(self) -> bytes | None:
        """An answer that only waits for its turn."""
        return self.answer if self.refused is None else None


class Connection:
    """Carries requests and responses until one side has had enough."""

    def __init__(
        self,
        gate: Gate,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        reporter: Reporter,
        budget: Budget,
        counters: Counters,
        *,
        dial: Dial,
    ) -> None:
        self._gate = gate
        self._dial = dial
        self._reader, self._writer = client
        self._budget = budget
        self._counters = counters
        peer = self._writer.get_extra_info("peername")
        meant = self._writer.get_extra_info("sockname")
        self.client: tuple[str, int] = (peer[0], peer[1])
        self.server: tuple[str, int] = (meant[0], meant[1])
        self._records = ConnectionRecords(
            reporter,
            ingress=gate.redirect.ingress,
            proxy_port=gate.port,
            client=self.client,
            server=self.server,
        )
        _tune(self._writer.get_extra_info("socket"))
        self._pending: deque[Exchange] = deque()
        self._room = asyncio.Event()
        self._raw = False
        """Whether bytes pass as they are, since they are not Kafka's."""

    async def serve(self) -> None:
        """Carry until the end. Never raises but when cancelled."""
        if self.server[0] in transparent.LOOPBACKS and self.server[1] == self._gate.port:
            # nobody was redirected: a process of the node means the proxy itself
            self._counters.unreachable += 1
            _reset(self._writer)
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                upstream, broker = await self._dial(
                    self.client, self.server, ingress=self._gate.redirect.ingress
                )
        except (OSError, TimeoutError) as error:
            self._counters.unreachable += 1
            log.debug("broker not reached", server=self.server, error=str(error))
            _reset(self._writer)
            return
        self._upstream, self._broker = upstream, broker
        clean = False
        try:
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(self._carry_requests())
                await self._carry_responses()
                asking.cancel()
            clean = True
        except* ProtocolError as errors:
            log.debug("not Kafka", client=self.client, error=str(errors.exceptions[0]))
        except* (OSError, asyncio.IncompleteReadError, TimeoutError) as errors:
            log.debug("connection broke", client=self.client, error=repr(errors.exceptions[0]))
        finally:
            for writer in (self._broker, self._writer):
                if clean:
                    await _close(writer)
                else:
                    _reset(writer)

    # ---- from the client to the broker ----

    async def _carry_requests(self) -> None:
        while (head := await _word(self._reader)) is not None:
            size = int.from_bytes(head, "big", signed=True)
            if not 0 < size <= MAX_REQUEST:
                await self._garbage(head, f"a request of {size} bytes")
                break
            async with self._frame(size) as frame:
                try:
                    request = parse(frame)
                except ProtocolError as error:
                    await self._garbage(head + frame, str(error))
                    break
                self._take(request, head, frame)
                await self._broker.drain()
            await self._writer.drain()
            while len(self._pending) >= MAX_PENDING:
                self._room.clear()
                await self._room.wait()
        self._broker.write_eof()

    @asynccontextmanager
    async def _frame(self, size: int) -> AsyncIterator[bytes]:
        """The next bytes of the client. Many are taken piece by piece from what may be held."""
        if size <= _PIECE:
            async with asyncio.timeout(REQUEST_S):
                frame = await self._reader.readexactly(size)
            yield frame
            return
        held = 0
        try:
            pieces = []
            async with asyncio.timeout(REQUEST_S):
                while held < size:
                    piece = await self._reader.readexactly(min(_PIECE, size - held))
                    await self._budget.take(len(piece))
                    held += len(piece)
                    pieces.append(piece)
            yield b"".join(pieces)
        finally:
            self._budget.give(held)

    def _take(self, request: Request, head: bytes, frame: bytes) -> None:
        """Pass a request on, or answer it."""
        verdict = self._gate.verdict(request)
        self._counters.requests[flow_pb2.Verdict.Name(verdict).lower()] += 1
        if verdict == flow_pb2.DROPPED:
            error = TOPIC_AUTHORIZATION_FAILED
            self._records.request(request.header, request.topics, verdict, error)
            self._refuse(request, frame)
            return
        self._records.request(request.header, request.topics, verdict)
        answered = request.answered
        if answered is not False and not self._raw:
            self._pending.append(
                Exchange(request.header, request.topics, bool(answered), time.monotonic_ns())
            )
        self._broker.write(head)
        self._broker.write(frame)

    def _refuse(self, request: Request, frame: bytes) -> None:
        """Answer a request that may not pass, or have the broker answer another in its place."""
        if request.answered is False:
            return
        answer = refusal(request)
        if answer is None:
            raise ProtocolError(
                f"a refused request cannot be answered: {request.unreadable or 'no form for it'}"
            )
        other = self._gate.substitute(request)
        exchange = Exchange(request.header, request.topics, True, time.monotonic_ns(), answer)
        self._pending.append(exchange)
        if other is None:
            self._answer()
            return
        exchange.refused = request
        content = encode(other, frame)
        self._broker.write(len(content).to_bytes(_WORD, "big") + content)

    async def _garbage(self, start: bytes, reason: str) -> None:
        """Refuse bytes that are no request; where nothing is enforced, pass them and the rest on.

        Raises ProtocolError.
        """
        self._counters.garbage["client"] += 1
        self._records.request(None, (), self._gate.verdict_of_garbage)
        if self._gate.enforcing:
            raise ProtocolError(reason)
        self._raw = True
        self._broker.write(start)
        await _pipe(self._reader, self._broker)

    # ---- from the broker to the client ----

    async def _carry_responses(self) -> None:
        while (head := await _word(self._upstream)) is not None:
            size = int.from_bytes(head, "big", signed=True)
            if self._raw or not self._pending or not _WORD <= size <= MAX_RESPONSE:
                await self._pass_raw(head, f"a response of {size} bytes")
                return
            identity = await self._upstream.readexactly(_WORD)
            exchange = self._match(int.from_bytes(identity, "big", signed=True))
            if exchange is None:
                await self._pass_raw(head + identity, "a response to no request")
                return
            error = await self._pass_response(exchange, size, head, identity)
            self._pending.popleft()
            self._room.set()
            if exchange.answer is None:
                latency_ns = time.monotonic_ns() - exchange.started_ns
                self._records.response(exchange.header, exchange.topics, error, latency_ns)
            self._answer()
            await self._writer.drain()

    async def _pass_response(
        self, exchange: Exchange, size: int, head: bytes, identity: bytes
    ) -> int:
        """Pass one response on and return the error in it, 0 for none or when it is not read."""
        header, rest = exchange.header, size - _WORD
        changed = exchange.refused is not None or header.key == API_VERSIONS
        if changed and self._gate.enforcing:
            if size > MAX_CHANGED:
                raise self._nonsense(f"a response of {size} bytes, which is to be changed")
            told = identity + await self._upstream.readexactly(rest)
            if exchange.refused is not None:
                self._writer.write(self._completed(exchange.refused, exchange.answer or b"", told))
                return TOPIC_AUTHORIZATION_FAILED
            try:
                self._writer.write(limited(header.version, told))
            except ProtocolError as error:
                raise self._nonsense(str(error)) from error
            return int.from_bytes(told[_WORD : _WORD + 2], "big", signed=True)
        self._writer.write(head + identity)
        if size <= READ_RESPONSE:
            body = await self._upstream.readexactly(rest)
            self._writer.write(body)
            return _error(header, body)
        while rest:
            piece = await self._upstream.read(min(rest, _PIECE))
            if not piece:
                raise asyncio.IncompleteReadError(b"", rest)
            rest -= len(piece)
            self._writer.write(piece)
            await self._writer.drain()
        return 0

    def _completed(self, refused: Request, answer: bytes, told: bytes) -> bytes:
        """Our answer with what the broker told; without it when that cannot be read."""
        try:
            return with_refusals(refused, told)
        except ProtocolError as error:
            log.debug("brokers not told", server=self.server, error=str(error))
            return answer

    def _match(self, correlation_id: int) -> Exchange | None:
        """The request that a response belongs to: the first in flight, which stays there.

        Requests that the broker may have left without a response are passed over.
        """
        self._answer()
        while self._pending:
            exchange = self._pending[0]
            if exchange.header.correlation_id == correlation_id:
                return exchange
            if exchange.certain:
                return None
            self._pending.popleft()
            self._answer()
        return None

    def _answer(self) -> None:
        """Send the answers of ours whose turn it is."""
        while self._pending and (answer := self._pending[0].ready) is not None:
            self._writer.write(answer)
            self._pending.popleft()
            self._room.set()

    async def _pass_raw(self, start: bytes, reason: str) -> None:
        if self._gate.enforcing:
            raise self._nonsense(reason)
        self._raw = True
        self._pending.clear()
        self._room.set()
        self._writer.write(start)
        await _pipe(self._upstream, self._writer)

    def _nonsense(self, reason: str) -> ProtocolError:
        self._counters.garbage["server"] += 1
        return ProtocolError(reason)


async def dial(
    client: tuple[str, int], server: tuple[str, int], *, ingress: bool
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Reach the server that a client meant, under the client's address unless told otherwise.

    Raises `OSError`.
    """
    own_address = ingress or transparent.is_local(server[0])
    sock = transparent.upstream(
        socket.SOCK_STREAM,
        None if own_address else (client[0], 0),
        family=transparent.family_of(server[0]),
        mark=transparent.mark_of(ingress=ingress),
    )
    try:
        _tune(sock)
        await asyncio.get_running_loop().sock_connect(sock, server)
        return await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise


def _tune(sock: socket.socket) -> None:
    """Send small messages at once, and notice a peer that has vanished."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _error(header: Header, body: bytes) -> int:
    """The first error in a response, 0 when there is none or it cannot be read."""
    form = response_struct(header.key, header.version)
    if form is None:
        return 0
    try:
        return error_of(form, body)
    except ProtocolError:
        return 0


async def _word(reader: asyncio.StreamReader) -> bytes | None:
    """Four bytes; None at the end of the stream."""
    try:
        return await reader.readexactly(_WORD)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_S):
            await writer.wait_closed()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that its peer sees that it was not the end of the data."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
