"""Flows on their way to an OpenTelemetry collector.

Imported only where this is configured, because OpenTelemetry costs time and memory.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from cilium_core.telemetry.collectors import Sender, Signal
from observer import observer_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from hubble_server.exporting.log_records import request_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cilium_core.telemetry.collectors import Collector
    from google.protobuf.message import Message

    from hubble_server.facts import NodeFacts

LOGS: Final = Signal(
    "flows",
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    ExportLogsServiceResponse,
    "rejected_log_records",
)


class LogRecords:
    """A target of exporters: log records, sent by a thread. At most `limit` events wait."""

    def __init__(self, collector: Collector, node: Callable[[], NodeFacts], *, limit: int) -> None:
        self._collector = collector
        self._node = node
        self._limit = limit
        self._sender: Sender[bytes] | None = None

    def write(self, events: Sequence[bytes]) -> int:
        """Put events into the queue; tells how many there was room for."""
        if self._sender is None:
            self._sender = Sender(self._collector, LOGS, self._request, limit=self._limit)
        return self._sender.offer(events)

    def close(self) -> None:
        """Send what waits, for a few seconds at most; a later write begins anew."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def _request(self, encoded: Sequence[bytes]) -> Message:
        node, now = self._node(), time.time_ns()
        resource = {
            "service.name": "hubble-server",
            "k8s.node.name": node.name,
            "k8s.cluster.name": node.cluster,
        }
        return request_of(map(observer_pb2.ExportEvent.FromString, encoded), now, resource)
