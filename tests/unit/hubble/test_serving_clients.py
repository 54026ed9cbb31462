"""What clients of a running server see on the wire."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from cilium.flows.v1 import flows_pb2, flows_pb2_grpc
from cilium.metadata.v1 import metadata_pb2
from cilium_core import abi
from flow import flow_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hubble_server.facts import VERSION
from observer import observer_pb2
from peer import peer_pb2, peer_pb2_grpc

from tests.unit.hubble.conftest import Server, running
from tests.unit.hubble.loads import address_of, event, join, traffic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

make = metadata_pb2.Update
Filter = flow_pb2.FlowFilter


async def failure(call: Any) -> grpc.aio.AioRpcError:
    async def finish() -> None:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finish()
    return caught.value


async def test_flows_come_back_in_order_with_names(server: Server) -> None:
    await server.feed_flows(traffic(3000, pods=4))
    found = await server.get()
    times = [response.time.ToNanoseconds() for response in found]
    assert sorted(set(times)) == times
    assert len(found) == 3000
    assert {"node1"} == {response.node_name for response in found}
    assert {"pod-0", "pod-1", "pod-2", "pod-3"} == {each.flow.source.pod_name for each in found}
    assert found == [response async for response in batches(server)]


async def batches(server: Server) -> AsyncIterator[observer_pb2.GetFlowsResponse]:
    stub = flows_pb2_grpc.FlowsServiceStub(server.channel)
    async for batch in stub.GetFlowBatches(observer_pb2.GetFlowsRequest()):
        for data, time_ns in zip(batch.responses, batch.times_ns, strict=True):
            response = observer_pb2.GetFlowsResponse.FromString(data)
            assert response.time.ToNanoseconds() == time_ns
            yield response


async def test_filters_mask_and_number_work_together(server: Server) -> None:
    await server.feed_flows(traffic(500, pods=4))
    found = await server.get(
        number=5,
        whitelist=[Filter(source_pod=["ns0/pod-0"], verdict=[flow_pb2.FORWARDED])],
        blacklist=[Filter(destination_port=["80"])],
        field_mask=FieldMask(paths=["source.pod_name", "l4", "verdict"]),
    )
    assert len(found) == 5
    for response in found:
        assert response.flow.source.pod_name == "pod-0"
        assert response.flow.l4.TCP.destination_port != 80
        assert (
            response.node_name,
            response.flow.uuid,
            response.HasField("time"),
        ) == ("", "", False)


async def test_a_stream_that_finds_nothing_ends_well(server: Server) -> None:
    assert await server.get() == []
    assert await server.get(number=7, whitelist=[Filter(source_pod=["x/y"])]) == []


async def test_following_is_live(server: Server) -> None:
    call = server.observer.GetFlows(observer_pb2.GetFlowsRequest(follow=True))
    await call.initial_metadata()
    for port in (1, 2, 3):
        server.feed.put(event(type=4, proto=6, sport=port, saddr=address_of(0)))
        response = await asyncio.wait_for(call.read(), 30)
        assert port == response.flow.l4.TCP.source_port
    call.cancel()


async def test_many_followers_all_see_everything(server: Server) -> None:
    async def follow() -> list[int]:
        call = server.observer.GetFlows(observer_pb2.GetFlowsRequest(follow=True))
        await call.initial_metadata()
        ready.release()
        ports = [(await call.read()).flow.l4.TCP.source_port for _ in range(50)]
        call.cancel()
        return ports

    ready = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(follow()) for _ in range(20)]
    for _ in tasks:
        await ready.acquire()
    for start in range(1, 51, 10):
        ports = range(start, start + 10)
        server.feed.put(join([event(type=4, proto=6, sport=port) for port in ports]))
    assert [list(range(1, 51))] * 20 == await asyncio.wait_for(asyncio.gather(*tasks), 60)


async def test_lost_events_of_the_kernel_are_told(server: Server) -> None:
    server.feed.put(event(type=4), lost={1: 12})
    await server.until(lambda: server.app.store.head == 2)
    _, lost = await server.get()
    assert lost.lost_events.source == flow_pb2.PERF_EVENT_RING_BUFFER
    assert (lost.lost_events.num_events_lost, lost.lost_events.cpu.value) == (12, 1)
    assert lost.lost_events.first.ToNanoseconds() <= lost.lost_events.last.ToNanoseconds()


class RawClient:
    """An HTTP/2 client that reads only when told to, to play a slow or rude one."""

    def __init__(self, path: Path) -> None:
        from h2.connection import H2Connection

        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(str(path))
        self.h2 = H2Connection()
        self.h2.initiate_connection()
        self.flush()

    def call(self, method: str, message: bytes, prefix: bytes | None = None) -> None:
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "x"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        self.h2.send_headers(1, headers)
        head = b"\0" + struct.pack(">I", len(message)) if prefix is None else prefix
        self.h2.send_data(1, head + message, end_stream=True)
        self.flush()

    def headers(self) -> None:
        """Read until the server has begun to answer."""
        from h2.events import ResponseReceived

        self.socket.settimeout(30)
        while not any(
            isinstance(happened, ResponseReceived)
            for happened in self.h2.receive_data(self.socket.recv(4096))
        ):
            self.flush()

    def close(self) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())


async def test_a_slow_client_is_told_what_it_missed_and_holds_up_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, hubble_event_buffer_capacity=63) as server:
        slow = RawClient(server.app._settings.socket_path)
        request = observer_pb2.GetFlowsRequest(follow=True)
        slow.call("/observer.Observer/GetFlows", request.SerializeToString())
        await asyncio.to_thread(slow.headers)
        for _ in range(6):
            await server.feed_flows(traffic(3000, pods=4))
            assert len(await server.get()) == 63
        total = await asyncio.to_thread(read_all, slow, server.app.store.head)
    missed, seen = total
    assert missed > 0
    assert missed + seen == 18_000


def read_all(client: RawClient, wanted: int) -> tuple[int, int]:
    """Read until losses and flows add up; returns both."""
    from h2.events import DataReceived

    buffer, missed, seen = b"", 0, 0
    client.socket.settimeout(30)
    while missed + seen < wanted:
        for happened in client.h2.receive_data(client.socket.recv(65536)):
            if isinstance(happened, DataReceived):
                buffer += happened.data
                length = happened.flow_controlled_length
                client.h2.acknowledge_received_data(length, happened.stream_id)
        client.flush()
        while len(buffer) >= 5 and len(buffer) >= 5 + int.from_bytes(buffer[1:5], "big"):
            size = 5 + int.from_bytes(buffer[1:5], "big")
            response = observer_pb2.GetFlowsResponse.FromString(buffer[5:size])
            buffer = buffer[size:]
            if response.HasField("lost_events"):
                assert response.lost_events.source == flow_pb2.HUBBLE_RING_BUFFER
                missed += response.lost_events.num_events_lost
            else:
                seen += 1
    client.close()
    return missed, seen


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (
            {"first": True, "follow": True},
            "INVALID_ARGUMENT",
            "first cannot be specified with follow",
        ),
        ({"whitelist": [Filter(source_ip=["x"])]}, "UNKNOWN", 'invalid IP address "x" in filter'),
        ({"blacklist": [Filter(dns_query=["("])]}, "UNKNOWN", "invalid DNS query filter"),
        ({"field_mask": FieldMask(paths=["source.id"])}, "UNKNOWN", "invalid fieldmask"),
        ({"since": Timestamp(nanos=-1)}, "UNKNOWN", "since"),
        ({"until": Timestamp(seconds=-5)}, "UNKNOWN", "until"),
    ],
)
async def test_requests_that_make_no_sense_say_why(
    server: Server, request_: dict[str, Any], code: str, text: str
) -> None:
    error = await failure(server.observer.GetFlows(observer_pb2.GetFlowsRequest(**request_)))
    assert getattr(grpc.StatusCode, code) == error.code()
    assert error.details().startswith(text)


async def test_bytes_that_are_no_request_are_refused_and_the_server_goes_on(server: Server) -> None:
    for data in (b"\xff\xff", b"\x0a\xff"):
        call = server.channel.unary_stream("/observer.Observer/GetFlows")(data)
        assert (await failure(call)).code() == grpc.StatusCode.INTERNAL
    rude = RawClient(server.app._settings.socket_path)
    rude.call("/observer.Observer/GetFlows", b"", prefix=b"\0\xff\xff\xff\xff")
    rude.close()
    garbage = socket.socket(socket.AF_UNIX)
    garbage.connect(str(server.app._settings.socket_path))
    garbage.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    garbage.close()
    assert await server.get() == []


async def test_a_deadline_ends_a_stream(server: Server) -> None:
    call = server.observer.GetFlows(observer_pb2.GetFlowsRequest(follow=True), timeout=0.2)
    assert (await failure(call)).code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_the_version_is_in_the_headers_of_every_call(server: Server) -> None:
    await server.feed_flows(event(type=4))
    for call in (
        server.observer.ServerStatus(observer_pb2.ServerStatusRequest()),
        server.observer.GetFlows(observer_pb2.GetFlowsRequest()),
    ):
        assert dict(await call.initial_metadata())["hubble-server-version"] == VERSION


async def test_status_and_namespaces(server: Server) -> None:
    await server.feed_flows(traffic(100, pods=4))
    status = await server.observer.ServerStatus(observer_pb2.ServerStatusRequest())
    assert (status.num_flows, status.max_flows, status.seen_flows) == (100, 4095, 100)
    # over the time that the server has been up, a second at least
    assert status.flows_rate == pytest.approx(100 / max(status.uptime_ns / 1e9, 1))
    assert status.uptime_ns > 0
    assert f"cilium v{VERSION}" == status.version
    assert not status.HasField("num_connected_nodes")
    found = await server.observer.GetNamespaces(observer_pb2.GetNamespacesRequest())
    assert [(each.cluster, each.namespace) for each in found.namespaces] == [
        ("", "ns0"),
        ("", "ns1"),
    ]


async def test_what_a_node_does_not_implement(server: Server) -> None:
    error = await failure(server.observer.GetNodes(observer_pb2.GetNodesRequest()))
    assert (
        error.code(),
        error.details(),
    ) == (grpc.StatusCode.UNIMPLEMENTED, "GetNodes not implemented")
    unknown = await failure(server.channel.unary_unary("/observer.Observer/Nonsense")(b""))
    assert unknown.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_agent_and_debug_events(server: Server) -> None:
    created = flow_pb2.AgentEvent(type=flow_pb2.ENDPOINT_CREATED)
    server.app.update(make(agent_event=metadata_pb2.AgentEvent(event=created)))
    await server.feed_flows(event(type=2, subtype=2, endpoint=3, src_identity=5, dst_identity=7))
    await server.until(lambda: server.app.store.head == 2)
    agent = server.observer.GetAgentEvents(observer_pb2.GetAgentEventsRequest())
    (response,) = [each async for each in agent]
    assert (created, "node1") == (response.agent_event, response.node_name)
    debug = server.observer.GetDebugEvents(observer_pb2.GetDebugEventsRequest())
    (response,) = [each async for each in debug]
    told = response.debug_event
    assert (told.type, told.source.ID, told.arg1.value) == (flow_pb2.DBG_LOCAL_DELIVERY, 3, 5)
    assert told.source.pod_name == "pod-2"
    assert told.message == "Attempting local delivery for container id 5 from seclabel 7"
    contradiction = observer_pb2.GetAgentEventsRequest(first=True, follow=True)
    error = await failure(server.observer.GetAgentEvents(contradiction))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_raw_events_are_streamed_as_the_kernel_wrote_them(server: Server) -> None:
    stub = flows_pb2_grpc.FlowsServiceStub(server.channel)
    call = stub.StreamEvents(flows_pb2.StreamEventsRequest(types=[1], related_to=[3]))
    await call.initial_metadata()
    await server.until(lambda: bool(server.app.ingest._taps))
    wanted = event(type=1, subtype=133, endpoint=3)
    server.feed.put(join([event(type=4, endpoint=3), wanted, event(type=1)]), lost={0: 4})
    batch = await asyncio.wait_for(call.read(), 30)
    found = np.frombuffer(batch.records, dtype=abi.dtype("event"))
    assert [tuple(found[0][["type", "subtype", "endpoint"]])] == [(1, 133, 3)]
    assert len(found) == 1
    assert dict(batch.lost) == {0: 4}
    now = int(found["time_ns"][0]) + batch.clock_offset_ns
    assert abs(now - time.time_ns()) < 5_000_000_000
    call.cancel()
    await server.until(lambda: not server.app.ingest._taps)


async def test_peers_are_told_live(tmp_path: Path) -> None:
    async with running(tmp_path, hubble_listen_address="127.0.0.1:0", pods=0) as server:
        server.app.peers._settings = type(server.app.peers._settings)(port=4244)
        call = peer_pb2_grpc.PeerStub(server.channel).Notify(peer_pb2.NotifyRequest())
        told = [await call.read()]
        node = metadata_pb2.LocalNode(name="node1", cluster="c2", addresses=["172.30.0.11", "::5"])
        other = metadata_pb2.Node(name="node2", cluster="default", addresses=["fd00::2"])
        server.app.replace([make(local_node=node), make(node=other)])
        told += [await asyncio.wait_for(call.read(), 30) for _ in range(3)]
        other.addresses[:] = ["172.30.0.12"]
        server.app.update(make(node=other))
        server.app.update(make(node=other))
        server.app.update(make(node_deleted="default/node2"))
        told += [await asyncio.wait_for(call.read(), 30) for _ in range(2)]
        call.cancel()
    changes = [(peer_pb2.ChangeNotificationType.Name(each.type), each.name) for each in told]
    assert changes[0] == ("PEER_ADDED", "node1")
    assert changes[1] == ("PEER_DELETED", "node1")
    assert {("PEER_ADDED", "node2"), ("PEER_ADDED", "c2/node1")} == set(changes[2:4])
    assert changes[4:] == [("PEER_UPDATED", "node2"), ("PEER_DELETED", "node2")]
    addresses = {each.name: each.address for each in told[2:4]}
    assert addresses == {"node2": "[fd00::2]:4244", "c2/node1": "172.30.0.11:4244"}


async def test_health_knows_the_names_that_clients_ask_for(server: Server) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    for name in ("", "hubble.server.Observer", "hubble.server.Ring"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    error = await failure(stub.Check(health_pb2.HealthCheckRequest(service="observer.Observer")))
    assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_and_describes_the_services(server: Server) -> None:
    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol="observer.Observer")

    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    listed, described = [each async for each in stub.ServerReflectionInfo(ask())]
    names = {each.name for each in listed.list_services_response.service}
    assert {"observer.Observer", "peer.Peer", "cilium.flows.v1.FlowsService"} <= names
    assert {"grpc.reflection.v1.ServerReflection", "grpc.health.v1.Health"} <= names
    assert len(described.file_descriptor_response.file_descriptor_proto) >= 3


async def test_the_socket_is_for_root_and_its_group_and_goes_with_the_server(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as server:
        path = server.app._settings.socket_path
        assert path.stat().st_mode & 0o777 == 0o660
    assert not path.exists()
    path.touch()
    path.unlink()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    async with running(tmp_path) as server:
        assert await server.get() == []
