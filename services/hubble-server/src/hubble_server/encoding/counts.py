"""Packets and bytes of flows, in the field that the API leaves free: `extensions`.

They are a google.protobuf.Struct, since clients print a flow as JSON only when they know the type
that is in there, and all know that one. Its numbers have eight bytes each, so whole columns are
written at once. `cilium_core.flow_counts` reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from flow import flow_pb2
from google.protobuf.struct_pb2 import Struct

from hubble_server.encoding.wire import rows_as_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAMES: Final = ("bytes", "packets")


def _template() -> tuple[bytes, list[int]]:
    """An encoded field, and where the numbers stand in it."""
    marks = {name: float(place + 1) + 0.123 for place, name in enumerate(_NAMES)}
    counts = Struct()
    counts.update(marks)
    flow = flow_pb2.Flow()
    flow.extensions.Pack(counts, deterministic=True)
    encoded = flow.SerializeToString()
    return encoded, [encoded.index(np.float64(marks[name]).tobytes()) for name in _NAMES]


_TEMPLATE, _PLACES = _template()


def counts(octets: NDArray[np.uint32], packets: NDArray[np.uint32]) -> list[bytes]:
    """Field extensions for each flow, nothing for one that no packet is counted of."""
    out = np.empty((len(octets), len(_TEMPLATE)), dtype=np.uint8)
    out[:] = np.frombuffer(_TEMPLATE, dtype=np.uint8)
    for place, numbers in zip(_PLACES, (octets, packets), strict=True):
        out[:, place : place + 8] = numbers.astype("<f8").view(np.uint8).reshape(-1, 8)
    made = rows_as_bytes(out)
    if packets.all():
        return made
    return [piece if count else b"" for piece, count in zip(made, packets.tolist(), strict=True)]
