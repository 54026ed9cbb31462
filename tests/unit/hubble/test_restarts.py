"""A server that was killed and comes back has missed nothing that the ring still holds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from cilium_core import abi
from flow import flow_pb2
from hubble_server.app import App
from hubble_server.ring.positions import ReadPositions
from hubble_server.settings import ServerSettings
from observer import observer_pb2, observer_pb2_grpc

from tests.unit.hubble.loads import snapshot
from tests.unit.hubble.test_following_the_agent import serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.hubble.loads import Emitter


async def flows_of_a_server(
    tmp_path: Path, kernel: Emitter, wanted: int, history: Path | None = None, **request: Any
) -> list[observer_pb2.GetFlowsResponse]:
    """Start a server, wait until it has so many flows, return them, stop it."""
    settings = ServerSettings(
        node_name="node1",
        state_dir=tmp_path,
        bpf_root=kernel.root,
        hubble_event_buffer_capacity=65535,
        hubble_lost_event_send_interval=0.01,
        hubble_history_dir=history,
    )
    async with App(settings) as app:
        async with asyncio.timeout(30):
            while len(app.store) < wanted:  # noqa: ASYNC110 - a store has no such event
                await asyncio.sleep(0.01)
        async with grpc.aio.insecure_channel(f"unix:{settings.socket_path}") as channel:
            stub = observer_pb2_grpc.ObserverStub(channel)
            call = stub.GetFlows(observer_pb2.GetFlowsRequest(first=True, **request))
            return [each async for each in call]


async def test_events_of_the_time_between_two_servers_become_flows_with_names(
    tmp_path: Path, kernel: Emitter
) -> None:
    async with serving(tmp_path / "metadata.sock", snapshot(40)):
        kernel.emit(10)
        first = await flows_of_a_server(tmp_path, kernel, 10)
        kernel.emit(5)
        second = await flows_of_a_server(tmp_path, kernel, 15)
    assert (len(first), len(second)) == (10, 15)
    assert {"pod-0"} == {response.flow.source.pod_name for response in second}
    last = max(response.time.ToNanoseconds() for response in first)
    newer = [each for each in second if each.time.ToNanoseconds() > last + 1_000_000]
    assert len(newer) == 5


async def test_without_an_agent_flows_come_without_names(tmp_path: Path, kernel: Emitter) -> None:
    kernel.emit(3)
    found = await flows_of_a_server(tmp_path, kernel, 3)
    assert {("10.244.0.1", "", 1000)} == {
        (each.flow.IP.source, each.flow.source.pod_name, each.flow.source.identity)
        for each in found
    }


async def test_what_was_overwritten_while_no_server_ran_is_counted(
    tmp_path: Path, kernel: Emitter
) -> None:
    kernel.emit(10)
    assert len(await flows_of_a_server(tmp_path, kernel, 10)) == 10
    size = abi.EVENT_RING_SIZE
    kernel.emit(size + 100)
    none = flow_pb2.FlowFilter(uuid=["none"])
    found = await flows_of_a_server(tmp_path, kernel, size + 1, whitelist=[none])
    assert [each.lost_events.num_events_lost for each in found] == [100]


async def test_a_history_has_no_event_twice(tmp_path: Path, kernel: Emitter) -> None:
    history = tmp_path / "history"
    for emitted, new in ((10, 10), (15, 5), (15, 0), (22, 7)):
        if new:
            kernel.emit(new)
        found = await flows_of_a_server(tmp_path, kernel, new, history)
        assert len(found) == emitted
    assert len({each.flow.uuid for each in found}) == 22


async def test_positions_of_another_ring_are_not_believed(tmp_path: Path) -> None:
    kept = ReadPositions(tmp_path / "read")
    assert kept.attach(map_id=7, cpus=2) is None
    kept.note([5, 6], head=11)
    assert ReadPositions(tmp_path / "read").attach(map_id=7, cpus=2) == [5, 6]
    assert ReadPositions(tmp_path / "read").attach(map_id=8, cpus=2) is None
    assert ReadPositions(tmp_path / "read").attach(map_id=8, cpus=1) is None


async def test_a_position_is_kept_when_the_history_has_it(tmp_path: Path) -> None:
    written = [0]
    kept = ReadPositions(tmp_path / "read")
    kept.kept = lambda: written[0]
    kept.attach(map_id=7, cpus=1)
    for head in (10, 20, 30):
        kept.note([head], head)
    for events, expected in ((9, [0]), (25, [20]), (30, [30])):
        written[0] = events
        kept.settle()
        assert ReadPositions(tmp_path / "read").attach(map_id=7, cpus=1) == expected


async def test_without_a_place_for_the_positions_events_are_read_all_the_same(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    kept = ReadPositions(tmp_path / "file" / "read")
    assert kept.attach(map_id=7, cpus=1) is None
    kept.note([5], head=5)
