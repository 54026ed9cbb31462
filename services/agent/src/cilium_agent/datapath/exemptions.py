"""What the node's own policy never stops: cilium_host_exempt.

A policy for nodes must not cut a node off from what it needs to learn of the next policy. The
agent lists here what that is, such as its key-value store and the ports that its peers ask for its
health.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple

from cilium_core import abi

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_agent.datapath.maps import Maps
    from cilium_agent.datapath.models import Address

_KEY = abi.view("exempt_key", "peer", "port", "proto", "direction")
_PRESENT = (1).to_bytes(4, "little")


class Exemption(NamedTuple):
    """Connections that pass: from the node for egress, to it for ingress."""

    direction: int
    """abi enum direction."""
    proto: int
    port: int
    """Destination port, 1 to 65535."""
    peer: Address | None = None
    """None is anybody."""


class Exemptions:
    """The set of exemptions in the kernel."""

    def __init__(self, maps: Maps) -> None:
        self._map = maps["HOST_EXEMPT"]

    def sync(self, wanted: Iterable[Exemption]) -> None:
        """Make these the only exemptions; what is new is in before anything else goes."""
        rows = {_encode(exemption): _PRESENT for exemption in wanted}
        gone = [key for key, _ in self._map.items() if key not in rows]
        self._map.set_many(rows)
        self._map.delete_many(gone)


def _encode(exemption: Exemption) -> bytes:
    peer = exemption.peer.packed if exemption.peer is not None else b""
    port = socket.htons(exemption.port)
    return _KEY.pack(peer.ljust(16, b"\0"), port, exemption.proto, exemption.direction)
