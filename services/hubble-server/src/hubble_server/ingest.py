"""The ingest thread: kernel events and the agent's messages in, flows out into the ring.

One loop: wait for the ring, take what the agent told, read the events, decode and store them, tell
the readers. It is the only writer of the store and of the directory. What the agent adds is applied
before the events that were waiting, what it replaces or deletes after them, as those events are
older; so a pod that is just gone still has its name in its last flows.

A failure in one round is logged and the loop goes on; `stop` ends it within one interval.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from cilium.metadata.v1 import metadata_pb2
from cilium_core.telemetry import counter, get_logger
from flow import flow_pb2

from hubble_server.flows import decoding
from hubble_server.flows.columns import (
    KIND_AGENT,
    KIND_DEBUG,
    KIND_LOST,
    TYPE_AGENT,
    TYPE_DEBUG,
)
from hubble_server.flows.debugging import debug_event
from hubble_server.records.building import RecordBuilder
from hubble_server.ring.reading import Clock, Reading
from hubble_server.ring.records import pick

if TYPE_CHECKING:
    from hubble_server.facts import NodeFacts
    from hubble_server.flows.store import FlowStore
    from hubble_server.metadata.directory import Directory
    from hubble_server.metrics.counting import FlowMetrics
    from hubble_server.records.redacting import Redaction
    from hubble_server.ring.records import Events

_log = get_logger()

LOST = counter(
    "hubble_lost_events_total", "Events that were lost, by where they were lost.", "source"
)
_SOURCES = {
    flow_pb2.PERF_EVENT_RING_BUFFER: "perf_event_ring_buffer",
    flow_pb2.OBSERVER_EVENTS_QUEUE: "observer_events_queue",
}
RECORDS_LIMIT = 16_384
"""Records that may wait for the ingest thread; more are lost and counted."""

_FLOWS = counter("hubble_server_flows_total", "Flows decoded.")
_UNDECODED = counter("hubble_server_undecoded_events_total", "Events of a kind that is not known.")


class Source(Protocol):
    """Where events come from; `ring.reading.EventReader` in life."""

    def wait(self, timeout_s: float | None = None) -> None:
        """Sleep until there is something to read, or for a while."""

    def read(self) -> Reading:
        """Everything written so far."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state of the agent, in place of what was known."""

    updates: Sequence[metadata_pb2.Update]


Change = metadata_pb2.Update | Snapshot
Tap = Callable[["Events", dict[int, int], int], None]
"""Called on the ingest thread with raw events, losses by processor, and the clock offset."""


_EVENTS = frozenset({"agent_event", "l7"})


@dataclass(slots=True)
class _Loss:
    count: int
    first_ns: int
    last_ns: int


