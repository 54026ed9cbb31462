"""A server's inside without threads, sockets or a kernel: fed by hand, read by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flow import flow_pb2
from hubble_server.encoding.encoder import Encoder
from hubble_server.facts import NodeFacts
from hubble_server.filters import FilterContext, Filters, compile_filters
from hubble_server.flows.querying import Cursor, Query
from hubble_server.flows.store import FlowStore
from hubble_server.ingest import Ingest, Snapshot
from hubble_server.metadata.directory import Directory
from hubble_server.ring.reading import Reading
from observer import observer_pb2

from tests.unit.hubble.loads import snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cilium.metadata.v1 import metadata_pb2
    from hubble_server.encoding.masks import Mask
    from numpy.typing import NDArray

NODE = NodeFacts("node1", "default", ("os=linux",), ("172.30.0.11",))


class Script:
    """A source that yields what it was given."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []

    def wait(self, timeout_s: float | None = None) -> None: ...

    def read(self) -> Reading:
        return self.readings.pop(0) if self.readings else Reading()


class Pipeline:
    """Store, directory and ingest of a node, with `pods` pods known."""

    def __init__(self, capacity: int = 4095, pods: int = 4, lost_interval_s: float = 0.0) -> None:
        self.updates = snapshot(pods)
        self.source = Script()
        self.store = FlowStore(capacity)
        self.directory = Directory()
        self.ingest = Ingest(
            self.source, self.store, self.directory, lambda: NODE, lost_interval_s=lost_interval_s
        )
        self.tell(Snapshot(self.updates))

    def tell(self, *changes: metadata_pb2.Update | Snapshot) -> None:
        for change in changes:
            self.ingest.tell(change)
        self.ingest.step()

    def feed(self, events: NDArray[Any], lost: dict[int, int] | None = None) -> None:
        self.source.readings.append(Reading(events, lost or {}))
        self.ingest.step()

    def filters(
        self,
        whitelist: Sequence[flow_pb2.FlowFilter],
        blacklist: Sequence[flow_pb2.FlowFilter] = (),
    ) -> Filters:
        return compile_filters(FilterContext(self.directory, NODE), whitelist, blacklist)

    def responses(
        self, query: Query | None = None, mask: Mask | None = None
    ) -> list[observer_pb2.GetFlowsResponse]:
        """All that a query (by default everything) finds, losses of the ring left out."""
        encoder = Encoder(NODE, self.directory, mask)
        cursor = Cursor(self.store, query or Query())
        found: list[bytes] = []
        while not cursor.ended and not (query and query.follow and cursor.at_end):
            for run in cursor.read().runs:
                if isinstance(run, dict):
                    found += encoder.responses(run)
                elif isinstance(run[2], flow_pb2.LostEvent):
                    response = observer_pb2.GetFlowsResponse(lost_events=run[2])
                    found.append(response.SerializeToString())
                elif isinstance(run[2], bytes):
                    found.append(encoder.record(run[2], run[1]))
        return [observer_pb2.GetFlowsResponse.FromString(data) for data in found]

    def flows(self, query: Query | None = None) -> list[flow_pb2.Flow]:
        return [each.flow for each in self.responses(query) if each.HasField("flow")]
