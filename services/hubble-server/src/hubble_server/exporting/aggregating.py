"""Many flows as one line: those equal in some fields, counted by direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flow import flow_pb2
from observer import observer_pb2

if TYPE_CHECKING:
    from hubble_server.encoding.masks import Mask

from hubble_server.encoding.masks import apply_mask


class Aggregator:
    """Gathers flows by the fields of a mask until they are taken."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._found: dict[bytes, observer_pb2.ExportEvent] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, event: observer_pb2.ExportEvent) -> None:
        """Take in an event with a flow."""
        masked = flow_pb2.Flow()
        apply_mask(self._mask, event.flow, masked)
        key = masked.SerializeToString(deterministic=True)
        known = self._found.get(key)
        if known is None:
            known = observer_pb2.ExportEvent(node_name=event.node_name, flow=masked)
            known.time.CopyFrom(event.time)
            self._found[key] = known
        counts = known.flow.aggregate
        match event.flow.traffic_direction:
            case flow_pb2.INGRESS:
                counts.ingress_flow_count += 1
            case flow_pb2.EGRESS:
                counts.egress_flow_count += 1
            case _:
                counts.unknown_direction_flow_count += 1

    def take(self) -> list[observer_pb2.ExportEvent]:
        """What was gathered since the last time, in order of first sight."""
        found, self._found = self._found, {}
        return list(found.values())
