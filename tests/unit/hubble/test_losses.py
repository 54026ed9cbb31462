"""Nothing gets lost without being counted, where it was lost, in the stream and in the metrics."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import grpc
from cilium_core import abi
from flow import flow_pb2
from hubble_relay.app import Relay
from hubble_relay.peers import Peer
from hubble_relay.settings import RelaySettings
from hubble_server import ingest
from hubble_server.app import App
from hubble_server.ingest import LOST
from hubble_server.ring.reading import EventReader, Reading
from hubble_server.servicers.flows import _SENT
from hubble_server.settings import ServerSettings
from observer import observer_pb2, observer_pb2_grpc

from tests.unit.hubble.conftest import running
from tests.unit.hubble.loads import record, snapshot, traffic
from tests.unit.hubble.test_serving_clients import RawClient
from tests.unit.relay.fakes import Stream, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest
    from hubble_server.ingest import Source

    from tests.unit.hubble.loads import Emitter

FLOWS = "flows"


def count(found: Counter[str], answer: observer_pb2.GetFlowsResponse) -> int:
    """Add a flow, or losses under their source; returns how many events that tells of."""
    kind = answer.WhichOneof("response_types")
    if kind == "flow":
        found[FLOWS] += 1
        return 1
    lost = answer.lost_events.num_events_lost
    if kind == "lost_events":
        found[flow_pb2.LostEventSource.Name(answer.lost_events.source)] += lost
    return lost


class Held:
    """A source that nobody reads until it is let go."""

    def __init__(self, source: Source | None = None) -> None:
        self._source = source
        self.gate = threading.Event()

    def wait(self, timeout_s: float | None = None) -> None:
        self.gate.wait()
        if self._source is not None:
            self._source.wait(timeout_s)
        else:
            threading.Event().wait(0.005)

    def read(self) -> Reading:
        return self._source.read() if self._source is not None else Reading()


@asynccontextmanager
async def held(folder: Path, source: Held) -> AsyncIterator[App]:
    """A server whose ingest waits for the test."""
    settings = ServerSettings(
        node_name="node1",
        state_dir=folder,
        hubble_event_buffer_capacity=65535,
        hubble_lost_event_send_interval=0.01,
    )
    async with App(settings, source) as app:
        try:
            app.replace(snapshot(40))
            yield app
        finally:
            source.gate.set()


async def seen_by_client(app: App, events: int) -> Counter[str]:
    """What a client counts once it has been told of so many events."""
    async with grpc.aio.insecure_channel(f"unix:{app._settings.socket_path}") as channel:
        found: Counter[str] = Counter()
        request = observer_pb2.GetFlowsRequest(follow=True)
        request.since.FromNanoseconds(1)
        async with asyncio.timeout(30):
            async for answer in observer_pb2_grpc.ObserverStub(channel).GetFlows(request):
                events -= count(found, answer)
                if events <= 0:
                    break
    return found


async def test_what_the_kernel_overwrote_is_counted(kernel: Emitter, tmp_path: Path) -> None:
    reader = EventReader(kernel.root)
    source, sent = Held(reader), 3 * abi.EVENT_RING_SIZE
    before = LOST.value("perf_event_ring_buffer")
    try:
        async with held(tmp_path, source) as app:
            reader.read()
            kernel.emit(sent)
            source.gate.set()
            found = await seen_by_client(app, sent)
    finally:
        reader.close()
    assert found == {FLOWS: sent // 3, "PERF_EVENT_RING_BUFFER": sent - sent // 3}
    assert LOST.value("perf_event_ring_buffer") - before == found["PERF_EVENT_RING_BUFFER"]


async def test_what_the_queue_had_no_room_for_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "RECORDS_LIMIT", 2000)
    seen = record(flow_pb2.Layer7(dns=flow_pb2.DNS(query="x.test.")))
    source, sent = Held(), 2500
    before = LOST.value("observer_events_queue")
    async with held(tmp_path, source) as app:
        for _ in range(sent):
            app.update(seen)
        source.gate.set()
        found = await seen_by_client(app, sent)
    assert found == {FLOWS: 2000, "OBSERVER_EVENTS_QUEUE": 500}
    assert LOST.value("observer_events_queue") - before == 500


@asynccontextmanager
async def relay_over(folder: Path, *sockets: str) -> AsyncIterator[Relay]:
    """A relay on `relay.sock` that reaches nodes at these sockets."""
    relay = Relay(
        RelaySettings(
            peer_service=(f"unix://{folder}/nobody.sock",),
            listen_address=(f"unix://{folder}/relay.sock",),
            health_listen_address="",
            disable_client_tls=True,
        )
    )
    await relay.start()
    try:
        for number, path in enumerate(sockets):
            relay.directory.upsert("told", Peer(f"node{number}", f"unix://{path}", None))
        await eventually(lambda: sum(one.available for one in relay.pool.connections))
        yield relay
    finally:
        await relay.stop()


async def test_what_a_slow_client_of_the_relay_missed_is_counted(tmp_path: Path) -> None:
    before, given = LOST.value("hubble_ring_buffer"), _SENT.value()
    async with (
        running(tmp_path, hubble_event_buffer_capacity=1023) as server,
        relay_over(tmp_path, str(server.app._settings.socket_path)),
    ):
        await server.feed_flows(traffic(1, pods=4))
        with closing(RawClient(tmp_path / "relay.sock")) as slow:
            request = observer_pb2.GetFlowsRequest(follow=True, number=1)
            slow.call("/observer.Observer/GetFlows", request.SerializeToString())
            await eventually(lambda: _SENT.value() > given)
            for seed in range(20):
                await server.feed_flows(traffic(3000, pods=4, seed=seed))
            found = await asyncio.to_thread(read_until, slow, 60_001)
    lost = found["HUBBLE_RING_BUFFER"]
    assert lost > 0
    assert found == {FLOWS: 60_001 - lost, "HUBBLE_RING_BUFFER": lost}
    assert LOST.value("hubble_ring_buffer") - before == lost


class Cable:
    """Passes bytes on between a relay and a node until it is cut."""

    def __init__(self, node: Path, path: Path) -> None:
        self.path = path
        self._node = node
        self._ends: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def mend(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_unix_server(self._connect, self.path)

    async def cut(self) -> None:
        """End all connections, and refuse new ones."""
        assert self._server is not None
        self._server.close()
        for end in self._ends:
            end.close()
        self._ends.clear()
        self.path.unlink()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._node)
        self._ends += [writer, far_writer]
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()


async def test_what_a_node_that_vanished_saw_meanwhile_is_told_or_counted(tmp_path: Path) -> None:
    async with running(tmp_path, hubble_event_buffer_capacity=1023) as server:
        cable = Cable(server.app._settings.socket_path, tmp_path / "cable.sock")
        await cable.mend()
        async with relay_over(tmp_path, str(cable.path)) as relay:
            await server.feed_flows(traffic(1, pods=4))
            async with grpc.aio.insecure_channel(f"unix://{tmp_path}/relay.sock") as channel:
                stream = Stream(channel, observer_pb2.GetFlowsRequest(follow=True, number=1))
                await eventually(lambda: len(stream.times) == 1)
                await server.feed_flows(traffic(500, pods=4))
                await eventually(lambda: len(stream.times) == 501)
                await cable.cut()
                await eventually(lambda: not relay.pool.connections[0].available)
                for seed in range(4):
                    await server.feed_flows(traffic(5000, pods=4, seed=seed))
                await cable.mend()
                found: Counter[str] = Counter()

                def told() -> bool:
                    found.clear()
                    return sum(count(found, each) for each in stream.responses) == 20_501

                await eventually(told, 30)
                await stream.cancel()
        await cable.cut()
    lost = found["HUBBLE_RING_BUFFER"]
    assert lost > 0
    assert found == {FLOWS: 20_501 - lost, "HUBBLE_RING_BUFFER": lost}
    assert len(set(stream.times)) == len(stream.times)


def read_until(client: RawClient, wanted: int) -> Counter[str]:
    """Read until flows and losses add up."""
    from h2.events import DataReceived

    buffer, found = b"", Counter[str]()
    client.socket.settimeout(30)
    while wanted > 0:
        for happened in client.h2.receive_data(client.socket.recv(1 << 16)):
            if isinstance(happened, DataReceived):
                buffer += happened.data
                length = happened.flow_controlled_length
                client.h2.acknowledge_received_data(length, happened.stream_id)
        client.flush()
        while len(buffer) >= 5 and len(buffer) >= 5 + int.from_bytes(buffer[1:5], "big"):
            size = 5 + int.from_bytes(buffer[1:5], "big")
            wanted -= count(found, observer_pb2.GetFlowsResponse.FromString(buffer[5:size]))
            buffer = buffer[size:]
    return found
