"""An exporter: follows the ring like a client, and writes what passes to its target.

A target is a file of JSON lines, or a collector. The exporter reads in steps of its own and never
holds the ring back: what it is too slow for is lost to it, is counted, and stands in its output as
lost events. Events are made and written on a thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol, cast

from cilium_core import flow_filters
from cilium_core.telemetry import counter, get_logger
from flow import flow_pb2
from observer.observer_pb2 import ExportEvent

from hubble_server.encoding.encoder import Encoder
from hubble_server.encoding.jsonlines import JsonLines, line_of
from hubble_server.encoding.masks import Mask, parse_mask
from hubble_server.exporting.aggregating import Aggregator
from hubble_server.exporting.files import sink_of
from hubble_server.facts import NodeFacts
from hubble_server.filters import FilterContext, compile_filters
from hubble_server.flows.columns import KIND_AGENT, Batch
from hubble_server.flows.querying import AGENT_EVENTS, DEBUG_EVENTS, FLOWS, Cursor, Query
from hubble_server.flows.store import FlowStore
from hubble_server.metadata.directory import Directory
from hubble_server.servicers.streaming import Chunk, Encoding, NewEvents, chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubble_server.exporting.files import Sink
    from hubble_server.flows.store import Attached

_log = get_logger()
_EVERYTHING: Final = FLOWS | AGENT_EVENTS | DEBUG_EVENTS
_RETRY_S: Final = 5.0
_PAUSE_S: Final = 0.25
"""How long a target that had no room for all gets to make some."""
_GATHERED: Final = 65_536
"""Lines gathered at the most; then they are written ahead of time."""

_LINES = counter("hubble_server_export_lines_total", "Events exported.", "name")
_FAILED = counter(
    "hubble_server_export_failed_lines_total", "Events that could not be written.", "name"
)
_MISSED = counter(
    "hubble_server_export_missed_events_total",
    "Events that were overwritten before the exporter had read them.",
    "name",
)


@dataclass(frozen=True)
class Export:
    """What one exporter writes where. Filters and masks have been checked."""

    name: str
    path: str
    allow: tuple[flow_pb2.FlowFilter, ...] = ()
    deny: tuple[flow_pb2.FlowFilter, ...] = ()
    field_mask: tuple[str, ...] = ()
    aggregate: tuple[str, ...] = ()
    """Fields to gather flows by; with an interval only."""
    interval_s: float = 0.0
    megabytes: int = 10
    backups: int = 5
    compress: bool = False
    end: datetime | None = None
    """When to stop writing."""

    def check(self) -> None:
        """Raise FilterError or MaskError for what makes no sense."""
        flow_filters.compile_filters(self.allow, self.deny)
        parse_mask(self.field_mask)
        parse_mask(self.aggregate)

    @property
    def active(self) -> bool:
        """Whether its time has not come yet."""
        return self.end is None or datetime.now(UTC) < self.end


@dataclass(frozen=True, slots=True)
class Feed:
    """What exporters read from."""

    store: FlowStore
    directory: Directory
    node: Callable[[], NodeFacts]
    new_events: NewEvents


class Target(Protocol):
    """Where events go, encoded as observer.ExportEvent; used by one thread at a time."""

    def write(self, events: Sequence[bytes]) -> int:
        """Write events; tells how many were taken. Raises OSError where none were."""

    def close(self) -> None:
        """Bring out what waits, and give up what is held."""


class Lines:
    """Lines of JSON in a file."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    @classmethod
    def of(cls, export: Export) -> Lines:
        """What an export names."""
        return cls(
            sink_of(
                export.path,
                megabytes=export.megabytes,
                backups=export.backups,
                compress=export.compress,
            )
        )

    def write(self, events: Sequence[bytes]) -> int:
        """Write a line for each event."""
        return self.write_lines([line_of(ExportEvent.FromString(event)) for event in events])

    def write_lines(self, lines: Sequence[bytes]) -> int:
        """Write what is made a line already."""
        self._sink.write(b"".join(lines))
        return len(lines)

    def close(self) -> None:
        """Close the file."""
        self._sink.close()


