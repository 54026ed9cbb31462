"""What the flow path costs, as numbers. Each function runs for a bounded time and asserts nothing.

`flows.py` calls these; `python -m tests.bench.measuring` prints them all.

    ingest_rate()       events decoded, joined and stored, per second of CPU
    offered_load()      a real ring at a fixed rate: seen, lost, share of a core (root)
    query_ms()          `--last 1000` with a selective filter on a full ring
    stream_cost()       flows out of GetFlows: per second, and server CPU for each
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flow import flow_pb2
from hubble_server.encoding.encoder import Encoder
from hubble_server.filters import FilterContext, compile_filters
from hubble_server.flows.querying import Cursor, Query
from hubble_server.flows.store import LARGEST_CAPACITY, FlowStore
from hubble_server.ingest import Ingest, Snapshot
from hubble_server.metadata.directory import Directory
from hubble_server.ring.buffers import CpuRing
from hubble_server.ring.reading import EventReader, Reading
from hubble_server.ring.records import sequences_of
from observer import observer_pb2

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


def query_ms(repeats: int = 15) -> float:
    """Median time of the last 1000 flows of one pod to another port, encoded, on a full ring."""
    pipeline = Pipeline(LARGEST_CAPACITY, pods=PODS)
    for seed in range(3):
        pipeline.feed(traffic(32_768, PODS, seed))
    selective = flow_pb2.FlowFilter(
        source_pod=["ns1/pod-7"], destination_port=["8080"], verdict=[flow_pb2.FORWARDED]
    )
    encoder = Encoder(NODE, pipeline.directory)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        filters = compile_filters(FilterContext(pipeline.directory, NODE), [selective], [])
        cursor = Cursor(pipeline.store, Query(number=1000, filters=filters))
        while not cursor.ended:
            for run in cursor.read().runs:
                encoder.responses(run)  # type: ignore[arg-type]
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


@dataclass(frozen=True)
class StreamCost:
    """What streaming flows to a client that only counts them costs."""

    flows: int
    flows_per_s: float
    server_us_per_flow: float
    """CPU of the whole server process for each flow, in microseconds."""


def stream_cost(rounds: int = 5) -> StreamCost:
    """Read a full ring over the unix socket, whole flows, `rounds` times after a warm-up."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "hubble.sock"
        command = [sys.executable, "-m", "tests.bench.measuring", "serve", directory]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        try:
            assert server.stdout is not None
            while server.stdout.readline().strip() not in (b"ready", b""):
                continue
            _drain(path)
            cpu, started = _cpu_s(server.pid), time.perf_counter()
            flows = sum(_drain(path) for _ in range(rounds))
            wall = time.perf_counter() - started
            spent = _cpu_s(server.pid) - cpu
        finally:
            server.terminate()
            server.wait()
            if server.stdout is not None:
                server.stdout.close()
    return StreamCost(flows, flows / wall, spent / flows * 1e6)


def _cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _drain(path: Path) -> int:
    """Ask for all flows, count its messages, do as little as possible else."""
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.events import DataReceived, StreamEnded
    from h2.settings import SettingCodes

    window = 1 << 24
    h2 = H2Connection(H2Configuration(validate_inbound_headers=False))
    h2.initiate_connection()
    h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
    h2.increment_flow_control_window(window)
    headers = [(":method", "POST"), (":scheme", "http"), (":path", _GET_FLOWS), (":authority", "x")]
    headers += [("te", "trailers"), ("content-type", "application/grpc")]
    message = observer_pb2.GetFlowsRequest().SerializeToString()
    h2.send_headers(1, headers)
    h2.send_data(1, b"\0" + struct.pack(">I", len(message)) + message, end_stream=True)
    parts: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        ended = False
        while not ended:
            connection.sendall(h2.data_to_send())
            data = connection.recv(1 << 20)
            for happened in h2.receive_data(data):
                if isinstance(happened, DataReceived):
                    parts.append(happened.data)
                    h2.acknowledge_received_data(happened.flow_controlled_length, 1)
                ended = ended or isinstance(happened, StreamEnded)
    return _messages(b"".join(parts))


def _messages(data: bytes) -> int:
    count = position = 0
    while position < len(data):
        position += 5 + int.from_bytes(data[position + 1 : position + 5], "big")
        count += 1
    return count


class _Once:
    """A source that fills the ring once."""

    def __init__(self) -> None:
        self._readings = [Reading(traffic(32_768, PODS, seed)) for seed in range(2)]

    def wait(self, timeout_s: float | None = None) -> None:
        threading.Event().wait(0.05)

    def read(self) -> Reading:
        return self._readings.pop() if self._readings else Reading()


async def _serve(directory: str) -> None:
    from hubble_server.app import App
    from hubble_server.settings import ServerSettings

    settings = ServerSettings(
        node_name="node1",
        state_dir=Path(directory),
        hubble_event_buffer_capacity=LARGEST_CAPACITY,
        log_level="error",
    )
    source = _Once()
    app = App(settings, source)
    app.replace(snapshot(PODS))
    async with app:
        while app.store.head < LARGEST_CAPACITY:  # noqa: ASYNC110 - a store has no such event
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Print everything, or serve for `stream_cost`."""
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(_serve(sys.argv[2]))
        return
    print(f"ingest            {ingest_rate() / 1e6:.2f} M events/s of CPU")
    print(f"query             {query_ms():.1f} ms")
    print(f"GetFlows          {stream_cost()}")
    print(f"300 k/s offered   {offered_load()}")


if __name__ == "__main__":
    main()
