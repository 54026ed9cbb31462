"""Events written by the kernel arrive: all of them, or counted as lost."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from cilium_core import abi
from hubble_server.errors import EventsMapMissingError
from hubble_server.flows.columns import KIND_FLOW
from hubble_server.flows.store import FlowStore
from hubble_server.ingest import Ingest, Snapshot
from hubble_server.metadata.directory import Directory
from hubble_server.ring.maps import EventMaps
from hubble_server.ring.reading import EventReader

from tests.unit.hubble.loads import Emitter, snapshot
from tests.unit.hubble.pipelines import NODE


def drain(reader: EventReader) -> tuple[int, int]:
    """Events until there are no more, and losses."""
    seen = lost = 0
    while True:
        reading = reader.read()
        lost += sum(reading.lost.values())
        if not len(reading.events):
            return seen, lost
        seen += len(reading.events)


def test_all_events_arrive_in_order(kernel: Emitter) -> None:
    reader = EventReader(kernel.root)
    try:
        reader.read()
        kernel.emit(1000)
        events = reader.read().events
    finally:
        reader.close()
    assert len(events) == 1000
    assert (events["time_ns"][1:] >= events["time_ns"][:-1]).all()
    assert (events["src_identity"] == 1000).all()


def test_what_does_not_fit_is_counted_to_the_event(kernel: Emitter) -> None:
    reader = EventReader(kernel.root)
    size = abi.EVENT_RING_SIZE
    try:
        reader.read()
        found = []
        for count in (10, size, size + 1, 3, 3 * size):
            kernel.emit(count)
            found.append(drain(reader))
    finally:
        reader.close()
    assert found == [(10, 0), (size, 0), (size, 1), (3, 0), (size, 2 * size)]


def test_two_readers_see_the_same_events(kernel: Emitter) -> None:
    readers = [EventReader(kernel.root) for _ in range(2)]
    try:
        for reader in readers:
            reader.read()
        kernel.emit(100)
        first, second = (reader.read().events for reader in readers)
    finally:
        for reader in readers:
            reader.close()
    assert len(first) == 100
    assert first.tobytes() == second.tobytes()


def test_a_reader_that_keeps_up_loses_nothing(kernel: Emitter) -> None:
    reader = EventReader(kernel.root, interval_s=0.005)
    pause = threading.Event()

    def write() -> None:
        for _ in range(50):
            kernel.emit(2000)
            pause.wait(0.002)

    writer = threading.Thread(target=write)
    seen = lost = 0
    try:
        reader.read()
        writer.start()
        while writer.is_alive():
            reader.wait()
            fresh = drain(reader)
            seen, lost = seen + fresh[0], lost + fresh[1]
        writer.join()
        fresh = drain(reader)
    finally:
        reader.close()
    assert (seen + fresh[0], lost + fresh[1]) == (100_000, 0)


def test_a_map_that_the_agent_makes_anew_is_followed(kernel: Emitter) -> None:
    reader = EventReader(kernel.root)
    try:
        reader.read()
        kernel.emit(5)
        assert drain(reader) == (5, 0)
        kernel.replace_map()
        seen, deadline = 0, time.monotonic() + 30
        while not seen and time.monotonic() < deadline:
            reader.wait()
            kernel.emit(1)
            seen, _ = drain(reader)
    finally:
        reader.close()
    assert seen


def test_a_server_that_starts_before_the_agent_attaches_when_the_map_appears(
    kernel: Emitter,
) -> None:
    hidden = kernel.path.with_name("elsewhere")
    kernel.path.rename(hidden)
    reader = EventReader(kernel.root, interval_s=0.01)
    try:
        reader.read()
        assert not reader.attached
        hidden.rename(kernel.path)
        deadline = time.monotonic() + 30
        while not reader.attached and time.monotonic() < deadline:
            reader.wait()
            reader.read()
        assert reader.attached
    finally:
        reader.close()


def test_a_missing_map_is_told_with_its_path() -> None:
    with pytest.raises(EventsMapMissingError, match="is the agent running"):
        EventMaps(Path("/sys/fs/bpf/tE-no-such-map"))


def test_the_whole_pipeline_loses_no_event_without_telling(kernel: Emitter) -> None:
    reader = EventReader(kernel.root)
    store, directory = FlowStore(65535), Directory()
    ingest = Ingest(reader, store, directory, lambda: NODE, lost_interval_s=0)
    try:
        ingest.tell(Snapshot(snapshot(40)))
        ingest.step()
        for _ in range(2):
            kernel.emit(2 * abi.EVENT_RING_SIZE)
            for _ in range(4):
                ingest.step()
    finally:
        reader.close()
    lost = 0
    for number in range(store.oldest, store.head):
        message = store.attached(number)
        lost += getattr(message, "num_events_lost", 0)
    block = store.block(0, store.head)
    flows = int((block["kind"] == KIND_FLOW).sum())
    assert lost > 0
    assert flows + lost == 4 * abi.EVENT_RING_SIZE
    assert flows == ingest.flows_seen
    rows = set(block["source_row"][block["kind"] == KIND_FLOW].tolist())
    assert {"pod-0"} == {directory.rows[row].pod_name for row in rows}
