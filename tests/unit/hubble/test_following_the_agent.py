"""The server follows the agent's metadata, and goes on without it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
from cilium.metadata.v1 import metadata_pb2, metadata_pb2_grpc

from tests.unit.hubble.conftest import Server, running
from tests.unit.hubble.loads import address_of, event, snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path


class Agent(metadata_pb2_grpc.MetadataServiceServicer):
    """Says what the test wants said."""

    def __init__(self, updates: Sequence[metadata_pb2.Update]) -> None:
        self.updates = list(updates)
        self.changes: asyncio.Queue[metadata_pb2.Update] = asyncio.Queue()

    async def Watch(  # noqa: N802 - the name in the proto
        self, request: metadata_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[metadata_pb2.WatchResponse]:
        middle = len(self.updates) // 2
        yield metadata_pb2.WatchResponse(revision=1, updates=self.updates[:middle])
        yield metadata_pb2.WatchResponse(
            revision=2, updates=self.updates[middle:], snapshot_complete=True
        )
        while True:
            yield metadata_pb2.WatchResponse(updates=[await self.changes.get()])


@asynccontextmanager
async def serving(path: Path, updates: Sequence[metadata_pb2.Update]) -> AsyncIterator[Agent]:
    agent = Agent(updates)
    server = grpc.aio.server()
    metadata_pb2_grpc.add_MetadataServiceServicer_to_server(agent, server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield agent
    finally:
        await server.stop(None)


async def name_of_the_source(server: Server) -> str:
    await server.feed_flows(event(type=4, saddr=address_of(0), src_identity=1000))
    (response,) = await server.get(number=1)
    return str(response.flow.source.pod_name)


async def test_names_survive_the_agent_and_follow_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "metadata.sock"
    async with running(tmp_path, pods=0) as server:
        client = server.app.metadata
        assert await name_of_the_source(server) == ""
        async with serving(path, snapshot(2)) as agent:
            await server.until(lambda: client.connected)
            await server.until(lambda: server.app.directory.interfaces.stop > 1)
            assert await name_of_the_source(server) == "pod-0"
            agent.changes.put_nowait(metadata_pb2.Update(endpoint_deleted=1))
            await server.until(lambda: 1 not in server.app.directory._endpoints)
            assert await name_of_the_source(server) == ""
            agent.changes.put_nowait(next(u for u in snapshot(1) if u.HasField("endpoint")))
            await server.until(lambda: 1 in server.app.directory._endpoints)
            assert await name_of_the_source(server) == "pod-0"
        await server.until(lambda: not client.connected)
        assert await name_of_the_source(server) == "pod-0"
        renamed = snapshot(1)
        for update in renamed:
            if update.HasField("endpoint"):
                update.endpoint.pod_name = "renamed"
        async with serving(path, renamed):
            await server.until(lambda: client.connected)
            await server.until(lambda: 2 not in server.app.directory._endpoints)
            assert await name_of_the_source(server) == "renamed"


async def test_an_agent_that_dies_within_its_snapshot_changes_nothing(tmp_path: Path) -> None:
    class Dying(Agent):
        async def Watch(  # noqa: N802
            self, request: metadata_pb2.WatchRequest, context: Any
        ) -> AsyncIterator[metadata_pb2.WatchResponse]:
            yield metadata_pb2.WatchResponse(revision=1, updates=self.updates)
            asked.set()

    asked = asyncio.Event()
    async with running(tmp_path, pods=2) as server:
        dying = grpc.aio.server()
        metadata_pb2_grpc.add_MetadataServiceServicer_to_server(Dying(snapshot(1)[:1]), dying)
        dying.add_insecure_port(f"unix:{tmp_path / 'metadata.sock'}")
        await dying.start()
        await asyncio.wait_for(asked.wait(), 30)
        assert await name_of_the_source(server) == "pod-0"
        await dying.stop(None)
