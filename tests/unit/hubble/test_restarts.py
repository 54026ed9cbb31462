"""A server that was killed and comes back has missed nothing that the ring still holds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest
from hubble_server.app import App
from hubble_server.settings import ServerSettings
from observer import observer_pb2, observer_pb2_grpc

from tests.needing import need
from tests.unit.hubble.loads import Emitter, emitter, snapshot
from tests.unit.hubble.test_following_the_agent import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def kernel() -> Iterator[Emitter]:
    try:
        context = emitter("tE-restart")
        made = context.__enter__()
    except (ImportError, OSError) as error:
        need(f"a ring in the kernel needs root, bcc and a bpffs: {error}")
        raise
    try:
        yield made
    finally:
        context.__exit__(None, None, None)


async def flows_of_a_server(
    tmp_path: Path, kernel: Emitter, wanted: int
) -> list[observer_pb2.GetFlowsResponse]:
    """Start a server, wait until it has so many flows, return them, stop it."""
    settings = ServerSettings(node_name="node1", state_dir=tmp_path, bpf_root=kernel.root)
    async with App(settings) as app:
        async with asyncio.timeout(30):
            while len(app.store) < wanted:  # noqa: ASYNC110 - a store has no such event
                await asyncio.sleep(0.01)
        async with grpc.aio.insecure_channel(f"unix:{settings.socket_path}") as channel:
            stub = observer_pb2_grpc.ObserverStub(channel)
            return [each async for each in stub.GetFlows(observer_pb2.GetFlowsRequest())]


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
