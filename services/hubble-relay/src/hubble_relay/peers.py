"""Who the peers are: learnt from peer services, kept while those are away.

`Directory` holds what each peer service told, and tells who cares when the union changes.
`PeerWatcher` follows one peer service for as long as the relay runs. A service that comes back
tells all its peers anew but not which ones went away meanwhile; so whoever it has not named again a
moment later is forgotten.

Owned by the event loop; no locks.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from cilium_core.telemetry import get_logger
from peer import peer_pb2

if TYPE_CHECKING:
    from collections.abc import Callable


log = get_logger()

DEFAULT_PORT = 4244
"""Assumed for a peer whose address has no port."""

_NOTIFY = "/peer.Peer/Notify"
_FIRST_RETRY_S = 0.2
_SETTLE_S = 2.0
"""Silence after which a peer service is taken to have named all its peers."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that serves flows."""

    name: str
    address: str
    """As announced; may lack a port, may be nonsense."""
    server_name: str | None
    """What its certificate bears; None for a peer without TLS."""

    @property
    def target(self) -> str:
        """Where to dial; empty when the address cannot be understood."""
        return dial_target(self.address)


def dial_target(address: str) -> str:
    """GRPC target of an announced address; empty when it cannot be understood."""
    if address.startswith("unix://"):
        return address
    if address.startswith("/") and address.endswith(".sock"):
        return f"unix://{address}"
    try:
        ip = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        host, colon, port = address.rpartition(":")
        good = colon and port.isdigit() and int(port) <= 0xFFFF and host
        return address if good and (":" not in host or host.startswith("[")) else ""
    return f"[{ip}]:{DEFAULT_PORT}" if ip.version == 6 else f"{ip}:{DEFAULT_PORT}"


class Directory:
    """The union of what peer services tell."""

    def __init__(self) -> None:
        self._by_source: dict[str, dict[str, Peer]] = {}
        self._listeners: list[Callable[[dict[str, Peer]], None]] = []
        self.peers: dict[str, Peer] = {}
        """By name."""
        self.connected: set[str] = set()
        """Peer services whose stream stands."""

    def on_change(self, listener: Callable[[dict[str, Peer]], None]) -> None:
        """Call the listener with all peers, now and whenever they change."""
        self._listeners.append(listener)
        listener(self.peers)

    def upsert(self, source: str, peer: Peer) -> None:
        """A source told of a peer."""
        self._by_source.setdefault(source, {})[peer.name] = peer
        self._merge(peer)

    def delete(self, source: str, name: str) -> None:
        """A source told that a peer is gone."""
        self._by_source.get(source, {}).pop(name, None)
        self._merge()

    def keep_only(self, source: str, names: set[str]) -> None:
        """Forget what a source told of any other peer."""
        known = self._by_source.get(source, {})
        for name in set(known) - names:
            log.info("peer is gone", peer=name, told_by=source)
            del known[name]
        self._merge()

    def _merge(self, newest: Peer | None = None) -> None:
        """Make the union anew. Of several opinions, what can be dialled counts, then the newest."""
        union: dict[str, Peer] = {}
        for told in self._by_source.values():
            for name, peer in told.items():
                known = union.get(name)
                if known is None or self._weight(peer, newest) > self._weight(known, newest):
                    union[name] = peer
        if union != self.peers:
            self.peers = union
            for listener in self._listeners:
                listener(union)

    def _weight(self, peer: Peer, newest: Peer | None) -> tuple[bool, bool, bool]:
        return bool(peer.target), peer == newest, peer == self.peers.get(peer.name)


class PeerWatcher:
    """Follows one peer service."""

    def __init__(
        self,
        source: str,
        directory: Directory,
        dial: Callable[[str], grpc.aio.Channel],
        retry_s: float,
        settle_s: float = _SETTLE_S,
    ) -> None:
        self._source = source
        self._directory = directory
        self._dial = dial
        self._retry_s = retry_s
        self._settle_s = settle_s

    async def run(self) -> None:
        """Follow until cancelled; whatever goes wrong, try again."""
        wait_s = _FIRST_RETRY_S
        while True:
            channel = self._dial(self._source)
            try:
                if await self._follow(channel):
                    wait_s = _FIRST_RETRY_S
            except grpc.aio.AioRpcError as error:
                log.warning(
                    "peer service is away",
                    peer_service=self._source,
                    error=error.details(),
                    retry_in_s=round(wait_s, 1),
                )
            finally:
                self._directory.connected.discard(self._source)
                await channel.close()
            # Spread out, so that many relays do not come all at once.
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))  # noqa: S311  not a secret
            wait_s = min(wait_s * 2, self._retry_s)

    async def _follow(self, channel: grpc.aio.Channel) -> bool:
        """Read one stream to its end; whether it carried anything. Raises AioRpcError."""
        call = channel.unary_stream(
            _NOTIFY,
            request_serializer=peer_pb2.NotifyRequest.SerializeToString,
            response_deserializer=peer_pb2.ChangeNotification.FromString,
        )(peer_pb2.NotifyRequest())
        named: set[str] | None = set()
        try:
            reading = asyncio.ensure_future(call.read())
            while True:
                done, _ = await asyncio.wait(
                    {reading}, timeout=self._settle_s if named is not None else None
                )
                if not done:
                    if named:
                        self._directory.keep_only(self._source, named)
                    named = None
                    continue
                change = reading.result()
                if change is grpc.aio.EOF:
                    return self._source in self._directory.connected
                assert isinstance(change, peer_pb2.ChangeNotification)  # noqa: S101  typing
                self._directory.connected.add(self._source)
                self._apply(change)
                if named is not None:
                    named.add(change.name)
                reading = asyncio.ensure_future(call.read())
        finally:
            reading.cancel()
            call.cancel()

    def _apply(self, change: peer_pb2.ChangeNotification) -> None:
        if change.type == peer_pb2.PEER_DELETED:
            log.info("peer is gone", peer=change.name, told_by=self._source)
            self._directory.delete(self._source, change.name)
        elif change.type in (peer_pb2.PEER_ADDED, peer_pb2.PEER_UPDATED):
            server_name = change.tls.server_name if change.HasField("tls") else None
            peer = Peer(change.name, change.address, server_name)
            if self._directory.peers.get(change.name) != peer:
                log.info("peer told", peer=peer.name, address=peer.address, told_by=self._source)
            self._directory.upsert(self._source, peer)
