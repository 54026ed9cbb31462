"""The nodes that serve flows, for clients that want to reach them all.

Owned by the event loop. Subscribers get every known peer, then each change, through a queue of
their own; one that does not read is ended rather than held.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peer import peer_pb2

from hubble_server.errors import SlowClientError
from hubble_server.facts import DEFAULT_CLUSTER, qualified

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cilium.metadata.v1 import metadata_pb2

QUEUE_LIMIT = 65_536
"""Notifications held for one subscriber."""

_TLS_DOMAIN = "hubble-grpc.cilium.io"


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """How peers are to be reached."""

    port: int | None = None
    """Port that every node serves on; None leaves the bare address."""
    prefer_ipv6: bool = False
    tls: bool = False


def tls_name(cluster: str, node: str) -> str:
    """Name in the certificate of a node's server."""
    labels = (node, cluster or DEFAULT_CLUSTER)
    return ".".join([*(label.replace(".", "-") for label in labels), _TLS_DOMAIN])


class Subscription:
    """What one subscriber has yet to read."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[peer_pb2.ChangeNotification] = asyncio.Queue()
        self._overflown = False

    def put(self, notification: peer_pb2.ChangeNotification) -> None:
        """Add a notification, or give the subscriber up."""
        if self._queue.qsize() >= QUEUE_LIMIT:
            self._overflown = True
        else:
            self._queue.put_nowait(notification)

    async def next(self) -> list[peer_pb2.ChangeNotification]:
        """Wait for notifications and take all there are. Raises SlowClientError."""
        found = [await self._queue.get()]
        if self._overflown:
            raise SlowClientError("server stream send was blocked for too long")
        while not self._queue.empty():
            found.append(self._queue.get_nowait())
        return found


class PeerBook:
    """Known nodes by `cluster/node`."""

    def __init__(self, settings: PeerSettings) -> None:
        self._settings = settings
        self._peers: dict[str, peer_pb2.ChangeNotification] = {}
        self._subscriptions: set[Subscription] = set()

    def upsert(self, node: metadata_pb2.Node) -> None:
        """A node appeared, or its addresses changed."""
        peer = self._peer(node)
        key = _key(node.cluster, node.name)
        known = self._peers.get(key)
        if known is not None and known.address == peer.address:
            return
        self._peers[key] = peer
        kind = peer_pb2.PEER_ADDED if known is None else peer_pb2.PEER_UPDATED
        self._notify(peer, kind)

    def delete(self, key: str) -> None:
        """A node, named `cluster/node`, is gone."""
        peer = self._peers.pop(key, None)
        if peer is not None:
            self._notify(peer, peer_pb2.PEER_DELETED)

    def replace(self, nodes: Iterable[metadata_pb2.Node]) -> None:
        """Take these nodes in place of those known."""
        listed = {_key(node.cluster, node.name): node for node in nodes}
        for key in self._peers.keys() - listed.keys():
            self.delete(key)
        for node in listed.values():
            self.upsert(node)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """All peers, then every change, until the context ends."""
        subscription = Subscription()
        for peer in self._peers.values():
            subscription.put(_with_type(peer, peer_pb2.PEER_ADDED))
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def _peer(self, node: metadata_pb2.Node) -> peer_pb2.ChangeNotification:
        peer = peer_pb2.ChangeNotification(
            name=qualified(node.cluster, node.name), address=self._address(node.addresses)
        )
        if self._settings.tls:
            peer.tls.server_name = tls_name(node.cluster, node.name)
        return peer

    def _address(self, addresses: Iterable[str]) -> str:
        listed = list(addresses)
        if not listed:
            return ""
        preferred = [each for each in listed if (":" in each) == self._settings.prefer_ipv6]
        address = (preferred or listed)[0]
        if self._settings.port is None:
            return address
        host = f"[{address}]" if ":" in address else address
        return f"{host}:{self._settings.port}"

    def _notify(
        self, peer: peer_pb2.ChangeNotification, kind: peer_pb2.ChangeNotificationType
    ) -> None:
        for subscription in self._subscriptions:
            subscription.put(_with_type(peer, kind))


def _key(cluster: str, name: str) -> str:
    return f"{cluster or DEFAULT_CLUSTER}/{name}"


def _with_type(
    peer: peer_pb2.ChangeNotification, kind: peer_pb2.ChangeNotificationType
) -> peer_pb2.ChangeNotification:
    made = peer_pb2.ChangeNotification()
    made.CopyFrom(peer)
    made.type = kind
    return made
