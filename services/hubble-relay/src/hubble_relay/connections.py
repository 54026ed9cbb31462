"""One connection per peer, kept open and watched.

A connection is available unless it failed or could not be made; gRPC reconnects by itself, quickly.
Every peer is also asked for its state now and then: a server that accepts but no longer answers is
dialled afresh, which ends the streams that hang on it.

Owned by the event loop.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from cilium_core import traces
from cilium_core.telemetry import gauge, get_logger
from observer import observer_pb2

from hubble_relay.errors import BusyNodeError, TlsMismatchError
from hubble_relay.peers import Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from cilium_core.access import Limits
    from google.protobuf.message import Message


log = get_logger()

_STATUS_GAUGE = gauge(
    "hubble_relay_pool_peer_connection_status",
    "Connections to peers by state.",
    "status",
)
_STATES = ("IDLE", "CONNECTING", "READY", "TRANSIENT_FAILURE", "SHUTDOWN", "NIL_CONNECTION")
_FAILED = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)
_READY = grpc.ChannelConnectivity.READY
_PROBE_EVERY_S = 10.0
_PROBE_TIMEOUT_S = 5.0
AHEAD_BYTES = 128 << 10
"""What a node may send ahead of being read, on each stream."""

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", 64 << 20),
    # Left to itself gRPC lets a node send megabytes ahead, on each stream of a client that does
    # not read, and the streams of others wait behind them.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", AHEAD_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What to show peers and whom to believe; no authorities means those of the system."""

    authorities: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None

    @classmethod
    def read(
        cls, authorities: Iterable[Path], certificate: Path | None, key: Path | None
    ) -> ClientTls:
        """Read the files. Raises OSError."""
        return cls(
            b"\n".join(path.read_bytes() for path in authorities) or None,
            certificate.read_bytes() if certificate else None,
            key.read_bytes() if key else None,
        )

    def credentials(self) -> grpc.ChannelCredentials:
        """For gRPC."""
        return grpc.ssl_channel_credentials(self.authorities, self.key, self.certificate)


def dial(target: str, tls: ClientTls | None, server_name: str | None) -> grpc.aio.Channel:
    """A channel, with TLS if given; it connects on first use."""
    interceptors = traces.client_interceptors()
    if tls is None:
        return grpc.aio.insecure_channel(target, options=_OPTIONS, interceptors=interceptors)
    name = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
    return grpc.aio.secure_channel(
        target, tls.credentials(), options=[*_OPTIONS, *name], interceptors=interceptors
    )


STREAMS_MAX = 1000
"""Streams to one node, unless set. Our servers take 1,024 calls of one client."""


