"""Packets and bytes of a flow, read from where our servers put them: its field `extensions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.struct_pb2 import Struct

if TYPE_CHECKING:
    from flow import flow_pb2


class Counts(NamedTuple):
    """What was sent since the last flow of the same connection and direction, this one included."""

    packets: int
    bytes: int


def counts_of(flow: flow_pb2.Flow) -> Counts | None:
    """Packets and bytes behind a flow; None where it says nothing of them."""
    counts = Struct()
    if not flow.HasField("extensions") or not flow.extensions.Unpack(counts):
        return None
    found = [counts.fields[name] for name in Counts._fields if name in counts.fields]
    if len(found) < len(Counts._fields):
        return None
    packets, octets = (value.number_value for value in found)
    return Counts(int(packets), int(octets))
