"""Packets and bytes of flows, in the field that the API leaves free: `extensions`.

They are JSON in a google.protobuf.StringValue. Clients in Go print no flow as JSON that has a type
in there which they were not built with, and all are built with that one, as flow.proto needs it.
`cilium_core.flow_counts` reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from cilium_core.flow_counts import TYPE_URL, as_json

from hubble_server.encoding.pieces import FIELDS
from hubble_server.encoding.wire import PieceCache, message_field, text_field

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_KEPT = 16_384
_TYPE = text_field(1, TYPE_URL)


class CountPieces:
    """Makes the field; flows that are alike share it."""

    def __init__(self) -> None:
        self._made: PieceCache[int] = PieceCache(_make, limit=_MOST_KEPT)

    def column(
        self, packets: NDArray[Any], octets: NDArray[Any], packetless: NDArray[np.bool_]
    ) -> list[bytes]:
        """The field for each flow, nothing for one that no packet stands behind."""
        keys = packets.astype(np.uint64) << np.uint64(32) | octets.astype(np.uint64)
        keys[packetless | (packets == 0)] = 0
        made = self._made
        return [made[key] for key in keys.tolist()]


def _make(key: int) -> bytes:
    if not key:
        return b""
    text = text_field(1, as_json(packets=key >> 32, octets=key & 0xFFFFFFFF))
    return message_field(FIELDS["extensions"], _TYPE + message_field(2, text))