@dataclass(eq=False)
class Connection:
    """A peer and the channel to it, if there can be one."""

    peer: Peer
    channel: grpc.aio.Channel | None
    problem: str = ""
    """Why there is no channel, or why it was closed."""
    batches: bool = True
    """Whether it may have our batch service; False once it said no."""
    state: grpc.ChannelConnectivity = grpc.ChannelConnectivity.IDLE
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    tls: ClientTls | None = None
    """What was shown and believed when it was dialled."""
    streams_max: int = STREAMS_MAX
    streams: int = 0
    """Streams that are open."""

    @property
    def name(self) -> str:
        """Name of the peer."""
        return self.peer.name

    @property
    def available(self) -> bool:
        """Whether it makes sense to ask it anything."""
        return self.channel is not None and self.state not in _FAILED

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count a stream while it is open. Raises BusyNodeError for one too many."""
        if self.streams >= self.streams_max:
            raise BusyNodeError(
                f"{self.streams} streams of this relay are open to {self.name}, and no more may be "
                "(peer-streams-max)"
            )
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    async def ask(
        self,
        method: str,
        request: Message,
        answer: type[Any],
        timeout_s: float,
        *,
        service: str = "observer.Observer",
        limits: Limits | None = None,
    ) -> Any:
        """One question, for a client with these limits. Raises AioRpcError."""
        if self.channel is None:
            raise TlsMismatchError(self.problem)
        call: Any = self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        metadata = (limits.metadata,) if limits is not None else ()
        return await call(request, timeout=timeout_s, metadata=metadata)


class Pool:
    """Connections to all peers."""

    def __init__(self, tls: ClientTls | None, streams_max: int = STREAMS_MAX) -> None:
        self._tls = tls
        self._streams_max = streams_max
        self._connections: dict[str, Connection] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._listeners: list[Callable[[], None]] = []

    @property
    def connections(self) -> list[Connection]:
        """All, by name."""
        return [connection for _, connection in sorted(self._connections.items())]

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call the listener whenever a connection appears, changes its state or goes."""
        self._listeners.append(listener)

    def replace(self, peers: dict[str, Peer]) -> None:
        """Connect to these peers and no others; unchanged ones are left alone."""
        for name in [name for name in self._connections if name not in peers]:
            self._drop(self._connections.pop(name))
        for name, peer in peers.items():
            known = self._connections.get(name)
            if known is not None and known.peer == peer:
                continue
            if known is not None:
                self._drop(known)
            self._connections[name] = self._connect(peer)
        self._changed()

    def _connect(self, peer: Peer) -> Connection:
        target = peer.target
        problem = ""
        if not target:
            problem = f"the address {peer.address!r} of {peer.name} cannot be dialled"
        elif self._tls is not None and not peer.server_name and not target.startswith("unix:"):
            problem = f"missing TLS ServerName for {peer.address}"
        elif self._tls is None and peer.server_name:
            problem = f"unexpected TLS ServerName {peer.server_name} for {peer.address}"
        if problem:
            log.warning("peer cannot be dialled", peer=peer.name, problem=problem)
            return Connection(peer, None, problem)
        tls = None if target.startswith("unix:") else self._tls
        channel = dial(target, tls, peer.server_name)
        connection = Connection(peer, channel, tls=tls, streams_max=self._streams_max)
        connection.tasks = [
            asyncio.create_task(self._watch(connection)),
            asyncio.create_task(self._probe(connection)),
        ]
        return connection

    async def _watch(self, connection: Connection) -> None:
        """Keep the connection's state, and keep it connected."""
        channel = connection.channel
        assert channel is not None  # noqa: S101  only watched when there is one
        while True:
            state = channel.get_state(try_to_connect=True)
            if state != connection.state:
                connection.state = state
                self._changed()
            if state is not _READY and connection.tls not in (None, self._tls):
                self._dial_afresh(connection)
                return
            await channel.wait_for_state_change(state)

    async def _probe(self, connection: Connection) -> None:
        """Dial a peer afresh that takes connections and answers nothing."""
        while True:
            await asyncio.sleep(_PROBE_EVERY_S)
            try:
                await connection.ask(
                    "ServerStatus",
                    observer_pb2.ServerStatusRequest(),
                    observer_pb2.ServerStatusResponse,
                    _PROBE_TIMEOUT_S,
                )
            except grpc.aio.AioRpcError as error:
                silent = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                if silent and connection.state is _READY:
                    log.warning("peer does not answer, dialling it afresh", peer=connection.name)
                    connection.problem = "the node takes connections but does not answer"
                    self._dial_afresh(connection)
                    return

    def use(self, tls: ClientTls) -> None:
        """Show and believe something else from now on.

        Connections that stand are left alone; those that fail are dialled afresh with it.
        """
        self._tls = tls
        for connection in list(self._connections.values()):
            if connection.state is not _READY and connection.tls not in (None, tls):
                self._dial_afresh(connection)

    def _dial_afresh(self, connection: Connection) -> None:
        if self._connections.get(connection.name) is connection:
            self._connections[connection.name] = self._connect(connection.peer)
            self._drop(connection)
            self._changed()

    def _drop(self, connection: Connection) -> None:
        """Close in the background; its streams end with an error at once."""
        closing = asyncio.create_task(self._close(connection))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    @staticmethod
    async def _close(connection: Connection) -> None:
        connection.state = grpc.ChannelConnectivity.SHUTDOWN
        for task in connection.tasks:
            task.cancel()
        if connection.channel is not None:
            await connection.channel.close()
        for task in connection.tasks:
            with suppress(asyncio.CancelledError, grpc.aio.UsageError):
                await task

    def _changed(self) -> None:
        counts = dict.fromkeys(_STATES, 0)
        for connection in self._connections.values():
            state = connection.state.name if connection.channel is not None else "NIL_CONNECTION"
            counts[state] += 1
        _STATUS_GAUGE.replace({(state,): float(count) for state, count in counts.items()})
        for listener in self._listeners:
            listener()

    async def close(self) -> None:
        """Close everything."""
        for connection in self._connections.values():
            self._drop(connection)
        self._connections.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)
