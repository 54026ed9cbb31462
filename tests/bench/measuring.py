"""What the flow path costs, as numbers. Each function runs for a bounded time and asserts nothing.

`flows.py` calls these; `python -m tests.bench.measuring` prints them all.

    ingest_rate()       events decoded, joined and stored, per second of CPU
    offered_load()      a real ring at a fixed rate: seen, lost, share of a core (root)

What clients get is measured in `queries.py` and `streams.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from hubble_server.flows.store import LARGEST_CAPACITY, FlowStore
from hubble_server.ingest import Ingest, Snapshot
from hubble_server.metadata.directory import Directory
from hubble_server.ring.buffers import CpuRing
from hubble_server.ring.reading import EventReader, Reading
from hubble_server.ring.records import sequences_of

from tests.unit.hubble.loads import emitter, snapshot, traffic
from tests.unit.hubble.pipelines import NODE, Pipeline

PODS = 100
_GET_FLOWS = "/observer.Observer/GetFlows"


def ingest_rate(seconds: float = 2.0) -> float:
    """Events per second of CPU from ring memory to the store, names joined, on one core."""
    pipeline = Pipeline(LARGEST_CAPACITY, pods=PODS)
    slots = traffic(32_768, PODS)
    slots["sequence"] = sequences_of(np.arange(len(slots), dtype=np.uint64))
    heads = np.array([len(slots)], dtype=np.uint64)
    done, started = 0, time.thread_time()
    while time.thread_time() - started < seconds:
        ring = CpuRing(slots, heads, 0, 0)
        while len(events := ring.take()):
            pipeline.ingest.process(Reading(events))
            done += len(events)
    return done / (time.thread_time() - started)


@dataclass(frozen=True)
class Offered:
    """Outcome of a load on a real ring."""

    sent: int
    seen: int
    lost: int
    cpu_share: float
    """CPU time of the ingest thread over wall time."""
    rate: float
    """Events per second really offered."""


def offered_load(events_per_s: int = 300_000, seconds: float = 3.0) -> Offered:
    """Write events from the kernel at a rate, and read them with the ingest thread. Needs root."""
    with emitter("measure") as kernel:
        reader = EventReader(kernel.root)
        store, directory = FlowStore(LARGEST_CAPACITY), Directory()
        ingest = Ingest(reader, store, directory, lambda: NODE)
        ingest.tell(Snapshot(snapshot(PODS)))
        ingest.step()
        ingest.start()
        try:
            return _offer(ingest, kernel, events_per_s, seconds)
        finally:
            ingest.stop()
            reader.close()


def _offer(ingest: Ingest, kernel: Any, events_per_s: int, seconds: float) -> Offered:
    lost = [0]

    def count(_events: Any, losses: dict[int, int], _offset: int) -> None:
        lost[0] += sum(losses.values())

    ingest.tap(count)
    clock = time.pthread_getcpuclockid(ingest._thread.ident or 0)
    burst, sent = max(events_per_s // 200, 1), 0
    cpu, started = time.clock_gettime(clock), time.monotonic()
    while time.monotonic() - started < seconds:
        kernel.emit(burst)
        sent += burst
        time.sleep(max(0.0, started + sent / events_per_s - time.monotonic()))
    wall = time.monotonic() - started
    share = (time.clock_gettime(clock) - cpu) / wall
    deadline = time.monotonic() + 2
    while ingest.flows_seen + lost[0] < sent and time.monotonic() < deadline:
        time.sleep(0.01)
    return Offered(sent, ingest.flows_seen, lost[0], share, sent / wall)


def main() -> None:
    """Print everything."""
    print(f"ingest            {ingest_rate() / 1e6:.2f} M events/s of CPU")
    print(f"300 k/s offered   {offered_load()}")


if __name__ == "__main__":
    main()
