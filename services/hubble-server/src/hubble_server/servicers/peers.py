"""peer.Peer: which nodes serve flows, live."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_core.serving.packed import Call, Method, stream
from peer import peer_pb2

if TYPE_CHECKING:
    from hubble_server.peers import PeerBook

PEER = "peer.Peer"


class PeerService:
    """Tells clients of peers."""

    def __init__(self, peers: PeerBook) -> None:
        self._peers = peers

    def methods(self) -> dict[str, Method]:
        """Methods of the service."""
        return {"Notify": stream(self._notify, peer_pb2.NotifyRequest)}

    async def _notify(self, _request: peer_pb2.NotifyRequest, call: Call) -> None:
        with self._peers.subscribe() as subscription:
            await call.start()
            while True:
                changes = await subscription.next()
                await call.send_many([change.SerializeToString() for change in changes])