class Exporter:
    """Runs one export, from now on; to the file it names where no `target` is given."""

    def __init__(self, export: Export, feed: Feed, target: Target | None = None) -> None:
        self.export = export
        self._feed = feed
        self._target: Target = target or Lines.of(export)
        self._aggregator = self._aggregator_of(export)
        # lines are made of columns, which is much faster than of events
        self._lines = self._target if isinstance(self._target, Lines) else None
        if self._aggregator is not None:
            self._lines = None
        self._failing = False
        self._full = False
        self._writing = threading.Lock()
        self._running = False
        self.taken = 0
        """Events taken in so far."""

    @staticmethod
    def _aggregator_of(export: Export) -> Aggregator | None:
        mask = parse_mask(export.aggregate) if export.interval_s > 0 else None
        return Aggregator(mask) if mask is not None else None

    async def run(self) -> None:
        """Write until cancelled; what was gathered is written then too."""
        export, feed = self.export, self._feed
        node = feed.node()
        filters = compile_filters(FilterContext(feed.directory, node), export.allow, export.deny)
        kinds = _EVERYTHING if filters.pass_all else FLOWS
        cursor = Cursor(feed.store, Query(follow=True, filters=filters, kinds=kinds))
        cursor.position = feed.store.head
        mask = parse_mask(export.field_mask)
        encoding = self._encoding(node, mask)
        self._running = True
        flushing = asyncio.create_task(self._flush_regularly())
        try:
            found = chunks(
                feed.store,
                cursor,
                encoding,
                feed.new_events,
                lambda count: _MISSED.add(count, export.name),
            )
            async with aclosing(found):
                async for chunk in found:
                    if export.active:
                        await asyncio.to_thread(self._take, chunk)
                    self.taken += len(chunk.responses)
                    if self._full:
                        # making what is thrown away would take time from the others, and what the
                        # ring loses meanwhile stands in the output
                        await asyncio.sleep(_PAUSE_S)
        finally:
            flushing.cancel()
            with suppress(asyncio.CancelledError):
                await flushing
            await asyncio.to_thread(self._end)

    def _encoding(self, node: NodeFacts, mask: Mask | None) -> Encoding:
        """How events become what `_take` takes: lines where the target takes lines."""
        if self._aggregator is not None:
            mask = None  # aggregation looks at whole flows, and chooses fields itself
        columns: Callable[[Batch], list[bytes]]
        if self._lines is not None:
            lines = JsonLines(node, self._feed.directory, mask)
            columns, record, encoded = lines.lines, lines.record, line_of
        else:
            encoder = Encoder(node, self._feed.directory, mask)
            columns, record, encoded = encoder.responses, encoder.record, _encoded

        def attached(kind: int, time_ns: int, message: Attached) -> bytes:
            if isinstance(message, bytes):
                return record(message, time_ns)
            event = ExportEvent(node_name=node.name)
            if kind == KIND_AGENT:
                event.agent_event.CopyFrom(cast("flow_pb2.AgentEvent", message))
            else:
                event.debug_event.CopyFrom(cast("flow_pb2.DebugEvent", message))
            event.time.FromNanoseconds(time_ns)
            return encoded(event)

        def lost(message: flow_pb2.LostEvent, time_ns: int) -> bytes:
            event = ExportEvent(lost_events=message, node_name=node.name)
            event.time.FromNanoseconds(time_ns)
            return encoded(event)

        tells_losses = not (self.export.allow or self.export.deny)
        return Encoding(columns, attached, lost if tells_losses else None)

    def _take(self, chunk: Chunk) -> None:
        aggregator = self._aggregator
        with self._writing:
            if not self._running:
                return
            if aggregator is None:
                # GetFlowsResponse has the fields of ExportEvent with the same numbers
                self._write(chunk.responses)
                return
            for data in chunk.responses:
                event = ExportEvent.FromString(data)
                if event.HasField("flow"):
                    aggregator.add(event)
            if len(aggregator) >= _GATHERED:
                self._write_gathered(aggregator)

    async def _flush_regularly(self) -> None:
        while self._aggregator is not None:
            await asyncio.sleep(self.export.interval_s)
            await asyncio.to_thread(self._flush)

    def _end(self) -> None:
        self._flush()
        with self._writing:
            # a thread that is about to take events in cannot be cancelled
            self._running = False
            self._target.close()

    def _flush(self) -> None:
        if self._aggregator is None:
            return
        with self._writing:
            if self._running and len(self._aggregator):
                self._write_gathered(self._aggregator)

    def _write_gathered(self, aggregator: Aggregator) -> None:
        self._write([event.SerializeToString() for event in aggregator.take()])

    def _write(self, events: Sequence[bytes]) -> None:
        name = self.export.name
        try:
            write = self._target.write if self._lines is None else self._lines.write_lines
            written = write(events)
        except OSError as error:
            _FAILED.add(len(events), name)
            if not self._failing:
                _log.error("exporter cannot write", exporter=name, path=self.export.path,
                           reason=error.strerror)  # fmt: skip
            self._failing = True
            with suppress(OSError):
                self._target.close()
            return
        if self._failing:
            _log.info("exporter writes again", exporter=name, path=self.export.path)
            self._failing = False
        _LINES.add(written, name)
        self._full = written < len(events)
        if self._full:
            _FAILED.add(len(events) - written, name)


def _encoded(event: ExportEvent) -> bytes:
    return event.SerializeToString()


async def keep_running(exporter: Exporter) -> None:
    """Run an exporter, and again after a failure."""
    while True:
        try:
            await exporter.run()
        except Exception as error:
            _log.error("exporter failed", exporter=exporter.export.name, exc_info=error)
        await asyncio.sleep(_RETRY_S)