class Ingest:
    """Feeds one store from one source. `node` tells the present facts about the node.

    `processed` is told after each round how many events the store has had.
    """

    def __init__(
        self,
        source: Source,
        store: FlowStore,
        directory: Directory,
        node: Callable[[], NodeFacts],
        *,
        lost_interval_s: float = 1.0,
        redaction: Redaction | None = None,
        metrics: FlowMetrics | None = None,
        processed: Callable[[int], None] | None = None,
    ) -> None:
        self._processed = processed
        self._metrics = metrics
        self._source = source
        self._store = store
        self._directory = directory
        self._node = node
        self._lost_interval_ns = int(lost_interval_s * 1e9)
        self._changes: deque[Change] = deque()
        self._taps: set[Tap] = set()
        self._losses: dict[tuple[flow_pb2.LostEventSource, int], _Loss] = {}
        self._builder = RecordBuilder(directory, redaction)
        self._records: list[metadata_pb2.L7Record] = []
        self._records_told = 0
        self._records_taken = 0
        self._records_refused = 0
        self._refusals_noted = 0
        self._random = np.random.default_rng()
        self.clock = Clock()
        self.flows_seen = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    # ---- called from other threads ----

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if it was started, and wait for it."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def tell(self, change: Change) -> None:
        """Hand over something the agent said; applied within one interval, in order.

        Records beyond `RECORDS_LIMIT` are lost instead.
        """
        if not isinstance(change, Snapshot) and change.WhichOneof("update") == "l7":
            if self._records_told - self._records_taken >= RECORDS_LIMIT:
                self._records_refused += 1
                return
            self._records_told += 1
        self._changes.append(change)

    def tap(self, tap: Tap) -> Callable[[], None]:
        """Have raw events passed on; returns what ends that."""
        self._taps = self._taps | {tap}

        def stop() -> None:
            self._taps = self._taps - {tap}

        return stop

    # ---- the thread ----

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._source.wait()
            try:
                self.step()
            except Exception as error:
                _log.error("a round of reading events failed", exc_info=error)
                self._stopping.wait(0.1)

    def step(self) -> None:
        """Do one round: everything that is waiting now."""
        before = self._store.head
        later = self._apply_additions()
        self.process(self._source.read())
        for change in later:
            self._apply(change)
        self._store_records()
        self._report_losses()
        self._directory.tidy(self._store.head, self._store.slots)
        if self._processed is not None:
            self._processed(self._store.head)
        if self._metrics is not None:
            self._metrics.tidy()
        if self._store.head != before:
            self._store.notify()

    def _apply_additions(self) -> list[Change]:
        """Apply what adds to the directory; return, in order, what has to wait."""
        later: list[Change] = []
        blocked = False
        for _ in range(len(self._changes)):
            change = self._changes.popleft()
            if _is_event(change):
                later.append(change)
            elif blocked or not self._adds(change):
                later.append(change)
                blocked = True
            else:
                self._apply(change)
        return later

    def _adds(self, change: Change) -> bool:
        """Whether a change says only what nobody knew before."""
        if isinstance(change, Snapshot):
            return self._directory.is_empty
        return self._directory.is_addition(change)

    def _apply(self, change: Change) -> None:
        if isinstance(change, Snapshot):
            self._store_records()
            self._directory.replace(change.updates)
            return
        kind = change.WhichOneof("update")
        if kind == "l7":
            self._records.append(change.l7)
            self._records_taken += 1
            return
        self._store_records()
        match kind:
            case "agent_event":
                event = change.agent_event.event
                self._store.append_object(
                    KIND_AGENT,
                    self.clock.now_ns(),
                    event,
                    type=TYPE_AGENT,
                    subtype=event.type,
                )
            case "endpoint_deleted" if self._metrics is not None:
                self._metrics.note_gone(*self._directory.pod_of(change.endpoint_deleted))
                self._directory.apply(change)
            case _:
                self._directory.apply(change)

    def _store_records(self) -> None:
        """Store the records taken so far as flows of this node, observed now."""
        records, self._records = self._records, []
        for start in range(0, len(records), decoding.CHUNK):
            chunk = records[start : start + decoding.CHUNK]
            times = [self.clock.now_ns() for _ in chunk]
            columns, encoded, said = self._builder.build(chunk, times, self._node())
            self._store.append(columns, len(chunk), encoded, said)
            if self._metrics is not None:
                self._metrics.count_records(encoded)
            self.flows_seen += len(chunk)
            _FLOWS.add(len(chunk))

    def process(self, reading: Reading) -> None:
        """Turn events into flows, and note losses."""
        self.clock.refresh()
        events = reading.events
        for tap in self._taps:
            if len(events) or reading.lost:
                tap(events, reading.lost, self.clock.offset_ns)
        for start in range(0, len(events), decoding.CHUNK):
            self._store_flows(events[start : start + decoding.CHUNK])
        if reading.lost:
            self._note_losses(flow_pb2.PERF_EVENT_RING_BUFFER, reading.lost)
        if count := decoding.left_out(events):
            self._note_losses(flow_pb2.PERF_EVENT_RING_BUFFER, {0: count})

    def _store_flows(self, events: Events) -> None:
        are_flows = decoding.are_flows(events, self._directory)
        if not are_flows.all():
            self._store_others(pick(events, ~are_flows))
            events = pick(events, are_flows)
        count = len(events)
        if not count:
            return
        times = self.clock.stamp(events["time_ns"])
        flows = decoding.decode(events, times, self._directory, self._random)
        self._store.append(flows, count)
        if self._metrics is not None:
            self._metrics.count(flows)
        self.flows_seen += count
        _FLOWS.add(count)

    def _store_others(self, events: Events) -> None:
        """Keep debug events as messages; count what is of no known kind."""
        for event in pick(events, ~decoding.is_left_out(events)):
            if event["type"] != TYPE_DEBUG:
                _UNDECODED.add()
                continue
            message = debug_event(event, self._directory)
            self._store.append_object(
                KIND_DEBUG,
                self.clock.now_ns(),
                message,
                type=TYPE_DEBUG,
                subtype=int(event["subtype"]),
            )

    def _note_losses(self, source: flow_pb2.LostEventSource, lost: dict[int, int]) -> None:
        """Note losses at a source, by processor."""
        now = time.time_ns()
        for cpu, count in lost.items():
            LOST.add(count, _SOURCES[source])
            loss = self._losses.setdefault((source, cpu), _Loss(0, now, now))
            loss.count += count
            loss.last_ns = now

    def _note_refusals(self) -> None:
        """Note the records that were not taken in."""
        refused = self._records_refused
        if refused != self._refusals_noted:
            lost = {0: refused - self._refusals_noted}
            self._note_losses(flow_pb2.OBSERVER_EVENTS_QUEUE, lost)
            self._refusals_noted = refused

    def _report_losses(self) -> None:
        """Put losses into the ring, at most one report for each place and interval."""
        self._note_refusals()
        if not self._losses:
            return
        now = time.time_ns()
        for (source, cpu), loss in list(self._losses.items()):
            if now - loss.first_ns < self._lost_interval_ns:
                continue
            del self._losses[source, cpu]
            message = flow_pb2.LostEvent(source=source, num_events_lost=loss.count)
            message.cpu.value = cpu
            message.first.FromNanoseconds(loss.first_ns)
            message.last.FromNanoseconds(loss.last_ns)
            self._store.append_object(KIND_LOST, self.clock.now_ns(), message)


def _is_event(change: Change) -> bool:
    """Whether a change tells of something that happened, rather than of how things are."""
    return not isinstance(change, Snapshot) and change.WhichOneof("update") in _EVENTS
