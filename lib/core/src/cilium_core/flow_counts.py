"""Packets and bytes of a flow, where our servers put them: in its field `extensions`.

They are JSON in a google.protobuf.StringValue, the one type with room for them that every client of
Hubble knows: `{"bytes":1500,"packets":3}`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from google.protobuf.wrappers_pb2 import StringValue

if TYPE_CHECKING:
    from flow import flow_pb2


TYPE_URL: Final = f"type.googleapis.com/{StringValue.DESCRIPTOR.full_name}"


class Counts(NamedTuple):
    """What was sent since the last flow of the same connection and direction, this one included."""

    packets: int
    bytes: int


def as_json(packets: int, octets: int) -> str:
    """The text that servers put into the StringValue."""
    return f'{{"bytes":{octets},"packets":{packets}}}'


def counts_of(flow: flow_pb2.Flow) -> Counts | None:
    """Packets and bytes behind a flow; None where it says nothing of them."""
    text = StringValue()
    if not flow.HasField("extensions") or not flow.extensions.Unpack(text):
        return None
    try:
        found = json.loads(text.value)
        return Counts(int(found["packets"]), int(found["bytes"]))
    except (ValueError, TypeError, KeyError):
        return None  # somebody else's
