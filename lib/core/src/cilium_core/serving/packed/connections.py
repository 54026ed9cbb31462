"""Connections of a packed server, and what one of them may take.

Bounded are: their number, of which the one that is idle for longest makes room for a new one;
frames that cost effort and carry nothing, such as pings and streams that are reset at once; answers
to these that the client does not read. What a client sends is worked on a little at a time, so that
others get their turn. Owned by one event loop.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from grpclib.config import Configuration
from grpclib.protocol import H2Protocol
from grpclib.server import Server
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, UnknownFrameReceived
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from cilium_core.telemetry.logs import get_logger
from cilium_core.telemetry.metrics import counter

if TYPE_CHECKING:
    import ssl

    from grpclib.protocol import AbstractHandler

    from cilium_core.serving.packed.quotas import Quotas

log = get_logger()

_DROPPED = counter(
    "grpc_server_connections_dropped_total",
    "Connections that the server ended since they took too much of it.",
    "reason",
)

_WINDOW: Final = 128 << 10
"""Bytes of requests that a client may send ahead of being read, of a stream and of all."""

_STREAMS_OF_CONNECTION: Final = 2048
"""Streams that a client may open at once. More than its calls, so that it is told of the limit."""

_EFFORT_BURST: Final = 20_000
_EFFORT_PER_S: Final = 5_000
_EFFORT_OF_CALL: Final = 10
"""What a connection may ask for at once, and for ever: a call, or so many frames without data."""

_TURN: Final = 1 << 10
"""Bytes of one connection that are worked on before others get their turn: ten calls or so, or 40
that are made to be as small as they can be."""

_HANDSHAKE_S: Final = 10.0
"""How long a client may take to agree on TLS, until when it has a connection that nobody counts."""

_UNREAD_LIMIT: Final = 2 << 20
"""Bytes for a client beyond which it is taken not to read; answers to calls stop far earlier."""


class Protocol(H2Protocol):
    """One connection."""

    def __init__(self, listener: Listener, handler: AbstractHandler) -> None:
        super().__init__(handler, listener.config, listener.h2_config)
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._unread = bytearray()
        self._busy = False
        self._effort = float(_EFFORT_BURST)
        self._refilled_s = self.active_s = time.monotonic()

    @property
    def idle(self) -> bool:
        """Whether no call is in progress."""
        return not self.processor.streams

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say what the client may send."""
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  for typing
        self._transport = transport
        h2 = self.connection._connection
        h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: _STREAMS_OF_CONNECTION})
        self.connection.flush()
        self.connection.client = client_of(transport)  # type: ignore[attr-defined]
        self._listener.connected(self)

    def data_received(self, data: bytes) -> None:
        """Work on what the client sent, as long as it is within bounds."""
        self.active_s = time.monotonic()
        self._unread += data
        if not self._busy:
            self._work()

    def _work(self) -> None:
        """Work on some of it; others get their turn before the rest, of which no more is read."""
        transport = self._transport
        if transport is None or self.connection.is_closing():
            self._unread.clear()
            return
        data = bytes(self._unread[:_TURN])
        del self._unread[:_TURN]
        self._feed(data)
        if self._unread and not self._busy:
            transport.pause_reading()
        elif not self._unread and self._busy and not transport.is_closing():
            transport.resume_reading()
        self._busy = bool(self._unread)
        if self._busy:
            asyncio.get_running_loop().call_soon(self._work)

    def _feed(self, data: bytes) -> None:
        try:
            events = self.connection.feed(data)
        except ProtocolError as error:
            log.debug("connection breaks the protocol", reason=str(error))
            self.connection.flush()
            self.processor.close("protocol error")
            return
        effort = 0
        for event in events:
            if not (isinstance(event, DataReceived) and event.data):
                effort += _EFFORT_OF_CALL if isinstance(event, RequestReceived) else 1
            if not isinstance(event, UnknownFrameReceived):  # which HTTP/2 allows anybody to send
                self.processor.process(event)
            if isinstance(event, ConnectionTerminated):
                return
        if not self._pays(effort):
            self._drop("effort", ErrorCodes.ENHANCE_YOUR_CALM)
            return
        if not self.connection.is_closing():
            self.connection.flush()
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size() > _UNREAD_LIMIT:
            self._drop("answers not read", ErrorCodes.ENHANCE_YOUR_CALM)

    def _pays(self, effort: int) -> bool:
        """Take off what the connection may still ask for; whether it had so much left."""
        grown = (self.active_s - self._refilled_s) * _EFFORT_PER_S
        self._effort = min(self._effort + grown, _EFFORT_BURST) - effort
        self._refilled_s = self.active_s
        return self._effort >= 0

    def _drop(self, reason: str, code: ErrorCodes) -> None:
        """End the connection and its calls."""
        _DROPPED.add(1, reason)
        log.warning(
            "connection dropped",
            reason=reason,
            client=getattr(self.connection, "client", ""),
        )
        self.hang_up(code)
        self.processor.close(reason)
        self.abort()

    def hang_up(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Say goodbye and close once that is sent."""
        if self.connection.is_closing():
            return
        with suppress(ProtocolError):
            self.connection._connection.close_connection(code)
            self.connection.flush()
        self.connection.close()

    def make_room(self) -> None:
        """Go, for a connection that is new."""
        _DROPPED.add(1, "too many connections")
        self.hang_up()

    def refuse(self) -> None:
        """Go at once, since there is no room."""
        self._drop("too many connections", ErrorCodes.REFUSED_STREAM)

    def abort(self) -> None:
        """Close without sending what is left."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End its calls."""
        super().connection_lost(exc)
        self._transport = None
        self._unread.clear()
        self._listener.lost(self)


class Listener(Server):
    """A grpclib server that knows its connections."""

    def __init__(self, quotas: Quotas, codec: Any) -> None:
        super().__init__(
            [],
            codec=codec,
            config=Configuration(
                http2_connection_window_size=_WINDOW, http2_stream_window_size=_WINDOW
            ),
        )
        self._quotas = quotas
        self._connections: set[Protocol] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.config = self._config
        self.h2_config = self._h2_config
        # what h2 would let pass otherwise, such as a request without a path
        self.h2_config.validate_inbound_headers = True

    async def start_tcp(
        self, host: str | None, port: int, tls: ssl.SSLContext | None
    ) -> tuple[socket.socket, ...]:
        """Listen. As `start`, for clients that soon say who they are. Raises OSError."""
        timeout_s = _HANDSHAKE_S if tls is not None else None
        loop = asyncio.get_running_loop()
        self._server = made = await loop.create_server(
            self._protocol_factory, host, port, ssl=tls, ssl_handshake_timeout=timeout_s
        )
        self._server_closed_fut = loop.create_future()
        return tuple(made.sockets)

    def _protocol_factory(self) -> Protocol:
        made = super()._protocol_factory()
        return Protocol(self, made.handler)

    def connected(self, protocol: Protocol) -> None:
        """Take a connection in; the one that is idle for longest makes room."""
        if len(self._connections) >= self._quotas.connections:
            idle = [one for one in self._connections if one.idle]
            if not idle:
                protocol.refuse()
                return
            oldest = min(idle, key=lambda one: one.active_s)
            self._connections.discard(oldest)
            oldest.make_room()
        self._connections.add(protocol)
        self._empty.clear()

    def lost(self, protocol: Protocol) -> None:
        """A connection is closed."""
        self._connections.discard(protocol)
        if not self._connections:
            self._empty.set()

    async def hang_up(self, grace_s: float) -> None:
        """Say goodbye on every connection; who has not closed it after the grace is cut off."""
        for protocol in list(self._connections):
            protocol.hang_up()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        for protocol in list(self._connections):
            protocol.abort()


def client_of(transport: asyncio.BaseTransport) -> str:
    """Who is at the other end: subject of a certificate, an address, or `unix`."""
    used = transport.get_extra_info("socket")
    if used is not None and used.family == socket.AF_UNIX:
        return "unix"
    tls = transport.get_extra_info("ssl_object")
    certificate = tls.getpeercert() if tls is not None else None
    if certificate:
        return ",".join(f"{key}={value}" for part in certificate["subject"] for key, value in part)
    address = transport.get_extra_info("peername")
    return str(address[0]) if address else ""
